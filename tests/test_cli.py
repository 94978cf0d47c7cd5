"""The command line: what it lists, what it refuses, and workspaces that are never left half-changed."""

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import stages
import stages.commands
from pipeline.base import guard, plugins
from pipeline.base.errors import EnvironmentFault, IntegrityError, SettingsError, UnusableRuntimeError
from pipeline.base.records import Artefact, seal
from pipeline.base.workspace import Workspace
from pipeline.settings.params import load
from stages import __main__ as cli
from stages.commands import demo, doctor, predict, run, schema

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "recipes" / "smoke.yaml"


def modules(package: object, without: set[str] = frozenset()) -> set[str]:
    found = pkgutil.iter_modules(package.__path__)
    return {module.name for module in found if not module.ispkg} - set(without)


STAGES = modules(stages, {"__main__", *cli.HELPERS})
COMMANDS = modules(stages.commands)


@pytest.fixture
def decant(monkeypatch, capsys):
    """Runs `decant WORDS` in this process, 100 columns wide: (exit status, stdout, stderr)."""

    def invoke(*words: str) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "argv", ["decant", *words])
        monkeypatch.setattr(cli.guard.signal, "signal", lambda *args: None)
        monkeypatch.setenv("TQDM_DISABLE", "1")
        monkeypatch.setattr(cli.app, "registered_commands", [])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return invoke


# --- the list ------------------------------------------------------------------------------------------------------


def test_alone_it_lists_every_stage_and_command_with_one_line_each(decant):
    """Each on one line of at most 100 columns, stages in the order of dvc.yaml."""
    status, out, err = decant()
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert all(len(line.rstrip()) <= 100 for line in lines)
    listed = [line.split()[0] for line in lines if re.match(r"  \w+ +[A-Z]", line)]
    assert set(listed) == STAGES | COMMANDS
    assert len(listed) == len(set(listed))
    order = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    assert listed[: len(order)] == order
    # a wrapped line would start with blanks
    assert not [line for line in lines if line.startswith("      ") and line.strip()]


@pytest.mark.parametrize("name", sorted(STAGES | COMMANDS))
def test_every_first_line_is_a_short_sentence(name):
    """It is the stage's one line, read without importing it."""
    folder = ROOT / "stages" / ("commands" if name in COMMANDS else "")
    line = cli.first_line(folder / f"{name}.py")
    assert line.endswith(".")
    assert len(line) <= 87


def test_listing_does_not_import_anything_heavy():
    """In a fresh process: neither torch nor a runtime, nor the stages."""
    code = (
        "import sys\nfrom stages import __main__ as cli\ncli._register_commands()\ncli._stage_lines()\n"
        "print([m for m in sys.modules if m in {'torch', 'transformers', 'onnxruntime', 'coremltools', 'dvc'}])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help(decant, name):
    """With the docstring of its file and its options; examples keep their lines."""
    status, out, _ = decant(name, "--help")
    assert status == 0
    assert cli.first_line(ROOT / "stages" / "commands" / f"{name}.py") in " ".join(out.split())
    examples = re.findall(r"^    decant .*$", importlib.import_module(f"stages.commands.{name}").__doc__ or "", re.M)
    assert all(example.strip() in [line.strip() for line in out.splitlines()] for example in examples)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing",), "error: No such command 'nothing'; see `decant --help`"),
        (("check", "--nothing"), "error: No such option: --nothing"),
        (("check", "a", "b"), "error: Got unexpected extra argument"),
        (("run",), "error: Missing argument 'recipe'"),
        (("predict", "--top", "0", "x"), "error: Invalid value for '--top': "),
        (("run", "banking"), "error: no recipe 'banking' and no such file; did you mean 'banking77'? known: "),
        (("check", "nothing.yaml"), "error: nothing.yaml: no such file; run the command in a folder that has one"),
        (("predict", "--workspace", "nothing", "x"), "error: nothing/params.yaml: no such file"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_2(decant, words, message):
    """No usage page, no traceback."""
    status, out, err = decant(*words)
    assert (status, out) == (2, "")
    assert err.lower().startswith(message.lower())
    assert err.count("\n") == 1


def test_check_lists_every_problem_of_a_file(decant, tmp_path):
    """Status 2 with all of them, 0 with none."""
    bad = tmp_path / "params.yaml"
    bad.write_text(SMOKE.read_text().replace("seed: 0", "sed: 0").replace("layers: 2", "layers: two"))
    status, _, err = decant("check", str(bad))
    assert status == 2
    assert "sed: unknown key 'sed'; did you mean 'seed'" in err and "student.layers: found the text 'two'" in err
    status, out, _ = decant("check", str(SMOKE))
    assert (status, out) == (0, f"{SMOKE}: no problems; targets: cpu, ios\n")


# --- schema and doctor ---------------------------------------------------------------------------------------------


def test_schema_is_written_where_editors_look(tmp_path, monkeypatch, capsys):
    """In the current folder."""
    monkeypatch.chdir(tmp_path)
    schema.command()
    for name, text in schema.texts().items():
        assert (tmp_path / name).read_text() == text
    assert "wrote params.schema.json\n" in capsys.readouterr().out


KINDS = ("format", "runtime", "device", "bundle", "client", "tokenizer")


def test_the_doctor_speaks_of_everything_a_target_or_a_bundle_can_name(capsys):
    """Each with a reason or a note; what signs, the disk and the GPU too."""
    found = doctor.findings()
    assert {(kind, name) for kind, name, _, _ in found} == {
        *((kind, name) for kind in KINDS for name in plugins.names(kind)),
        ("release", "signing"),
        ("hardware", "cuda"),
        ("hardware", "disk"),
    }
    for _, name, reason, note in found:
        assert reason is None or (reason and not note) or name == "disk"
    rows = {(kind, name): reason for kind, name, reason, _ in found}
    assert rows["runtime", "pytorch"] is None and rows["format", "onnx"] is None and rows["device", "local"] is None
    if sys.platform != "darwin":
        assert rows["runtime", "coreml"] is None or "mac" in rows["runtime", "coreml"].lower()


def test_the_doctor_prints_a_row_for_each_and_a_missing_package_is_a_reason(monkeypatch, capsys):
    """A package that cannot be imported stops neither the doctor nor the other rows."""
    real = plugins.load

    def load_without_coreml(kind: str, name: str) -> object:
        if name == "coreml":
            raise ImportError("No module named 'coremltools'")
        return real(kind, name)

    monkeypatch.setattr(doctor.plugins, "load", load_without_coreml)
    doctor.command()
    out = capsys.readouterr().out
    assert out.count("cannot be imported: No module named 'coremltools'") == 2
    assert len(re.findall(r"^int8 kernels: .+; .+$", out, re.MULTILINE)) == 1
    assert re.search(r"runtime +onnxruntime +yes +\d", out)


# --- run: settings and workspaces ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "where", "value"),
    [
        ("seed=1", ("seed",), 1),
        ("distill.training.learning_rate=3.0e-5", ("distill", "training", "learning_rate"), 3e-5),
        ("student.init.layers=[1, 3]", ("student", "init", "layers"), [1, 3]),
        ("targets.cpu.budgets={size_mb: 1.0}", ("targets", "cpu", "budgets"), {"size_mb": 1.0}),
        ("data.hub.dataset=a=b", ("data", "hub", "dataset"), "a=b"),
        ("student.hidden=", ("student", "hidden"), None),
        ("new.section.key=1", ("new", "section", "key"), 1),
    ],
)
def test_a_change_is_applied_in_place(change, where, value):
    """VALUE is YAML; a new section is made, for the check behind it to judge."""
    settings = yaml.safe_load(SMOKE.read_text())
    run.apply_change(settings, change)
    for key in where:
        settings = settings[key]
    assert settings == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed", "--set seed: expected KEY=VALUE, such as distill.seeds=1"),
        ("seed.of.all=1", "--set seed.of.all=1: 'seed' is no section"),
        ("seed=[1", r"--set seed=\[1: '\[1' is not valid YAML; quote it, or close its brackets"),
    ],
)
def test_a_change_that_cannot_be_applied_is_refused(change, message):
    """With what was expected."""
    with pytest.raises(SettingsError, match=message):
        run.apply_change(yaml.safe_load(SMOKE.read_text()), change)


def test_a_recipe_is_found_by_name_or_path(tmp_path, monkeypatch):
    """Every file of recipes/ by its name, from any folder."""
    monkeypatch.chdir(tmp_path)
    for file in (ROOT / "recipes").glob("*.yaml"):
        assert run.find_recipe(file.stem) == file
    (tmp_path / "mine.yaml").write_text("")
    assert run.find_recipe("mine.yaml") == Path("mine.yaml")
    with pytest.raises(SettingsError, match=r"no recipe 'smok' and no such file; did you mean 'smoke'\? known: .*sst2"):
        run.find_recipe("smok")


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, ...]]:
    """What would have been asked of DVC; a started project is marked as DVC marks it."""
    asked: list[tuple[str, ...]] = []

    def record(folder: Path, *words: str, check: bool = True) -> int:
        asked.append(words)
        if words[0] == "init":
            (folder / ".dvc").mkdir()
        return 0

    monkeypatch.setattr(run, "dvc", record)
    return asked


def code_of(folder: Path) -> dict[str, bytes]:
    files = [file for name in run.CODE for file in [folder / name, *(folder / name).rglob("*")]]
    return {
        f.relative_to(folder).as_posix(): f.read_bytes() for f in files if f.is_file() and "__pycache__" not in f.parts
    }


def test_a_workspace_has_the_code_and_the_changed_settings(tmp_path, calls):
    """All of the code, none of its caches; DVC is set up once."""
    folder = tmp_path / "with space"
    run.prepare_workspace(SMOKE, folder, None, ["seed=7"])
    assert load(folder / "params.yaml").model_dump() == load(SMOKE).model_copy(update={"seed": 7}).model_dump()
    assert code_of(folder) == code_of(ROOT)
    assert not list(folder.rglob("__pycache__"))
    assert calls == [("init", "--no-scm", "--quiet"), ("config", "core.analytics", "false")]
    run.prepare_workspace(SMOKE, folder, None, [])
    assert len(calls) == 2
    assert load(folder / "params.yaml", with_plugins=False).seed == 0


def test_a_workspace_follows_the_code_and_keeps_what_was_made(tmp_path, calls):
    """A changed file is renewed, a removed one removed; artefacts stay."""
    folder = tmp_path / "ws"
    run.prepare_workspace(SMOKE, folder, None, [])
    (folder / "pipeline" / "errors.py").write_text("old")
    (folder / "pipeline" / "gone.py").write_text("old")
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "machine.json").write_text("{}")
    run.prepare_workspace(SMOKE, folder, None, [])
    assert code_of(folder) == code_of(ROOT)
    assert (folder / "artifacts" / "machine.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["sed=1"], r"smoke.yaml, changed: sed: unknown key 'sed'; did you mean 'seed'"),
        (["student.layers=0"], r"smoke.yaml, changed: student.layers: found 0, expected greater than or equal to 1"),
        (["distill.training.learning_rate=1e-4"], r"changed: distill.training.learning_rate: found the text '1e-4'"),
        (["targets.cpu.runtime=onnx"], r"changed: targets.cpu.runtime: no runtime 'onnx'"),
    ],
)
def test_changed_settings_that_are_wrong_leave_the_workspace_as_it_was(tmp_path, calls, changes, message):
    """The message names the user's file, not the candidate, and no line that only the candidate has."""
    folder = tmp_path / "ws"
    run.prepare_workspace(SMOKE, folder, None, ["seed=3"])
    (folder / "pipeline" / "errors.py").write_text("of the run before")
    with pytest.raises(SettingsError, match=message) as caught:
        run.prepare_workspace(SMOKE, folder, None, changes)
    assert "candidate" not in str(caught.value)
    assert load(folder / "params.yaml", with_plugins=False).seed == 3
    assert (folder / "pipeline" / "errors.py").read_text() == "of the run before"
    assert not list(folder.glob(".params*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: [", r"mine.yaml: line \d+, column \d+: not valid YAML"),
        (b"caf\xe9: 1", r"mine.yaml: found a byte that is not UTF-8 at offset 3"),
        (b"", r"mine.yaml: found no settings"),
        (b"[" * 100_000, r"mine.yaml: found more than 20,000 values or 20 levels"),
        (b"seed: 0\nseed: 1", r"mine.yaml:2: seed: key 'seed' stands twice, in lines 1 and 2"),
        (b"# a\n\n\nsed: 0", r"mine.yaml:4: sed: unknown key 'sed'"),
    ],
)
def test_a_settings_file_of_ones_own_that_is_wrong_is_refused_with_its_own_lines(tmp_path, calls, content, message):
    """Before the workspace exists, or with nothing in it."""
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        run.prepare_workspace(tmp_path / "mine.yaml", tmp_path / "ws", None, [])
    assert not (tmp_path / "ws" / "params.yaml").exists()
    assert calls == []


def test_files_take_the_place_of_the_hub(tmp_path, calls, monkeypatch):
    """Whatever folder the workspace is in; names with colons and quotes are no YAML."""
    files = tmp_path / "odd: 'name' #1"
    files.mkdir()
    monkeypatch.chdir(tmp_path)
    run.prepare_workspace(ROOT / "recipes" / "banking77.yaml", tmp_path / "ws", Path(files.name), [])
    params = load(tmp_path / "ws" / "params.yaml", with_plugins=False)
    assert (params.data.source, params.data.files.root) == ("files", str(files))
    with pytest.raises(SettingsError, match="--files nowhere: no such folder"):
        run.prepare_workspace(SMOKE, tmp_path / "ws", Path("nowhere"), [])


def test_a_real_dvc_project_is_made(tmp_path):
    """Once with DVC itself: it knows the stages, and the code under it."""
    folder = tmp_path / "ws"
    run.prepare_workspace(SMOKE, folder, None, [])
    assert "analytics = false" in (folder / ".dvc" / "config").read_text()
    with pytest.raises(EnvironmentFault, match=r"dvc nothing failed in .*ws with exit status \d+; see above"):
        run.dvc(folder, "nothing")


@pytest.mark.parametrize(
    ("result", "told", "expected"),
    [
        (0, None, 0),
        (255, 1, 1),  # the gate, or a breach of parity
        (255, 2, 2),
        (255, 3, 3),
        (255, None, 4),  # DVC itself failed, or the stage was killed before it could say
    ],
)
def test_the_exit_status_is_that_of_the_stage_even_through_dvc(tmp_path, monkeypatch, result, told, expected):
    """DVC turns every failure of a stage into 255; CI needs to tell a failed budget from a missing runtime."""

    def dvc(folder, *words, check):
        if told is not None:
            (folder / guard.STATUS).write_text(str(told))
        return result

    (tmp_path / guard.STATUS).parent.mkdir(parents=True)
    (tmp_path / guard.STATUS).write_text("1")  # of an earlier run: must not be believed
    monkeypatch.setattr(run, "dvc", dvc)
    assert run.reproduce(tmp_path) == expected
    assert run.reproduce(tmp_path, until="distill") == expected


def test_the_report_is_named_when_there_is_one(tmp_path, monkeypatch, capsys):
    """An absolute path, to open in a browser."""
    monkeypatch.setattr(run, "dvc", lambda *words, **options: 0)
    run.reproduce(tmp_path)
    assert "report" not in capsys.readouterr().out
    page = Workspace(tmp_path).report / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("-")
    run.reproduce(tmp_path)
    assert f"report: {page.resolve()}" in capsys.readouterr().out


def test_folders_in_the_settings_are_meant_from_where_the_command_is_run(tmp_path, monkeypatch):
    """Not from within the workspace; a hub id and a package stay as they are."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = {"data": {"files": {"root": "mine"}}, "teacher": {"model": "org/model"}}
    run._resolve_paths(settings)
    assert settings["data"]["files"]["root"] == str(tmp_path / "mine")
    assert settings["teacher"]["model"] == "org/model"


def test_lists_and_words_in_the_settings_are_resolved_as_what_they_are(tmp_path, monkeypatch):
    """Planted: a folder of the name that means the teacher; every text file of a list."""
    (tmp_path / "teacher").mkdir()
    (tmp_path / "more.txt").touch()
    monkeypatch.chdir(tmp_path)
    settings = {"student": {"init": {"from": "teacher"}}, "general": {"texts": ["more.txt", "nowhere.txt"]}}
    run._resolve_paths(settings)
    assert settings == {
        "student": {"init": {"from": "teacher"}},
        "general": {"texts": [str(tmp_path / "more.txt"), "nowhere.txt"]},
    }


def test_the_demo_gives_the_status_of_the_run(monkeypatch, capsys):
    """And says how long it took."""
    monkeypatch.setattr(demo, "reproduce", lambda folder: 3)
    assert demo.command() == 3
    assert re.fullmatch(r"took \d+ s\n", capsys.readouterr().out)


# --- predict -------------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Settings, and an exported folder for `cpu` without a model."""
    found = Workspace(tmp_path)
    found.params.write_text(SMOKE.read_text())
    folder = found.exported("cpu")
    folder.mkdir(parents=True)
    artefact = Artefact(
        format="onnx", precision="int8", file="model.onnx", inputs=(), outputs=(), max_length=8, tools={}
    )
    (folder / "labels.json").write_text('["no", "yes"]')
    (folder / "model.onnx").write_bytes(b"no model")
    seal(folder, "artefact", facts={"artefact": artefact.model_dump(mode="json")})
    return found


def test_predict_refuses_a_target_that_does_not_exist_or_was_not_built(workspace):
    """The nearest name for the first, what to run for the second."""
    with pytest.raises(SettingsError, match=r"no target 'cpus' in .*params.yaml; did you mean 'cpu'\? known: cpu, ios"):
        predict.predict(workspace, "cpus", ["x"])
    with pytest.raises(IntegrityError, match=r"exported/ios: no card.json, so it was never finished; run `dvc repro`"):
        predict.predict(workspace, "ios", ["x"])


def test_predict_refuses_a_damaged_artefact(workspace):
    """Before it is loaded."""
    (workspace.exported("cpu") / "labels.json").write_text('["yes", "no"]')
    with pytest.raises(IntegrityError, match=r"labels.json: damaged"):
        predict.predict(workspace, "cpu", ["x"])


def test_predict_says_why_a_runtime_cannot_answer_here(workspace, monkeypatch):
    """Exit status 3, as for evidence that is missing."""
    monkeypatch.setattr(plugins.load("runtime", "onnxruntime"), "why_unusable", lambda: "no such processor")
    with pytest.raises(UnusableRuntimeError, match="target 'cpu' cannot answer here: no such processor") as caught:
        predict.predict(workspace, "cpu", ["x"])
    assert caught.value.exit_status == 3


def test_predict_prints_labels_with_probabilities(monkeypatch, capsys):
    """Or one JSON line for each text, with what a terminal handed over that is no text escaped."""
    answer = [("alarm_set", 0.75), ("timer_set", 0.25)]
    monkeypatch.setattr(predict, "predict", lambda workspace, target, texts: [answer for _ in texts])
    predict.command(["wake me"], top=2)
    assert capsys.readouterr().out == "alarm_set  75.0%\ntimer_set  25.0%\n"
    predict.command(["a\udcff", "b"], target="cpu", as_json=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first == ('{"text": "a\\udcff", "target": "cpu", "answer": [{"label": "alarm_set", "probability": 0.75}]}')
    assert second.startswith('{"text": "b"')
