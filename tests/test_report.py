"""The report always finishes, says why a figure is missing, and is one page that needs no network."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from fakes import ROOT, make_measurement
from report_workspace import NAMES, TARGET, examination, make_workspace, perturb, score, write_floors
from rich.console import Console

from eval import wording
from eval.ledger import Ledger
from eval.scores import score as make_score
from eval.statistics import mean_interval
from eval.wording import say_verdict, show, show_percent
from pipeline import tasks
from pipeline.base import records
from pipeline.base.records import Check, Measurement, Metric, ReasonKind, Score, Status, Verdict
from pipeline.base.workspace import Workspace
from pipeline.data.examples import read_prepared
from pipeline.settings.budgets import CHECKS
from pipeline.settings.report import ReportSettings
from stages import gate, report
from stages.commands import clean
from stages.reporting.evidence import gather

VOID = {"meta", "br", "path", "use", "line", "img", "rect", "circle"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(params, workspace, verdict) of a report over a whole set of records."""
    params, workspace = make_workspace(tmp_path_factory.mktemp("report"))
    return params, workspace, report.run(params, workspace)


@pytest.fixture(scope="module")
def one_target(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("one"), {"cpu": TARGET})


@pytest.fixture
def fresh(one_target, tmp_path):
    """(params, workspace) that a test may damage."""
    params, workspace = one_target
    shutil.copytree(workspace.artifacts, tmp_path / "artifacts")
    return params, Workspace(tmp_path)


def page_of(workspace):
    return (workspace.report / "index.html").read_text("utf-8")


def status_of(verdict, budget, target="cpu"):
    return next(one for one in verdict.budgets if (one.target, one.budget) == (target, budget))


class Checker(HTMLParser):
    """Collects ids, and the tags that are left open or closed twice."""

    def __init__(self):
        super().__init__()
        self.open, self.problems, self.ids, self.tables_without_head = [], [], [], 0

    def handle_starttag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.problems.append((tag, self.getpos()))


def test_page_is_self_contained(finished):
    """No address, no script, no import: it can be mailed, and opened offline."""
    page = page_of(finished[1])
    assert "http" not in page
    assert "<script" not in page
    assert "@import" not in page
    assert re.findall(r"\bsrc=", page) == []
    assert {target[0] for target in re.findall(r'href="([^"]*)"', page)} <= {"#"}
    assert {target[0] for target in re.findall(r"url\(([^)]*)\)", page)} <= {"#"}


def test_page_is_well_formed_and_its_ids_are_unique(finished):
    """Figures drawn one by one must not share ids once they are on one page."""
    page = page_of(finished[1])
    checker = Checker()
    checker.feed(page)
    assert checker.problems == []
    assert checker.open == []
    assert [name for name, count in Counter(checker.ids).items() if count > 1] == []
    used = set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page))
    assert {a or b for a, b in used} <= set(checker.ids)


def test_every_figure_says_what_it_shows_in_words(finished):
    """A screen reader gets the numbers of a figure from its title."""
    page = page_of(finished[1])
    figures = re.findall(
        r'<svg class="figure"[^>]*role="img" aria-labelledby="([^"]*)"><title id="([^"]*)">([^<]+)', page
    )
    assert len(figures) == page.count("<svg") >= 7
    assert all(label == title and len(words) > 30 for label, title, words in figures)


def test_figures_follow_the_theme(finished):
    """A colour that stays as drawn would be dark on dark."""
    figures = "".join(re.findall(r"<svg.*?</svg>", page_of(finished[1]), re.DOTALL))
    assert "var(--ink)" in figures
    assert set(re.findall(r"#[0-9a-f]{6}\b", figures)) == set()


def test_same_records_give_the_same_bytes(finished):
    """No date, no random id."""
    params, workspace, _ = finished
    before = {file: file.read_bytes() for file in workspace.report.rglob("*") if file.is_file()}
    report.run(params, workspace)
    assert {file: file.read_bytes() for file in workspace.report.rglob("*") if file.is_file()} == before


def test_folder_is_sealed_and_holds_every_file(finished):
    """The card comes last and lists all of it."""
    card = records.open_folder(finished[1].report, "report")
    assert {"verdict.json", "ledger.json", "metrics.json", "summary.md", "index.html"} <= set(card.files)
    assert sum(name.startswith("plots/") for name in card.files) == 8
    assert records.read(Verdict, finished[1].report / "verdict.json") == finished[2]
    hops = records.read(Ledger, finished[1].report / "ledger.json").hops
    assert [(hop.before, hop.after) for hop in hops] == [("teacher", "student"), ("student", "cpu")]


def test_every_budget_has_its_row(finished):
    """In params.yaml's order, each with status and limit, on the page and in the summary."""
    params, workspace, verdict = finished
    wanted = [
        (name, budget)
        for name, target in params.targets.items()
        for budget, limit in (*target.budgets, (CHECKS, 0))
        if limit is not None
    ]
    assert sorted((one.target, one.budget) for one in verdict.budgets) == sorted(wanted)
    rows = re.findall(
        r'<tr role="row">\s*<th role="rowheader" scope="row">(\w+).*?<code>(\w+)</code>', page_of(workspace), re.DOTALL
    )
    assert rows == [(one.target, one.budget) for one in verdict.budgets]
    summary = (workspace.report / "summary.md").read_text("utf-8")
    assert all(f"| {one.budget} |" in summary for one in verdict.budgets)


def test_first_line_comes_first(finished):
    """Whether the student beats the linear floor, before anything else."""
    _, workspace, verdict = finished
    assert verdict.first_line.startswith("The student as shipped to 'cpu' beats the linear floor")
    assert (workspace.report / "summary.md").read_text("utf-8").startswith(verdict.first_line)
    heading = re.search(r"<h1>(.*?)</h1>", page_of(workspace)).group(1)
    assert heading.replace("&#39;", "'").rstrip(".") == verdict.first_line.partition(": ")[0]


def test_a_student_no_better_than_the_floor_is_said_to_be_so(fresh):
    """The floor now answers as well as the teacher does."""
    params, workspace = fresh
    labels = read_prepared(workspace.data, "test").numbers
    workspace.floors.unlink()
    write_floors(workspace, labels, NAMES, 0)
    floors = records.read(records.Floors, workspace.floors)
    linear = floors.floors[1].model_copy(update={"answers": labels, "values": (1.0,) * len(labels)})
    records.write(floors.model_copy(update={"floors": (floors.floors[0], linear)}), workspace.floors)
    assert "does NOT beat the linear floor" in report.run(params, workspace).first_line


def test_slices_have_a_table_of_their_own(tmp_path):
    """Accuracy of every measured model on each slice, on the page and in the summary."""
    slices = ["<hard>" if i % 4 == 0 else "everyday" for i in range(200)]
    params, workspace = make_workspace(tmp_path, slices=slices)
    report.run(params, workspace)
    page = page_of(workspace)
    table = page[page.index("By slice:") :].partition("</table>")[0]
    assert re.findall(r'scope="col" class="n">(.*?)<small>(.*?)</small>', table) == [
        ("&lt;hard&gt;", "50 rows"),
        ("everyday", "150 rows"),
    ]
    names = re.findall(r'<th scope="row" class="hold">(.*?)</th>', table)
    assert names == ["linear floor", "teacher", "student", "cpu"]  # ios was not measured
    labels = read_prepared(workspace.data, "test").numbers
    answers = records.read(records.Score, workspace.scored("cpu")).answers
    right = sum(labels[i] == answers[i] for i in range(0, 200, 4))
    assert f"{2 * right:.1f}" in re.findall(r">cpu</th><td class=\"n\">(.*?)<small>", table)[0]
    summary = (workspace.report / "summary.md").read_text("utf-8")
    assert re.search(rf"^- &lt;hard> \(50 rows\): linear floor .*, cpu {2 * right:.1f}", summary, re.MULTILINE)


def test_data_without_slices_has_no_such_table(finished):
    assert "By slice" not in page_of(finished[1])
    assert "by slice" not in (finished[1].report / "summary.md").read_text("utf-8")


def test_a_stage_that_could_not_run_gives_its_reason(finished):
    """The record's own reason, in the verdict and on the page."""
    _, workspace, verdict = finished
    for budget in ("score", "p90_ms"):
        one = status_of(verdict, budget, "ios")
        assert (one.status, one.reasons[0].kind) == (Status.NOT_MEASURED, ReasonKind.MISSING)
        assert "Core ML executes only on macOS" in say_verdict(one)
    assert status_of(verdict, "size_mb", "ios").status is Status.PASS
    assert page_of(workspace).count("Core ML executes only on macOS") >= 3


EVERYTHING = {"score", "p90_ms", "speedup_vs_teacher", "size_mb", "failed_checks"}


@pytest.mark.parametrize(
    ("damage", "unmeasured", "reason"),
    [
        ("scored/cpu.json", {"score"}, "scored/cpu.json: missing"),
        ("measured/cpu.json", {"p90_ms", "speedup_vs_teacher"}, "measured/cpu.json: missing"),
        ("examined/cpu.json", {"failed_checks"}, "examined/cpu.json: missing"),
        ("exported/cpu/card.json", EVERYTHING, "never"),
        (
            "exported/cpu/model.onnx",
            EVERYTHING,
            "missing",
        ),
        ("floors.json", set(), "floors.json: missing"),
        ("data/space.json", set(), "space.json: missing"),
        ("teacher/test_answers.json", set(), "test_answers.json: missing"),
        ("student/card.json", set(), "never finished"),
        ("quantized/plan.json", set(), "plan.json: missing"),
        ("reference/onnx/card.json", {"speedup_vs_teacher"}, "timed beside cannot be read"),
        ("machine.json", set(), "machine.json: missing"),
    ],
)
def test_without_a_record_it_is_said_what_is_missing(fresh, damage, unmeasured, reason):
    """One missing file never takes the rest with it."""
    params, workspace = fresh
    (workspace.artifacts / damage).unlink()
    evidence = gather(params, workspace)
    found = {one.budget: one for one in evidence.verdicts}
    assert {name for name, one in found.items() if one.status is Status.NOT_MEASURED} == unmeasured
    assert all(reason in say_verdict(found[name]) for name in unmeasured)
    assert unmeasured or any(reason in problem for problem in evidence.problems)


@pytest.mark.parametrize(
    "name", ["teacher/model.safetensors", "student/test_answers.json", "data/test.jsonl", "reference/onnx/model.onnx"]
)
def test_one_flipped_byte_is_no_pass(fresh, name):
    """Of what figures were made from: DVC restores a damaged cache file without a word."""
    params, workspace = fresh
    assert report.run(params, workspace).status is Status.PASS
    path = workspace.artifacts / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    verdict = report.run(params, workspace)
    assert verdict.status is Status.NOT_MEASURED and any(f"{path}: damaged" in one for one in verdict.problems)
    out = io.StringIO()
    assert gate.run(workspace, Console(file=out)) == 3
    assert f"could not be read: {path}: damaged" in out.getvalue()
    assert "Not decided, since not all evidence can be read" in out.getvalue()


def test_without_the_exported_teacher_no_speed_up_passes(fresh):
    """The record of the times is there; what it was timed beside is not."""
    params, workspace = fresh
    shutil.rmtree(workspace.reference)
    found = status_of(report.run(params, workspace), "speedup_vs_teacher")
    assert found.status is Status.NOT_MEASURED
    assert "the exported teacher that it was timed beside cannot be read" in say_verdict(found)


@pytest.mark.parametrize("kind", ["data", "teacher", "student"])
def test_a_score_on_other_labels_is_not_believed(fresh, kind):
    """As many rows, but of another split, or of another model: the digest of its source tells."""
    params, workspace = fresh
    found = records.read(Score, workspace.scored("cpu"))
    records.write(found.model_copy(update={"sources": {kind: "0" * 64}}), workspace.scored("cpu"))
    verdict = report.run(params, workspace)
    (reason,) = status_of(verdict, "score").reasons
    assert (reason.kind, reason.detail) == (ReasonKind.ANOTHER_SOURCE, kind)
    assert verdict.status is Status.NOT_MEASURED


def test_a_verdict_names_its_evidence(fresh):
    """By digest, whatever was read; another artefact's card has another."""
    params, workspace = fresh
    evidence = report.run(params, workspace).evidence
    names = {"data", "teacher", "student", "plan", "floors", "reference/onnx"}
    names |= {f"{kind}/cpu" for kind in ("exported", "scored", "measured", "examined")}
    assert set(evidence) == names and len(set(evidence.values())) == len(names)
    assert evidence["exported/cpu"] == records.open_folder(workspace.exported("cpu"), "artefact").digest
    assert evidence["scored/cpu"] == records.digest(records.read(Score, workspace.scored("cpu")))


@pytest.mark.parametrize(
    "missing", [("floors.json", "teacher", "quantized"), ("student", "data"), ("machine.json",)], ids=" ".join
)
def test_the_page_is_made_without_them(fresh, missing):
    """Sections without evidence are left out, and what is missing stands at the top."""
    params, workspace = fresh
    for name in missing:
        path = workspace.artifacts / name
        path.unlink() if path.is_file() else (path / "card.json").unlink(missing_ok=True)
    verdict = report.run(params, workspace)
    assert len(verdict.budgets) == 5
    page = page_of(workspace)
    assert all(name in page[page.index("Could not be read") :] for name in missing)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b'{"record": {}, "sha256": ""}', b"[" * 100_000], ids=range(6)
)
def test_a_damaged_record_is_not_believed(fresh, content):
    """Cut short, not text, not a record, changed by hand, nested without end: each is named, none stops the rest."""
    params, workspace = fresh
    for name in ("floors.json", "quantized/plan.json", "data/card.json", "student/log.jsonl", "scored/cpu.json"):
        path = workspace.artifacts / name
        whole = path.read_bytes()
        path.write_bytes(content)
        evidence = gather(params, workspace)
        reasons = [*evidence.problems, *(one.score.not_measured or "" for one in evidence.targets)]
        assert any(str(path.parent) in reason for reason in reasons), name
        path.write_bytes(whole)
    assert gather(params, workspace).problems == ()


def test_facts_of_another_shape_leave_gaps(fresh):
    """Cards are not hashed themselves, so their facts may say anything."""
    params, workspace = fresh
    for folder, kind in ((workspace.data, "data"), (workspace.teacher, "teacher")):
        (folder / "card.json").unlink()
        records.seal(folder, kind, facts={"rows": "many", "tokens": [1], "parameters": "x", "dev_score": None})
    report.run(params, workspace)
    assert "–" in page_of(workspace)


def test_nothing_at_all_still_gives_a_report(tmp_path):
    """A first run that failed at its first stage."""
    params, workspace = make_workspace(tmp_path)
    for file in [file for file in workspace.artifacts.rglob("*") if file.is_file()]:
        file.unlink()
    verdict = report.run(params, workspace)
    assert verdict.status is Status.NOT_MEASURED
    assert "is not known" in verdict.first_line
    assert {one.status for one in verdict.budgets} == {Status.NOT_MEASURED}


def test_records_of_another_artefact_are_not_believed(fresh):
    """A measurement that was left over from an earlier export."""
    params, workspace = fresh
    old = make_measurement(artefact_digest="0" * 64, reference_digest=None)
    records.write(old, workspace.measured("cpu"))
    verdict = report.run(params, workspace)
    assert status_of(verdict, "p90_ms").status is Status.NOT_MEASURED
    (reason,) = status_of(verdict, "p90_ms").reasons
    assert (reason.kind, reason.evidence) == (ReasonKind.ANOTHER_ARTEFACT, "measurement")
    assert "found the measurement of artefact 0000" in say_verdict(status_of(verdict, "p90_ms"))
    assert page_of(workspace).count("found the measurement of artefact 0000") >= 2
    assert "p90_ms" not in json.loads((workspace.report / "metrics.json").read_text())["targets"]["cpu"]
    assert status_of(verdict, "score").status is Status.PASS


def test_an_artefact_of_another_student_is_not_believed(fresh):
    """Its card names the student it was exported from."""
    params, workspace = fresh
    card = records.open_folder(workspace.exported("cpu"), "artefact")
    (workspace.exported("cpu") / "card.json").unlink()
    records.seal(workspace.exported("cpu"), "artefact", {"student": "0" * 64}, card.facts)
    verdict = report.run(params, workspace)
    for budget in ("score", "size_mb"):
        assert "made from another student" in say_verdict(status_of(verdict, budget))


def test_a_stand_ins_speed_is_in_no_table(fresh):
    """An emulator's answers count, its speed says nothing."""
    params, workspace = fresh
    found = records.read(Measurement, workspace.measured("cpu"))
    records.write(found.model_copy(update={"stand_in": "an emulator"}), workspace.measured("cpu"))
    verdict = report.run(params, workspace)
    metrics = json.loads((workspace.report / "metrics.json").read_text())["targets"]["cpu"]
    assert "executed by a stand-in" in say_verdict(status_of(verdict, "p90_ms"))
    assert "accuracy" in metrics
    assert not {"p50_ms", "p90_ms", "speedup_vs_teacher", "load_ms", "memory_mb"} & set(metrics)


def test_texts_and_names_are_escaped(tmp_path):
    """A data set is written by others; what it says is shown, never run."""
    names = ("<b>call</b>", "cost $5 $6", "play 🎵", "set | alarm")
    texts = ["<script>alert('x')</script> & more"] * 200
    params, workspace = make_workspace(tmp_path, texts=texts, names=names)
    report.run(params, workspace)
    page = page_of(workspace)
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; more" in page
    assert "<b>call" not in page
    assert "cost $5 $6" in page
    assert "play 🎵" in page


def test_texts_stay_private_where_settings_say_so(tmp_path):
    """In every file of the report; ids stand for them."""
    texts = [f"a secret of row {i}" for i in range(200)]
    params, workspace = make_workspace(tmp_path, texts=texts)
    report.run(params, workspace)
    assert "a secret of row" in page_of(workspace)
    private = params.model_copy(update={"report": ReportSettings(publish_texts=False)})
    report.run(private, workspace)
    for file in workspace.report.rglob("*"):
        assert not file.is_file() or "a secret of row" not in file.read_text("utf-8"), file
    assert "texts are not published" in page_of(workspace)
    ids = read_prepared(workspace.data, "test").ids
    flips = page_of(workspace).partition("texts are not published")[2].partition("</table>")[0]
    shown = re.findall(r'<td class="text">(.*?)</td>', flips)
    assert shown and set(shown) <= set(map(str, ids))


def test_what_a_removed_target_left_is_named_and_not_judged(tmp_path, capsys):
    """And cleaned, with what is of no target's."""
    params, workspace = make_workspace(tmp_path)
    fewer = params.model_copy(update={"targets": {"cpu": params.targets["cpu"]}})
    verdict = report.run(fewer, workspace)
    assert {one.target for one in verdict.budgets} == {"cpu"}
    left = ["artifacts/examined/ios.json", "artifacts/exported/ios", "artifacts/measured/ios.json"]
    for text in (page_of(workspace), (workspace.report / "summary.md").read_text("utf-8")):
        assert all(name in text for name in left) and "decant clean" in text
    workspace.params.write_text(yaml.safe_dump({"targets": {"cpu": TARGET}}), "utf-8")
    clean.command(tmp_path, dry_run=True)
    assert all(f"would remove {tmp_path / name}" in capsys.readouterr().out for name in left[:1])
    clean.command(tmp_path, dry_run=False)
    assert workspace.left_by_others(["cpu"]) == [] and workspace.exported("cpu").is_dir()
    clean.command(tmp_path, dry_run=False)
    assert "nothing to remove" in capsys.readouterr().out


def test_the_share_of_cut_texts_stands_beside_accuracy(tmp_path):
    params, workspace = make_workspace(tmp_path)
    report.run(params, workspace)
    assert "longer than the model reads" not in page_of(workspace)
    card = records.open_folder(workspace.data, "data")
    facts = {**card.facts, "tokens": {**card.facts.get("tokens", {}), "test": {"cut": 20}}}
    records.seal(workspace.data, "data", facts=facts)
    report.run(params, workspace)
    for text in (page_of(workspace), (workspace.report / "summary.md").read_text("utf-8")):
        assert re.search(r"10\.0\s%\sof test texts are longer than the model reads", text)


def test_the_first_table_has_a_line_for_each_target_and_a_cell_for_each_budget(finished):
    """With figure, mark and status in words, and the reason for who points at it or tabs to it."""
    params, workspace = finished[:2]
    table = page_of(workspace).partition('<table class="matrix')[2].partition("</table>")[0]
    verdict = records.read(records.Verdict, workspace.report / "verdict.json")
    tips = dict(re.findall(r'role="tooltip" id="tip-(.*?)">(.*?)</span>', table, re.DOTALL))
    assert set(tips) == {f"{one.target}-{one.budget}" for one in verdict.budgets}
    assert table.count('<button type="button"') == len(verdict.budgets)
    for one in verdict.budgets:
        tip = re.sub(r"\s+", " ", tips[f"{one.target}-{one.budget}"])
        assert one.status.value in tip and "limit" in tip
    assert len(re.findall(r'<th role="rowheader"', table)) == len(params.targets)


def test_metrics_are_finite_numbers(finished):
    """`dvc metrics diff` subtracts them; what was not measured is left out."""
    metrics = json.loads((finished[1].report / "metrics.json").read_text())

    def numbers(values):
        for value in values.values():
            yield from numbers(value) if isinstance(value, dict) else [value]

    found = list(numbers(metrics))
    assert len(found) > 20
    assert all(type(value) in (int, float) and math.isfinite(value) for value in found)
    assert set(metrics["targets"]["ios"]) == {"size_mb", "parameters"}
    assert {"accuracy", "p50_ms", "p90_ms", "speedup_vs_teacher", "size_mb"} <= set(metrics["targets"]["cpu"])
    assert metrics["targets"]["cpu"]["size_mb"] == 0.123
    assert metrics["floors"]["linear"]["p50_ms"] == 0.42


def test_plot_tables_are_whole(finished):
    """Every line has the header's columns; the curve of a model has a hundred points that never fall."""
    folder = finished[1].report / "plots"
    for file in folder.glob("*.csv"):
        lines = file.read_text().splitlines()
        assert len(lines) > 1, file.name
        assert {len(row) for row in csv.reader(lines)} == {lines[0].count(",") + 1}, file.name
    curve = [line.split(",") for line in (folder / "latency_distribution.csv").read_text().splitlines()[1:]]
    cpu = [float(latency) for model, _, latency in curve if model == "cpu"]
    assert len(cpu) == 100
    assert cpu == sorted(cpu)


def test_ledger_shows_the_texts_that_flipped(fresh):
    """Row numbers of the ledger are rows of the test split."""
    params, workspace = fresh
    report.run(params, workspace)
    hop = records.read(Ledger, workspace.report / "ledger.json").hops[0]
    rows = re.findall(r'<td class="text">(say number \d+)</td>', page_of(workspace))
    assert rows[: len(hop.worse_rows[:8])] == [f"say number {row}" for row in hop.worse_rows[:8]]


def test_shipped_target_is_the_least_accurate_required_one(tmp_path):
    """The first line must not be about the target that happens to do best."""
    params, workspace = make_workspace(tmp_path, {"good": TARGET, "bad": TARGET})
    card = records.open_folder(workspace.exported("bad"), "artefact")
    labels = read_prepared(workspace.data, "test").numbers
    worse = perturb(labels, len(NAMES), 0.4, 5)
    records.write(score("bad", TARGET, card.digest, labels, labels, labels, worse), workspace.scored("bad"))
    assert "'bad'" in report.run(params, workspace).first_line
    # unless only a stand-in answered for it, which has no times to show
    found = score("bad", TARGET, card.digest, labels, labels, labels, worse)
    stood_in = found.model_copy(update={"stand_in": "an interpreter, not a device"})
    records.write(stood_in, workspace.scored("bad"))
    assert "'good'" in report.run(params, workspace).first_line


def test_a_failed_check_of_a_required_target_fails_the_run(fresh):
    """Planted fault: an examination that found a leak from the padding; of another artefact, it is not believed."""
    params, workspace = fresh
    card = records.open_folder(workspace.exported("cpu"), "artefact")
    leak = Check(title="padding", status=Status.FAIL, reason="random ids in the padding move answers by 0.3")
    records.write(examination("cpu", TARGET, card, checks=(leak,)), workspace.examined("cpu"))
    assert report.run(params, workspace).status is Status.FAIL
    assert page_of(workspace).count("random ids in the padding move answers by 0.3") == 3
    other = examination("cpu", TARGET, card, checks=(leak,)).model_copy(update={"artefact_digest": "f" * 64})
    records.write(other, workspace.examined("cpu"))
    verdict = report.run(params, workspace)
    assert status_of(verdict, CHECKS, "cpu").status is Status.NOT_MEASURED


def test_every_kind_of_reason_has_a_sentence():
    """A new kind without one would end the report."""
    assert set(wording._SENTENCES) == {*ReasonKind} - {ReasonKind.WIDENED}


def test_a_task_with_another_metric_is_spoken_of_in_its_words(fresh):
    """Planted: a loss, of which less is better. No word of accuracy, no percent, and the limit is the most allowed."""
    params, workspace = fresh
    loss = Metric(name="log_loss", title="log loss", unit="nats", scale=1.0, is_greater_better=False)
    for kind, path in ((records.Floors, workspace.floors), (records.Score, workspace.scored("cpu"))):
        records.write(records.read(kind, path).model_copy(update={"metric": loss}), path)
    verdict = report.run(params, workspace)
    assert (status_of(verdict, "score").side, status_of(verdict, "score").status) == ("at most", Status.FAIL)
    assert "does NOT beat the linear floor" in verdict.first_line and "log loss 0." in verdict.first_line
    summary = (workspace.report / "summary.md").read_text("utf-8")
    assert "| model | made of | log loss |" in summary
    for text in (page_of(workspace), summary):
        assert "accuracy" not in text.lower().replace("dev_score", "")
    assert "Log loss against size" in page_of(workspace)
    assert "log_loss" in json.loads((workspace.report / "metrics.json").read_text())["targets"]["cpu"]


def test_a_task_of_numbers_goes_through_the_report_without_a_class(fresh, monkeypatch):
    """Planted toy: a row's answer is a degree, worth how far it is off, and no row is of a group."""
    params, workspace = fresh
    off = Metric(name="mean_error", title="mean error", unit="degrees", scale=1.0, is_greater_better=False)
    toy = SimpleNamespace(
        METRIC=off,
        values=lambda answers, numbers: np.abs(np.subtract(answers, numbers)),
        show=lambda answer, space: f"{answer:g} degrees",
        describe=lambda space: "how warm it is",
    )
    monkeypatch.setattr(tasks, "of", lambda params, folder: tasks.Task("warmth", toy, None))
    truth = np.arange(200) / 10
    given = {"teacher": truth + 0.25, "student": truth + 0.5, "cpu": truth + np.where(np.arange(200) < 40, 2.5, 0.5)}
    rows = [{"id": f"te-{i}", "texts": [f"say number {i}"], "number": number} for i, number in enumerate(truth)]
    (workspace.data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workspace.data / "card.json").unlink()
    records.seal(workspace.data, "data", facts={"rows": {"train": 900, "dev": 200, "test": 200}})
    for name, folder in (("teacher", workspace.teacher), ("student", workspace.student)):
        (folder / "test_answers.json").write_text(json.dumps(given[name].tolist()))
        facts = json.loads((folder / "card.json").read_text())["record"]["facts"]
        (folder / "card.json").unlink()
        records.seal(folder, name, facts=facts)
    card = records.open_folder(workspace.exported("cpu"), "artefact")
    (workspace.exported("cpu") / "card.json").unlink()
    card = records.seal(workspace.exported("cpu"), "artefact", facts=card.facts)
    answered = make_score(
        target="cpu", runtime=TARGET["runtime"], device="local", artefact_digest=card.digest, metric=off,
        outputs={"logits": given["cpu"][:, None]}, student_outputs={"logits": given["student"][:, None]},
        answers=given["cpu"].tolist(), student_answers=given["student"].tolist(),
        **{f"{key}values": toy.values(given[name], truth)
           for key, name in (("", "cpu"), ("student_", "student"), ("teacher_", "teacher"))},
        further={},
    )  # fmt: skip
    records.write(answered, workspace.scored("cpu"))
    found = records.read(records.Floors, workspace.floors)
    mean = toy.values([10.0] * 200, truth)
    changes = {"answers": (10.0,) * 200, "values": tuple(mean), "primary": mean_interval(mean), "further": {}}
    ungrouped = {"metric": off, "groups": (), "known_groups": ()}
    ungrouped["floors"] = tuple(floor.model_copy(update=changes) for floor in found.floors)
    records.write(found.model_copy(update=ungrouped), workspace.floors)
    verdict = report.run(params, workspace)
    page, hops = page_of(workspace), records.read(Ledger, workspace.report / "ledger.json").hops
    assert gather(params, workspace).problems == ()
    score = status_of(verdict, "score")
    assert (score.status, score.side, score.figure.value) == (Status.FAIL, "at most", pytest.approx(0.9))
    assert score.reasons == ()
    assert verdict.first_line.startswith("The student as shipped to 'cpu' beats the linear floor")
    assert [(hop.worse, hop.better, hop.worse_by_group) for hop in hops] == [(200, 0, {}), (40, 0, {})]
    assert "Confusions" not in page and "class answered" not in page and "mean error" in page
    assert "0.1 degrees" in page  # a target, as the task shows it


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0.00"),
        (1234.5, "1,234"),
        (0.0421, "0.0421"),
        (-2.5, "−2.50"),
        (-0.0, "0.00"),
        (float("nan"), "–"),
        (None, "–"),
    ],
)
def test_numbers_have_sensible_digits(value, shown):
    """Three significant digits, a real minus, and a dash for what is no number."""
    assert show(value) == shown


def test_percent_of_nothing_is_a_dash():
    """Cards of another shape leave gaps."""
    assert show_percent(None) == show_percent("x") == "–"


def test_reporting_imports_no_torch():
    """Reading records and drawing them needs no model code."""
    code = "import sys, stages.report; print([m for m in ('torch', 'transformers', 'sklearn') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_dvc_templates_name_columns_that_the_tables_have(finished):
    """`dvc plots show` draws an empty plot for a column that is not there."""
    for template, tables in (
        ("dvc_lines.json", ("loss_terms.csv", "latency_distribution.csv")),
        ("dvc_points.json", ("score_by_size.csv", "score_by_latency.csv")),
    ):
        text = (ROOT / "stages/reporting" / template).read_text()
        json.loads(text)
        wanted = set(re.findall(r'"field": "([a-z0-9_]+)"', text)) - {"rev"}
        for name in tables:
            header = (finished[1].report / "plots" / name).read_text().splitlines()[0].split(",")
            assert wanted <= set(header), name
