"""Loads and times artefacts in a process of its own: a job as JSON on stdin, one JSON line on stdout.

    python -m eval.worker < job.json

A fresh process, because a loader may crash or hang, because memory can only be told apart in a process that holds one
model, and because speed differs from process to process more than from call to call (Kalibera and Jones 2013).
Whatever a runtime prints by itself goes to stderr.
"""

import ctypes
import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import psutil
from pydantic import Field, ValidationError, model_validator

from eval import dying
from eval.padding import pad
from eval.runtimes import Session
from pipeline.base import machine, plugins
from pipeline.base.errors import PipelineError
from pipeline.base.records import TWINS, Arm, Artefact, Record

# JSON that says 0, -1, 1.5 where a whole number belongs, or NaN is refused rather than turned into a number.
Nanoseconds = Annotated[int, Field(gt=0, strict=True)]
Milliseconds = Annotated[float, Field(gt=0, strict=True)]


class WorkerError(PipelineError):
    """A worker crashed, hung, or printed what cannot be used; the target is "not measured" with this reason."""

    exit_status = 3


class Loadable(Record):
    """An artefact and the folder it lies in."""

    folder: str
    artefact: Artefact


class Turn(Record):
    """One input length to time: token ids for each round of calls, the first `warmup` rounds to warm up."""

    lengths: str
    warmup: int = Field(ge=0)
    sequences: tuple[tuple[int, ...], ...]
    # the same texts as the reference reads them, where its tokens are others
    reference_sequences: tuple[tuple[int, ...], ...] | None = None

    @model_validator(mode="after")
    def _pairs_are_whole(self) -> "Turn":
        if self.reference_sequences is not None and len(self.reference_sequences) != len(self.sequences):
            raise ValueError(f"{len(self.reference_sequences)} texts for the reference, {len(self.sequences)} in all")
        return self

    def inputs_of(self, arm: Arm) -> tuple[tuple[int, ...], ...]:
        """The token ids that one model is given."""
        if arm.startswith("reference") and self.reference_sequences is not None:
            return self.reference_sequences
        return self.sequences


class Job(Record):
    """What a worker shall do.

    `load` loads the candidate alone and gives its load time, first call and memory; `time` times rounds of calls: each
    of the two files has two sessions, and a round calls all four with one text.
    """

    kind: Literal["load", "time"]
    runtime: str
    # the Python that executes it, where it is another environment's than the caller's
    python: str | None = None
    threads: int
    pad_id: int
    candidate: Loadable
    reference: Loadable | None = None
    # who is called first in the first round: A B B' A'; the next round turns it round
    candidate_first: bool = True
    turns: tuple[Turn, ...]


class Samples(Record):
    """Every timed call of one session at one length, warm-up included, in the order taken."""

    model: Arm
    lengths: str
    wall_ns: tuple[Nanoseconds, ...]
    # empty where nobody can tell: the model runs in another process
    cpu_ns: tuple[Nanoseconds, ...]
    # position of each call among all calls of the process
    order: tuple[int, ...]


class Result(Record):
    """What a worker found."""

    # Why the runtime cannot be used here; then nothing else is set.
    unusable: str | None = None
    runtime_version: str | None = None
    stand_in: str | None = None
    library_bytes: int | None = None
    load_ms: Milliseconds | None = None
    first_call_ms: Milliseconds | None = None
    memory_bytes: Nanoseconds | None = None
    samples: tuple[Samples, ...] = ()
    # before and after the work
    conditions: tuple[dict[str, Any], ...] = ()

    @model_validator(mode="after")
    def _series_are_whole(self) -> "Result":
        for series in self.samples:
            if not len(series.wall_ns) == len(series.order) or len(series.cpu_ns) not in (0, len(series.order)):
                raise ValueError(f"series of other lengths for the {series.model} at {series.lengths} tokens")
        return self


def thread_environment(threads: int) -> dict[str, str]:
    """The variables that thread pools read when they are loaded, which is before any option could be set."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    return dict.fromkeys(names, str(threads))


def execute(job: Job) -> Result:
    """Does a job in this process."""
    os.environ.update(thread_environment(job.threads))
    runtime = plugins.load("runtime", job.runtime)
    unusable = runtime.why_unusable()
    if unusable is not None:
        return Result(unusable=unusable)
    before = {"when": "before", **machine.conditions()}
    start = time.monotonic()
    found = _load(runtime, job) if job.kind == "load" else {"samples": _time(runtime, job)}
    after = {"when": "after", "elapsed_s": round(time.monotonic() - start, 2), **machine.conditions()}
    return Result(
        runtime_version=runtime.version(),
        stand_in=runtime.STAND_IN,
        library_bytes=_library_bytes(runtime),
        conditions=(before, after),
        **found,
    )


def _library_bytes(runtime: ModuleType) -> int | None:
    """What an app adds to have the runtime; None where its file does not say."""
    if not hasattr(runtime, "library_files"):
        return None
    return sum(file.stat().st_size for file in runtime.library_files()) or None


def parse_result(text: str, job: Job) -> Result:
    """The result that a worker printed.

    Raises:
        WorkerError: not exactly one line of JSON, a number that is not one or not above 0, or fewer samples than asked
            for; the message shows the line.
    """
    lines = text.splitlines()
    shown = text if len(text) <= 300 else f"{text[:200]}…{text[-100:]}"
    if len(lines) != 1:
        raise WorkerError(f"printed {len(lines)} lines, expected one of JSON; found: {shown!r}")
    try:
        result = Result.model_validate_json(lines[0])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise WorkerError(
            f"printed what cannot be used: {where + ': ' if where else ''}{first['msg']} "
            f"(found {str(first['input'])[:60]!r}); the line: {shown!r}"
        ) from error
    problem = _what_is_missing(result, job)
    if problem is not None:
        raise WorkerError(f"printed an incomplete result: {problem}; the line: {shown!r}")
    return result


def _what_is_missing(result: Result, job: Job) -> str | None:
    if result.unusable is not None:
        return None
    if job.kind == "load":
        missing = [name for name in ("load_ms", "first_call_ms", "memory_bytes") if getattr(result, name) is None]
        return f"no {', '.join(missing)}" if missing else None
    wanted = {(arm, turn.lengths): len(turn.sequences) for turn in job.turns for arm in arms_of(job)}
    found = {(series.model, series.lengths): len(series.wall_ns) for series in result.samples}
    return None if found == wanted else f"found {found} samples, expected {wanted}"


def _load(runtime: ModuleType, job: Job) -> dict[str, Any]:
    """Load time, first call and memory of the candidate, which is alone in this process.

    Importing the library and checking the file against damage are not part of it, where the runtime's file offers them
    apart: an app has its library in memory, and its operating system has checked the file.
    """
    folder, artefact = Path(job.candidate.folder), job.candidate.artefact
    inputs = pad([job.turns[0].sequences[0]], job.pad_id, artefact)
    open_session = runtime.open_session
    if hasattr(runtime, "prepare"):
        runtime.prepare(folder, artefact)
        open_session = runtime.open_prepared
    _return_freed_memory()
    base_bytes = _held_bytes(runtime)
    forget_peak()
    start = time.perf_counter_ns()
    with open_session(folder, artefact, job.threads) as session:
        loaded = time.perf_counter_ns()
        session.run(inputs)
        called = time.perf_counter_ns()
        memory_bytes = (_held_bytes(runtime) if hasattr(runtime, "resident_bytes") else peak_bytes()) - base_bytes
    return {
        "load_ms": (loaded - start) / 1e6,
        "first_call_ms": (called - loaded) / 1e6,
        "memory_bytes": memory_bytes,
    }


def _time(runtime: ModuleType, job: Job) -> tuple[Samples, ...]:
    """Rounds of single calls, A B B' A' and then A' B' B A, at each length in turn.

    Every session follows each model as often as the others do, so that none always finds a warm cache.
    """
    arms = arms_of(job)
    sessions: dict[Arm, Session] = {
        arm: runtime.open_session(Path(loadable.folder), loadable.artefact, job.threads)
        for arm, loadable in arms.items()
    }
    samples = []
    position = 0
    gc.collect()
    gc.disable()  # a collection inside a call would be counted as the model's time
    try:
        for turn in job.turns:
            taken: dict[Arm, list[tuple[int, int | None, int]]] = {arm: [] for arm in arms}
            for i in range(len(turn.sequences)):
                inputs = {arm: pad([turn.inputs_of(arm)[i]], job.pad_id, one.artefact) for arm, one in arms.items()}
                for arm in arms if i % 2 == 0 else reversed(arms):
                    cpu_start, start = time.process_time_ns(), time.perf_counter_ns()
                    sessions[arm].run(inputs[arm])
                    end, cpu_end = time.perf_counter_ns(), time.process_time_ns()
                    # A model that runs elsewhere has that side's clock alone.
                    there_ns = getattr(sessions[arm], "last_call_ns", None)
                    call_ns = (end - start, cpu_end - cpu_start) if there_ns is None else (there_ns, None)
                    taken[arm].append((*call_ns, position))
                    position += 1
            for arm, calls in taken.items():
                wall_ns, cpu_ns, order = zip(*calls, strict=True)
                cpu_ns = cpu_ns if None not in cpu_ns else ()
                samples.append(Samples(model=arm, lengths=turn.lengths, wall_ns=wall_ns, cpu_ns=cpu_ns, order=order))
    finally:
        gc.enable()
        for session in sessions.values():
            session.close()
    return tuple(samples)


def arms_of(job: Job) -> dict[Arm, Loadable]:
    """The sessions of a job, in the order of its first round: both models, then their twins the other way round."""
    models: dict[Arm, Loadable] = {"candidate": job.candidate}
    if job.reference is not None:
        models["reference"] = job.reference
    if not job.candidate_first:
        models = dict(reversed(models.items()))
    return {**models, **{TWINS[model]: loadable for model, loadable in reversed(models.items())}}


def _held_bytes(runtime: ModuleType) -> int:
    """Memory of the process that holds models: this one, or those that the runtime names."""
    return runtime.resident_bytes() if hasattr(runtime, "resident_bytes") else psutil.Process().memory_info().rss


def _return_freed_memory() -> None:
    """Gives what was freed back to the kernel, or the load would take it again without being seen to grow."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def forget_peak() -> None:
    """Sets the kernel's high-water mark of this process back to what it holds now, where the kernel can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the peak then includes what importing Python's packages needed, which is usually less than now


def peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Reads a job from stdin and prints its result."""
    dying.with_parent()
    job = Job.model_validate_json(sys.stdin.read())
    # C++ code prints on file descriptor 1 without asking Python; send that to stderr and keep the real one.
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        line = json.dumps(execute(job).model_dump(mode="json"), allow_nan=False)
    except ValidationError as error:  # a clock that stood still, or memory that did not grow
        first = error.errors(include_url=False)[0]
        sys.exit(f"measured {first['input']!r} for {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}")
    with os.fdopen(out, "w", encoding="utf-8") as file:
        file.write(line + "\n")


if __name__ == "__main__":
    main()
