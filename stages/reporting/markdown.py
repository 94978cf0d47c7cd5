"""Tables and texts in Markdown that nothing in them can break."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table without a line break at its end."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(escape(cell) for cell in line) + " |" for line in lines)


def escape(text: str) -> str:
    """Text that cannot end a cell, become HTML, or call a person by name."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").replace("@", "&#64;").split("\n"))
