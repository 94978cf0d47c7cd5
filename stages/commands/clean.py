"""Removes what targets that params.yaml no longer has left behind.

decant clean --dry-run
decant clean
"""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from pipeline.base.workspace import Workspace
from pipeline.settings.params import load


def command(
    folder: Annotated[Path, typer.Option(help="The project.")] = Path(),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Name it, and remove nothing.")] = False,
) -> None:
    workspace = Workspace(folder)
    found = workspace.left_by_others(list(load(workspace.params, with_plugins=False).targets))
    for path in found:
        print(f"{'would remove' if dry_run else 'removed'} {path}")
        if not dry_run:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not found:
        print("nothing to remove: every artefact and record belongs to a target of params.yaml")
