"""Times an artefact beside the exported teacher, in fresh processes, A B B A, until its budgets are decided.

The design is the one measured in measuring.md, B2: timing all of A and then all of B raises a false alarm in a quarter
of runs, pairs in none.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from eval.budgets import judge_timing
from eval.figures import LATENCY_CONFIDENCE
from eval.statistics import samples_needed
from eval.worker import Job, Loadable, Result, Turn, WorkerError, arms_of
from pipeline.base import plugins
from pipeline.base.errors import IntegrityError, UnusableRuntimeError
from pipeline.base.records import Artefact, Measurement, Series, Status
from pipeline.settings.budgets import Budgets
from pipeline.settings.measure import MeasureSettings

log = logging.getLogger(__name__)

# A median needs 7 fresh processes for its interval; a load takes a second or two.
LOAD_PROCESSES = samples_needed(0.5, LATENCY_CONFIDENCE)
LOAD_TIMEOUT_S = 60.0
TIME_TIMEOUT_S = 600.0
TIMED_TEXTS = 200

Sequences = Sequence[Sequence[int]]
Drawn = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Exported:
    """An artefact to time: where it lies, what its card says, and its weight as shipped."""

    folder: Path
    artefact: Artefact
    digest: str
    size_bytes: int
    # the Python that executes it, where it is another environment's than this one: another version of the runtime
    python: str | None = None


def measure(
    *,
    target: str,
    runtime: str,
    device: str,
    candidate: Exported,
    reference: Exported | None,
    sequences: Sequences,
    pad_id: int,
    settings: MeasureSettings,
    seed: int,
    reference_sequences: Sequences | None = None,
    undecided: Callable[[Measurement], bool] | None = None,
    machine: dict[str, Any] | None = None,
    tokenize_us: float | None = None,
    with_loads: bool = True,
    earlier: Measurement | None = None,
) -> Measurement:
    """Everything timed for one target, every sample kept.

    Args:
        target: its name.
        runtime: what executes both artefacts.
        device: where.
        candidate: the target's artefact.
        reference: the teacher in the same format, or None when there is none.
        sequences: token ids of real examples; calls are drawn from them with replacement, both models get the same
            texts.
        pad_id: the token to pad with.
        settings: how often.
        seed: of the draws.
        reference_sequences: the examples in the reference's tokens, where they are not the candidate's: a distillation
            token is one more to read, and a token that the reference does not know.
        undecided: rounds are added while it says so of the samples so far; None: one round.
        machine: its facts, kept beside the figures.
        tokenize_us: from `time_tokenizer`; never part of a call.
        with_loads: whether load time, first call and memory are measured too, in processes of their own.
        earlier: samples of the same artefacts on this machine, to which more are added while they leave it undecided.

    Two files of two environments cannot share a process, so whole processes take the place of sessions: see
    `_Run._time_apart`.

    Returns:
        A record; `not_measured` says why when the device or runtime cannot be used, or a worker failed.

    Raises:
        IntegrityError: candidate and reference are the same artefact, or the earlier samples are of others or of
            another machine.
    """
    _refuse_same(target, candidate, reference)
    empty = Measurement(
        target=target,
        runtime=runtime,
        device=device,
        artefact_digest=candidate.digest,
        reference_digest=reference.digest if reference is not None else None,
        machine=machine or {},
        threads=settings.threads,
        tokenize_us=tokenize_us,
        size_bytes=candidate.size_bytes,
        reference_size_bytes=reference.size_bytes if reference is not None else None,
    )
    reason = plugins.load("device", device).why_unusable()
    if reason is not None:
        return empty.model_copy(update={"not_measured": reason})
    _refuse_other(earlier, empty)
    theirs = sequences if reference_sequences is None else reference_sequences
    exports = (candidate, reference, sequences, theirs, pad_id)
    run = _Run(runtime, device, *exports, settings, seed, with_loads, earlier)
    first = 1 + max((series.round for series in earlier.series), default=-1) if earlier is not None else 0
    try:
        measurement = earlier or empty
        for number in range(first, first + settings.max_rounds):
            if earlier is not None and (undecided is None or not undecided(measurement)):
                break
            run.add_round(number)
            measurement = empty.model_copy(update=run.found())
            if undecided is None or not undecided(measurement):
                break
            log.info("%s: undecided after round %d of %d", target, number + 1, settings.max_rounds)
    except (WorkerError, UnusableRuntimeError) as error:
        return empty.model_copy(update={"not_measured": str(error)})
    return measurement


def load_in_turns(
    exports: Sequence[Exported],
    *,
    runtime: str,
    device: str,
    sequences: Sequence[Sequences],
    pad_id: int,
    threads: int,
    times: int = LOAD_PROCESSES,
) -> list[list[Result]]:
    """Load time, first call and memory of several artefacts, each in fresh processes, taken in turn.

    Args:
        exports: the artefacts.
        runtime: what executes them.
        device: where.
        sequences: of each artefact token ids of real examples, for the first call.
        pad_id: the token to pad with.
        threads: of the runtime.
        times: processes for each.

    Raises:
        WorkerError: a process crashed, hung, or printed what cannot be used.
        UnusableRuntimeError: the runtime does not run here.
    """
    found: list[list[Result]] = [[] for _ in exports]
    for _ in range(times):
        for place, one in enumerate(exports):
            text = tuple(sequences[place][0])
            turn = Turn(lengths="data", warmup=0, sequences=(text,))
            job = Job(
                kind="load",
                runtime=runtime,
                python=one.python,
                threads=threads,
                pad_id=pad_id,
                candidate=_loadable(one),
                turns=(turn,),
            )
            result: Result = plugins.load("device", device).run_worker(job, LOAD_TIMEOUT_S)
            if result.unusable is not None:
                raise UnusableRuntimeError(result.unusable)
            found[place].append(result)
    return found


def leaves_undecided(budgets: Budgets, measurement: Measurement) -> bool:
    """Whether a budget that timing can decide is still inconclusive."""
    verdicts = judge_timing(measurement.target, budgets, measurement)
    return any(verdict.status is Status.INCONCLUSIVE for verdict in verdicts)


def time_tokenizer(tokenize: Callable[[tuple[str, ...]], object], texts: Sequence[tuple[str, ...]]) -> float:
    """The median microseconds to tokenize one text, or one pair, on the wall clock."""
    samples_ns = []
    for text in texts[:TIMED_TEXTS]:
        start = time.perf_counter_ns()
        tokenize(text)
        samples_ns.append(time.perf_counter_ns() - start)
    return float(np.median(samples_ns)) / 1e3


@dataclass
class _Run:
    """The samples so far, and how to take more."""

    runtime: str
    device: str
    candidate: Exported
    reference: Exported | None
    sequences: Sequences
    reference_sequences: Sequences
    pad_id: int
    settings: MeasureSettings
    seed: int
    with_loads: bool = True
    earlier: Measurement | None = None
    series: list[Series] = field(default_factory=list)
    conditions: list[dict[str, Any]] = field(default_factory=list)
    loads: list[Result] = field(default_factory=list)
    last: Result = field(default_factory=Result)

    def add_round(self, number: int) -> None:
        """Load processes, then timing processes."""
        jobs: list[Literal["load", "time"]] = ["time"] * self.settings.processes
        if self.with_loads:
            loads = LOAD_PROCESSES - len(self.loads) - len(self._before("load_ms"))
            jobs[:0] = ["load"] * max(self.settings.processes, loads)
        for process, kind in enumerate(tqdm(jobs, desc=f"round {number + 1}", unit="process", disable=None)):
            if kind == "load":
                self._load(number, process)
            else:
                self._time(number, process)

    def found(self) -> dict[str, Any]:
        """The fields of a Measurement that this run has filled."""
        return {
            "runtime_version": self.last.runtime_version,
            "stand_in": self.last.stand_in,
            "conditions": (*self._before("conditions"), *self.conditions),
            "series": (*self._before("series"), *self.series),
            "load_ms": (*self._before("load_ms"), *(load.load_ms for load in self.loads)),
            "first_call_ms": (*self._before("first_call_ms"), *(load.first_call_ms for load in self.loads)),
            "memory_bytes": (*self._before("memory_bytes"), *(load.memory_bytes for load in self.loads)),
            "library_bytes": self.last.library_bytes,
        }

    def _before(self, field: str) -> tuple[Any, ...]:
        return getattr(self.earlier, field) if self.earlier is not None else ()

    def _load(self, number: int, process: int) -> None:
        sequences, _ = self._draw(number, process, 1)
        turn = Turn(lengths="data", warmup=0, sequences=sequences)
        self.loads.append(self._execute(self._job("load", (turn,), self.candidate), number, process))

    def _time(self, number: int, process: int) -> None:
        # Each round has two pairs: the two models', and their twins'.
        ours, theirs = self._draw(number, process, self.settings.warmup + math.ceil(self.settings.pairs / 2))
        turns = tuple(self._turn(L, ours, theirs) for L in (None, *self._fixed_lengths()))
        candidate_first = (number + process) % 2 == 0
        if self.reference is not None and self.reference.python != self.candidate.python:
            self._time_apart(turns, number, process, candidate_first=candidate_first)
            return
        job = self._job("time", turns, self.candidate, self.reference, candidate_first=candidate_first)
        self.series += [
            Series(process=process, round=number, warmup=self.settings.warmup, **samples.model_dump())
            for samples in self._execute(job, number, process).samples
        ]

    def _time_apart(self, turns: tuple[Turn, ...], number: int, process: int, *, candidate_first: bool) -> None:
        """Four processes, A B B' A', in place of the four sessions of a shared one.

        What twins differ by is then what processes differ by, and intervals know it. Each process opens its file twice,
        as ever; both sessions' calls are one series, the warm-ups left out.
        """
        assert self.reference is not None, "two environments have a file each"
        arms = arms_of(self._job("time", turns, self.candidate, self.reference, candidate_first=candidate_first))
        for arm in arms:
            one = self.candidate if arm.startswith("candidate") else self.reference
            alone = tuple(
                turn.model_copy(update={"sequences": turn.inputs_of(arm), "reference_sequences": None})
                for turn in turns
            )
            found = self._execute(self._job("time", alone, one), number, process).samples
            for turn in turns:
                both = [samples for samples in found if samples.lengths == turn.lengths]
                wall_ns, cpu_ns, order = (
                    tuple(ns for samples in both for ns in getattr(samples, clock)[turn.warmup :])
                    for clock in ("wall_ns", "cpu_ns", "order")
                )
                self.series.append(
                    Series(
                        model=arm,
                        process=process,
                        round=number,
                        warmup=0,
                        lengths=turn.lengths,
                        wall_ns=wall_ns,
                        cpu_ns=cpu_ns,
                        order=order,
                    )
                )

    def _job(
        self,
        kind: Literal["load", "time"],
        turns: tuple[Turn, ...],
        candidate: Exported,
        reference: Exported | None = None,
        *,
        candidate_first: bool = True,
    ) -> Job:
        return Job(
            kind=kind,
            runtime=self.runtime,
            python=candidate.python,
            threads=self.settings.threads,
            pad_id=self.pad_id,
            candidate=_loadable(candidate),
            reference=_loadable(reference) if reference is not None else None,
            candidate_first=candidate_first,
            turns=turns,
        )

    def _execute(self, job: Job, number: int, process: int) -> Result:
        timeout_s = LOAD_TIMEOUT_S if job.kind == "load" else TIME_TIMEOUT_S
        result: Result = plugins.load("device", self.device).run_worker(job, timeout_s)
        if result.unusable is not None:
            raise UnusableRuntimeError(result.unusable)
        self.conditions += [{"round": number, "process": process, **moment} for moment in result.conditions]
        if job.python == self.candidate.python:  # the record is the candidate's
            self.last = result
        return result

    def _turn(self, length: int | None, ours: Drawn, theirs: Drawn) -> Turn:
        """Both models' inputs at a fixed length, or at the data's own."""
        if length is not None:
            ours, theirs = (tuple(_of_length(one, length) for one in drawn) for drawn in (ours, theirs))
        return Turn(
            lengths="data" if length is None else str(length),
            warmup=self.settings.warmup,
            sequences=ours,
            reference_sequences=theirs if theirs != ours else None,
        )

    def _draw(self, number: int, process: int, count: int) -> tuple[Drawn, Drawn]:
        """The same texts for the candidate and for the reference.

        After the warm-ups one from each of as many equal parts of the data, sorted by length: drawn freely, the few
        texts of a process would be long by chance in one and short in another, which is no difference of processes.
        """
        rng = np.random.default_rng([self.seed, number, process])
        by_length = np.argsort([len(sequence) for sequence in self.sequences], kind="stable")
        warmup = min(self.settings.warmup, count - 1)
        parts = count - warmup
        places = ((np.arange(parts) + rng.random(parts)) / parts * len(by_length)).astype(int)
        rows = [*rng.integers(len(by_length), size=warmup), *by_length[rng.permutation(places)]]
        return tuple(tuple(self.sequences[i]) for i in rows), tuple(tuple(self.reference_sequences[i]) for i in rows)

    def _fixed_lengths(self) -> Iterator[int]:
        longest = min(_longest(one.artefact) for one in (self.candidate, self.reference) if one is not None)
        return (length for length in self.settings.lengths if length <= longest)


def _refuse_same(target: str, candidate: Exported, reference: Exported | None) -> None:
    """A speed-up of a model over itself says nothing; folders that differ may still hold the same model file."""
    if reference is None or reference.artefact.settings != candidate.artefact.settings:
        return
    if reference.python != candidate.python:
        return
    digests = [model_digest(one) for one in (candidate, reference)]
    if candidate.digest == reference.digest or digests[0] == digests[1]:
        raise IntegrityError(
            f"{target}: candidate '{candidate.folder}' and reference '{reference.folder}' are the same artefact "
            f"({digests[0][:16]}…); expected the student's and the teacher's; run `dvc repro` to export both again"
        )


def _refuse_other(earlier: Measurement | None, now: Measurement) -> None:
    """Samples of two artefacts, or of two machines, are no series."""
    if earlier is None:
        return
    for fact in ("artefact_digest", "reference_digest", "machine", "threads", "runtime", "device"):
        found, expected = getattr(earlier, fact), getattr(now, fact)
        if found != expected:
            raise IntegrityError(
                f"{now.target}: the samples so far have another {fact}: {str(found)[:60]!r}, expected "
                f"{str(expected)[:60]!r}; run `dvc repro` to measure anew"
            )


def model_digest(exported: Exported) -> str:
    """One hash of the artefact's file, or of all files where it is a folder (.mlpackage)."""
    path = exported.folder / exported.artefact.file
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _of_length(sequence: Sequence[int], L: int) -> tuple[int, ...]:
    """Real tokens, repeated or cut to L, with the last one (a separator) kept at the end."""
    repeated = tuple(sequence) * (L // len(sequence) + 1)
    return (*repeated[: L - 1], sequence[-1])


def _longest(artefact: Artefact) -> int:
    return max(artefact.lengths) if artefact.lengths is not None else artefact.max_length


def _loadable(exported: Exported) -> Loadable:
    return Loadable(folder=str(exported.folder.resolve()), artefact=exported.artefact)
