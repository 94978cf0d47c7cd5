"""How a child process ends: with its parent, and with a reason that can stand in a record.

`python -m eval.dying COMMAND...` becomes a command that ends with its parent, for programs that are not ours. (Python's
`preexec_fn` would fork this process as it is, threads of JAX and others included, which can hang it.)
"""

import atexit
import ctypes
import os
import signal
import sys
import tempfile
from functools import cache
from pathlib import Path

_PR_SET_PDEATHSIG = 1
SHOWN_CHARACTERS = 300
_PATHS = ("PYTHONPATH", "PYTHONHOME")
ROOT = Path(__file__).resolve().parents[1]


def with_parent() -> None:
    """Asks the kernel to kill this process when its parent dies (Linux): no orphan may keep the cores busy."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def reason(returncode: int, printed: str) -> str:
    """Why a child ended that should not have: 'crashed (SIGSEGV)', or its exit status and its last line."""
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return f"crashed ({name}){' (out of memory?)' if name == 'SIGKILL' else ''}"
    lines = [line for line in printed.splitlines() if line.strip()]
    return f"failed (exit status {returncode}): {lines[-1][:SHOWN_CHARACTERS] if lines else 'it printed nothing'}"


def folder_of(python: str | None) -> Path:
    """Where a child is started, so that it is this very code that it imports.

    For another environment's Python that is a folder with nothing else in it: where Decant is installed, this
    environment's libraries lie beside it.
    """
    return ROOT if python is None else Path(_alone().name)


def environment_of(python: str | None) -> dict[str, str]:
    """This process's environment, for another Python without the paths that would bring this one's libraries."""
    return {name: value for name, value in os.environ.items() if python is None or name not in _PATHS}


@cache
def _alone() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="decant-")
    atexit.register(folder.cleanup)
    for package in ("eval", "pipeline"):
        Path(folder.name, package).symlink_to(ROOT / package, target_is_directory=True)
    return folder


def command(*words: str) -> list[str]:
    """The command that does the same and ends with this process; to be started in the folder `ROOT`."""
    return [sys.executable, "-m", __name__, *words]


if __name__ == "__main__":
    with_parent()
    os.execv(sys.argv[1], sys.argv[1:])
