"""dvc.yaml is the map: each stage's `params` are compared with what its code reads, its `deps` with its own file."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline.base import dependencies, plugins
from pipeline.settings.params import Params
from stages import machine

ROOT = Path(__file__).resolve().parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
LINES = 160  # one screen or two: it is read to see how data flows
# What a stage reads of params.yaml without depending on it, and why.
UNTRACKED = {
    # a changed budget re-judges and measures nothing: budgets only decide how long it samples
    ("benchmark", "targets.budgets"),
    # what of the targets decides which schemes a plan is made for stands in the stage's file of dependencies
    ("quantize", "targets.values"),
    ("convert", "targets.values"),  # stages.plans, which makes the plan for another stage
    ("examine", "targets.values"),
    # threads of the runtime change the time of scoring, not the answers
    # so that a settings file needs no such section; it stands in the stage's file of dependencies
    ("report", "report.publish_texts"),
    ("package", "report.publish_texts"),
    ("evaluate", "measure.threads"),
    ("evaluate", "threads"),
}


def commands() -> dict[str, dict]:
    return {name: stage.get("do", stage) for name, stage in STAGES.items()}


def code_of(name: str) -> list[str]:
    """Files that a stage runs, whatever plug-ins the settings choose."""
    chosen = {kind: plugins.names(kind) for kind in plugins.KINDS}
    return [file for file in dependencies.trace([f"stages.{name}"], chosen).code if file.endswith(".py")]


def read_sections(name: str) -> set[str]:
    """`section` or `section.key` of params.yaml that the stage's own code reads."""
    found = set()
    for dep in code_of(name):
        text = (ROOT / dep).read_text("utf-8")
        if not re.search(r"\bparams: Params\b|params = load\(", text) or "losses/" in dep or "export/" in dep:
            continue
        found |= set(re.findall(r"\bparams\.([a-z_]+(?:\.[a-z_]+)?)", text))
    return {section for section in found if section.split(".")[0] in Params.model_fields}


@pytest.mark.parametrize("name", sorted(set(STAGES) - {"machine"}))
def test_each_stage_depends_on_its_file(name: str) -> None:
    """One for each target where it runs for each; and on no source file by name."""
    stage = commands()[name]
    target = "/${key}" if "foreach" in STAGES[name] else ""
    assert f"artifacts/depends/{name}{target}.json" in stage["deps"]
    assert not [dep for dep in stage["deps"] if not dep.startswith("artifacts/")]


def test_the_machine_stage_knows_every_stage() -> None:
    """Or its file would not be written."""
    targets = {name for name, stage in STAGES.items() if "foreach" in stage}
    assert set(machine.PER_TARGET) == targets
    assert set(machine.ONCE) == set(STAGES) - targets - {"machine"}


def test_the_map_can_be_taken_in() -> None:
    """It had 678 lines, of which 434 were names of source files."""
    assert len((ROOT / "dvc.yaml").read_text("utf-8").splitlines()) <= LINES


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
