"""Checks a settings file and lists every problem in it; writes nothing."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.settings.params import load


def command(path: Annotated[Path, typer.Argument(help="The settings file.")] = Path("params.yaml")) -> None:
    params = load(path)
    print(f"{path}: no problems; targets: {', '.join(params.targets)}")
