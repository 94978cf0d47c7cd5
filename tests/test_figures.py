"""What raw samples say, against samples whose truth is known."""

import numpy as np
import pytest
from fakes import make_measurement

from eval import figures
from eval.statistics import TooFewError
from eval.wording import say
from pipeline.base.records import ReasonKind


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
    """The first five calls of each series are a hundred times slower."""
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
    """Two processes, one twice as slow, and series in another order."""
    one = make_measurement(n=50, noise=0.01)
    slow = [
        series.model_copy(update={"process": 1, "cpu_ns": tuple(2 * ns for ns in series.cpu_ns)})
        for series in one.series
    ]
    measurement = one.model_copy(update={"series": (slow[1], *one.series, slow[0], *slow[2:])})
    interval = figures.speedup(measurement)
    assert interval.high - interval.low < 0.1


def test_clock_is_cpu_time_for_one_thread_here_and_wall_time_elsewhere():
    """More threads, another device, or work that the CPU did not do: the wall clock counts."""
    assert figures.primary_clock(make_measurement(cpu_share=0.8)) == "cpu"
    assert figures.primary_clock(make_measurement(threads=2)) == "wall"
    assert figures.primary_clock(make_measurement(device="ssh")) == "wall"
    assert figures.primary_clock(make_measurement(cpu_share=0.2)) == "wall"
    assert figures.primary_clock(make_measurement(series=())) == "wall"


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


def test_quiet_canary_is_fit():
    """A model against itself comes out at 1."""
    assert figures.why_unfit(make_measurement(noise=0.02)) is None


@pytest.mark.parametrize("canary", [0.95, 1.05])
def test_canary_that_differs_from_itself_is_unfit(canary):
    """Whichever side."""
    reason = figures.why_unfit(make_measurement(canary=canary))
    assert reason.kind is ReasonKind.NOISY_RUNNER
    assert "the runner is unfit: it timed the model at" in say(reason)


def test_small_lean_of_the_canary_is_told_and_decides_nothing():
    """1.5 % at 1 % noise is certain, but less than the tolerance."""
    measurement = make_measurement(canary=1.015, noise=0.01)
    assert figures.canary_ratio(measurement).low > 1
    assert figures.why_unfit(measurement) is None
    (warning,) = figures.find_warnings(measurement)
    assert warning.kind is ReasonKind.CANARY_LEANS
    assert say(warning).startswith("ratios are off by about 1.")


def test_canary_off_by_more_than_the_tolerance_is_unfit_however_wide_its_interval():
    """Noise so large that 1 lies inside, and the median is off by 5 %."""
    measurement = make_measurement(canary=1.05, n=20, noise=0.3)
    ratio = figures.canary_ratio(measurement)
    assert ratio.low < 1 < ratio.high
    assert figures.why_unfit(measurement).kind is ReasonKind.NOISY_RUNNER


def test_missing_canary_is_no_proof_of_fitness():
    """Absence of evidence."""
    measurement = make_measurement()
    series = tuple(one for one in measurement.series if not one.model.startswith("canary"))
    reason = figures.why_unfit(measurement.model_copy(update={"series": series}))
    assert (reason.kind, reason.figure) == (ReasonKind.NO_CANARY, None)
    assert say(reason).startswith("no A/A canary: too few samples")


def test_missing_partner_is_no_pair():
    """A reference that was never timed."""
    measurement = make_measurement()
    series = tuple(one for one in measurement.series if one.model != "reference")
    with pytest.raises(TooFewError, match="no pairs: found 0 calls of the reference and 200 of the candidate"):
        figures.speedup(measurement.model_copy(update={"series": series}))


def test_few_samples_give_no_interval():
    """40 calls do for a median, not for p90."""
    measurement = make_measurement(n=40)
    assert figures.p50_ms(measurement).value > 0
    with pytest.raises(TooFewError, match="found 40, at least 44"):
        figures.p90_ms(measurement)


def test_loads_and_memory_are_medians_over_processes():
    """From 50 to 56 ms and from 40.000000 to 40.000006 MB."""
    measurement = make_measurement()
    assert (figures.load_ms(measurement).value, figures.first_call_ms(measurement).value) == (53.0, 12.0)
    assert figures.memory_mb(measurement).value == pytest.approx(40.000003)
