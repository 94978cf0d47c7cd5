"""Prints the verdict; exit status: 0 required budgets pass, 1 one fails, 3 undecided.

Reads verdict.json and nothing else. Run as `python -m stages.gate`.
"""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.budgets import exit_status, overall
from eval.wording import MARKS, headline, say_verdict, show_figure, show_figure_interval, show_limit
from pipeline.base import guard, records
from pipeline.base.records import BudgetVerdict, ReasonKind, Status, Verdict
from pipeline.base.workspace import Workspace
from pipeline.settings.accepted import today
from stages.gating import annotations

COLOURS = {Status.PASS: "green", Status.FAIL: "red", Status.INCONCLUSIVE: "yellow", Status.NOT_MEASURED: "yellow"}


def run(workspace: Workspace, console: Console | None = None) -> int:
    """Prints the table, one line for each required budget that is not kept, and where the report is.

    Returns:
        The exit status.

    Raises:
        IntegrityError: there is no verdict, or it was changed since it was written.
    """
    verdict = records.read(Verdict, workspace.report / "verdict.json")
    # of today, since an exception may have ended since the report was made
    day = today().isoformat()
    verdict = verdict.model_copy(update={"status": overall(verdict.budgets, verdict.problems, day=day)})
    # Wide when piped, since a log that breaks lines inside a cell cannot be searched.
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=200, no_color=True)
    console.print(Text(verdict.first_line), soft_wrap=True)
    console.print(_table(verdict))
    for one in sorted((b for b in verdict.budgets if b.status is not Status.PASS), key=lambda b: not b.required):
        console.print(Text(_line(one)), soft_wrap=True)
    if blunt := [one for one in verdict.budgets if any(r.kind is ReasonKind.DOES_NOT_BITE for r in one.reasons)]:
        names = ", ".join(f"{one.target} {one.budget}" for one in blunt)
        console.print(Text(f"could hardly fail, so tighten or drop them: {names}"), soft_wrap=True)
    for problem in verdict.problems:
        console.print(Text(f"could not be read: {problem}"), soft_wrap=True)
    sentence = headline(verdict, day)
    console.print(Text(f"{MARKS[verdict.status]} {verdict.status}: {sentence}.", COLOURS[verdict.status]))
    console.print(Text(f"report: {workspace.report / 'index.html'}"), soft_wrap=True)
    annotations.show(annotations.of_budgets(one for one in verdict.budgets if one.decides(day)))
    return exit_status(verdict.status)


def _table(verdict: Verdict) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("target", "budget", "limit"):
        table.add_column(column)
    table.add_column("measured", justify="right")
    for column in ("interval", "verdict"):
        table.add_column(column)
    for one in verdict.budgets:
        status = f"{MARKS[one.status]} {one.status}{'' if one.required else ' (optional)'}"
        table.add_row(
            # Text, since a plain string would be read as Rich's markup, which '[1.2, 3.4]' resembles
            *map(Text, (one.target, one.budget, show_limit(one), show_figure(one), show_figure_interval(one))),
            Text(status, COLOURS[one.status] if one.required else "dim"),
        )
    return table


def _line(one: BudgetVerdict) -> str:
    return f"{say_verdict(one)}{'' if one.required else ' (optional)'}"


def main() -> int:
    return run(Workspace())


if __name__ == "__main__":
    guard.run(main)
