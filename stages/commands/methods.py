"""Compares distillation methods on a recipe: one student, equal steps, several seeds.

    decant methods banking77 --files ../shared/banking77          every method of recipes/methods/banking77.yaml
    decant methods banking77 --only a2d --only shd                two of them, and the controls
    decant methods banking77 --show                               the table so far, training nothing

Every method gets one seed first; the best on dev and the controls then get the others. The same command goes on where
an earlier one stopped.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.base.workspace import Workspace
from stages.commands.run import PROJECT, find_recipe, prepare_workspace, reproduce
from stages.comparing.places import Places

if TYPE_CHECKING:
    from stages.comparing.results import Comparison


def command(
    recipe: Annotated[str, typer.Argument(help="A name under recipes/, or a settings file.")],
    files: Annotated[Path | None, typer.Option(help="Folder with the data files, in place of the hub.")] = None,
    methods: Annotated[
        Path | None, typer.Option(help="The list of methods. Default: recipes/methods/<recipe>.yaml.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A method to compare with the controls; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds for the controls and the best methods.")] = 3,
    best: Annotated[int, typer.Option(min=0, help="How many methods get all seeds; the others get one.")] = 5,
    jobs: Annotated[int, typer.Option(min=0, help="Trainings at a time; 0: as many as cores allow.")] = 0,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE for the recipe, as in decant run.")
    ] = None,
    workspace: Annotated[Path | None, typer.Option(help="Default: workspaces/<recipe>-methods.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the table so far and stop.")] = False,
) -> int:
    source = find_recipe(recipe)
    places = Places((workspace or Path("workspaces") / f"{source.stem}-methods").resolve(), tuple(only or ()))
    # Listing the commands imports this file, which must not import torch.
    from pipeline.data.prepared import open_data
    from stages.comparing import results, runner
    from stages.comparing.methods_file import read_methods

    if show:
        _print(results.read(places.record), places)
        return 0
    wanted = read_methods(methods or PROJECT / "recipes" / "methods" / f"{source.stem}.yaml", only or [])
    prepare_workspace(source, places.workspace, files, changes or [])
    if (status := reproduce(places.workspace, "prepare")) != 0:
        return status
    settings = runner.write_settings(wanted, places, open_data(Workspace(places.workspace)).facts["classes"])
    for stage in ("floors", "teach"):
        if (status := reproduce(places.workspace, stage)) != 0:
            return status
    runner.prepare_data(settings, places)
    _print(runner.compare(source.stem, wanted, settings, places, seeds, best, jobs), places)
    return 0


def _print(comparison: "Comparison", places: Places) -> None:
    import shutil

    from rich.console import Console
    from rich.markdown import Markdown

    from stages.comparing import results

    width = shutil.get_terminal_size((160, 24)).columns
    Console(width=max(width, 120)).print(Markdown(results.table(comparison)))
    print(f"record: {places.record}\ntable: {places.table}\nplot: {places.plot}")
