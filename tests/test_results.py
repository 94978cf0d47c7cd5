"""The README's tables are those that its records give, no digit more."""

import json
from pathlib import Path

from benchmarks import recipes
from stages.comparing import results

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_shows_what_the_records_say():
    """Made anew from docs/results, the page stays as it is."""
    text = (ROOT / "README.md").read_text("utf-8")
    assert recipes.with_tables(text, ROOT / "docs" / "results") == text
    assert "**banking77**, 3,080 test rows" in text


def test_the_plots_show_what_the_records_say():
    for file in (ROOT / "docs" / "results" / "methods").glob("*.json"):
        assert file.with_suffix(".svg").read_text("utf-8") == results.plot(results.read(file))


def test_a_changed_figure_is_noticed(tmp_path):
    """Planted fault: one digit of a record."""
    record = json.loads((ROOT / "docs" / "results" / "sst2.json").read_text("utf-8"))
    record["variants"]["distilled"]["test_accuracy"][0] += 0.01
    (tmp_path / "sst2.json").write_text(json.dumps(record), "utf-8")
    text = (ROOT / "README.md").read_text("utf-8")
    assert recipes.with_tables(text, tmp_path) != text


def test_text_around_the_tables_stays(tmp_path):
    """And a page without markers is left alone."""
    text = (ROOT / "README.md").read_text("utf-8")
    found = recipes.with_tables(text, tmp_path)
    assert found.startswith(text.partition("<!-- recipes")[0])
    assert found.endswith(text.rpartition("<!-- end of speed -->")[2])
    assert recipes.with_tables("no markers", tmp_path) == "no markers"
