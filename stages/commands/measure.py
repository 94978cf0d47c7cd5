"""Takes more samples of one target and judges again.

    decant measure cpu

For a budget that was tightened and became inconclusive. What was sampled before is kept, as long as artefact and
machine are the same; no other target is touched.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.base import guard
from pipeline.base.errors import SettingsError
from pipeline.base.plugins import nearest
from pipeline.base.workspace import Workspace
from pipeline.settings.params import load
from stages.commands.run import dvc, reproduce


def command(
    target: Annotated[str, typer.Argument(help="A name under targets: in params.yaml.")],
    folder: Annotated[Path, typer.Option(help="The project.")] = Path(),
) -> int:
    # half a second of imports, which the list of commands need not wait for
    from stages import benchmark

    workspace = Workspace(folder)
    params = load(workspace.params, with_plugins=False)
    if target not in params.targets:
        raise SettingsError(f"no target '{target}' in params.yaml{nearest(target, params.targets)}")
    if not workspace.measured(target).is_file():
        raise SettingsError(f"{target} has not been measured yet; run `dvc repro` first")
    with guard.lock(workspace.measured(target)):
        benchmark.run(params, workspace, target, append=True)
    # DVC would take samples that it has not seen for a damaged output, and measure from the start
    dvc(folder, "commit", "--force", f"benchmark@{target}")
    return reproduce(folder)
