"""The guide to the methods names every loss that there is."""

from pathlib import Path

from pipeline.base import plugins

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "methods.md"


def test_every_loss_is_in_the_guide():
    """A new file of pipeline/losses needs a line there."""
    text = GUIDE.read_text("utf-8")
    assert [name for name in plugins.names("loss") if f"`{name}`" not in text] == []
