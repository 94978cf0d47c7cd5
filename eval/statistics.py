"""Intervals that assume as little as they can, so that a verdict can say how sure it is.

Latency is skewed and has tails, and differs from process to process: each process gives a percentile or a median ratio,
and Student's interval over processes, in logarithms, says how sure their middle is. Load times, one from each process,
have theirs from order statistics. Answers that are right or wrong have
theirs from the binomial distribution; any other value of an example, from Student's. Nothing here draws random numbers:
the same samples give the same interval.

A one-sided bound at confidence c is the end of the two-sided interval at 2c - 1: `two_sided(0.99)` is 0.98.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, stats

from pipeline.base.errors import PipelineError
from pipeline.base.records import Flips, Interval, Metric

# Below this many changed answers the normal approximation is too coarse (measuring.md, B5).
MIN_FLIPS_FOR_NORMAL = 25
# Of the test whether processes differ by more than the sessions of one: of 5 processes that differ as much as twice
# that, 2.6 % are beyond an end that should have 1 (simulated, tests/test_changes.py); at a level of 0.1 it was 3.5 %.
F_LEVEL = 0.25

Samples = Sequence[float] | Sequence[int] | Float[np.ndarray, " n"] | Int[np.ndarray, " n"]
Labels = Sequence[int] | Int[np.ndarray, " n"]
Values = Float[np.ndarray, " n"]


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
    values = np.asarray(samples, dtype=np.float64)
    needed = samples_needed(quantile, confidence)
    if len(values) < needed:  # scipy gives NaN for an end that no sample covers
        raise TooFewError(
            f"too few samples: found {len(values)}, at least {needed} are needed at {confidence:.0%} confidence"
        )
    bounds = stats.quantile_test(values, p=quantile).confidence_interval(confidence)
    value = float(np.quantile(values, quantile))
    return Interval(value=value, low=float(bounds.low), high=float(bounds.high), confidence=confidence)


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


def process_interval(estimates: Samples, confidence: float = 0.95) -> Interval:
    """A positive figure of a fresh process, such as its median call, from one estimate for each process.

    Calls within a process are not independent of each other: where it lies in memory and which neighbours it has stays,
    and pooled calls give an interval that is too narrow (98 % covered 80 %, measuring.md, B3a). So each process gives
    one number, whatever the number of its calls.

    Args:
        estimates: positive, one for each of several independent processes.
        confidence: two-sided.

    Returns:
        The geometric mean with Student's interval of the mean logarithm.

    Raises:
        TooFewError: fewer than two processes, whose scatter nobody knows.

    Source: Kalibera and Jones, Rigorous benchmarking in reasonable time (ISMM 2013): repeat where the variance is.
    """
    logs = np.log(np.asarray(estimates, dtype=np.float64))
    n = len(logs)
    if n < 2:
        raise TooFewError(f"too few processes: found {n}, at least 2 are needed; raise measure.processes")
    mean = float(logs.mean())
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * logs.std(ddof=1)) / math.sqrt(n)
    return Interval(value=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half), confidence=confidence)


def contrast_interval(effects: Samples, twins: Samples, confidence: float = 0.95) -> Interval:
    """A ratio of two models' times, judged by the noise that the same run shows between sessions of one model.

    In each process both models have two sessions. Were the models alike, the four would differ by chance alone, with
    variance v of their logarithms: the mean log ratio of the two pairs then has variance v, and the log ratio of a
    model to its own twin 2 v. So twins tell as much of the noise as processes do, and few processes are enough. Where
    processes differ by more than that (an F test at F_LEVEL), they alone are believed.

    Args:
        effects: of each process the logarithm of the ratio, over both pairs of sessions.
        twins: of each process and model the logarithm of its ratio to its twin.
        confidence: two-sided.

    Returns:
        The geometric mean of the ratios with Student's interval.

    Raises:
        TooFewError: fewer than two processes, or no twins.
    """
    logs, noise = np.asarray(effects, dtype=np.float64), np.asarray(twins, dtype=np.float64)
    n, m = len(logs), len(noise)
    if n < 2 or m < 2:
        raise TooFewError(
            f"too few processes: found {n} with {m} twins, at least 2 are needed; raise compare.processes"
        )
    own, of_twins = float(logs.var(ddof=1)), float((noise**2).mean()) / 2  # a model's ratio to itself is 1
    df, variance = n - 1 + m, (own * (n - 1) + of_twins * m) / (n - 1 + m)
    if of_twins == 0 or stats.f.sf(own / of_twins, n - 1, m) < F_LEVEL:
        df, variance = n - 1, own
    mean = float(logs.mean())
    half = float(stats.t.ppf((1 + confidence) / 2, df)) * math.sqrt(variance / n)
    return Interval(value=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half), confidence=confidence)


def holm(chances: Sequence[float]) -> list[float]:
    """Each chance as it is when so many were tried: at most a level in any of them with a chance of that level.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    adjusted = [0.0] * len(chances)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        highest = max(highest, (len(chances) - rank) * chances[i])
        adjusted[i] = min(1.0, highest)
    return adjusted


def share_interval(count: int, n: int, confidence: float = 0.95) -> Interval:
    """A share of n examples with its Clopper-Pearson interval, which covers with at least `confidence` at any share.

    Source: Clopper and Pearson, Biometrika 26 (1934); `scipy.stats.binomtest(...).proportion_ci(method="exact")`.
    """
    bounds = stats.binomtest(count, n).proportion_ci(confidence, method="exact")
    return Interval(value=count / n, low=float(bounds.low), high=float(bounds.high), confidence=confidence)


def mean_interval(values: Samples, confidence: float = 0.95) -> Interval:
    """The mean of a value of each example: Clopper-Pearson's interval when all are 0 or 1, else Student's."""
    found = np.asarray(values, dtype=np.float64)
    if _are_shares(found):
        return share_interval(int(found.sum()), len(found), confidence)
    return _student_interval(found, float(np.abs(found).max()), confidence)


def difference_interval(first: Samples, second: Samples, confidence: float = 0.95) -> Interval:
    """How much greater the mean of the first values is than that of the second, paired over the same examples.

    The one place that chooses: values that are all 0 or 1 take `paired_share_interval`, others Student's interval of
    the mean difference.
    """
    ours, theirs = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if _are_shares(ours) and _are_shares(theirs):
        more, less = int(np.sum(ours > theirs)), int(np.sum(ours < theirs))
        return paired_share_interval(more, less, len(ours), confidence)
    both = np.concatenate([ours, theirs])
    return _student_interval(ours - theirs, float(both.max() - both.min()), confidence)


def drop_interval(before: Samples, after: Samples, metric: Metric, confidence: float = 0.95) -> Interval:
    """How much worse the second model is, in the unit of the metric's differences; negative is a gain."""
    first, second = (before, after) if metric.is_greater_better else (after, before)
    drop = difference_interval(first, second, confidence)
    return drop.model_copy(update={key: metric.scale * getattr(drop, key) for key in ("value", "low", "high")})


def flips(before: Samples, after: Samples, metric: Metric) -> Flips:
    """How many examples have a worse value after than before, and how many a better one."""
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    better, worse = (change > 0, change < 0) if metric.is_greater_better else (change < 0, change > 0)
    return Flips(worse=int(worse.sum()), better=int(better.sum()))


def paired_share_interval(more: int, less: int, n: int, confidence: float = 0.95) -> Interval:
    """A difference of two shares of the same n examples.

    Args:
        more: examples that count in the first share alone.
        less: examples that count in the second share alone.
        n: all examples, those that count in both or in neither included.
        confidence: two-sided.

    Returns:
        (more - less) / n. From 25 such examples on with the normal interval of paired shares, whose standard error is
        sqrt(more + less - (more - less)^2 / n) / n; below that with Tango's score interval.

    Source: Tango, Statistics in Medicine 17 (1998), 891-908, equation for the score interval. We take it rather than a
    bootstrap: without a single changed answer every resample is the same, and the interval would be [0, 0].
    """
    z = float(stats.norm.ppf((1 + confidence) / 2))
    difference = (more - less) / n
    if more + less >= MIN_FLIPS_FOR_NORMAL:
        half = z * math.sqrt(more + less - (more - less) ** 2 / n) / n
        low, high = difference - half, difference + half
    else:
        low, high = (_tango_bound(more, less, n, sign * z) for sign in (1, -1))
    return Interval(value=difference, low=max(low, -1.0), high=min(high, 1.0), confidence=confidence)


def chance_of_gain(before: Samples, after: Samples, metric: Metric) -> tuple[float, str]:
    """(the chance of a gain at least as large as from before to after, were neither model better; the test it is from).

    One-sided: exact McNemar when all values are 0 or 1, else Student's paired test. 1 when nothing changed.
    """
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if _are_shares(old) and _are_shares(new):
        counts = flips(old, new, metric)
        return mcnemar(counts.better, counts.worse), "exact McNemar"
    gain = new - old if metric.is_greater_better else old - new
    # gains that are all the same have no deviation to be compared with
    chance = float(stats.ttest_1samp(gain, 0.0, alternative="greater").pvalue) if np.ptp(gain) > 0 else 1.0
    return chance, "Student's paired test"


def mcnemar(more: int, less: int) -> float:
    """The chance of at least this many `more` among the changed answers, were more and less equally likely.

    One-sided and exact; 1 when nothing changed.

    Source: McNemar, Psychometrika 12 (1947), with the binomial tail in place of the chi-square approximation.
    """
    if more + less == 0:
        return 1.0
    return float(stats.binomtest(more, more + less, 0.5, alternative="greater").pvalue)


def seeds_difference(
    ours: Bool[np.ndarray, "seeds rows"],
    baseline: Bool[np.ndarray, "other_seeds rows"],
    seed_sd: float | None,
    seed_df: int,
    confidence: float = 0.95,
) -> Interval:
    """Points of 100 that a method gains on a baseline, paired over examples, with what seeds add.

    Args:
        ours: whether each answer is right, for each seed of the method.
        baseline: the same for the baseline, on the same examples.
        seed_sd: standard deviation between seeds of the share of right answers, pooled over all methods that have two
            or more; None when none has, and then only examples are counted. Of methods that share their seeds, what a
            seed does not give to all alike.
        seed_df: degrees of freedom of `seed_sd`.
        confidence: two-sided.

    Returns:
        100 (share of right answers of ours - of the baseline). The variance is that of the mean of the differences over
        examples plus seed_sd^2 (1/seeds + 1/other_seeds); Welch-Satterthwaite degrees of freedom. Some of the chance of
        seeds is in both terms, so the interval is rather too wide.
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


def _student_interval(values: Values, reach: float, confidence: float) -> Interval:
    """Student's interval of a mean; `reach` is how far another example's value could be from the ones that were met.

    Values that are all the same have no deviation, which does not make their mean certain: as for shares, an example of
    another kind may be as frequent as n examples without one allow.
    """
    n = len(values)
    if n < 2:
        raise TooFewError(f"too few examples: found {n}, at least 2 are needed")
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1)) / math.sqrt(n)
    if np.ptp(values) == 0:
        half = reach * share_interval(0, n, confidence).high
    value = float(values.mean())
    return Interval(value=value, low=value - half, high=value + half, confidence=confidence)


def _are_shares(values: Values) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())
