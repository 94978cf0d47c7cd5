"""Runs the Core ML targets of a finished project in Core ML itself, on a Mac; `make mac`."""

from pathlib import Path

from eval.runtimes import coreml
from pipeline.base import guard
from pipeline.base.errors import SettingsError, UnusableRuntimeError
from pipeline.settings.params import load
from stages.commands.run import dvc


def command(folder: Path = Path()) -> int:
    """Scores, times and checks of every target whose runtime is coreml, then report and gate.

    Forced, since DVC would take the "not measured" of the machine that built the project for an answer.
    """
    reason = coreml.why_unusable()
    if reason is not None:
        raise UnusableRuntimeError(f"{reason}; copy the project with its artifacts to a Mac and run `make mac` there")
    names = [name for name, target in load(folder / "params.yaml").targets.items() if target.runtime == "coreml"]
    if not names:
        raise SettingsError("params.yaml has no target with runtime: coreml; add one, see docs/coreml.md")
    dvc(folder, "repro", "--single-item", "machine")
    stages = [f"{stage}@{name}" for name in names for stage in ("evaluate", "benchmark", "examine")]
    dvc(folder, "repro", "--force", "--single-item", *stages)
    # by themselves: figures of other targets belong to the machine that took them, and stay
    dvc(folder, "repro", "--single-item", "report")
    return dvc(folder, "repro", "--force", "--single-item", "gate", check=False)


if __name__ == "__main__":
    guard.run(command)
