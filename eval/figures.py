"""What a measurement's raw samples say: latency, speed-up, load time and memory, each with its interval.

Latency intervals are two-sided 98 %, so each end is a one-sided 99 % bound, as a gate needs (measuring.md, B3).
Percentiles keep every sample: an outlier is what a percentile is there to show.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Float

from eval.statistics import TooFewError, median_ratio_interval, quantile_interval, two_sided
from pipeline.base.records import Interval, Measurement, Reason, ReasonKind, Series
from pipeline.settings.budgets import OF_TIMINGS

Clock = Literal["wall", "cpu"]
Model = Literal["candidate", "reference", "canary", "canary_twin"]

LATENCY_CONFIDENCE = two_sided(OF_TIMINGS)
# How far the median ratio of a model to itself may be from 1, and the confidence of the interval around it. B3.5 also
# calls a runner unfit when that interval excludes 1, for 40 pairs. The 200 that we take make it narrow enough to show
# what two sessions owe to their places in memory: in 20 runs on a busy 2-core machine it excluded 1 in 4, of which one
# was off by more than 2 %. With 40 pairs, 6 of the 20 were off by more than 2 %. So 200 pairs, and only the 2 % decide.
CANARY_TOLERANCE = 0.02
CANARY_CONFIDENCE = 0.99
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
        measurement: with at least 7 timed calls at these lengths.
        lengths: "data" for the data's own, or a number of tokens.
        clock: None takes `primary_clock`.
        model: whose calls.

    Raises:
        TooFewError: too few calls for an interval, or none at these lengths.
    """
    return _percentile_ms(measurement, 0.5, lengths, clock, model)


def p90_ms(
    measurement: Measurement, lengths: str = "data", clock: Clock | None = None, model: Model = "candidate"
) -> Interval:
    """The 90th percentile of a model's calls; arguments and errors as for `p50_ms`, with at least 44 timed calls.

    The upper end is what MLPerf's early stopping would report: the 95.0th percentile of 200 calls, the 92.2nd of 1024.
    """
    return _percentile_ms(measurement, 0.9, lengths, clock, model)


def speedup(measurement: Measurement, lengths: str = "data", clock: Clock | None = None) -> Interval:
    """How many times the candidate's call goes into the reference's: the median of the ratios over pairs.

    Raises:
        TooFewError: fewer than 7 pairs.
    """
    return _paired_ratio(measurement, "reference", "candidate", lengths, clock, LATENCY_CONFIDENCE)


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
    It would flatter work that was not done on the CPU, so where it is under half the wall time, the wall clock counts.
    """
    if measurement.threads != 1 or measurement.device != "local":
        return "wall"
    wall, cpu = _median_ms(measurement, "wall"), _median_ms(measurement, "cpu")
    return "cpu" if wall is not None and cpu is not None and cpu >= LEAST_CPU_SHARE * wall else "wall"


def canary_ratio(measurement: Measurement) -> Interval:
    """The candidate's time against itself, on the primary clock; should be 1.

    Raises:
        TooFewError: there was no canary, or it was too short.
    """
    return _paired_ratio(measurement, "canary", "canary_twin", "data", None, CANARY_CONFIDENCE)


def why_unfit(measurement: Measurement) -> Reason | None:
    """Why timings of this run cannot be trusted, or None: the machine must find a model as fast as itself."""
    try:
        ratio = canary_ratio(measurement)
    except TooFewError as error:
        return Reason(kind=ReasonKind.NO_CANARY, detail=str(error))
    if abs(ratio.value - 1) <= CANARY_TOLERANCE:
        return None
    return Reason(kind=ReasonKind.NOISY_RUNNER, figure=ratio)


def find_warnings(measurement: Measurement) -> tuple[Reason, ...]:
    """Reasons to read the figures with care."""
    if measurement.not_measured is not None:
        return ()
    unfit = why_unfit(measurement)
    found = (
        unfit if unfit is not None else _canary_leans(canary_ratio(measurement)),
        _clocks_disagree(measurement),
        _stolen(measurement),
    )
    return tuple(reason for reason in found if reason is not None)


def _canary_leans(ratio: Interval) -> Reason | None:
    """A difference that is real, but too small to matter."""
    return None if ratio.low <= 1 <= ratio.high else Reason(kind=ReasonKind.CANARY_LEANS, figure=ratio)


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
    samples = _samples_ms(measurement, model, lengths, clock or primary_clock(measurement))
    return quantile_interval(samples, quantile, LATENCY_CONFIDENCE)


def _paired_ratio(
    measurement: Measurement, above: Model, below: Model, lengths: str, clock: Clock | None, confidence: float
) -> Interval:
    clock = clock or primary_clock(measurement)
    numerator = _samples_ms(measurement, above, lengths, clock)
    denominator = _samples_ms(measurement, below, lengths, clock)
    if len(numerator) != len(denominator):
        raise TooFewError(
            f"no pairs: found {len(numerator)} calls of the {above} and {len(denominator)} of the {below}"
        )
    return median_ratio_interval(numerator, denominator, confidence)


def _median_ms(measurement: Measurement, clock: Clock) -> float | None:
    samples = _samples_ms(measurement, "candidate", "data", clock)
    return float(np.median(samples)) if len(samples) else None


def _samples_ms(measurement: Measurement, model: Model, lengths: str, clock: Clock) -> Float[np.ndarray, " n"]:
    """Timed calls without warm-ups. Sorted by process, so that the same position in two models is the same pair."""
    chosen = sorted(_select(measurement, model, lengths), key=lambda series: (series.round, series.process))
    calls = [(one.wall_ns if clock == "wall" else one.cpu_ns)[one.warmup :] for one in chosen]
    return np.array([value for values in calls for value in values], dtype=np.float64) / 1e6


def _select(measurement: Measurement, model: Model, lengths: str) -> Iterator[Series]:
    return (series for series in measurement.series if series.model == model and series.lengths == lengths)
