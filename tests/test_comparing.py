"""Comparing methods: what is trained, what is refused before any training, and what the table may claim."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from tiny_project import write_project

from eval.statistics import seeds_difference
from pipeline.base.errors import EnvironmentFault, SettingsError
from pipeline.base.records import Interval, seal
from pipeline.base.workspace import Workspace
from pipeline.tasks.single_label import METRIC
from stages import floors, machine, prepare, teach
from stages.commands import methods as command
from stages.comparing import results, runner, train
from stages.comparing.methods_file import Job, read_methods, settings_of
from stages.comparing.places import Places

METHODS = {
    "every": {"student.layers": 1, "distill.training.epochs": 2.0},
    "methods": {
        "logits_only": {"about": "the baseline", "losses": {"logit_kl": {}}},
        "no_teacher": {"about": "labels", "losses": {"cross_entropy": {}}},
        "hidden": {"about": "states", "losses": {"hidden_mse": {"map": "cka"}, "logit_kl": {}}},
        "a2d": {"about": "alignment", "losses": {"a2d": {}, "logit_kl": {}}, "changes": {"distill.phases": "two"}},
        "token": {
            "about": "a token",
            "losses": {"distillation_token": {}, "logit_kl": {}},
            "changes": {"student.distillation_token": True, "distill.class_token": {"kind": "sampled", "samples": 3}},
        },
        "augmented": {
            "about": "more text",
            "losses": {"logit_kl": {}, "cross_entropy": {}},
            "changes": {"distill.augment.methods": ["mask"], "distill.augment.copies": 2},
        },
    },
}
ROOT = Path(__file__).resolve().parents[1]


def write_methods(path, changes=None):
    """The list of methods as a file; `changes` replace methods by name, None takes one out."""
    methods = {**METHODS["methods"], **(changes or {})}
    content = METHODS | {"methods": {name: method for name, method in methods.items() if method is not None}}
    path.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    return path


def absolute(folder):
    """Where `decant run` writes absolute paths, since a workspace is somewhere else."""
    return {"data__files__root": str(folder / "inputs"), "teacher__model": str(folder / "inputs" / "model")}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(methods, settings, places, finished jobs) of a comparison on the tiny project."""
    folder = tmp_path_factory.mktemp("compared")
    params, workspace = write_project(folder, distill__signal_epochs=1.0, **absolute(folder))
    places, threads = Places(folder), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in (machine, prepare, floors, teach):
            stage.run(params, workspace)
        found = read_methods(write_methods(folder / "methods.yaml"), [])
        settings = runner.write_settings(found, places, 3)
        runner.prepare_data(settings, places)
        jobs = [Job(name, 0) for name in found.methods] + [Job("logits_only", 1), Job("hidden", 1)]
        for job in jobs:
            train.run(Places(Path()), job.method, job.seed)
    torch.set_num_threads(threads)
    return found, settings, places, jobs


@pytest.fixture
def comparison(compared):
    """Its record."""
    methods, settings, places, jobs = compared
    return results.collect("tiny", methods, jobs, places, settings["logits_only"])


def test_every_method_gets_the_same_student_and_the_steps_of_its_phases(comparison):
    """8 rows of 16 make an epoch of 8 steps; the phase of signals comes on top where a method has two."""
    steps = {name: result.steps for name, result in comparison.methods.items()}
    assert steps == {"logits_only": 16, "no_teacher": 16, "hidden": 16, "a2d": 24, "token": 16, "augmented": 16}
    parameters = {name: result.parameters for name, result in comparison.methods.items()}
    assert parameters.pop("token") == parameters["logits_only"] + 32  # one more vocabulary row
    assert len(set(parameters.values())) == 1


def test_the_record_says_what_each_run_cost_and_did(comparison):
    """Seconds, memory, and how far attention went; the baseline is compared with nothing."""
    assert comparison.methods["logits_only"].difference is None
    assert comparison.methods["logits_only"].seeds == comparison.methods["hidden"].seeds == (0, 1)
    for result in comparison.methods.values():
        assert all(seconds > 0 for seconds in result.seconds)
        assert all(peak > 1 for peak in result.peak_mb)
        assert 0 <= result.attention_before <= math.log(2)
        assert 0 <= result.attention_after <= math.log(2)


def test_what_a_module_learned_is_on_the_card(compared):
    """A2D's alignment matrix: rows are distributions over the student's heads."""
    _, _, places, _ = compared
    card = json.loads((places.run("a2d", 0) / "model" / "card.json").read_text("utf-8"))
    learned = card["record"]["facts"]["learned"]["a2d"]
    matrix = np.asarray(learned["mixture"])
    assert matrix.shape == (2 * 4, 4)
    assert matrix.sum(axis=1) == pytest.approx(np.ones(8), abs=1e-5)


def test_a_finished_run_is_not_trained_again(compared, monkeypatch, caplog):
    """Its cost stands as well."""
    _, _, places, _ = compared
    before = (places.run("hidden", 0) / "cost.json").read_bytes()
    monkeypatch.chdir(places.workspace)
    caplog.set_level("INFO")
    train.run(Places(Path()), "hidden", 0)
    assert "hidden-0: already trained" in caplog.text
    assert (places.run("hidden", 0) / "cost.json").read_bytes() == before


def test_methods_share_prepared_data_unless_their_students_read_other_tokens(compared):
    """One folder for all but the token's."""
    _, settings, places, _ = compared
    folders = {name: places.data(params) for name, params in settings.items()}
    token = folders.pop("token")
    assert len(set(folders.values())) == 1
    assert token not in folders.values()


def test_augmented_text_is_trained_on_but_never_held_out_text(compared):
    """The variants lie in the cache, and none of them is a text of dev or test."""
    _, settings, places, _ = compared
    lines = next(places.caches.glob("augmentation-*/texts.jsonl")).read_text("utf-8").splitlines()
    texts = {json.loads(line)["text"] for line in lines}
    data = Workspace(places.data(settings["augmented"])).data
    held_out = {
        json.loads(line)["texts"][0]
        for split in ("dev", "test")
        for line in (data / f"{split}.jsonl").read_text("utf-8").splitlines()
    }
    assert len(texts) > 100
    assert not texts & held_out


def test_table_and_plot_show_every_method_and_no_more_than_is_known(comparison, compared, tmp_path):
    """Seeds, floors and teacher; a run that was interrupted has no time; the plot is drawn twice to the same bytes."""
    text = results.table(comparison)
    for name in METHODS["methods"]:
        assert f"\n| {name} | " in text
    assert "| logits_only | " in text
    assert "48 test rows; teacher" in text
    interrupted = comparison.methods["token"].model_copy(update={"seconds": (None,)})
    changed = comparison.model_copy(update={"methods": {**comparison.methods, "token": interrupted}})
    row = next(line for line in results.table(changed).splitlines() if line.startswith("| token |"))
    assert "| not measured |" in row
    assert results.plot(comparison) == results.plot(comparison)
    _, _, places, _ = compared
    results.write(comparison, places)
    assert results.read(places.record) == comparison


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.9, "helps"), (-0.9, -0.1, "hurts"), (-0.1, 0.9, "no difference")]
)
def test_a_method_helps_only_when_its_whole_interval_says_so(comparison, low, high, verdict):
    """And hurts when it says that."""
    found = Interval(value=(low + high) / 2, low=low, high=high, confidence=0.95)
    changed = comparison.methods["hidden"].model_copy(update={"difference": found})
    text = results.table(comparison.model_copy(update={"methods": {"hidden": changed}}))
    assert text.splitlines()[-1].count(verdict) == 1
    alone = changed.model_copy(update={"seeds": (0,)})
    row = results.table(comparison.model_copy(update={"methods": {"hidden": alone}})).splitlines()[-1]
    assert "one seed" in row
    assert verdict not in row


def test_some_methods_have_a_record_of_their_own(tmp_path):
    """Comparing two of twenty does not overwrite the twenty."""
    assert Places(tmp_path).record.name == "comparison.json"
    assert Places(tmp_path, ("shd", "a2d")).record.name == "comparison-a2d-shd.json"


def test_changed_data_is_prepared_anew(compared):
    """Planted fault: another digest of the recipe's data, as after an edited train.csv."""
    _, settings, places, _ = compared
    before = places.data(settings["hidden"])
    elsewhere = Places(places.workspace.parent / "copy")
    shutil.copytree(places.workspace / "artifacts" / "data", elsewhere.workspace / "artifacts" / "data")
    assert elsewhere.data(settings["hidden"]).name == before.name
    seal(elsewhere.workspace / "artifacts" / "data", "data", facts={})
    (elsewhere.workspace / "artifacts" / "data" / "train.jsonl").write_text("", "utf-8")
    seal(elsewhere.workspace / "artifacts" / "data", "data", facts={})
    assert elsewhere.data(settings["hidden"]).name != before.name


def test_the_best_are_chosen_on_dev():
    """Ties by name; test is not looked at, since it is not handed over."""
    assert results.best({"b": 0.9, "a": 0.9, "c": 0.95, "d": 0.1}, 3, METRIC) == ["c", "a", "b"]


# --- the interval of a difference ---


def right(seeds, rows, share, seed):
    """Random answers, right with this probability."""
    return np.random.default_rng(seed).random((seeds, rows)) < share


def test_a_difference_is_paired_over_examples():
    """Two methods that are wrong on the same examples differ by nothing, without doubt."""
    ours = right(1, 400, 0.8, 0)
    same = seeds_difference(ours, ours, None, 0)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    better = ours.copy()
    better[0, np.flatnonzero(~ours[0])[:10]] = True
    found = seeds_difference(better, ours, None, 0)
    assert found.value == pytest.approx(2.5)
    assert found.low > 0


def test_seeds_widen_the_interval_and_more_of_them_narrow_it():
    """The pooled deviation counts once for each side."""
    ours, baseline = right(1, 1000, 0.82, 0), right(1, 1000, 0.8, 1)
    without = seeds_difference(ours, baseline, None, 0)
    one = seeds_difference(ours, baseline, 0.01, 6)
    three = seeds_difference(np.repeat(ours, 3, axis=0), np.repeat(baseline, 3, axis=0), 0.01, 6)
    widths = [found.high - found.low for found in (without, three, one)]
    assert widths == sorted(widths)
    assert widths[0] < widths[1] < widths[2]


def test_the_interval_covers_a_true_difference_as_often_as_it_says():
    """200 comparisons of methods that differ by 2 points, with seeds that move accuracy by 0.8: 95 % of 200 is 190."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        hardness = rng.random(800)
        runs = []
        for mean in (0.82, 0.80):
            levels = mean + rng.normal(0, 0.008, 3)
            runs.append(np.stack([hardness < level for level in levels]))
        deviations = [run.mean(axis=1) for run in runs]
        sd = math.sqrt(sum(values.var(ddof=1) for values in deviations) / 2)
        found = seeds_difference(*runs, sd, 4)
        covered += found.low <= 2.0 <= found.high
    assert 184 <= covered <= 200


# --- refusals ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits_only": None}, "no method logits_only; it is a control that every comparison needs"),
        ({"x": {"losses": {"logit_kl": {}}}}, "methods.x.about"),
        ({"x": {"about": "x", "losses": {}}}, "methods.x.losses"),
        ({"x": {"about": "x", "losses": {"logit_kl": {}}, "epochs": 3}}, "methods.x.epochs"),
        (
            {"x": {"about": "x", "losses": {"logit_kl": {}}, "changes": {"teacher.training.epochs": 20.0}}},
            "x: teacher.training.epochs: methods share teacher, data, seed and threads",
        ),
    ],
)
def test_a_wrong_list_is_refused(tmp_path, changes, message):
    """With the file and the place."""
    path = write_methods(tmp_path / "methods.yaml", changes)
    with pytest.raises(SettingsError, match=message) as caught:
        read_methods(path, [])
    assert str(path) in str(caught.value)


def test_a_list_that_is_no_yaml_is_refused(tmp_path):
    """And one that is missing."""
    (tmp_path / "broken.yaml").write_text("methods: [", "utf-8")
    with pytest.raises(SettingsError, match=r"broken\.yaml: line"):
        read_methods(tmp_path / "broken.yaml", [])
    with pytest.raises(SettingsError, match=r"absent\.yaml"):
        read_methods(tmp_path / "absent.yaml", [])


def test_some_methods_come_with_their_controls(tmp_path):
    """A wrong name is told with the nearest."""
    path = write_methods(tmp_path / "methods.yaml")
    assert list(read_methods(path, ["a2d"]).methods) == ["logits_only", "no_teacher", "a2d"]
    with pytest.raises(SettingsError, match="no method 'hiden'; did you mean 'hidden'"):
        read_methods(path, ["hiden"])


def test_losses_that_do_not_fit_are_refused_before_the_teacher_is_trained(tmp_path):
    """All of them at once, each with its reason and the losses that would fit; nothing has been trained."""
    _, workspace = write_project(tmp_path, **absolute(tmp_path))
    path = write_methods(
        tmp_path / "methods.yaml",
        {
            "v2": {"about": "x", "losses": {"minilm_v2": {"relation_heads": 7}}},
            "heads": {"about": "x", "losses": {"attention_kl": {}}, "changes": {"student.heads": 2}},
            "typo": {"about": "x", "losses": {"logit_kll": {}}},
        },
    )
    with pytest.raises(SettingsError) as caught:
        runner.write_settings(read_methods(path, []), Places(workspace.root.resolve()), 3)
    message = str(caught.value)
    assert "method v2: distill.losses.minilm_v2: relation_heads is 7" in message
    assert "method heads: distill.losses.attention_kl: the student has 2 attention heads and the teacher 4" in message
    assert "method typo" in message
    assert "did you mean 'logit_kl'" in message
    assert "losses that fit these two models as they stand: a2d" in message
    assert not workspace.teacher.exists()


def test_losses_that_die_for_two_classes_are_refused_for_two_classes(tmp_path):
    """And not for three."""
    _, workspace = write_project(tmp_path, **absolute(tmp_path))
    path = write_methods(tmp_path / "methods.yaml", {"dist": {"about": "x", "losses": {"dist": {}}}})
    methods, places = read_methods(path, []), Places(workspace.root.resolve())
    with pytest.raises(SettingsError, match=r"method dist: distill\.losses\.dist: .*two probabilities"):
        runner.write_settings(methods, places, 2)
    runner.write_settings(methods, places, 3)


def test_a_training_that_fails_is_told_at_the_end_and_the_others_are_kept(compared, monkeypatch):
    """Planted fault: the second of three trainings ends with status 1."""
    methods, settings, places, _ = compared
    ran = []

    def fail_second(job, places):
        ran.append(job)
        return int(len(ran) == 2)

    monkeypatch.setattr(runner, "_run", fail_second)
    jobs = [Job("logits_only", 0), Job("no_teacher", 0), Job("hidden", 0)]
    with pytest.raises(EnvironmentFault, match=r"these trainings stopped: no_teacher-0 \(exit status 1\); "):
        runner._train("tiny", methods, jobs, [], settings, places, 1)
    assert set(results.read(places.record).methods) == {"logits_only", "hidden"}


def test_a_comparison_that_is_told_to_stop_does_not_wait_for_its_trainings(compared, monkeypatch):
    methods, settings, places, _ = compared
    ended = []

    def train_for_minutes(job, places):
        if job.method == "logits_only":
            return 0
        ended.append(subprocess.run([sys.executable, "-c", "import time; time.sleep(300)"], check=False).returncode)
        return ended[-1]

    def interrupt(*_):
        while not psutil.Process().children():
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_run", train_for_minutes)
    monkeypatch.setattr(results, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        runner._train("tiny", methods, [Job("logits_only", 0), Job("hidden", 0)], [], settings, places, 2)
    assert ended == [-signal.SIGTERM]


def test_settings_of_a_method_do_not_leak_into_the_next(tmp_path):
    """Each starts from the recipe."""
    methods = read_methods(write_methods(tmp_path / "methods.yaml"), [])
    base = {"student": {"layers": 2}, "distill": {"training": {"epochs": 9.0}, "losses": {"logit_mse": {}}}}
    token = settings_of(base, methods, "token")
    assert token["student"] == {"layers": 1, "distillation_token": True}
    assert settings_of(base, methods, "hidden")["student"] == {"layers": 1}
    assert base["distill"]["losses"] == {"logit_mse": {}}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "methods").glob("*.yaml")), ids=lambda path: path.stem)
def test_lists_that_ship_fit_their_recipes(path, tmp_path):
    """Against the bundled teacher, with the recipe's number of classes."""
    recipe = path.stem.partition("_")[0]  # banking77_more is a second list for banking77
    shutil.copyfile(ROOT / "recipes" / f"{recipe}.yaml", tmp_path / "params.yaml")
    methods = read_methods(path, [])
    assert len(methods.methods) >= 9
    runner.write_settings(methods, Places(tmp_path), {"banking77": 77, "sst2": 2}[recipe])


@pytest.mark.slow
def test_the_command_from_nothing_to_a_table(tmp_path, monkeypatch, capfd):
    """Prepares, trains the teacher, compares three methods with two seeds, and trains nothing the second time."""
    monkeypatch.chdir(tmp_path)
    content = METHODS | {"every": {"student.layers": 1, "distill.training.epochs": 0.2}}
    (tmp_path / "methods.yaml").write_text(yaml.safe_dump(content), "utf-8")
    wanted = {"methods": tmp_path / "methods.yaml", "only": ["a2d"], "seeds": 2, "best": 1, "jobs": 1}
    for _ in range(2):
        assert command.command(recipe="smoke", workspace=tmp_path / "workspace", **wanted) == 0
    out, err = capfd.readouterr()
    assert err.count("already trained") == 6
    found = results.read(tmp_path / "workspace" / "methods" / "comparison-a2d.json")
    assert {name: result.seeds for name, result in found.methods.items()} == {
        "logits_only": (0, 1), "no_teacher": (0, 1), "a2d": (0, 1),
    }  # fmt: skip
    assert "logits_only" in out
