"""Builds everything on the bundled data with `dvc repro`; what `make demo` runs."""

import time
from pathlib import Path

from pipeline.base import guard
from stages.commands.run import reproduce


def command() -> int:
    started = time.monotonic()
    status = reproduce(Path())
    print(f"took {time.monotonic() - started:.0f} s")
    return status


if __name__ == "__main__":
    guard.run(command)
