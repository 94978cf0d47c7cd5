"""Intervals against their promise: simulated coverage, published tables, and worked numbers."""

import numpy as np
import pytest
from scipy import stats

from eval.statistics import (
    TooFewError,
    chance_of_gain,
    difference_interval,
    drop_interval,
    flips,
    mcnemar,
    mean_interval,
    median_ratio_interval,
    paired_share_interval,
    process_interval,
    quantile_interval,
    samples_needed,
    share_interval,
    two_sided,
)
from pipeline.base.records import Flips, Metric
from pipeline.tasks.single_label import METRIC as ACCURACY
from pipeline.tasks.single_label import values as right

LOSS = Metric(name="loss", title="loss", unit="nats", scale=1.0, is_greater_better=False)


def ends(draws, quantile, confidence):
    """Both ends of the interval of each row of draws; which of the sorted ones they are depends on their number."""
    interval = quantile_interval(range(draws.shape[1]), quantile, confidence)
    ordered = np.sort(draws, axis=1)
    return ordered[:, int(interval.low)], ordered[:, int(interval.high)]


@pytest.mark.parametrize(("quantile", "n", "confidence"), [(0.5, 15, 0.95), (0.5, 40, 0.98), (0.9, 60, 0.98)])
def test_quantile_interval_covers_at_least_as_often_as_it_says(quantile, n, confidence):
    """On a skewed distribution, whose true quantile is known; 2,000 draws leave an error of half a point."""
    draws = np.random.default_rng(1).lognormal(0, 1, (2000, n))
    truth = stats.lognorm(1.0).ppf(quantile)
    low, high = ends(draws, quantile, confidence)
    assert np.mean((low <= truth) & (truth <= high)) >= confidence - 0.005
    one = quantile_interval(draws[0], quantile, confidence)
    assert (one.low, one.high) == (low[0], high[0])


def test_each_end_is_a_one_sided_bound():
    """At two-sided 98 %, each end of the median's interval misses in at most 1 % of draws."""
    low, high = ends(np.random.default_rng(2).exponential(1.0, (4000, 40)), 0.5, two_sided(0.99))
    assert np.mean(low > np.log(2)) <= 0.01 + 0.004
    assert np.mean(high < np.log(2)) <= 0.01 + 0.004


@pytest.mark.parametrize(("n", "rank"), [(200, 190), (500, 466), (1024, 944), (5000, 4550)])
def test_upper_end_of_p90_is_the_early_stopping_percentile(n, rank):
    """The 95.0th, 93.2nd, 92.2nd and 91.0th percentile, as worked out from MLPerf's loadgen/early_stopping.cc."""
    assert quantile_interval(range(1, n + 1), 0.9, two_sided(0.99)).high == rank


def test_least_number_of_samples_is_that_of_mlperf():
    """44 for p90 and 459 for p99 when nothing is slow; 7 for a median."""
    assert [samples_needed(q, two_sided(0.99)) for q in (0.9, 0.99, 0.5)] == [44, 459, 7]


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_too_few_samples_are_refused_and_enough_are_not(quantile):
    """At the boundary the interval is from the smallest or to the largest sample."""
    needed = samples_needed(quantile, 0.98)
    assert quantile_interval(range(needed), quantile, 0.98).confidence == 0.98
    with pytest.raises(TooFewError, match=f"found {needed - 1}, at least {needed} are needed at 98% confidence"):
        quantile_interval(range(needed - 1), quantile, 0.98)


def test_interval_of_equal_samples_is_a_point():
    """A clock that ticks coarsely gives ties."""
    interval = quantile_interval([3.0] * 50, 0.9, 0.98)
    assert (interval.low, interval.value, interval.high) == (3.0, 3.0, 3.0)


def test_median_ratio_turns_round_with_its_arguments():
    """a / b and b / a are each other's inverse, ends swapped."""
    rng = np.random.default_rng(3)
    a, b = rng.lognormal(1, 0.2, 41), rng.lognormal(0, 0.2, 41)
    there, back = median_ratio_interval(a, b), median_ratio_interval(b, a)
    assert (there.value, there.low, there.high) == pytest.approx((1 / back.value, 1 / back.high, 1 / back.low))


def test_pairing_removes_what_both_models_suffer():
    """Slow phases of the machine hit both calls of a pair: the ratio stays, the medians of each scatter."""
    rng = np.random.default_rng(4)
    phase = rng.choice([1.0, 3.0], 100)
    interval = median_ratio_interval(phase * 4 * rng.lognormal(0, 0.01, 100), phase * rng.lognormal(0, 0.01, 100))
    assert 3.95 < interval.low < 4.0 < interval.high < 4.05


def test_share_interval_is_clopper_pearson():
    """The closed form in quantiles of the beta distribution."""
    interval = share_interval(47, 50, 0.9)
    assert interval.low == pytest.approx(stats.beta.ppf(0.05, 47, 4))
    assert interval.high == pytest.approx(stats.beta.ppf(0.95, 48, 3))
    assert (share_interval(0, 50).low, share_interval(50, 50).high) == (0.0, 1.0)


def test_flips_counts_both_directions():
    """Row 0 got worse, rows 1 and 2 better, row 3 stays right, row 4 goes from one wrong class to another."""
    before, after = (right([0, 0, 0, 0, 0], answers) for answers in ([0, 1, 2, 0, 1], [1, 0, 0, 0, 2]))
    assert flips(before, after, ACCURACY) == Flips(worse=1, better=2)
    assert flips(before, after, LOSS) == Flips(worse=2, better=1)


def test_drop_of_many_flips_is_the_formula_of_the_release_criterion():
    """(b - c) / n + 1.645 sqrt(b + c - (b - c)^2 / n) / n, worked by hand for b 30, c 20, n 1000."""
    interval = paired_share_interval(30, 20, 1000, two_sided(0.95))
    assert interval.value == pytest.approx(0.01)
    assert interval.high == pytest.approx(0.01 + 1.6448536 * np.sqrt(50 - 0.1) / 1000)


def test_drop_without_flips_is_not_certain():
    """No change in 1000 examples still allows z^2 / (n + z^2) = 0.27 points either way."""
    interval = paired_share_interval(0, 0, 1000, 0.9)
    assert (interval.low, interval.high) == pytest.approx((-0.0026982, 0.0026982), abs=1e-6)


def test_score_interval_of_tango_holds_its_score_equation():
    """At each end the score statistic is z, written out here apart from the code that solves for it."""
    worse, better, n, z = 8, 3, 300, stats.norm.ppf(0.975)
    interval = paired_share_interval(worse, better, n)
    for end, expected in ((interval.low, z), (interval.high, -z)):
        likelihood = np.linspace(0, 0.2, 2_000_001)[1:]  # the share of `better`, on a grid
        share_worse = likelihood + end
        rest = 1 - likelihood - share_worse
        ok = (share_worse > 0) & (rest > 0)
        log_likelihood = (
            worse * np.log(share_worse[ok]) + better * np.log(likelihood[ok]) + (n - worse - better) * np.log(rest[ok])
        )
        best = likelihood[ok][log_likelihood.argmax()]
        statistic = (worse - better - n * end) / np.sqrt(n * (2 * best + end - end**2))
        assert statistic == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("share_worse", "share_better", "n"), [(0.01, 0.01, 500), (0.03, 0.01, 300), (0.06, 0.04, 800)]
)
def test_drop_interval_covers_about_as_often_as_it_says(share_worse, share_better, n):
    """Through both branches: few flips (Tango's score) and many (normal)."""
    rng = np.random.default_rng(5)
    counts = rng.multinomial(n, [share_worse, share_better, 1 - share_worse - share_better], 2000)
    truth = share_worse - share_better
    cache = {(b, c): paired_share_interval(b, c, n, 0.9) for b, c in {(int(b), int(c)) for b, c, _ in counts}}
    covered = np.mean([cache[int(b), int(c)].low <= truth <= cache[int(b), int(c)].high for b, c, _ in counts])
    assert 0.88 <= covered <= 0.97


@pytest.mark.parametrize("n", [1, 2, 7, 24, 30])
def test_drop_interval_holds_its_value_and_mirrors(n):
    """For every possible count of flips in a tiny test split."""
    for worse in range(n + 1):
        for better in range(n + 1 - worse):
            there, back = paired_share_interval(worse, better, n), paired_share_interval(better, worse, n)
            assert -1 <= there.low <= there.value <= there.high <= 1
            assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-7)


def before_and_after(worse, better, n):
    """Values of n examples of which so many turned wrong, and right; half of the rest are right."""
    before = np.zeros(n)
    before[:worse] = 1
    after = np.zeros(n)
    after[worse : worse + better] = 1
    rest = (n - worse - better) // 2
    before[n - rest :] = after[n - rest :] = 1
    return before, after


@pytest.mark.parametrize(("worse", "better", "n"), [(8, 3, 300), (30, 20, 1000), (0, 0, 50)])
def test_right_and_wrong_answers_take_the_intervals_of_shares(worse, better, n):
    """Drop in points, Clopper-Pearson for the figure itself, McNemar for the chance: from values as from counts."""
    before, after = before_and_after(worse, better, n)
    shares = paired_share_interval(worse, better, n, 0.9)
    drop = drop_interval(before, after, ACCURACY, 0.9)
    assert (drop.value, drop.low, drop.high) == (100 * shares.value, 100 * shares.low, 100 * shares.high)
    assert mean_interval(after, 0.9) == share_interval(int(after.sum()), n, 0.9)
    assert chance_of_gain(before, after, ACCURACY) == (mcnemar(better, worse), "exact McNemar")
    assert chance_of_gain(before, after, LOSS) == (mcnemar(worse, better), "exact McNemar")


def test_other_values_take_students_interval():
    """Against scipy's own: of one arm, of paired differences, and the one-sided test."""
    rng = np.random.default_rng(6)
    before, after = rng.gamma(2, 0.2, (2, 60))
    alone, pair = stats.ttest_1samp(after, 0).confidence_interval(0.9), stats.ttest_rel(before, after)
    assert (mean_interval(after, 0.9).low, mean_interval(after, 0.9).high) == pytest.approx(tuple(alone))
    found, expected = difference_interval(before, after, 0.9), pair.confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    # of a loss, more after than before is the drop
    drop = drop_interval(before, after, LOSS, 0.9)
    assert (drop.value, drop.low, drop.high) == pytest.approx((-found.value, -found.high, -found.low))
    chance, name = chance_of_gain(before, after, LOSS)
    assert chance == pytest.approx(stats.ttest_rel(before, after, alternative="greater").pvalue)
    assert name == "Student's paired test"


def test_other_values_that_never_differ_are_not_certain():
    """As with flips: n examples without a difference allow that so many of the next ones have one."""
    values = np.linspace(0, 2, 100)
    found = difference_interval(values, values)
    assert found.value == 0
    assert (found.low, found.high) == pytest.approx((-2 * found.high / 2, 2 * share_interval(0, 100).high))
    assert chance_of_gain(values, values, LOSS)[0] == 1.0
    with pytest.raises(TooFewError, match="too few examples: found 1, at least 2"):
        mean_interval([0.5])


def test_students_interval_covers_as_often_as_it_says():
    """Of paired differences that are skewed, as a loss has them."""
    rng = np.random.default_rng(7)
    arms = rng.gamma(2, 0.2, (2000, 2, 80))
    found = [difference_interval(first + 0.05, second, 0.9) for first, second in arms]
    assert 0.88 <= np.mean([one.low <= 0.05 <= one.high for one in found]) <= 0.92


def test_mcnemar_fires_where_the_table_says():
    """b >= 5 of 5, 8 of 9, 13 of 17, 23 of 35 changed answers at 5 %, and not one earlier."""
    for worse, changed in ((5, 5), (8, 9), (13, 17), (23, 35)):
        assert mcnemar(worse, changed - worse) <= 0.05 < mcnemar(worse - 1, changed - worse + 1)
    assert mcnemar(4, 0) > 0.05
    assert mcnemar(0, 0) == 1.0


# --- processes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [2, 5, 15])
@pytest.mark.parametrize("scatter", [0.0, 0.04])
def test_an_interval_over_processes_covers_as_often_as_it_says(processes, scatter):
    """Where pooled calls do not: 40 calls of 5 % in each process, whose own middle is off by 4 %."""
    rng = np.random.default_rng(0)
    runs, confidence = 2000, 0.9
    middles = rng.normal(0, scatter, (runs, processes, 1))
    estimates = np.exp(np.median(middles + rng.normal(0, 0.05, (runs, processes, 40)), axis=2))
    covered = sum(one.low <= 1 <= one.high for one in (process_interval(row, confidence) for row in estimates))
    assert stats.binomtest(covered, runs, confidence).pvalue > 0.001


def test_pooled_calls_cover_too_seldom():
    """What the interval over processes is for (review C3)."""
    rng = np.random.default_rng(0)
    calls = np.exp(rng.normal(0, 0.04, (500, 5, 1)) + rng.normal(0, 0.05, (500, 5, 40))).reshape(500, -1)
    found = [quantile_interval(row, 0.5, 0.98) for row in calls]
    assert np.mean([one.low <= 1 <= one.high for one in found]) < 0.85


def test_an_interval_over_processes_mirrors_and_takes_two():
    """a / b and b / a; the scatter of one process is unknown."""
    there, back = process_interval([1.9, 2.0, 2.2], 0.98), process_interval([1 / 1.9, 1 / 2.0, 1 / 2.2], 0.98)
    assert (there.value, there.low) == pytest.approx((1 / back.value, 1 / back.high))
    assert there.value == pytest.approx((1.9 * 2.0 * 2.2) ** (1 / 3))
    with pytest.raises(TooFewError, match="found 1, at least 2"):
        process_interval([2.0], 0.98)
