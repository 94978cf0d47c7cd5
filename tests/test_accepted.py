"""Reviewed exceptions: what they let pass, who sees them, and that they end by themselves."""

import io
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from report_workspace import TARGET, make_workspace
from rich.console import Console

from eval.budgets import overall
from eval.wording import headline, say_verdict
from pipeline.base import records
from pipeline.base.errors import SettingsError
from pipeline.base.records import Accepted, Status, Verdict
from pipeline.base.workspace import Workspace
from pipeline.settings import accepted
from pipeline.settings.accepted import Exemption
from pipeline.settings.params import load
from stages import gate, machine, report
from stages.commands import accept

BECAUSE = "new tokenizer, see issue 41"
TOMORROW = (datetime.now(UTC).date() + timedelta(days=1)).isoformat()


def failing(root: Path) -> Workspace:
    """A project whose target 'cpu' fails its size budget, reported."""
    budgets = {**TARGET["budgets"], "size_mb": 0.01}
    params, workspace = make_workspace(root, {"cpu": {**TARGET, "budgets": budgets}})
    report.run(params, workspace)
    return workspace


def run(workspace: Workspace) -> tuple[int, str]:
    """(exit status of the gate, what it printed), after the stages before it."""
    params = load(workspace.params, with_plugins=False)
    records_of_today = machine.accepted_today(params, workspace.root)
    workspace.accepted.write_text(machine._json(records_of_today), "utf-8")
    report.run(params, workspace)
    out = io.StringIO()
    return gate.run(workspace, Console(file=out)), out.getvalue()


def test_an_accepted_failure_passes_and_is_shown(tmp_path: Path) -> None:
    """In the gate, the report, the summary and JUnit; other budgets still decide."""
    workspace = failing(tmp_path)
    assert run(workspace)[0] == 1
    accept.command("cpu", because=BECAUSE, until=TOMORROW, budget=None, folder=tmp_path)
    assert accepted.read(tmp_path) == (Exemption(target="cpu", budgets=("size_mb",), because=BECAUSE, until=TOMORROW),)
    status, said = run(workspace)
    assert status == 0
    assert f"accepted until {TOMORROW}: {BECAUSE}" in said and "1 more not kept and accepted for now" in said
    for name in ("summary.md", "index.html", "junit.xml"):
        assert BECAUSE in (workspace.report / name).read_text("utf-8"), name
    assert "<skipped" in (workspace.report / "junit.xml").read_text("utf-8")


def test_it_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the gate alone, and for the stages that run again; the file stays as it is."""
    workspace = failing(tmp_path)
    accept.command("cpu", because=BECAUSE, until=TOMORROW, budget=["size_mb"], folder=tmp_path)
    assert run(workspace)[0] == 0
    later = date.fromisoformat(TOMORROW) + timedelta(days=1)
    monkeypatch.setattr(gate, "today", lambda: later)
    assert gate.run(workspace, Console(file=io.StringIO())) == 1
    monkeypatch.setattr(accepted, "today", lambda: later)
    status, said = run(workspace)
    assert status == 1 and "accepted until" not in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"until": "2020-01-01"}, "expected 0 to 366: an exception without an end"),
        ({"until": "2999-01-01"}, "expected 0 to 366"),
        ({"until": "soon"}, "--until: found 'soon', expected a day such as 2027-01-31"),
        ({"because": "because"}, "--because: String should have at least 10 characters"),
        ({"budget": ["size"]}, "no budget 'size'"),
        ({"target": "cpi"}, "no target 'cpi' in params.yaml"),
    ],
)
def test_what_is_no_exception_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    """And nothing is written."""
    failing(tmp_path)
    values = {"target": "cpu", "because": BECAUSE, "until": TOMORROW, "budget": None, "folder": tmp_path, **change}
    with pytest.raises(SettingsError) as caught:
        accept.command(**values)
    assert message in str(caught.value)
    assert not (tmp_path / accepted.FILE).exists()


def test_nothing_to_accept_is_said(tmp_path: Path) -> None:
    params, workspace = make_workspace(tmp_path, {"cpu": TARGET})
    report.run(params, workspace)
    with pytest.raises(SettingsError, match="every budget of cpu is kept"):
        accept.command("cpu", because=BECAUSE, until=TOMORROW, budget=None, folder=tmp_path)


def test_a_broken_file_says_where(tmp_path: Path) -> None:
    (tmp_path / accepted.FILE).write_text("accepted:\n- target: cpu\n  budget: [p90_ms]\n", "utf-8")
    with pytest.raises(SettingsError, match=r"accepted.yaml:\d+: accepted\.0\.budget: unknown key 'budget'"):
        accepted.read(tmp_path)


def test_an_exception_for_a_target_that_is_gone_is_named(tmp_path: Path) -> None:
    """While it is in force; afterwards it harms nobody."""
    params, _ = make_workspace(tmp_path, {"cpu": TARGET})
    accepted.add(tmp_path, Exemption(target="gone", budgets=("p90_ms",), because=BECAUSE, until=TOMORROW))
    with pytest.raises(SettingsError, match=r"found target 'gone', which params\.yaml does not have"):
        machine.accepted_today(params, tmp_path)


def test_dates_without_quotes_are_read(tmp_path: Path) -> None:
    """As people write them."""
    text = f"accepted:\n- {{target: cpu, budgets: [p90_ms], because: a good reason, until: {TOMORROW}}}\n"
    (tmp_path / accepted.FILE).write_text(text, "utf-8")
    assert [one.until for one in accepted.read(tmp_path)] == [TOMORROW]


def test_a_pass_needs_no_exception_and_the_whole_counts_what_is_left(tmp_path: Path) -> None:
    workspace = failing(tmp_path)
    accept.command("cpu", because=BECAUSE, until=TOMORROW, budget=["size_mb", "p90_ms"], folder=tmp_path)
    run(workspace)
    verdict = records.read(Verdict, workspace.report / "verdict.json")
    assert {one.budget for one in verdict.budgets if one.accepted is not None} == {"size_mb"}
    (one,) = (one for one in verdict.budgets if one.accepted is not None)
    assert one.accepted == Accepted(because=BECAUSE, until=TOMORROW)
    assert say_verdict(one).endswith(f"fail (accepted until {TOMORROW}: {BECAUSE})")
    # an exception for everything leaves nothing that says yes
    assert overall([one]) is Status.NOT_MEASURED
    assert overall([one], day="9999-01-01") is Status.FAIL
    assert "accepted for now" in headline(verdict) and "accepted" not in headline(verdict, "9999-01-01")
