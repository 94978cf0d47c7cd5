"""Lets a target's failing budgets pass until a day, for a reason that every report shows.

    decant accept cpu --because "new tokenizer, see issue 41" --until 2027-01-31
    decant accept cpu --budget p90_ms --because "slower runners until March" --until 2027-03-01

Writes accepted.yaml, which belongs under git: the exception is reviewed with the change. It ends by itself.
"""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from pipeline.base import records
from pipeline.base.errors import SettingsError
from pipeline.base.plugins import nearest
from pipeline.base.records import Comparison, Status, Verdict
from pipeline.base.workspace import Workspace
from pipeline.settings import accepted
from pipeline.settings.budgets import TABLE
from pipeline.settings.params import load


def command(
    target: Annotated[str, typer.Argument(help="A name under targets: in params.yaml.")],
    because: Annotated[str, typer.Option(help="Why, for those who read the report.")],
    until: Annotated[str, typer.Option(help="The last day, such as 2027-01-31, in UTC.")],
    budget: Annotated[
        list[str] | None, typer.Option(help="Only this one, may be given again; default: all that are not kept.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="The project.")] = Path(),
) -> None:
    workspace = Workspace(folder)
    params = load(workspace.params, with_plugins=False)
    if target not in params.targets:
        raise SettingsError(f"no target '{target}' in params.yaml{nearest(target, params.targets)}")
    names = tuple(budget or not_kept(workspace, target))
    known = [*TABLE, *compared(workspace, target)]
    for name in names:
        if name not in known:
            raise SettingsError(f"no budget '{name}'{nearest(name, known)}; known: {', '.join(known)}")
    if not names:
        raise SettingsError(f"every budget of {target} is kept, so there is nothing to accept; name one with --budget")
    try:
        found = accepted.Exemption(target=target, budgets=names, because=because, until=until)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SettingsError(f"--{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}") from None
    accepted.add(folder, found)
    path = folder / accepted.FILE
    print(f"{target}: {', '.join(names)} may fail until {found.until}; commit {path}, then run `dvc repro`")


def not_kept(workspace: Workspace, target: str) -> list[str]:
    """Budgets of a target, and figures beside its base, that the last verdict and comparison do not pass."""
    names = [one.budget for one in _verdict(workspace) if one.target == target and one.status is not Status.PASS]
    return names + [name for name, status in compared(workspace, target).items() if status is Status.FAIL]


def compared(workspace: Workspace, target: str) -> dict[str, Status | None]:
    """Figure of the last comparison -> how it stands; empty when there was none."""
    path = workspace.compared / "comparison.json"
    found = records.read(Comparison, path).changes if path.is_file() else ()
    return {change.what: change.status for change in found if change.target == target}


def _verdict(workspace: Workspace) -> tuple[records.BudgetVerdict, ...]:
    path = workspace.report / "verdict.json"
    return records.read(Verdict, path).budgets if path.is_file() else ()
