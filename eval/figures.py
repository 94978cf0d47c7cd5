"""What a measurement's raw samples say: latency, speed-up, load time and memory, each with its interval.

Latency intervals are two-sided 98 %, so each end is a one-sided 99 % bound, as a gate needs (measuring.md, B3). Each
process gives one number, since its calls resemble each other, and intervals are over processes. Percentiles keep every
sample: an outlier is what a percentile is there to show.

In every process each file has two sessions, called A B B' A', then A' B' B A: so that a model beside its own twin says
how noisy this very run was.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from eval.statistics import TooFewError, contrast_interval, process_interval, quantile_interval, two_sided
from pipeline.base.records import TWINS, Arm, Interval, Measurement, Reason, ReasonKind
from pipeline.settings.budgets import OF_TIMINGS

Clock = Literal["wall", "cpu"]
Model = Literal["candidate", "reference"]

Samples = Float[np.ndarray, " n"]

LATENCY_CONFIDENCE = two_sided(OF_TIMINGS)
# How far the ratio of a model to its twin may be from 1, and the confidence of the interval around it. B3.5 also calls
# a runner unfit when that interval excludes 1, which narrow intervals do for what two sessions owe to their places in
# memory: so only the 2 % decide.
TWIN_TOLERANCE = 0.02
TWIN_CONFIDENCE = 0.99
UNFIT_LIMIT = 1.5  # an interval widened by more than this factor is a guess
# B3.3: from here on the two clocks are said to disagree.
CLOCK_TOLERANCE = 0.10
# Below this share of the wall time, the process did not do the work itself (an accelerator did), or hardly ran.
LEAST_CPU_SHARE = 0.5
MAX_STEAL_SHARE = 0.05


def p50_ms(
    measurement: Measurement, lengths: str = "data", clock: Clock | None = None, model: Model = "candidate"
) -> Interval:
    """The median call of a model.

    Args:
        measurement: with at least two processes.
        lengths: "data" for the data's own, or a number of tokens.
        clock: None takes `primary_clock`.
        model: whose calls, its twin's among them.

    Raises:
        TooFewError: fewer than two processes, or none at these lengths.
    """
    return _percentile_ms(measurement, 0.5, lengths, clock, model)


def p90_ms(
    measurement: Measurement, lengths: str = "data", clock: Clock | None = None, model: Model = "candidate"
) -> Interval:
    """The 90th percentile of a model's calls; arguments as for `p50_ms`.

    Raises:
        TooFewError: as there, or a process has fewer than 10 calls.
    """
    return _percentile_ms(measurement, 0.9, lengths, clock, model)


def speedup(measurement: Measurement, lengths: str = "data", clock: Clock | None = None) -> Interval:
    """How many times the candidate's call goes into the reference's: of each process the median ratio over its pairs.

    Raises:
        TooFewError: fewer than two processes with both.
    """
    return process_interval(speedups(measurement, lengths, clock), LATENCY_CONFIDENCE)


def speedups(measurement: Measurement, lengths: str = "data", clock: Clock | None = None) -> list[float]:
    """The same of each process by itself, for what is only told."""
    pairs: list[tuple[Arm, Arm]] = [("reference", "candidate"), (TWINS["reference"], TWINS["candidate"])]
    return _ratios(measurement, pairs, lengths, clock)


def slowdown(measurement: Measurement, clock: Clock | None = None) -> Interval:
    """How many times the reference's call goes into the candidate's, of two versions of one model.

    Their sessions differ by as little as twins do where nothing was changed, so the twins' noise is counted in: it is
    judged by `moved`, not by `widened`, which would count it twice.

    Raises:
        TooFewError: fewer than two processes with both, or without twins.
    """
    pairs: list[tuple[Arm, Arm]] = [("candidate", "reference"), (TWINS["candidate"], TWINS["reference"])]
    models: tuple[Model, ...] = ("candidate", "reference")
    twins = [ratio for model in models for ratio in _ratios(measurement, [(model, TWINS[model])], "data", clock)]
    return contrast_interval(np.log(_ratios(measurement, pairs, "data", clock)), np.log(twins), LATENCY_CONFIDENCE)


def load_ms(measurement: Measurement) -> Interval:
    """The median load time of a fresh process, on the wall clock."""
    return quantile_interval(measurement.load_ms, 0.5, LATENCY_CONFIDENCE)


def first_call_ms(measurement: Measurement) -> Interval:
    """The median first call of a fresh process, on the wall clock."""
    return quantile_interval(measurement.first_call_ms, 0.5, LATENCY_CONFIDENCE)


def memory_mb(measurement: Measurement) -> Interval:
    """The median of the most memory that loading and calling once add to a fresh process, in 10^6 bytes."""
    return quantile_interval([count / 1e6 for count in measurement.memory_bytes], 0.5, LATENCY_CONFIDENCE)


def primary_clock(measurement: Measurement) -> Clock:
    """The clock that verdicts use: CPU time for one thread on this machine, else wall time.

    CPU time does not count what other processes took away, so it repeats three times better on a shared machine (B2).
    It would flatter work that was not done on the CPU, so where it is under half the wall time, or nobody can tell it,
    the wall clock counts.
    """
    if measurement.threads != 1 or measurement.device != "local":
        return "wall"
    wall, cpu = _median_ms(measurement, "wall"), _median_ms(measurement, "cpu")
    return "cpu" if wall is not None and cpu is not None and cpu >= LEAST_CPU_SHARE * wall else "wall"


def twin_ratio(measurement: Measurement, model: Model = "candidate") -> Interval:
    """A model's time against its twin's, on the primary clock; should be 1.

    Raises:
        TooFewError: there was no twin, or one process only.
    """
    return process_interval(_ratios(measurement, [(model, TWINS[model])], "data", None), TWIN_CONFIDENCE)


def why_unfit(measurement: Measurement) -> Reason | None:
    """Why timings of this run cannot be trusted, or None: the machine must find each model as fast as its twin."""
    try:
        ratio = worst_twins(measurement)
    except TooFewError as error:
        return Reason(kind=ReasonKind.NO_TWINS, detail=str(error))
    if abs(ratio.value - 1) <= TWIN_TOLERANCE:
        return None
    return Reason(kind=ReasonKind.NOISY_RUNNER, figure=ratio)


def worst_twins(measurement: Measurement) -> Interval:
    """Of the two models, the one that is further from its twin."""
    models: tuple[Model, ...] = ("candidate", "reference")
    ratios = [twin_ratio(measurement, model) for model in models if model == "candidate" or _has(measurement, model)]
    return max(ratios, key=lambda ratio: abs(ratio.value - 1))


def _has(measurement: Measurement, model: Model) -> bool:
    return any(series.model == model for series in measurement.series)


def widened(figure: Interval, doubt: Reason | None) -> Interval | None:
    """The interval of a timing as it may be judged; None where nothing can be.

    On a runner that is unfit, each end is moved by twice what the twins were off. Without this a clear pass (twelve
    times as fast where one and a half was asked) would be undecided whenever a neighbour on the machine moves the twins
    by a few per cent. Beyond UNFIT_LIMIT nothing is decided.
    """
    if doubt is None:
        return figure
    if doubt.kind is not ReasonKind.NOISY_RUNNER or doubt.figure is None:
        return None
    factor = max(doubt.figure.high, 1 / doubt.figure.low) ** 2
    if factor > UNFIT_LIMIT:
        return None
    return figure.model_copy(update={"low": figure.low / factor, "high": figure.high * factor})


def moved(measurement: Measurement, change: Interval) -> Interval | None:
    """The interval of a `slowdown`, or of its inverse, as it may be judged; None where nothing can be.

    What twins differ by at random is in it, and what both models' twins differ by alike falls out of the mean over both
    pairs: of two sessions the later one is often the faster. What one model's twins differ by and the other's
    do not is in that mean by half. By so much each end is moved on a runner that is unfit; beyond UNFIT_LIMIT nothing
    is decided.
    """
    doubt = why_unfit(measurement)
    if doubt is None:
        return change
    if doubt.figure is None or max(doubt.figure.value, 1 / doubt.figure.value) > UNFIT_LIMIT:
        return None
    alone = twin_ratio(measurement, "candidate").value / twin_ratio(measurement, "reference").value
    factor = max(alone, 1 / alone) ** 0.5
    return change.model_copy(update={"low": change.low / factor, "high": change.high * factor})


def find_warnings(measurement: Measurement) -> tuple[Reason, ...]:
    """Reasons to read the figures with care."""
    if measurement.not_measured is not None:
        return ()
    unfit = why_unfit(measurement)
    found = (
        unfit if unfit is not None else _twins_differ(worst_twins(measurement)),
        _clocks_disagree(measurement),
        _stolen(measurement),
    )
    return tuple(reason for reason in found if reason is not None)


def _twins_differ(ratio: Interval) -> Reason | None:
    """A difference that is real, but too small to matter."""
    return None if ratio.low <= 1 <= ratio.high else Reason(kind=ReasonKind.TWINS_DIFFER, figure=ratio)


def _clocks_disagree(measurement: Measurement) -> Reason | None:
    """Found is the median of CPU time in ms, expected that on the wall clock."""
    wall, cpu = _median_ms(measurement, "wall"), _median_ms(measurement, "cpu")
    if wall is None or cpu is None or abs(cpu / wall - 1) <= CLOCK_TOLERANCE:
        return None
    return Reason(kind=ReasonKind.CLOCKS_DISAGREE, found=cpu, expected=wall)


def _stolen(measurement: Measurement) -> Reason | None:
    """CPU time that the host gave to other machines, from the conditions before and after each process.

    Found are the seconds taken away, expected those of measuring.
    """
    seconds = elapsed = 0.0
    for before, after in zip(measurement.conditions[::2], measurement.conditions[1::2], strict=False):
        seconds += after.get("steal_seconds_since_boot", 0.0) - before.get("steal_seconds_since_boot", 0.0)
        elapsed += after.get("elapsed_s", 0.0)
    if elapsed <= 0 or seconds <= MAX_STEAL_SHARE * elapsed:
        return None
    return Reason(kind=ReasonKind.CPU_STOLEN, found=seconds, expected=elapsed)


def _percentile_ms(
    measurement: Measurement, quantile: float, lengths: str, clock: Clock | None, model: Model
) -> Interval:
    needed = round(1 / (1 - quantile))
    processes = calls_ms(measurement, model, lengths, clock)
    fewest = min(map(len, processes), default=needed)
    if fewest < needed:
        raise TooFewError(
            f"too few samples: found {fewest} calls in a process, at least {needed} are needed for its "
            f"{quantile:.0%} point; raise measure.pairs"
        )
    # Of 40 calls numpy's usual 90th percentile is on average their 88th, which no number of processes would mend.
    estimates = [float(np.quantile(calls, quantile, method="median_unbiased")) for calls in processes]
    return process_interval(estimates, LATENCY_CONFIDENCE)


def _ratios(
    measurement: Measurement,
    pairs: Sequence[tuple[Arm, Arm]],
    lengths: str,
    clock: Clock | None,
) -> list[float]:
    """Of each process the median of above / below over its pairs of calls.

    Source: Bulej et al., Duet benchmarking (ICPE 2020), for pairing.
    """
    clock = clock or primary_clock(measurement)
    logs: dict[tuple[int, int], list[Samples]] = {}
    for above, below in pairs:
        numerators, denominators = (_by_process(measurement, one, lengths, clock) for one in (above, below))
        if numerators.keys() != denominators.keys() or any(
            len(calls) != len(denominators[process]) for process, calls in numerators.items()
        ):
            counts = [sum(map(len, found.values())) for found in (numerators, denominators)]
            raise TooFewError(f"no pairs: found {counts[0]} calls of the {above} and {counts[1]} of the {below}")
        for process, calls in numerators.items():
            logs.setdefault(process, []).append(np.log(calls) - np.log(denominators[process]))
    return [float(np.exp(np.median(np.concatenate(found)))) for found in logs.values() if len(found[0])]


def _median_ms(measurement: Measurement, clock: Clock) -> float | None:
    calls = calls_ms(measurement, "candidate", clock=clock)
    return float(np.median(np.concatenate(calls))) if calls else None


def calls_ms(
    measurement: Measurement, model: Model, lengths: str = "data", clock: Clock | None = None
) -> list[Samples]:
    """Of each process the timed calls of a model and of its twin, in ms, without warm-ups."""
    clock = clock or primary_clock(measurement)
    found, others = (_by_process(measurement, one, lengths, clock) for one in (model, TWINS[model]))
    return [np.concatenate([calls, others.get(process, calls[:0])]) for process, calls in found.items()]


def _by_process(
    measurement: Measurement, session: Arm, lengths: str, clock: Clock
) -> Mapping[tuple[int, int], Samples]:
    """(round, process) -> timed calls in ms, without warm-ups; the same position in two sessions is the same pair."""
    found = {}
    for series in measurement.series:
        if series.model == session and series.lengths == lengths:
            ns = series.wall_ns if clock == "wall" else series.cpu_ns
            if ns:
                found[series.round, series.process] = np.array(ns[series.warmup :], dtype=np.float64) / 1e6
    return found
