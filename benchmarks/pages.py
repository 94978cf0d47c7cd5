"""Tables in pages, between markers that name the command which makes them."""

from pathlib import Path

from pipeline.base.errors import SettingsError


def begin_of(name: str, command: str) -> str:
    """The line above a table."""
    return f"<!-- {name}: made by `{command}` -->\n"


def fill(text: str, page: Path, name: str, command: str, content: str) -> str:
    """A page with one table made anew.

    Raises:
        SettingsError: the page has no place for it, or no end of that place.
    """
    begin, end = begin_of(name, command), f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    if not found:
        raise SettingsError(f"{page}: no line '{begin.strip()}'; the table has no place")
    _, ended, after = rest.partition(end)
    if not ended:
        raise SettingsError(f"{page}: no line '{end}' after '{begin.strip()}'; add it below the table")
    return before + begin + content + end + after
