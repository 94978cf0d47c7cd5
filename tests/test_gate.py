"""The gate turns a verdict into an exit status and says in one line what is wrong."""

import io
import os
import subprocess
import sys

import pytest
from fakes import ROOT
from report_workspace import TARGET, make_workspace
from rich.console import Console

from pipeline.base import records
from pipeline.base.errors import IntegrityError
from pipeline.base.records import BudgetVerdict, Interval, Reason, ReasonKind, Status, Verdict
from pipeline.base.workspace import Workspace
from stages import gate, report


def one(status, *, required=True, target="cpu"):
    """A verdict on one budget."""
    measured = status is not Status.NOT_MEASURED
    return BudgetVerdict(
        target=target,
        budget="p90_ms",
        title="90th percentile of latency",
        limit=5.0,
        side="at most",
        unit="ms",
        scale=1.0,
        required=required,
        status=status,
        figure=Interval(value=6.9, low=6.8, high=7.2) if measured else None,
        reasons=() if measured else (Reason(kind=ReasonKind.MISSING, evidence="measurement"),),
    )


def run_gate(tmp_path, status, *budgets):
    """(exit status, what was printed)."""
    workspace = Workspace(tmp_path)
    verdict = Verdict(status=status, first_line="The student beats the linear floor.", budgets=budgets)
    records.write(verdict, workspace.report / "verdict.json")
    out = io.StringIO()
    return gate.run(workspace, Console(file=out)), out.getvalue()


@pytest.mark.parametrize(
    ("status", "expected"),
    [(Status.PASS, 0), (Status.FAIL, 1), (Status.INCONCLUSIVE, 3), (Status.NOT_MEASURED, 3)],
)
def test_exit_status_is_the_verdicts(tmp_path, status, expected):
    """0 pass, 1 fail, 3 undecided: part of the contract with CI."""
    code, out = run_gate(tmp_path, status, one(status))
    assert code == expected
    assert out.splitlines()[0] == "The student beats the linear floor."
    assert out.splitlines()[-1] == f"report: {tmp_path / 'artifacts/report/index.html'}"


def test_a_failing_budget_is_one_line(tmp_path):
    """Target, budget, figure, interval and limit, on a line of their own even when that is long."""
    name = "a_target_with_quite_a_long_name" * 5
    code, out = run_gate(tmp_path, Status.FAIL, one(Status.PASS), one(Status.FAIL, target=name))
    assert code == 1
    assert f"{name}: p90_ms 6.90 ms [6.80, 7.20], limit 5 ms: fail" in out.splitlines()
    assert "✗ fail: 1 of 2 required budgets fails." in out


def test_an_optional_budget_is_shown_and_does_not_decide(tmp_path):
    """Required ones come first."""
    code, out = run_gate(tmp_path, Status.PASS, one(Status.FAIL, required=False, target="ios"), one(Status.PASS))
    assert code == 0
    assert "ios: p90_ms 6.90 ms [6.80, 7.20], limit 5 ms: fail (optional)" in out.splitlines()
    assert "✓ pass: The required budget is kept." in out


def test_the_table_has_every_budget(tmp_path):
    """Plain text when it is not a terminal: no escape codes, intervals kept whole."""
    _, out = run_gate(tmp_path, Status.PASS, one(Status.PASS), one(Status.PASS, target="web"))
    assert "\x1b" not in out
    rows = [line.split() for line in out.splitlines()[2:4]]
    assert [row[0] for row in rows] == ["cpu", "web"]
    assert all("[6.80, 7.20]" in line for line in out.splitlines()[2:4])


def test_a_verdict_changed_by_hand_is_refused(tmp_path):
    """The gate is the one place where a flipped word would pay."""
    run_gate(tmp_path, Status.FAIL, one(Status.FAIL))
    path = Workspace(tmp_path).report / "verdict.json"
    path.write_text(path.read_text().replace('"fail"', '"pass"'))
    with pytest.raises(IntegrityError, match="changed since it was written"):
        gate.run(Workspace(tmp_path))


def test_without_a_report_the_gate_is_not_green(tmp_path):
    """No verdict is an error, not a pass."""
    with pytest.raises(IntegrityError, match=r"verdict\.json: missing"):
        gate.run(Workspace(tmp_path))


def test_an_impossible_budget_fails_as_a_command(tmp_path):
    """From records to exit status, as CI runs it."""
    impossible = {**TARGET, "budgets": {"size_mb": 0.001, "p90_ms": 0.0001}}
    params, workspace = make_workspace(tmp_path, {"cpu": impossible})
    report.run(params, workspace)
    found = command(tmp_path)
    assert found.returncode == 1
    lines = [line for line in found.stdout.splitlines() if line.startswith("cpu: ")]
    assert lines[0].startswith("cpu: p90_ms ")
    assert lines[0].endswith("], limit 0.0001 ms: fail")
    assert lines[1] == "cpu: size_mb 0.123 MB, limit 0.001 MB: fail"


def test_a_limit_inside_the_interval_is_undecided(tmp_path):
    """Neither green nor red."""
    params, workspace = make_workspace(tmp_path, {"cpu": {**TARGET, "budgets": {"speedup_vs_teacher": 3.93}}})
    verdict = report.run(params, workspace)
    assert verdict.status is Status.INCONCLUSIVE, verdict.budgets[0].reasons
    assert gate.run(workspace, Console(file=io.StringIO())) == 3


def test_the_gate_imports_nothing_heavy():
    """It runs in CI jobs that have no models."""
    heavy = ("torch", "transformers", "matplotlib", "sklearn", "jinja2", "onnxruntime")
    code = f"import sys, stages.gate; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def command(folder):
    """`python -m stages.gate` in a project folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "stages.gate"]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
