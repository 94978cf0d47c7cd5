"""Runs an artefact in a child process with limits, so that a loader that crashes or hangs takes nothing else with it.

    with open_session("onnxruntime", folder, artefact, threads=1) as session:
        outputs = session.run(inputs)

Parent and child talk over a pipe of their own, in safetensors and JSON: nothing that a runtime prints can be mistaken
for an answer, and nothing that the child sends can run code in the parent.
"""

import json
import resource
import signal
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from eval import dying
from eval.runtimes import Arrays, Kernels
from eval.worker import WorkerError, thread_environment
from pipeline.base import emulation, plugins
from pipeline.base.errors import ModelError, PipelineError, UnusableRuntimeError
from pipeline.base.records import Artefact

OPEN_TIMEOUT_S = 120.0  # importing a runtime on a busy machine takes up to twenty seconds
RUN_TIMEOUT_S = 60.0
# Far above what a classifier of some hundred megabytes needs, far below what makes a machine swap.
MEMORY_BYTES = 12 * 2**30
FILE_BYTES = 2**30
CPU_SECONDS = 3600
# Errors that mean the same on both sides of the pipe; any other PipelineError arrives as a ModelError.
_ERRORS = {error.__name__: error for error in (ModelError, UnusableRuntimeError)}


class IsolatedSession:
    """A session whose artefact lives in another process; the same interface, and WorkerError besides."""

    def __init__(self, process: subprocess.Popen, pipe: Connection, log: IO[bytes], run_timeout_s: float) -> None:
        self._process, self._pipe, self._log = process, pipe, log
        self._run_timeout_s = run_timeout_s
        self.input_names: tuple[str, ...] = ()
        self.output_names: tuple[str, ...] = ()
        self.runtime_version = ""
        self.kernels: Kernels | None = None

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs for a padded batch, float32.

        Raises:
            ModelError: what the runtime's own session raises, such as for an input that is too long.
            WorkerError: the process crashed, took too long, or sent what cannot be read.
        """
        request = save({name: np.ascontiguousarray(values) for name, values in inputs.items()})
        try:
            self._pipe.send_bytes(request)
        except OSError:
            raise WorkerError(self._why_it_ended()) from None
        return self.receive(self._run_timeout_s)

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """The child's next message: tensors, or facts from JSON."""
        try:
            if not self._pipe.poll(timeout_s):
                self._process.kill()
                raise WorkerError(f"timed out after {timeout_s:g} s")
            message = self._pipe.recv_bytes()
        except (EOFError, OSError):
            raise WorkerError(self._why_it_ended()) from None
        if message[:1] == b"{":
            facts = json.loads(message)
            if "error" in facts:
                raise _ERRORS.get(facts["error"], ModelError)(facts["message"])
            return facts
        try:
            return load(message)
        except SafetensorError as error:
            raise WorkerError(f"sent an answer that cannot be read: {error}") from error

    def close(self) -> None:
        """Ends the child."""
        self._pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # some runtimes hang in their own clean-up
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _why_it_ended(self) -> str:
        self._process.wait()
        self._log.seek(0)
        return dying.reason(self._process.returncode, self._log.read().decode("utf-8", "replace"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_session(
    runtime: str,
    folder: Path,
    artefact: Artefact,
    threads: int,
    *,
    count_kernels: bool = False,
    emulated: bool = False,
    python: str | None = None,
    open_timeout_s: float = OPEN_TIMEOUT_S,
    run_timeout_s: float = RUN_TIMEOUT_S,
) -> IsolatedSession:
    """A session on an artefact in a fresh process.

    Args:
        runtime: a name of eval/runtimes/.
        folder: where the artefact lies.
        artefact: what its card says.
        threads: of the runtime.
        emulated: whether the process runs on an emulated x86 without VNNI; `pipeline.base.emulation` says if it can.
        python: the Python that executes it, where it is another environment's than this one.
        count_kernels: whether `kernels` of the session is filled, where the runtime can tell.
        open_timeout_s: for importing the runtime and loading the file.
        run_timeout_s: for each call.

    Raises:
        ModelError: the file is not what its card says.
        UnusableRuntimeError: the runtime cannot be used on this machine.
        WorkerError: the loader crashed or hung.
    """
    ours, theirs = Pipe()
    # A file, since a pipe that nobody reads would block a child that prints much; the session closes it.
    log = tempfile.TemporaryFile()  # noqa: SIM115
    command = [python or sys.executable, "-m", "eval.isolated", str(theirs.fileno())]
    process = subprocess.Popen(
        [*(emulation.prefix() if emulated else []), *command],
        cwd=dying.folder_of(python),
        env={**dying.environment_of(python), **thread_environment(threads)},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    session = IsolatedSession(process, ours, log, run_timeout_s)
    try:
        task = {"runtime": runtime, "folder": str(folder.resolve()), "threads": threads, "count": count_kernels}
        ours.send_bytes(json.dumps({**task, "artefact": artefact.model_dump(mode="json")}).encode())
        facts = session.receive(open_timeout_s)
    except BaseException:
        session.close()
        raise
    session.input_names, session.output_names = tuple(facts["input_names"]), tuple(facts["output_names"])
    session.runtime_version = facts["runtime_version"]
    session.kernels = Kernels.model_validate(facts["kernels"]) if facts["kernels"] else None
    return session


# --- in the child ------------------------------------------------------------------------------------------------


def _limit() -> None:
    wanted = {
        resource.RLIMIT_DATA: MEMORY_BYTES,  # address space would count what runtimes only reserve
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in wanted.items():
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _serve(pipe: Connection) -> None:
    task = json.loads(pipe.recv_bytes())
    runtime = plugins.load("runtime", task["runtime"])
    artefact = Artefact.model_validate(task["artefact"])
    with runtime.open_session(Path(task["folder"]), artefact, task["threads"]) as session:
        kernels = None
        if task["count"] and hasattr(runtime, "count_kernels"):
            kernels = runtime.count_kernels(Path(task["folder"]), artefact).model_dump(mode="json")
        facts = {"input_names": session.input_names, "output_names": session.output_names, "kernels": kernels}
        pipe.send_bytes(json.dumps({**facts, "runtime_version": runtime.version()}).encode())
        while True:
            try:
                request = load(pipe.recv_bytes())
            except EOFError:
                return  # the parent has closed its end
            try:
                outputs = session.run(request)
            except PipelineError as error:
                _send_error(pipe, error)
            else:
                pipe.send_bytes(save({name: np.ascontiguousarray(values) for name, values in outputs.items()}))


def _send_error(pipe: Connection, error: PipelineError) -> None:
    pipe.send_bytes(json.dumps({"error": type(error).__name__, "message": str(error)}).encode())


def main() -> None:
    """Serves one session on the pipe whose descriptor is the argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the whole group; the parent decides
    dying.with_parent()
    _limit()
    pipe = Connection(int(sys.argv[1]))
    try:
        _serve(pipe)
    except PipelineError as error:
        _send_error(pipe, error)


if __name__ == "__main__":
    main()
