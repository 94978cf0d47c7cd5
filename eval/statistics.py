"""Intervals that assume no distribution, so that a verdict can say how sure it is.

Latency is skewed and has tails, so its intervals come from order statistics; answers are right or wrong, so theirs come
from the binomial distribution. Nothing here draws random numbers: the same samples give the same interval.

A one-sided bound at confidence c is the end of the two-sided interval at 2c - 1: `two_sided(0.99)` is 0.98.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, stats

from pipeline.base.errors import PipelineError
from pipeline.base.records import Interval

# Below this many changed answers the normal approximation is too coarse (measuring.md, B5).
MIN_FLIPS_FOR_NORMAL = 25

Samples = Sequence[float] | Sequence[int] | Float[np.ndarray, " n"] | Int[np.ndarray, " n"]
Labels = Sequence[int] | Int[np.ndarray, " n"]


class TooFewError(PipelineError):
    """There are too few samples for an interval at this confidence."""

    exit_status = 3


def two_sided(one_sided: float) -> float:
    """The confidence of the interval whose two ends are each a bound at the one-sided confidence."""
    return round(2 * one_sided - 1, 10)  # 0.98 in records, not 0.97999…


def samples_needed(quantile: float, confidence: float) -> int:
    """The least number of samples for both ends of a quantile's interval; 44 for p90 with both ends at 99 %."""
    tail = (1 - confidence) / 2
    return math.ceil(math.log(tail) / math.log(max(quantile, 1 - quantile)))


def quantile_interval(samples: Samples, quantile: float, confidence: float = 0.95) -> Interval:
    """A quantile of what the samples were drawn from, between two of the samples.

    Args:
        samples: independent draws.
        quantile: 0.5 for the median, 0.9 for p90.
        confidence: two-sided; each end alone is a bound at (1 + confidence) / 2.

    Returns:
        The sample quantile (interpolated), and the closest two order statistics that cover with at least `confidence`.

    Raises:
        TooFewError: not even the smallest and largest sample cover with this confidence.

    Source: David and Nagaraja, Order Statistics, section 7.1: the number of samples below the quantile is binomial.
    For p90 at two-sided 98 % the upper end is MLPerf's early-stopping percentile (loadgen/early_stopping.cc): rank 190
    of 200.
    """
    values = np.sort(np.asarray(samples, dtype=np.float64))
    n = len(values)
    needed = samples_needed(quantile, confidence)
    if n < needed:
        raise TooFewError(f"too few samples: found {n}, at least {needed} are needed at {confidence:.0%} confidence")
    tail = (1 - confidence) / 2
    low = int(stats.binom.ppf(tail, n, quantile))  # ranks counted from 1
    high = int(stats.binom.ppf(1 - tail, n, quantile)) + 1
    assert 1 <= low <= high <= n, (low, high, n)
    value = float(np.quantile(values, quantile))
    return Interval(value=value, low=float(values[low - 1]), high=float(values[high - 1]), confidence=confidence)


def median_ratio_interval(numerator: Samples, denominator: Samples, confidence: float = 0.95) -> Interval:
    """The median over pairs of numerator / denominator, from the median of the logarithms of the ratios.

    Args:
        numerator: positive, one for each pair.
        denominator: positive, in the same order.
        confidence: two-sided.

    Raises:
        TooFewError: too few pairs for this confidence.

    Source: Bulej et al., Duet benchmarking (ICPE 2020), for pairing. The logarithm makes a / b and b / a mirror images.
    """
    logs = np.log(np.asarray(numerator, dtype=np.float64)) - np.log(np.asarray(denominator, dtype=np.float64))
    median = quantile_interval(logs, 0.5, confidence)
    return Interval(
        value=math.exp(median.value), low=math.exp(median.low), high=math.exp(median.high), confidence=confidence
    )


def share_interval(count: int, n: int, confidence: float = 0.95) -> Interval:
    """A share of n examples with its Clopper-Pearson interval, which covers with at least `confidence` at any share.

    Source: Clopper and Pearson, Biometrika 26 (1934); `scipy.stats.binomtest(...).proportion_ci(method="exact")`.
    """
    bounds = stats.binomtest(count, n).proportion_ci(confidence, method="exact")
    return Interval(value=count / n, low=float(bounds.low), high=float(bounds.high), confidence=confidence)


def flips(labels: Labels, before: Labels, after: Labels) -> tuple[int, int]:
    """(right before and wrong after, wrong before and right after) over the same examples."""
    was_right = _is_right(labels, before)
    is_right = _is_right(labels, after)
    return int(np.sum(was_right & ~is_right)), int(np.sum(~was_right & is_right))


def drop_interval(worse: int, better: int, n: int, confidence: float = 0.95) -> Interval:
    """Points of accuracy lost between two sets of answers to the same n examples; negative is a gain.

    Args:
        worse: examples that went from right to wrong.
        better: examples that went from wrong to right.
        n: all examples, the unchanged ones included.
        confidence: two-sided.

    Returns:
        100 (worse - better) / n. From 25 changed answers on with the normal interval of paired shares, whose standard
        error is sqrt(worse + better - (worse - better)^2 / n) / n; below that with Tango's score interval.

    Source: Tango, Statistics in Medicine 17 (1998), 891-908, equation for the score interval. We take it rather than a
    bootstrap: without a single changed answer every resample is the same, and the interval would be [0, 0].
    """
    z = float(stats.norm.ppf((1 + confidence) / 2))
    drop = (worse - better) / n
    if worse + better >= MIN_FLIPS_FOR_NORMAL:
        half = z * math.sqrt(worse + better - (worse - better) ** 2 / n) / n
        low, high = drop - half, drop + half
    else:
        low, high = (_tango_bound(worse, better, n, sign * z) for sign in (1, -1))
    return Interval(value=100 * drop, low=100 * max(low, -1.0), high=100 * min(high, 1.0), confidence=confidence)


def mcnemar(worse: int, better: int) -> float:
    """The chance of at least this many `worse` among the changed answers, were worse and better equally likely.

    One-sided and exact; 1 when nothing changed.

    Source: McNemar, Psychometrika 12 (1947), with the binomial tail in place of the chi-square approximation.
    """
    if worse + better == 0:
        return 1.0
    return float(stats.binomtest(worse, worse + better, 0.5, alternative="greater").pvalue)


def seeds_difference(
    ours: Bool[np.ndarray, "seeds rows"],
    baseline: Bool[np.ndarray, "other_seeds rows"],
    seed_sd: float | None,
    seed_df: int,
    confidence: float = 0.95,
) -> Interval:
    """Points of accuracy that a method gains on a baseline, paired over examples, with what seeds add.

    Args:
        ours: whether each answer is right, for each seed of the method.
        baseline: the same for the baseline, on the same examples.
        seed_sd: standard deviation of accuracy between seeds, as a share of 1, pooled over all methods that have two or
            more; None when none has, and then only examples are counted.
        seed_df: degrees of freedom of `seed_sd`.
        confidence: two-sided.

    Returns:
        100 (accuracy of ours - of the baseline). The variance is that of the mean of the differences over examples plus
        seed_sd^2 (1/seeds + 1/other_seeds); Welch-Satterthwaite degrees of freedom. Some of the chance of seeds is in
        both terms, so the interval is rather too wide.
    """
    difference = ours.mean(axis=0) - baseline.mean(axis=0)
    n = len(difference)
    of_examples = float(difference.var(ddof=1)) / n
    of_seeds = (seed_sd or 0.0) ** 2 * (1 / len(ours) + 1 / len(baseline))
    total = of_examples + of_seeds
    if total == 0:  # the same answers throughout
        half = 0.0
    else:
        df = total**2 / (of_examples**2 / (n - 1) + (of_seeds**2 / seed_df if seed_df else 0.0))
        half = float(stats.t.ppf((1 + confidence) / 2, df)) * math.sqrt(total)
    value = float(difference.mean())
    return Interval(value=100 * value, low=100 * (value - half), high=100 * (value + half), confidence=confidence)


def _tango_bound(worse: int, better: int, n: int, z: float) -> float:
    """The difference at which the score statistic is z: the lower bound for z > 0, the upper one for z < 0."""

    def excess(delta: float) -> float:
        # the share of `better` that is most likely when the difference is delta
        a, b, c = 2 * n, -worse - better + (2 * n - worse + better) * delta, -better * delta * (1 - delta)
        share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * share + delta * (1 - delta))
        return worse - better - n * delta - z * math.sqrt(max(variance, 0.0))

    observed = (worse - better) / n
    far = -1.0 if z > 0 else 1.0
    # a step off `observed`, since the variance may be 0 there, which would make it a root of its own
    near = observed + math.copysign(1e-9, far - observed)
    if abs(far - observed) < 1e-9 or excess(far) * excess(near) >= 0:
        return far
    return float(optimize.brentq(excess, far, near, xtol=1e-12))


def _is_right(labels: Labels, predictions: Labels) -> Bool[np.ndarray, " n"]:
    return np.asarray(labels) == np.asarray(predictions)
