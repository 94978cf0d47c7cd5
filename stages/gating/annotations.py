"""Lines that GitHub Actions shows beside a pull request: `::error title=...::message`.

Source: GitHub's documentation, "Workflow commands for GitHub Actions"; it shows ten of each kind for a step.
"""

import os
from collections.abc import Iterable

from eval.wording import say_change, say_verdict
from pipeline.base.records import BudgetVerdict, Change, Status

_LEVELS = {Status.FAIL: "error", Status.INCONCLUSIVE: "warning", Status.NOT_MEASURED: "warning"}


def of_budgets(budgets: Iterable[BudgetVerdict]) -> list[str]:
    """One for each required budget that is not kept."""
    return [
        _line(one.status, f"{one.target}: {one.budget}", say_verdict(one))
        for one in budgets
        if one.required and one.status in _LEVELS
    ]


def of_changes(changes: Iterable[Change]) -> list[str]:
    """One for each required figure that is worse than the base's, or undecided."""
    return [
        _line(one.status, f"{one.target}: {one.title}", say_change(one))
        for one in changes
        if one.required and one.accepted is None and one.status in _LEVELS
    ]


def show(lines: Iterable[str]) -> None:
    """Prints them where GitHub Actions reads along, and nothing elsewhere."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in lines:
            print(line, flush=True)


def _line(status: Status, title: str, message: str) -> str:
    return f"::{_LEVELS[status]} title={_escape(title, ',:')}::{_escape(message)}"


def _escape(text: str, further: str = "") -> str:
    """Values of a property escape more than the message does."""
    for character in f"%\r\n{further}":
        text = text.replace(character, f"%{ord(character):02X}")
    return text
