"""One file for each DVC stage, same name, run as `python -m stages.<stage>`."""

import atexit
import gc
import sys
from importlib import util

NEEDED = ("pydantic", "psutil", "yaml")  # a few that every stage imports: who lacks them has another environment
LOWEST = (3, 11)


def why_broken(platform: str, version: tuple) -> str:
    """What keeps this Python from running any stage; empty when nothing does.

    `dvc repro` starts `python`, whichever comes first in PATH. This is imported before a stage's own file, so it must
    be readable for older Pythons and need nothing but the standard library.
    """
    if platform == "win32":
        return "Decant runs on Linux and macOS; on Windows use WSL 2"
    missing = [name for name in NEEDED if util.find_spec(name) is None]
    if not missing and version >= LOWEST:
        return ""
    found = "Python {}.{}".format(*version[:2])
    faults = ["it has no " + ", ".join(missing)] if missing else []
    if version < LOWEST:
        faults.append(f"it is {found}, where 3.11 or 3.12 is expected")
    return (
        f"'python' is {sys.executable} ({found}): {' and '.join(faults)}, so it is not the project's environment; "
        "run 'source .venv/bin/activate' first, or use 'make demo' or '.venv/bin/decant run'"
    )


if _fault := why_broken(sys.platform, tuple(sys.version_info)):
    print(f"error: {_fault}", file=sys.stderr)
    raise SystemExit(4)

import pipeline  # noqa: E402, F401  before a stage's own imports, among which transformers comes first: it quiets torchao

# Python's garbage collector walks through every object time and again while the big packages are imported, and as the
# process ends: a third of what an idle stage takes. `guard.run` enables the collector before the stage's own work.
# Exit handlers run last in, first out, so what others clean up at exit comes before the freeze; files and processes are
# closed by `with`, and none waits for the collector.
if sys.argv[0] == "-m":  # which it is while `python -m stages.<stage>` looks for its file, and never in a test
    gc.disable()
    atexit.register(gc.freeze)
