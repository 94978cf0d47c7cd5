"""Instructions executed for one inference, counted under an emulator with a fixed CPU: a second signal without noise.

On a real machine the C library and the runtime choose their code by the processor, and hosted runners give no hardware
counters. The emulated CPU is always the same, so the same file gives the same count, whatever runs beside it. It has
AVX2 and no VNNI: of an 8-bit file it counts kernels that a processor with VNNI does not run. And it counts work, not
time: memory and caches are not in it.

    python -m eval.instructions < job.json      under the emulator: counts one call for each text
"""

import ctypes
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from shutil import which

import numpy as np
from jaxtyping import Int

from eval import dying
from eval.padding import pad
from eval.worker import Job, Loadable, Turn, WorkerError, thread_environment
from pipeline.base import emulation, plugins
from pipeline.base.errors import UnusableRuntimeError
from pipeline.base.records import Artefact

SOURCE = Path(__file__).with_suffix(".c")
MARK = 0x44454341  # as in the plugin
# Each text is called so often and its smallest count taken: where memory happens to lie adds to a call, and never takes
# away. From process to process sums over a few texts then differ by thousandths of a per cent in float, and by up to a
# tenth of one in 8 bits (docs/measuring.md).
REPEATS = 4
# ADDR_NO_RANDOMIZE of <sys/personality.h>, or the emulated addresses would be others each time; then the command.
KEEP_ADDRESSES = (
    "import ctypes, os, sys; ctypes.CDLL(None).personality(0x0040000); os.execvp(sys.argv[1], sys.argv[1:])"
)
TIMEOUT_S = 600.0


def why_unusable() -> str | None:
    """Why nothing can be counted here, or None."""
    reason = emulation.why_unusable()
    if reason is None and which("gcc") is None:
        reason = "'gcc' is not installed, which makes the emulator's plugin (Debian: apt-get install gcc)"
    return reason


def count(
    runtime: str,
    folder: Path,
    artefact: Artefact,
    sequences: Sequence[Sequence[int]],
    pad_id: int,
    threads: int,
    python: str | None = None,
) -> Int[np.ndarray, " texts"]:
    """Instructions of one call for each text, in a fresh emulated process.

    Args:
        runtime: a name of eval/runtimes/.
        folder: where the artefact lies.
        artefact: what its card says.
        sequences: token ids of each text.
        pad_id: the token to pad with.
        threads: of the runtime; only the calling thread's instructions are counted.
        python: the Python that executes it, where it is another environment's than this one.

    Returns:
        The smallest of REPEATS counts for each text.

    Raises:
        UnusableRuntimeError: there is no emulator, or the runtime does not run under it.
        WorkerError: the process failed.
    """
    reason = why_unusable() or plugins.load("runtime", runtime).why_unusable()
    if reason is None and runtime == "browser":
        reason = "a browser is not emulated"
    if reason is not None:
        raise UnusableRuntimeError(reason)
    turn = Turn(lengths="data", warmup=0, sequences=tuple(map(tuple, sequences)) * REPEATS)
    candidate = Loadable(folder=str(folder.resolve()), artefact=artefact)
    job = Job(kind="load", runtime=runtime, threads=threads, pad_id=pad_id, candidate=candidate, turns=(turn,))
    with tempfile.TemporaryDirectory() as temporary:
        plugin, counts = Path(temporary) / "count.so", Path(temporary) / "counts"
        _compile(plugin)
        name, *options = emulation.prefix()
        load = ["-plugin", f"file={plugin},out={counts}"]
        try:
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    KEEP_ADDRESSES,
                    name,
                    *options,
                    *load,
                    python or sys.executable,
                    "-m",
                    "eval.instructions",
                ],
                input=job.model_dump_json(),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_S,
                cwd=dying.folder_of(python),
                # a set of names is walked through in the order of its hashes
                env={**dying.environment_of(python), **thread_environment(threads), "PYTHONHASHSEED": "0"},
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise WorkerError(f"counting instructions took more than {TIMEOUT_S:g} s") from None
        if done.returncode != 0:
            raise WorkerError(dying.reason(done.returncode, done.stderr))
        found = [int(line) for line in counts.read_text("utf-8").split()] if counts.is_file() else []
    if len(found) != len(turn.sequences):
        raise WorkerError(f"found {len(found)} counts, expected {len(turn.sequences)}: the emulator's plugin failed")
    return np.array(found).reshape(REPEATS, -1).min(axis=0)


def _compile(plugin: Path) -> None:
    command = ["gcc", "-O2", "-shared", "-fPIC", "-o", str(plugin), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:  # a compiler without the C library's headers
        raise UnusableRuntimeError(f"the emulator's plugin cannot be compiled: {dying.reason(1, done.stderr)}")


def main() -> None:
    """Reads a job from stdin, and marks one call for each of its texts."""
    dying.with_parent()
    job = Job.model_validate_json(sys.stdin.read())
    os.environ.update(thread_environment(job.threads))
    runtime, artefact = plugins.load("runtime", job.runtime), job.candidate.artefact
    prctl = ctypes.CDLL(None).prctl
    gc.collect()
    gc.disable()
    with runtime.open_session(Path(job.candidate.folder), artefact, job.threads) as session:
        for sequence in job.turns[0].sequences:
            inputs = pad([sequence], job.pad_id, artefact)
            prctl(MARK, 1)
            session.run(inputs)
            prctl(MARK, 0)


if __name__ == "__main__":
    main()
