"""Says whether this version is slower, worse or larger than another, and how surely.

    decant compare main                 artefacts of that git revision, from the DVC cache or a remote
    decant compare v1.2 --build         trains and exports them again where nobody has kept them
    decant compare ../other/project     another folder's
    decant compare 1.0.0/web.zip        a bundle's
    decant compare last-accepted        the version of the last line of history.jsonl
    decant compare main --base-python OLD/bin/python      where the runtime's version is what changes

Both versions of each target's file are timed beside each other, both twice, in both orders, and answer the same test
rows. Exit status: 0 no regression, 1 a regression, 3 undecided, or a required target cannot be compared.
"""

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval.budgets import exit_status
from eval.changes import overall
from eval.wording import (
    MARKS,
    compared_headline,
    is_moved,
    say_change,
    show_harm,
    show_harm_interval,
    show_loss,
    show_side,
)
from pipeline.base import records
from pipeline.base.errors import PipelineError, SettingsError
from pipeline.base.files import output_folder
from pipeline.base.plugins import nearest
from pipeline.base.records import Accepted, Change, Comparison, Status
from pipeline.base.workspace import Workspace
from pipeline.data.examples import read_prepared
from pipeline.settings import accepted
from pipeline.settings.params import Params, load
from stages.gating import annotations, comment, junit
from stages.gating.bases import Base, bring
from stages.gating.sides import Runtime, compare_target


def command(
    base: Annotated[str, typer.Argument(help="A git revision, a project's folder, an artefact's, or last-accepted.")],
    folder: Annotated[Path, typer.Option(help="The project.")] = Path(),
    target: Annotated[list[str] | None, typer.Option(help="Only this target; may be given again.")] = None,
    build: Annotated[bool, typer.Option("--build", help="Train the base again where it is not kept.")] = False,
    base_python: Annotated[
        Path | None, typer.Option(help="The Python of an environment with the base's version of the runtime.")
    ] = None,
) -> int:
    workspace = Workspace(folder)
    params = load(workspace.params, with_plugins=False)
    names = target or list(params.targets)
    for name in names:
        if name not in params.targets:
            raise SettingsError(f"no target '{name}' in params.yaml{nearest(name, params.targets)}")
    python = None if base_python is None else _program(base_python)
    shutil.rmtree(workspace.compared, ignore_errors=True)  # or a run that ends early would post the last one's comment
    with bring(base, folder, names, build=build) as found:
        comparison = run(params, workspace, names, found, python)
    write(comparison, workspace)
    show(comparison, workspace)
    return exit_status(comparison.status)


def _program(python: Path) -> str:
    found = shutil.which(python)
    if found is None:
        raise SettingsError(f"--base-python: found no program '{python}', expected the Python of an environment")
    return str(Path(found).absolute())


def run(
    params: Params, workspace: Workspace, names: list[str], base: Base, base_python: str | None = None
) -> Comparison:
    """Compares each target; one that cannot be stands with its reason, and the others go on."""
    records.open_folder(workspace.data, "data")
    rows = read_prepared(workspace.data, "test")
    changes: list[Change] = []
    not_compared = dict(base.missing)
    evidence: dict[str, str] = {}
    for name in names:
        if name in not_compared:
            continue
        sides = {"base": base.folders[name], "head": workspace.exported(name)}
        try:
            runtime = Runtime(base.runtimes.get(name), base_python)
            changes += compare_target(params, name, sides["base"], sides["head"], rows, runtime)
            evidence |= {f"{side}/{name}": records.digest_of(path) for side, path in sides.items()}
        except PipelineError as error:
            not_compared[name] = str(error)
    required = tuple(name for name in not_compared if params.targets[name].required)
    exempt = accepted.in_force(accepted.read(workspace.root), accepted.today())
    changes = [_accept(change, exempt) for change in changes]
    return Comparison(
        base=base.name,
        base_version=base.version,
        status=overall(changes, required),
        changes=tuple(changes),
        not_compared=not_compared,
        required_not_compared=required,
        evidence=evidence,
    )


def _accept(change: Change, exempt: list[accepted.Exemption]) -> Change:
    found = accepted.find(exempt, change.target, change.what)
    if found is None or change.status in (Status.PASS, None):
        return change
    return change.model_copy(update={"accepted": Accepted(because=found.because, until=found.until)})


def write(comparison: Comparison, workspace: Workspace) -> None:
    """`artifacts/compared/`: comparison.json, comment.md, junit.xml."""
    with output_folder(workspace.compared) as partial:
        records.write(comparison, partial / "comparison.json")
        (partial / "comment.md").write_text(comment.render(comparison), "utf-8", newline="\n")
        (partial / "junit.xml").write_text(junit.of_comparison(comparison), "utf-8", newline="\n")


def show(comparison: Comparison, workspace: Workspace) -> None:
    """A table on the terminal, and a line for each figure that moved."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200, no_color=True)
    table = Table(box=None, pad_edge=False)
    for column in ("target", "what", "base", "this", "change", "interval", "noise", "seen from", "status"):
        table.add_column(column)
    for one in comparison.changes:
        status = "" if one.status is None else f"{MARKS[one.status]} {one.status}"
        cells = (one.target, one.title, show_side(one, one.base), show_side(one, one.head), show_harm(one))
        table.add_row(
            *map(
                Text,
                (*cells, show_harm_interval(one), show_loss(one, one.noise), show_loss(one, one.could_see), status),
            )
        )
    console.print(table)
    for one in comparison.changes:
        if is_moved(one):
            console.print(Text(say_change(one)), soft_wrap=True)
    for name, reason in comparison.not_compared.items():
        console.print(Text(f"{name}: cannot compare: {reason}"), soft_wrap=True)
    console.print(Text(f"{MARKS[comparison.status]} {comparison.status}: {compared_headline(comparison)}."))
    console.print(Text(f"comment: {workspace.compared / 'comment.md'}"), soft_wrap=True)
    annotations.show(annotations.of_changes(comparison.changes))
