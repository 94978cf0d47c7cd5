"""Runs one stage of dvc.yaml, in a project that has Decant installed.

decant stage convert --target cpu
"""

import importlib
import sys
from typing import Annotated

import typer

from pipeline.base.errors import SettingsError
from pipeline.base.plugins import nearest
from stages.machine import ONCE, PER_TARGET

STAGES = ("machine", *ONCE, *PER_TARGET)


def command(
    name: Annotated[str, typer.Argument(help="A stage of dvc.yaml.")],
    target: Annotated[str | None, typer.Option(help="For stages that run once for each target.")] = None,
) -> int:
    if name not in STAGES:
        raise SettingsError(f"no stage '{name}'{nearest(name, STAGES)}")
    sys.argv = [f"decant stage {name}", *(["--target", target] if target is not None else [])]
    return importlib.import_module(f"stages.{name}").main() or 0
