"""How a child process ends: with its parent, and with a reason that can stand in a record."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
SHOWN_CHARACTERS = 300


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
