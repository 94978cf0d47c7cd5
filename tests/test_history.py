"""Accepted versions: one line each, by kind of machine, and where a figure changed for good."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from report_workspace import make_workspace

from eval import history
from eval.history import Entry, change_points, series_of
from pipeline.base.errors import IntegrityError, SettingsError
from stages import report
from stages.commands import history as command
from stages.gating.bases import bring
from stages.reporting.history import changes_of, render

VNNI, AVX2 = "EPYC, avx512_vnni", "EPYC, avx2"


def entry(number: int, p50_ms: float, machine: str = VNNI, **figures: float) -> Entry:
    return Entry(
        day=f"2027-01-{number + 1:02d}",
        revision=f"{number:040x}",
        verdict=f"{number:064x}",
        machines={"cpu": machine},
        figures={"cpu": {"p50_ms": p50_ms, **figures}},
    )


def test_a_step_is_found_where_it_is_and_noise_has_none() -> None:
    rng = np.random.default_rng(0)
    false = sum(bool(change_points(rng.normal(1, 0.02, 20))) for _ in range(200))
    assert false <= 12  # 3 % are expected
    right = 0
    for _ in range(50):
        found = change_points([*rng.normal(1, 0.02, 12), *rng.normal(1.1, 0.02, 12)])
        right += found == [12]
    assert right >= 45


def test_a_size_that_grew_by_a_byte_is_a_change_and_a_constant_is_none() -> None:
    assert change_points([5.0] * 20) == []
    assert change_points([5.0] * 10 + [5.000001] * 10) == [10]


def test_what_lasted_one_version_is_no_change() -> None:
    """Of figures that are mostly constant, where any lasting step counts."""
    assert change_points([5.0] * 8 + [6.0] + [5.0] * 8) == []
    assert change_points([5.0] * 8 + [6.0] + [5.0] * 8 + [7.0] * 8) == [17]


def test_few_versions_say_nothing() -> None:
    assert change_points([1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]) == []


def test_a_series_never_goes_from_one_machine_to_another() -> None:
    """Planted: the runner became one without VNNI, and everything took longer."""
    entries = [entry(i, 1.0 + 0.001 * (i % 3), VNNI if i < 10 else AVX2) for i in range(20)]
    slower = [one if i < 10 else entry(i, 1.4, AVX2) for i, one in enumerate(entries)]
    assert [len(one.values) for one in series_of(slower)] == [10, 10]
    assert changes_of(slower) == []
    (line,) = changes_of([entry(i, 1.0 + 0.001 * (i % 3) + 0.2 * (i >= 10)) for i in range(20)])
    assert line.startswith("cpu: p50_ms from 1.001 to 1.201 (+20.0 %) with 00000000 of 2027-01-11 on EPYC, avx512_vnni")


def test_lines_are_added_once_and_read_again(tmp_path: Path) -> None:
    assert history.add(tmp_path, entry(0, 1.0)) and history.add(tmp_path, entry(1, 1.0))
    assert not history.add(tmp_path, entry(1, 1.0))
    assert history.read(tmp_path) == [entry(0, 1.0), entry(1, 1.0)]


def test_no_line_is_lost(tmp_path: Path) -> None:
    """Planted: an editor left the last line without its end; then one that cut it in the middle."""
    history.add(tmp_path, entry(0, 1.0))
    file = tmp_path / history.FILE
    file.write_text(file.read_text().rstrip("\n"))
    history.add(tmp_path, entry(1, 1.0))
    assert len(history.read(tmp_path)) == 2
    file.write_text(file.read_text()[:-10])
    with pytest.raises(IntegrityError, match="its last line is not JSON"):
        history.add(tmp_path, entry(2, 1.0))


def test_a_line_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / history.FILE).write_text(json.dumps({"day": "2027-01-01"}) + "\n" + json.dumps({}) + "\n")
    with pytest.raises(IntegrityError, match="not a history of schema version"):
        history.read(tmp_path)


def test_the_page_names_targets_and_changes() -> None:
    page = render([entry(i, 1.0 + 0.2 * (i >= 10), score=90.0) for i in range(20)])
    assert "20 accepted versions, 2027-01-01 to 2027-01-20" in page
    assert page.count("<svg") == 2 and "cpu: p50_ms from 1 to 1.2 (+20.0 %)" in page
    assert "no series has 8 versions yet" in render([entry(0, 1.0)])


def test_only_a_pass_is_added(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What passed stands with its figures and its machine; what did not is refused with what to look at."""
    params, workspace = make_workspace(tmp_path)
    verdict = report.run(params, workspace)
    assert verdict.status == "pass", verdict.first_line
    command.command(workspace.root, add=True)
    command.command(workspace.root, add=True)
    (found,) = history.read(workspace.root)
    assert set(found.figures) == set(params.targets) and found.figures["cpu"]["p50_ms"] > 0
    assert "already has" in capsys.readouterr().out
    assert (workspace.history / "index.html").is_file()
    for words in (["init", "--quiet"], ["add", "params.yaml"], ["commit", "--quiet", "-m", "one"]):
        identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True)
    with workspace.params.open("a") as file:
        file.write("# changed\n")
    with pytest.raises(IntegrityError, match=r"params\.yaml: not committed"):
        command.command(workspace.root, add=True)
    workspace.scored("cpu").unlink()
    report.run(params, workspace)
    with pytest.raises(IntegrityError, match="expected 'pass': only accepted versions are kept"):
        command.command(workspace.root, add=True)


def test_the_last_accepted_version_is_a_base(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no accepted version yet"), bring("last-accepted", tmp_path, ["cpu"]):
        pass
    for words in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "-m", "one"]):
        identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True)
    said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True)
    history.add(tmp_path, entry(0, 1.0).model_copy(update={"revision": said.stdout.strip()}))
    with bring("last-accepted", tmp_path, ["cpu"]) as base:
        assert base.version == said.stdout.strip() and "no dvc.lock" in base.missing["cpu"]
