"""What surrounds every command: one message for a user's mistake, a lock on each output, and no orphans.

A killed `dvc repro` leaves the stage it was running alive, and the next one would write the same files beside it. So
under DVC a stage asks the kernel to be ended with its parent, and each output has a lock that only one process holds.
"""

import contextlib
import ctypes
import fcntl
import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import psutil

from pipeline.base.errors import EnvironmentFault, PipelineError
from pipeline.base.files import translate_os_error

DIES_WITH_PARENT = "DECANT_DIES_WITH_PARENT"  # set by a command for the processes it starts
_PR_SET_PDEATHSIG = 1
NOISY = ("httpx", "datasets", "filelock", "onnx_ir", "onnxruntime", "onnxscript", "optimum", "coremltools", "torch")
BUG = 70  # EX_SOFTWARE of sysexits.h: "an internal software error has been detected"
STATUS = Path("artifacts/work/failed_status")  # of the last stage that failed under DVC, in its project's folder


def run(main: Callable[[], int | None]) -> None:
    """Runs a command's main function and ends the process with its exit status.

    A PipelineError or a full disk prints one message. Anything else is a bug: it keeps its traceback and ends with BUG,
    since Python's own 1 would say that a budget fails.
    """
    gc.freeze()  # what was imported stays to the end, and need not be walked through
    gc.enable()
    signal.signal(signal.SIGTERM, _exit_143)
    _end_with_dvc()
    level = logging.INFO if is_first() else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    # These announce every call they make; a person following a stage wants the stage's own lines.
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # coremltools draws its bars into log files otherwise
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)  # a fresh classifier is what is wanted
    logging.getLogger("transformers.integrations.tensor_parallel").setLevel(logging.ERROR)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        status = main() or 0
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        status = error.exit_status
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was left; run the same command to go on", file=sys.stderr)
        status = 130
    except Exception as error:
        message = _environment_message(error)
        if message is None:
            traceback.print_exc()
            status = BUG
        else:
            print(f"error: {message}", file=sys.stderr)
            status = EnvironmentFault.exit_status
    if status and "DVC_STAGE" in os.environ:
        _tell_status(status)
    sys.exit(status)


def is_first() -> bool:
    """Whether this is the only process of a command, or the first of several that a launcher of torch has started."""
    return os.environ.get("RANK", "0") == "0"


def _tell_status(status: int) -> None:
    """Leaves the exit status for `decant run`: DVC gives 255 for whatever its stages gave."""
    with contextlib.suppress(OSError):
        STATUS.parent.mkdir(parents=True, exist_ok=True)
        STATUS.write_text(str(status), "utf-8")


def _environment_message(error: Exception) -> str | None:
    """What to say of an error that is the machine's, None for a bug."""
    # A write to an open file names no path, and libraries written in Rust and C++ raise their own classes.
    if "No space left on device" in str(error) or "os error 28" in str(error):
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return f"{where}the disk is full; free some space and run again. Nothing half-written was left"
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return str(translate_os_error(error, Path(str(error.filename)).absolute()))
    return None


@contextlib.contextmanager
def lock(output: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds the lock on an output for the length of the block; of several processes that train together, in the first.

    Args:
        output: what is written.
        wait: for a cache that several processes share: wait until the other has filled it.

    Raises:
        EnvironmentFault: another process holds it; the message names its pid.
    """
    if not is_first():
        yield
        return
    # Under artifacts/work, which DVC does not hash: a lock beside an output would be part of what the report reads.
    top = next((folder for folder in output.parents if folder.name == "artifacts"), output.parent)
    path = top / "work" / "locks" / f"{'-'.join(output.relative_to(top).parts)}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise EnvironmentFault(
                f"{output}: process {holder} is writing it; wait for that run to end, or end process {holder}"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
        file.truncate(0)


def _exit_143(signum: int, frame: FrameType | None) -> None:
    # SystemExit unwinds, so that partial folders are removed; 143 is the shell's word for "ended by SIGTERM".
    sys.exit(128 + signum)


def _end_with_dvc() -> None:
    """Ends this process with `dvc repro`, or with torch's launcher. Run by hand, a stage may outlive its shell."""
    if not {"DVC_STAGE", DIES_WITH_PARENT, "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # DVC may have put a shell between, which the kernel's signal would not reach through.
    ancestors = [process for process in psutil.Process().parents()[:4] if _is_dvc(process)]
    if ancestors:
        threading.Thread(target=_watch, args=(ancestors[0],), daemon=True).start()


def _is_dvc(process: psutil.Process) -> bool:
    try:
        return any(Path(word).name == "dvc" for word in process.cmdline()[:3])
    except psutil.Error:
        return False


def _watch(dvc: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it may end between the two questions
        while dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
