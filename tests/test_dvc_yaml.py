"""dvc.yaml is the map: each stage's `deps` and `params` are compared with what its code imports and reads."""

import ast
import functools
import re
from pathlib import Path

import pytest
import yaml

from pipeline.params import Params

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "stages", "export", "eval")
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
# Files that a stage runs by name, not by import: a name in params.yaml, or a module run as a process.
BY_NAME = {
    "teach": {"pipeline/losses/cross_entropy.py"},
    "reference": {"export/to_onnx.py"},
    "convert": {"export/to_${item.format}.py", "eval/runtimes/${item.runtime}.py"},
    "evaluate": {"eval/runtimes/${item.runtime}.py", "eval/devices/${item.device}.py"},
    "examine": {
        "export/to_${item.format}.py",
        "eval/runtimes/${item.runtime}.py",
        "eval/devices/${item.device}.py",
        "eval/runtimes/openvino.py",
        "eval/runtimes/onnx_reference.py",
        "eval/worker.py",
        *(f"eval/checks/{file.name}" for file in (ROOT / "eval" / "checks").glob("[a-z]*.py")),
    },
    "benchmark": {"eval/runtimes/${item.runtime}.py", "eval/devices/${item.device}.py", "eval/worker.py"},
}
# What a stage reads of params.yaml without depending on it, and why.
UNTRACKED = {
    # a changed budget re-judges and measures nothing: budgets only decide how long it samples
    ("benchmark", "targets.budgets"),
    # threads of the runtime change the time of scoring, not the answers
    ("evaluate", "measure.threads"),
    ("evaluate", "threads"),
}


def module_file(name: str) -> Path | None:
    """The file of a project module, or None for a module of someone else."""
    path = ROOT / name.replace(".", "/")
    if name.split(".")[0] not in PACKAGES:
        return None
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def imported_files(file: Path) -> frozenset[Path]:
    """Project files that a file imports anywhere in it, functions included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            module = module_file(name)
            if module is not None and module.is_file():
                found.add(module)
    return frozenset(found)


def closure(files: set[Path]) -> set[Path]:
    """Everything imported from these files, directly or not, without packages that hold nothing but a docstring."""
    todo, done = list(files), set()
    while todo:
        file = todo.pop()
        if file not in done:
            done.add(file)
            todo += imported_files(file)
    return {file for file in done if file.name != "__init__.py" or len(ast.parse(file.read_text("utf-8")).body) > 1}


def commands() -> dict[str, dict]:
    return {name: stage.get("do", stage) for name, stage in STAGES.items()}


def code_deps(stage: dict) -> set[str]:
    return {dep for dep in stage["deps"] if dep.endswith((".py", ".jinja")) and not dep.startswith("artifacts/")}


def expected_deps(name: str) -> set[str]:
    """The code that a stage runs: its file, what that imports, and what it runs by name with what that imports."""
    named = {path for path in BY_NAME.get(name, set()) if "$" not in path}
    files = closure({ROOT / "stages" / f"{name}.py", *(ROOT / path for path in named)}) | shared_by_plugins(name)
    return {file.relative_to(ROOT).as_posix() for file in files} | BY_NAME.get(name, set())


def shared_by_plugins(name: str) -> set[Path]:
    """What exporters, runtimes and devices import beside themselves; which one runs is only known from params.yaml."""
    plugins = {
        file
        for pattern in BY_NAME.get(name, set())
        if "$" in pattern
        for file in ROOT.glob(re.sub(r"\$\{.*?\}", "*", pattern))
        if file.name != "__init__.py"
    }
    return closure({other for file in plugins for other in imported_files(file)})


def read_sections(name: str) -> set[str]:
    """`section` or `section.key` of params.yaml that the stage's own code reads."""
    found = set()
    for dep in expected_deps(name):
        if "$" in dep or dep == "pipeline/params.py":
            continue
        text = (ROOT / dep).read_text("utf-8")
        if not re.search(r"\bparams: Params\b|params = load\(", text) or "losses/" in dep or "export/" in dep:
            continue
        found |= set(re.findall(r"\bparams\.([a-z_]+(?:\.[a-z_]+)?)", text))
    return {section for section in found if section.split(".")[0] in Params.model_fields}


@pytest.mark.parametrize("name", sorted(STAGES))
def test_deps_name_each_project_file_that_the_stage_imports(name: str) -> None:
    """No more, or an unrelated edit re-runs it; no less, or a changed helper leaves a stale output."""
    found = code_deps(commands()[name])
    expected = expected_deps(name) | {dep for dep in found if dep.endswith(".jinja")}
    assert found >= expected, f"{name}: add to deps in dvc.yaml: {sorted(expected - found)}"
    extra = found - expected
    assert not extra, f"{name}: remove from deps in dvc.yaml: {sorted(extra)}"


@pytest.mark.parametrize("name", sorted(set(STAGES) - {"machine"}))
def test_params_name_each_section_that_the_stage_reads(name: str) -> None:
    """The machine check always runs, so it needs none."""
    listed = [re.sub(r"targets\.\$\{key\}", "targets", entry) for entry in commands()[name].get("params", [])]
    for section in read_sections(name):
        if (name, section) in UNTRACKED:
            continue
        covered = any(
            section == entry or section.startswith(f"{entry}.") or entry.startswith(f"{section}.") for entry in listed
        )
        assert covered, f"{name} reads params.{section}, which its params in dvc.yaml do not name"


def test_every_stage_has_a_file_a_description_and_its_own_command() -> None:
    """Stage, file and command share one name."""
    for name, stage in commands().items():
        assert (ROOT / "stages" / f"{name}.py").is_file()
        assert stage["desc"]
        assert stage["cmd"].startswith(f"python -m stages.{name}")


def test_a_helper_left_out_of_deps_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted fault: the check must not be one that cannot fail."""
    stage = dict(commands()["prepare"])
    stage["deps"] = [dep for dep in stage["deps"] if dep != "pipeline/data.py"]
    assert "pipeline/data.py" in expected_deps("prepare") - code_deps(stage)
