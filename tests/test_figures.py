"""What raw samples say, against samples whose truth is known."""

import numpy as np
import pytest
from fakes import make_measurement

from eval import figures
from eval.statistics import TooFewError
from eval.wording import say
from pipeline.base.records import Interval, Reason, ReasonKind


def test_percentiles_are_near_the_truth_with_it_inside():
    """Log-normal calls around 2 ms, of which the 90th percentile is known."""
    measurement = make_measurement(2.0, noise=0.1)
    p50, p90 = figures.p50_ms(measurement), figures.p90_ms(measurement)
    assert p50.low < 2.0 < p50.high
    assert p90.low < 2.0 * np.exp(0.1 * 1.2816) < p90.high
    assert (p50.confidence, p90.confidence) == pytest.approx((0.98, 0.98))


def test_speedup_is_the_median_ratio_of_pairs():
    """8 ms against 2 ms."""
    interval = figures.speedup(make_measurement(2.0, 8.0))
    assert interval.low < 4.0 < interval.high
    assert interval.high - interval.low < 0.2


def test_candidate_slower_than_its_reference_is_found():
    """A slowdown of 10 % at 5 % noise lies clear of 1 with 200 pairs."""
    assert figures.speedup(make_measurement(2.2, 2.0)).high < 1.0


def test_warmups_are_kept_but_not_judged():
    """The first five calls of each session are a hundred times slower."""
    plain = make_measurement()
    series = [
        one.model_copy(
            update={
                "warmup": 5,
                "wall_ns": (*[200_000_000] * 5, *one.wall_ns),
                "cpu_ns": (*[200_000_000] * 5, *one.cpu_ns),
            }
        )
        for one in plain.series
    ]
    warmed = plain.model_copy(update={"series": tuple(series)})
    assert figures.p90_ms(warmed) == figures.p90_ms(plain)
    assert figures.speedup(warmed) == figures.speedup(plain)


def test_pairs_are_matched_by_process_however_series_are_listed():
    """One process of five is twice as slow, and series come in another order: ratios do not feel it."""
    one = make_measurement(noise=0.01)
    slow = [
        series.model_copy(update={"cpu_ns": tuple(2 * ns for ns in series.cpu_ns)}) if series.process == 1 else series
        for series in one.series
    ]
    measurement = one.model_copy(update={"series": tuple(reversed(slow))})
    interval = figures.speedup(measurement)
    assert interval.high - interval.low < 0.1
    assert figures.p50_ms(measurement).high > 2.5


def test_scatter_of_processes_is_in_the_interval():
    """However many calls each of them has: 5 % between processes, 1 % between calls."""
    narrow, wide = (make_measurement(n=2000, noise=0.01, scatter=scatter) for scatter in (0.0, 0.05))
    few, many = (figures.p50_ms(one) for one in (narrow, wide))
    assert few.high / few.low < 1.005 and 1.03 < many.high / many.low < 1.3
    assert figures.speedup(wide).high / figures.speedup(wide).low < 1.02  # both models are in the same process


@pytest.mark.parametrize("figure", [figures.p50_ms, figures.p90_ms, figures.speedup, figures.twin_ratio])
def test_one_process_has_no_interval(figure):
    """Nobody knows how far another one would be."""
    with pytest.raises(TooFewError, match="found 1, at least 2 are needed; raise measure"):
        figure(make_measurement(processes=1))
    assert figures.speedups(make_measurement(processes=1)) == pytest.approx([4.0], rel=0.02)


def test_a_process_that_lacks_one_side_is_no_pair():
    """Ratios are within processes; a reference that was timed in others says nothing."""
    measurement = make_measurement()
    series = [one for one in measurement.series if (one.model, one.process) != ("reference", 3)]
    with pytest.raises(TooFewError, match="no pairs: found 80 calls of the reference and 100 of the candidate"):
        figures.speedup(measurement.model_copy(update={"series": tuple(series)}))


def test_clock_is_cpu_time_for_one_thread_here_and_wall_time_elsewhere():
    """More threads, another device, or work that the CPU did not do: the wall clock counts."""
    assert figures.primary_clock(make_measurement(cpu_share=0.8)) == "cpu"
    assert figures.primary_clock(make_measurement(threads=2)) == "wall"
    assert figures.primary_clock(make_measurement(device="ssh")) == "wall"
    assert figures.primary_clock(make_measurement(cpu_share=0.2)) == "wall"
    assert figures.primary_clock(make_measurement(series=())) == "wall"


def test_what_runs_elsewhere_has_the_wall_clock_alone():
    """As a browser: no CPU time is known, so no clock can disagree with another, and none stands for both."""
    whole = make_measurement()
    series = tuple(one.model_copy(update={"cpu_ns": ()}) for one in whole.series)
    found = whole.model_copy(update={"series": series})
    assert figures.primary_clock(found) == "wall" and figures.find_warnings(found) == ()
    assert figures.p50_ms(found) == figures.p50_ms(whole, clock="wall")


@pytest.mark.parametrize(("cpu_share", "cause"), [(0.8, "preemption"), (1.3, "spinning")])
def test_clocks_that_disagree_are_told(cpu_share, cause):
    """From 10 % on, with the likely cause."""
    (warning,) = figures.find_warnings(make_measurement(cpu_share=cpu_share))
    assert warning.kind is ReasonKind.CLOCKS_DISAGREE
    assert "the clocks disagree" in say(warning)
    assert cause in say(warning)
    assert figures.find_warnings(make_measurement(cpu_share=0.95)) == ()


def test_time_stolen_by_the_host_is_told():
    """30 % of ten seconds."""
    before = {"when": "before", "steal_seconds_since_boot": 100.0}
    after = {"when": "after", "steal_seconds_since_boot": 103.0, "elapsed_s": 10.0}
    (warning,) = figures.find_warnings(make_measurement(conditions=(before, after)))
    assert warning.kind is ReasonKind.CPU_STOLEN
    assert say(warning) == "the host took 3.0 CPU seconds away during 10.0 s of measuring"


def test_quiet_twins_are_fit():
    """A model beside a second session of itself comes out at 1."""
    assert figures.why_unfit(make_measurement(noise=0.02)) is None


@pytest.mark.parametrize("twins", [0.95, 1.05])
@pytest.mark.parametrize("swap", [False, True], ids=["candidate", "reference"])
def test_a_model_that_differs_from_its_twin_is_unfit(twins, swap):
    """Whichever side, and whichever of the two models."""
    measurement = make_measurement(twins=twins)
    if swap:
        names = {"candidate": "reference", "candidate_twin": "reference_twin"}
        names |= {there: here for here, there in names.items()}
        series = (one.model_copy(update={"model": names[one.model]}) for one in measurement.series)
        measurement = measurement.model_copy(update={"series": tuple(series)})
    reason = figures.why_unfit(measurement)
    assert reason.kind is ReasonKind.NOISY_RUNNER
    assert "the runner is unfit: it timed a model at" in say(reason)


def test_small_difference_of_twins_is_told_and_decides_nothing():
    """1.5 % at 1 % noise is certain, but less than the tolerance."""
    measurement = make_measurement(twins=1.015, noise=0.01)
    assert figures.twin_ratio(measurement).low > 1
    assert figures.why_unfit(measurement) is None
    (warning,) = figures.find_warnings(measurement)
    assert warning.kind is ReasonKind.TWINS_DIFFER
    assert say(warning).startswith("ratios are off by about 1.")


def test_twins_off_by_more_than_the_tolerance_are_unfit_however_wide_their_interval():
    """Noise so large that 1 lies inside, and the middle is off by 5 %."""
    measurement = make_measurement(twins=1.1, n=20, noise=0.3)
    ratio = figures.twin_ratio(measurement)
    assert ratio.low < 1 < ratio.high
    assert figures.why_unfit(measurement).kind is ReasonKind.NOISY_RUNNER


def test_missing_twins_are_no_proof_of_fitness():
    """Absence of evidence."""
    measurement = make_measurement()
    series = tuple(one for one in measurement.series if not one.model.endswith("twin"))
    reason = figures.why_unfit(measurement.model_copy(update={"series": series}))
    assert (reason.kind, reason.figure) == (ReasonKind.NO_TWINS, None)
    assert say(reason).startswith("nobody knows how noisy the run was: no pairs")


def test_the_ends_of_a_change_are_moved_by_half_of_what_one_models_twins_differ_by():
    """Its mean over two pairs is off by half. What both models' twins differ by alike moves nothing: it falls out."""
    figure = Interval(value=1.05, low=1.03, high=1.07, confidence=0.98)
    one = make_measurement(noise=0.001, twins=1.0404)
    found = figures.moved(one, figure)
    assert (found.low, found.value, found.high) == pytest.approx((1.03 / 1.02, 1.05, 1.07 * 1.02), rel=1e-3)
    assert figures.moved(make_measurement(noise=0.001), figure) == figure
    assert figures.moved(make_measurement(noise=0.001, twins=1.6), figure) is None
    series = tuple(
        one_series.model_copy(update={"cpu_ns": tuple(int(ns * 1.0404) for ns in one_series.cpu_ns)})
        if one_series.model == "reference"
        else one_series
        for one_series in one.series
    )
    alike = one.model_copy(update={"series": series})
    assert figures.why_unfit(alike) is not None
    assert figures.moved(alike, figure).low == pytest.approx(figure.low, rel=1e-3)


def test_an_interval_is_widened_by_twice_what_the_twins_were_off():
    """Left as it is on a quiet runner; nothing can be judged where nobody knows, or beyond a factor of 1.5."""
    figure = Interval(value=4.0, low=3.9, high=4.1)
    off = Interval(value=1.05, low=1.04, high=1.06)
    noisy = Reason(kind=ReasonKind.NOISY_RUNNER, figure=off)
    found = figures.widened(figure, noisy)
    assert (found.low, found.high) == pytest.approx((3.9 / 1.06**2, 4.1 * 1.06**2))
    assert figures.widened(figure, None) == figure
    assert figures.widened(figure, Reason(kind=ReasonKind.NO_TWINS, detail="no pairs")) is None
    far = noisy.model_copy(update={"figure": off.model_copy(update={"high": 1.23})})
    assert figures.widened(figure, far) is None


def test_missing_partner_is_no_pair():
    """A reference that was never timed."""
    measurement = make_measurement()
    series = tuple(one for one in measurement.series if one.model != "reference")
    with pytest.raises(TooFewError, match="no pairs: found 0 calls of the reference and 100 of the candidate"):
        figures.speedup(measurement.model_copy(update={"series": series}))


def test_few_calls_in_a_process_give_no_percentile():
    """8 do for a median, not for the call that one in ten exceeds."""
    measurement = make_measurement(n=40)
    assert figures.p50_ms(measurement).value > 0
    with pytest.raises(TooFewError, match="found 8 calls in a process, at least 10 are needed for its 90% point"):
        figures.p90_ms(measurement)


def test_loads_and_memory_are_medians_over_processes():
    """From 50 to 56 ms and from 40.000000 to 40.000006 MB."""
    measurement = make_measurement()
    assert (figures.load_ms(measurement).value, figures.first_call_ms(measurement).value) == (53.0, 12.0)
    assert figures.memory_mb(measurement).value == pytest.approx(40.000003)
