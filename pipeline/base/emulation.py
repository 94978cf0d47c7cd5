"""Running Decant's own child processes as on another x86: Debian's qemu-user executes this very Python, slowly.

The emulated CPU has AVX2 and no VNNI, which is where 8-bit sums can saturate. Times mean nothing under it.
"""

import shutil
import subprocess
import sys
from functools import cache

CPU = "Haswell"
COMMAND = "qemu-x86_64"


def why_unusable() -> str | None:
    """Why no other x86 can be emulated here, or None."""
    if sys.platform != "linux":
        return "only Linux has qemu-user"
    if shutil.which(COMMAND) is None:
        return f"'{COMMAND}' is not installed (Debian: apt-get install qemu-user)"
    return None


def prefix() -> list[str]:
    """What stands before a command that shall run on the other CPU."""
    return [COMMAND, "-cpu", CPU]


@cache
def version() -> str:
    """Name and version of the emulator, for records."""
    said = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True).stdout
    return f"{COMMAND} {said.split()[2]} -cpu {CPU}"
