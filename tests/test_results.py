"""The tables of the docs are those that its records give, no digit more."""

import json
from pathlib import Path

import pytest

from benchmarks import checks, commits, coreml, coverage, gate, instructions, losses, recipes, runtimes, ship
from pipeline.base.errors import SettingsError
from pipeline.mil.interpreter import OPERATIONS
from stages.comparing import results

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_of_results_shows_what_the_records_say():
    """Made anew from docs/results, the page stays as it is."""
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    assert recipes.with_tables(text, ROOT / "docs" / "results") == text
    assert "**banking77**, 3,080 test rows" in text


def test_the_plots_show_what_the_records_say():
    for file in (ROOT / "docs" / "results" / "methods").glob("*.json"):
        assert file.with_suffix(".svg").read_text("utf-8") == results.plot(results.read(file))


def test_a_changed_figure_is_noticed(tmp_path):
    """Planted fault: one digit of a record."""
    record = json.loads((ROOT / "docs" / "results" / "sst2.json").read_text("utf-8"))
    record["variants"]["distilled"]["test_score"][0] += 0.01
    (tmp_path / "sst2.json").write_text(json.dumps(record), "utf-8")
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    assert recipes.with_tables(text, tmp_path) != text


def test_text_around_the_tables_stays(tmp_path):
    """And a page without markers is left alone."""
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    found = recipes.with_tables(text, tmp_path)
    assert found.startswith(text.partition("<!-- recipes")[0])
    assert found.endswith(text.rpartition("<!-- end of speed -->")[2])
    assert recipes.with_tables("no markers", tmp_path) == "no markers"


# --- runtimes ----------------------------------------------------------------------------------------------------


def test_the_page_of_targets_shows_what_the_records_say(tmp_path):
    text = (ROOT / "docs" / "targets.md").read_text("utf-8")
    assert runtimes.with_tables(text, ROOT / "docs" / "results" / "runtimes") == text
    with pytest.raises(SettingsError, match="the table has no place"):
        runtimes.with_tables("no markers", tmp_path)


def test_the_page_of_core_ml_shows_the_records_and_every_operation():
    """Which are those that tests/test_mil_ops.py has a case for."""
    text = (ROOT / "docs" / "coreml.md").read_text("utf-8")
    assert coreml.with_tables(text, ROOT / "docs" / "results" / "coreml") == text
    assert all(f"`{name}`" in text for name in OPERATIONS)


@pytest.mark.parametrize("made", [checks, commits, coverage, gate, instructions, losses])
def test_the_page_of_measuring_shows_what_the_records_say(made, tmp_path):
    """Of each benchmark of the gate; a page without their places is refused."""
    text = (ROOT / "docs" / "measuring.md").read_text("utf-8")
    assert made.with_table(text, ROOT / made.RESULTS) == text
    assert list((ROOT / made.RESULTS).iterdir())
    with pytest.raises(SettingsError, match="the table has no place"):
        made.with_table("no markers", tmp_path)


def test_runtimes_are_compared_round_by_round(monkeypatch):
    """The fastest of Decant's own files stands for it, and a slow round falls on both sides of a ratio."""
    monkeypatch.setattr(runtimes, "LENGTHS", (8,))
    slow = [1, 1, 50, 1, 1, 1, 1, 1, 1, 1]
    ours = [1_000_000 * one for one in slow]
    process = {
        "8": {
            "LiteRT int8": ours,
            "onnxruntime int8": [2 * ns for ns in ours],
            runtimes.OPTIMUM: [3 * ns for ns in ours],
        }
    }
    found = runtimes._summarise([process, process])["8"]
    assert found["fastest"] == "LiteRT int8"
    assert found["LiteRT int8"]["ms"] == 1.0
    ratio = found[runtimes.OPTIMUM]["fastest_is_times_as_fast"]
    assert (ratio["value"], ratio["low"], ratio["high"]) == pytest.approx((3, 3, 3))


def test_a_baseline_is_never_the_fastest(monkeypatch):
    """What is claimed is claimed of Decant's files."""
    monkeypatch.setattr(runtimes, "LENGTHS", (8,))
    process = {"8": {"LiteRT int8": [2_000_000] * 10, runtimes.OPTIMUM: [1_000_000] * 10}}
    found = runtimes._summarise([process])["8"]
    assert found["fastest"] == "LiteRT int8"
    assert found[runtimes.OPTIMUM]["fastest_is_times_as_fast"]["value"] == pytest.approx(0.5)


def test_what_bundles_did_stands_in_the_page_as_in_the_record() -> None:
    """A bundle that was not tried has why in its place, and no figure."""
    text = (ROOT / ship.PAGE).read_text("utf-8")
    assert ship.with_table(text, ROOT / ship.RECORD) == text
    assert "| ios | ios | 32.2 | 35.7 | not here: its code runs on another system |  |" in text
