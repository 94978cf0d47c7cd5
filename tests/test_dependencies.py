"""What re-runs after an edit: the files that each stage depends on, before and after, with edits planted in a copy."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.base import dependencies, machine
from pipeline.settings.params import load
from stages import machine as stage

ROOT = Path(__file__).resolve().parents[1]
PARAMS = load(ROOT / "params.yaml", with_plugins=False)
FACTS = machine.facts()
ALL = [(name, None) for name in stage.ONCE] + [(name, one) for name in stage.PER_TARGET for one in PARAMS.targets]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the source that may be edited; `depends` of every stage is taken from it."""
    for folder in dependencies.FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    trace = dependencies.trace
    monkeypatch.setattr(stage.dependencies, "trace", lambda modules, chosen: trace(modules, chosen, tmp_path))
    return tmp_path


def depends(params=PARAMS, facts=FACTS):
    """(stage, target) -> the content of its file."""
    return {
        (name, target): json.dumps(stage.depends_on(name, params, facts, params.targets[target] if target else None))
        for name, target in ALL
        if target is None or target in params.targets
    }


def edit(project, file, old, new):
    path = project / file
    text = path.read_text("utf-8")
    assert old in text, f"{file} no longer holds {old!r}, so this test plants nothing"
    path.write_text(text.replace(old, new, 1), "utf-8")


def changed(before, after=None):
    """Names of stages that would run again."""
    after = after or depends()
    return {name for (name, target) in before if before[name, target] != after[name, target]}


def changed_targets(before, name):
    after = depends()
    return {
        target for stage_name, target in before if stage_name == name and before[name, target] != after[name, target]
    }


def test_a_comment_and_a_docstring_re_run_nothing(project):
    """In a file that every stage imports."""
    before = depends()
    edit(project, "pipeline/base/errors.py", '"""', '"""Edited. ')
    (project / "pipeline/base/errors.py").write_text(
        (project / "pipeline/base/errors.py").read_text() + "\n# a comment\n"
    )
    assert changed(before) == set()


def test_code_that_everything_imports_re_runs_everything(project):
    """The same file, in earnest: the check must be one that can fail."""
    before = depends()
    (project / "pipeline/base/errors.py").write_text(
        (project / "pipeline/base/errors.py").read_text() + "\nEDITED = 1\n"
    )
    assert changed(before) == {*stage.ONCE, *stage.PER_TARGET} - {"general"}  # which makes nothing here


def test_an_edited_divergence_trains_again(project):
    """Finding B1: `row_kl` is imported by the losses, which the settings name; the rest follows from the student."""
    before = depends()
    edit(project, "pipeline/signals/divergences.py", "def row_kl(", "EDITED = 1\n\n\ndef row_kl(")
    assert changed(before) == {"distill"}


def test_an_unused_loss_concerns_nobody(project):
    """And one that is used concerns the student alone."""
    before = depends()
    (project / "pipeline/losses/shd.py").write_text("EDITED = 1\n")
    assert changed(before) == set()
    edit(project, "pipeline/losses/attention_kl.py", "KIND =", "EDITED = 1\nKIND =")
    assert changed(before) == {"distill"}


def test_another_family_s_file_concerns_nobody(project):
    """Which one the teacher is of stands in its config.json."""
    before = depends()
    (project / "pipeline/families/modernbert.py").write_text("EDITED = 1\n")
    assert changed(before) == set()
    (project / "pipeline/families/bert.py").write_text("EDITED = 1\n")
    assert {"teach", "distill", "quantize", "convert"} <= changed(before)


def test_of_a_model_that_is_not_here_yet_every_family_counts(project):
    params = PARAMS.model_copy(update={"teacher": PARAMS.teacher.model_copy(update={"model": "someone/model"})})
    before = depends(params)
    (project / "pipeline/families/modernbert.py").write_text("EDITED = 1\n")
    assert "distill" in changed(before, depends(params))


def test_the_reader_of_core_ml_packages_trains_nothing(project):
    """Finding B2: it was in the key of every training."""
    before = depends()
    (project / "pipeline/mil/quiet.py").write_text((project / "pipeline/mil/quiet.py").read_text() + "\nEDITED = 1\n")
    assert "distill" not in changed(before) and "teach" not in changed(before)
    assert changed_targets(before, "convert") == {"ios"}


def test_an_exporter_concerns_its_own_targets(project):
    """And converting and examining alone: what is measured follows from the artefact."""
    before = depends()
    (project / "export/to_litert.py").write_text((project / "export/to_litert.py").read_text() + "\nEDITED = 1\n")
    assert changed(before) == {"convert", "examine"}
    assert changed_targets(before, "convert") == {"android"}


def test_a_module_that_runs_as_a_process_counts(project):
    """eval/worker.py is imported by nobody in its own right there: its name stands in a command."""
    before = depends()
    (project / "eval/worker.py").write_text((project / "eval/worker.py").read_text() + "\nEDITED = 1\n")
    assert {"benchmark", "examine"} <= changed(before)


def test_a_template_counts(project):
    """The page is no Python."""
    before = depends()
    (project / "stages/reporting/page.html.jinja").write_text("edited")
    assert changed(before) == {"report"}


def test_an_extra_that_is_installed_measures_its_targets(project, monkeypatch):
    """Finding B3: as a target's message advises; those of other formats are not measured again."""
    version_of = dependencies.version_of
    monkeypatch.setattr(dependencies, "version_of", lambda name: None if "litert" in name else version_of(name))
    before = depends()
    monkeypatch.setattr(dependencies, "version_of", version_of)
    for name in stage.PER_TARGET:
        assert changed_targets(before, name) == {"android"}


def test_another_cpu_measures_answers_and_times_again(project):
    """Instruction sets decide what 8 bits answer; a clock only how fast."""
    before = depends()
    other = {**FACTS, "isa": [*FACTS["isa"], "one_that_this_machine_has_not"]}
    assert changed(before, depends(facts=other)) == {"floors", "report", "package", *stage.PER_TARGET} - {"convert"}
    renamed = {**FACTS, "cpu": "another of its kind"}
    assert changed(before, depends(facts=renamed)) == {"floors", "report", "benchmark"}


def test_a_budget_changes_no_file(project):
    """DVC follows it where it is judged."""
    targets = {
        name: target.model_copy(update={"budgets": target.budgets.model_copy(update={"size_mb": 1.0})})
        for name, target in PARAMS.targets.items()
    }
    assert changed(depends(), depends(PARAMS.model_copy(update={"targets": targets}))) == set()


@pytest.mark.parametrize(("where", "stage"), [("data", "prepare"), ("general", "general")])
def test_text_without_labels_is_followed(project, tmp_path, where, stage):
    """Finding B1: it is no output of a stage and no file of the data set."""
    file = tmp_path / "more.txt"
    file.write_text("one\n")
    unlabelled = PARAMS.data.unlabelled.model_copy(update={"files": (str(file),)})
    init = PARAMS.student.init.model_copy(update={"source": "general"})
    updates = {
        "data": {"data": PARAMS.data.model_copy(update={"unlabelled": unlabelled})},
        "general": {
            "general": PARAMS.general.model_copy(update={"texts": (str(file),)}),
            "student": PARAMS.student.model_copy(update={"init": init}),
        },
    }
    params = PARAMS.model_copy(update=updates[where])
    before = depends(params)
    file.write_text("two\n")
    assert changed(before, depends(params)) == {stage}


def test_what_was_parsed_is_kept_and_a_damaged_file_is_as_good_as_none(tmp_path, monkeypatch):
    """The same digests, whoever parsed."""
    first = dependencies.trace(["stages.distill"], {"loss": ["logit_kl"]})
    dependencies.keep(tmp_path / "code.json")
    monkeypatch.setattr(dependencies, "_parsed", {})
    dependencies.remember(tmp_path / "code.json")
    monkeypatch.setattr(dependencies, "_parse", None)
    assert dependencies.trace(["stages.distill"], {"loss": ["logit_kl"]}) == first
    for damaged in ("", "{}", '{"python": 1, "files": [[1]]}'):
        (tmp_path / "code.json").write_text(damaged)
        dependencies.remember(tmp_path / "code.json")


def test_every_check_says_its_formats_as_a_literal_that_applies_reads():
    """A check of one format that did not would be a dependency of every target."""
    for file in sorted((ROOT / "eval/checks").glob("[a-z]*.py")):
        text = file.read_text("utf-8")
        assert ("FORMATS = " in text) == ("artefact.format in FORMATS" in text) or file.stem in {
            "weights",
            "compute_units",
        }
