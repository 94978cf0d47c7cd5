"""Every verdict can be reached, and nothing is green without evidence."""

import subprocess
import sys

import numpy as np
import pytest
from fakes import ROOT, make_measurement

from eval import budgets as module
from eval.accuracy import score as make_score
from eval.budgets import exit_status, first_line, judge, judge_checks, judge_timing, overall
from eval.statistics import share_interval
from pipeline.base.errors import IntegrityError
from pipeline.base.records import BudgetVerdict, Check, Examination, Floor, Floors, Score, Status
from pipeline.settings.params import Budgets, Target

N = 400
LABELS = [i % 4 for i in range(N)]
DIGEST, REFERENCE = "a" * 64, "b" * 64


def answers(wrong, of=LABELS):
    """The right answers, but for the rows named."""
    wrong = set(wrong)
    return [(label + 1) % 4 if i in wrong else label for i, label in enumerate(of)]


def score(wrong=range(20), student=range(20), teacher=range(12), labels=LABELS):
    """A score of an artefact, a student and a teacher that are wrong on the rows named."""
    logits = np.eye(4, dtype=np.float32)
    return make_score(
        target="cpu",
        runtime="fake",
        device="local",
        artefact_digest=DIGEST,
        logits=logits[answers(wrong, labels)],
        labels=labels,
        student_logits=logits[answers(student, labels)],
        teacher_predictions=answers(teacher, labels),
    )


def floors(wrong=range(60, 130), labels=LABELS, classes=4):
    """Floors of which the linear one is wrong on the rows named."""
    predictions = answers(wrong, labels)
    right = sum(a == b for a, b in zip(predictions, labels, strict=True))
    linear = Floor(
        name="linear",
        accuracy=share_interval(right, len(labels)),
        macro_f1=0.5,
        size_bytes=10,
        latency_ms=None,
        predictions=tuple(predictions),
    )
    majority = linear.model_copy(update={"name": "majority"})
    return Floors(examples=len(labels), labels=tuple(labels), classes=classes, floors=(majority, linear))


def target(required=True, **limits):
    """A target with these budgets."""
    return Target(
        format="onnx",
        precision="int8",
        options={},
        runtime="onnxruntime",
        device="local",
        required=required,
        budgets=Budgets(**limits),
    )


def verdict(budget, limit, **changes):
    """The verdict on one budget."""
    values = {"score": score(), "measurement": make_measurement(), "floors": floors(), "size_bytes": 12_300_000}
    (found,) = judge("cpu", target(**{budget: limit}), **{**values, **changes})
    return found


# budget -> limits that pass, straddle and fail with the records above
LIMITS = {
    "accuracy": (0.90, 0.95, 0.99),
    "accuracy_drop_points": (6.0, 2.0, 0.5),
    "quantization_drop_points": (1.0, 0.1, None),
    "agreement": (0.98, 0.999, None),
    "floor_margin_points": (5.0, 12.5, 20.0),
    "speedup_vs_teacher": (3.0, 4.0, 5.0),
    "p50_ms": (3.0, 2.0, 1.0),
    "p90_ms": (3.0, 2.13, 1.0),
    "load_ms": (80.0, 53.0, 20.0),
    "memory_mb": (50.0, 40.000003, 30.0),
    "size_mb": (13.0, None, 12.0),
}


def test_every_budget_of_the_settings_is_judged():
    """A new field of Budgets without a rule would never be looked at."""
    assert set(module._RULES) == set(Budgets.model_fields) == set(LIMITS)


@pytest.mark.parametrize(
    ("budget", "limit", "status"),
    [
        (budget, limit, status)
        for budget, limits in LIMITS.items()
        for limit, status in zip(limits, (Status.PASS, Status.INCONCLUSIVE, Status.FAIL), strict=True)
        if limit is not None
    ],
)
def test_every_status_is_reached(budget, limit, status):
    """The reason names target, budget, limit and status; the figure is kept."""
    found = verdict(budget, limit)
    assert found.status is status, found.reason
    assert found.reason.startswith(f"cpu: {budget} ")
    assert f": {status}" in found.reason
    assert found.figure is not None
    assert (found.limit, found.budget, found.target, found.required) == (limit, budget, "cpu", True)


def test_drops_and_agreement_fail_when_they_should():
    """A conversion that spoils 40 of 400 answers."""
    spoiled = score(wrong=range(60))
    assert verdict("quantization_drop_points", 1.0, score=spoiled).status is Status.FAIL
    assert verdict("agreement", 0.97, score=spoiled).status is Status.FAIL


def test_reasons_read_in_units_of_people():
    """Points, percent, milliseconds, times, megabytes."""
    assert verdict("accuracy", 0.9).reason == "cpu: accuracy 95 % [92.8, 96.7], limit 90 %: pass"
    assert verdict("size_mb", 12.0).reason == "cpu: size_mb 12.3 MB, limit 12 MB: fail"
    assert verdict("accuracy_drop_points", 6.0).reason == (
        "cpu: accuracy_drop_points 2 points [1.13, 3.51], limit 6 points: pass"
    )
    assert verdict("p90_ms", 1.0).reason.startswith("cpu: p90_ms 2.1")
    assert verdict("p90_ms", 1.0).reason.endswith("], limit 1 ms: fail")
    assert "x [" in verdict("speedup_vs_teacher", 3.0).reason


def test_size_at_its_limit_passes():
    """Size is exact: no interval, no doubt."""
    assert verdict("size_mb", 12.3).status is Status.PASS


@pytest.mark.parametrize("budget", [budget for budget in LIMITS if budget != "size_mb"])
def test_missing_runtime_is_neither_pass_nor_fail(budget):
    """The reason is the runtime's own; size is known all the same."""
    reason = "needs macOS"
    nothing = Score(target="cpu", runtime="coreml", device="local", artefact_digest=DIGEST, not_measured=reason)
    found = verdict(
        budget,
        LIMITS[budget][0],
        score=nothing,
        measurement=make_measurement(not_measured=reason, series=(), load_ms=()),
    )
    assert (found.status, found.figure) == (Status.NOT_MEASURED, None)
    assert found.reason.endswith(": not measured (needs macOS)")


def test_missing_records_are_not_measured():
    """No score, no measurement, no artefact, no floors, no reference."""
    assert verdict("accuracy", 0.1, score=None).reason.endswith("not measured (there is no score)")
    assert verdict("p50_ms", 99.0, measurement=None).reason.endswith("not measured (there is no measurement)")
    assert verdict("size_mb", 99.0, size_bytes=None).reason.endswith("not measured (there is no artefact)")
    assert verdict("floor_margin_points", 0.0, floors=None).status is Status.NOT_MEASURED
    alone = make_measurement(reference_digest=None)
    assert "no reference: the teacher was not exported" in verdict("speedup_vs_teacher", 1.0, measurement=alone).reason


def test_stand_in_is_named_and_its_speed_means_nothing():
    """Its answers count, and say whose they are."""
    stand_in = "an interpreter, not the phone's runtime"
    found = verdict("accuracy", 0.9, score=score().model_copy(update={"stand_in": stand_in}))
    assert (found.status, stand_in in found.reason) == (Status.PASS, True)
    slow = verdict("p50_ms", 99.0, measurement=make_measurement(stand_in=stand_in))
    assert (slow.status, stand_in in slow.reason) == (Status.NOT_MEASURED, True)


TIMINGS = ["speedup_vs_teacher", "p50_ms", "p90_ms", "load_ms", "memory_mb"]


@pytest.mark.parametrize("limit", [0.001, 1000.0])
@pytest.mark.parametrize("budget", TIMINGS)
def test_very_unfit_runner_decides_nothing(budget, limit):
    """Neither the clearest pass nor the clearest fail."""
    found = verdict(budget, limit, measurement=make_measurement(canary=1.4))
    assert found.status is Status.INCONCLUSIVE
    assert "the runner is unfit" in found.reason


@pytest.mark.parametrize("limit", [0.001, 1000.0])
@pytest.mark.parametrize("budget", TIMINGS)
def test_slightly_unfit_runner_decides_what_is_clear_and_says_so(budget, limit):
    """A limit far from the figure is decided by the widened interval."""
    found = verdict(budget, limit, measurement=make_measurement(canary=1.05))
    assert found.status in {Status.PASS, Status.FAIL}
    assert "widened" in found.reason and "the runner is unfit" in found.reason


def test_slightly_unfit_runner_leaves_what_is_close_undecided():
    """5 % above the median: a pass on a quiet machine, undecided on one that is off by 5 % itself."""
    quiet = make_measurement(noise=0.005)
    limit = 1.05 * verdict("p50_ms", 1000.0, measurement=quiet).figure.value
    assert verdict("p50_ms", limit, measurement=quiet).status is Status.PASS
    unfit = make_measurement(canary=1.05, noise=0.005)
    assert verdict("p50_ms", limit, measurement=unfit).status is Status.INCONCLUSIVE


def test_too_few_calls_are_inconclusive():
    """40 calls bound no 90th percentile."""
    found = verdict("p90_ms", 50.0, measurement=make_measurement(n=40))
    assert found.status is Status.INCONCLUSIVE
    assert "too few samples: found 40, at least 44" in found.reason


@pytest.mark.parametrize("budget", ["accuracy", "accuracy_drop_points", "agreement", "floor_margin_points"])
def test_too_few_examples_are_inconclusive(budget):
    """Fewer than 30 rows, or a class without one, whatever the figure."""
    few = LABELS[:20]
    found = verdict(budget, 0.0, score=score(range(1), range(1), (), few), floors=floors((), few))
    assert found.status is Status.INCONCLUSIVE
    assert "too few examples: found 20 test rows" in found.reason
    found = verdict(budget, 0.0, floors=floors(classes=5))
    assert found.status is Status.INCONCLUSIVE
    assert "too few examples: no test row of class 4" in found.reason


def test_advice_grows_with_the_square_of_closeness():
    """95 % with a limit of 94 %: about three times the rows; with the limit at the figure there is no advice."""
    found = verdict("accuracy", 0.94)
    assert found.reason.endswith("inconclusive (about 1,910 test rows would settle it)")
    assert verdict("accuracy", 0.95).reason.endswith("(too close to the limit to settle)")
    assert "times the samples would settle it" in verdict("p50_ms", 2.02).reason


def test_rows_asked_for_do_settle_it():
    """The advice followed: the same shares on that many rows pass."""
    rows = 2000  # a little more than 1,910
    labels = [i % 4 for i in range(rows)]
    many = score(range(100), range(100), (), labels)
    assert verdict("accuracy", 0.94, score=many, floors=floors((), labels)).status is Status.PASS


def test_rarely_passes_at_the_limit_itself():
    """With the truth at the limit, a one-sided 95 % bound lets at most 5 % pass and at most 5 % fail."""
    rng = np.random.default_rng(0)
    limit, statuses = 0.93, []
    for right in rng.binomial(N, limit, 1000):
        share = share_interval(int(right), N, module.ACCURACY_CONFIDENCE)
        statuses.append(module._decide(share, limit, True))
    assert statuses.count(Status.PASS) <= 60
    assert statuses.count(Status.FAIL) <= 60


def test_swapped_records_are_refused():
    """Another target's, another artefact's, another reference's, another test split's."""
    records = {"score": score(), "measurement": make_measurement(), "floors": floors(), "size_bytes": 1}
    one = target(accuracy=0.5)
    with pytest.raises(IntegrityError, match="found the score of target 'cpu'"):
        judge("web", one, **records)
    swapped = make_measurement(artefact_digest=REFERENCE, reference_digest=DIGEST)
    with pytest.raises(IntegrityError, match=r"found the measurement of artefact b{16}…, expected a{16}…"):
        judge("cpu", one, **{**records, "measurement": swapped}, artefact_digest=DIGEST)
    with pytest.raises(IntegrityError, match=r"measured against reference b{16}…, expected c{16}…"):
        judge("cpu", one, **records, artefact_digest=DIGEST, reference_digest="c" * 64)
    with pytest.raises(IntegrityError, match="found answers to 400 test rows, expected 399"):
        judge("cpu", one, **{**records, "floors": floors(labels=LABELS[:399])})
    assert judge("cpu", one, **records, artefact_digest=DIGEST, reference_digest=REFERENCE)


def test_only_budgets_that_are_set_are_judged():
    """None set, none judged; timing has its own list."""
    records = {"score": score(), "measurement": make_measurement(), "floors": floors(), "size_bytes": 1}
    none = target(accuracy=0.5).model_copy(update={"budgets": Budgets()})
    assert judge("cpu", none, **records) == []
    both = target(accuracy=0.5, p50_ms=99.0)
    assert [one.budget for one in judge("cpu", both, **records)] == ["accuracy", "p50_ms"]
    assert [one.budget for one in judge_timing("cpu", both.budgets, make_measurement())] == ["p50_ms"]


def make_verdict(status, required=True):
    """A verdict with this status."""
    return BudgetVerdict(target="cpu", budget="accuracy", limit=1, required=required, status=status, reason="")


@pytest.mark.parametrize(
    ("statuses", "expected", "code"),
    [
        ([Status.PASS, Status.PASS], Status.PASS, 0),
        ([Status.PASS, Status.FAIL, Status.INCONCLUSIVE, Status.NOT_MEASURED], Status.FAIL, 1),
        ([Status.PASS, Status.INCONCLUSIVE], Status.INCONCLUSIVE, 3),
        ([Status.PASS, Status.NOT_MEASURED], Status.NOT_MEASURED, 3),
        ([Status.NOT_MEASURED, Status.INCONCLUSIVE], Status.INCONCLUSIVE, 3),
        ([], Status.NOT_MEASURED, 3),
    ],
)
def test_overall_and_exit_status(statuses, expected, code):
    """A fail beats undecided, undecided beats a pass, and no evidence is not a pass."""
    assert overall(make_verdict(status) for status in statuses) is expected
    assert exit_status(expected) == code


def test_targets_that_are_not_required_do_not_count():
    """Not for better, not for worse."""
    assert overall([make_verdict(Status.PASS), make_verdict(Status.FAIL, required=False)]) is Status.PASS
    assert overall([make_verdict(Status.PASS, required=False)]) is Status.NOT_MEASURED


def test_first_line_says_whether_the_linear_floor_is_beaten():
    """By 70 rows won and 20 lost; not by 8 and 5; and not when it is worse."""
    better = first_line(answers(range(20)), floors(wrong=range(60, 130)))
    assert better.startswith(
        "The student beats the linear floor (TF-IDF and a linear classifier) by more than chance: "
    )
    assert "95.0% against 82.5% of 400 test rows right, 70 rows won and 20 lost" in better
    same = first_line(answers(range(5)), floors(wrong=range(60, 68)), name="the artefact for cpu")
    assert same.startswith("The artefact for cpu does NOT beat the linear floor")
    assert "does NOT beat" in first_line(answers(range(60, 130)), floors(wrong=range(20)))


def test_judging_needs_no_heavy_package():
    """The gate runs where no model can."""
    code = (
        "import sys, eval.budgets; "
        "print([m for m in ('torch', 'transformers', 'onnx', 'onnxruntime', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_latency_that_passes_by_cpu_time_alone_does_not_pass():
    """A call that waits 60 ms on the wall is no 50 ms call."""
    measurement = make_measurement()
    slow = tuple(
        one.model_copy(update={"wall_ns": tuple(int(1.9 * ns) for ns in one.cpu_ns)}) for one in measurement.series
    )
    measurement = measurement.model_copy(update={"series": slow})
    p50 = verdict("p50_ms", 1000.0, measurement=measurement).figure.value
    assert verdict("p50_ms", 3 * p50, measurement=measurement).status is Status.PASS
    found = verdict("p50_ms", 1.5 * p50, measurement=measurement)
    assert found.status is Status.INCONCLUSIVE and "on the wall clock" in found.reason


# --- checks ------------------------------------------------------------------------------------------------------


def examined(*statuses, **values):
    checks = tuple(Check(title=f"check {i}", status=status, reason="found so") for i, status in enumerate(statuses))
    return Examination(target="cpu", runtime="onnxruntime", artefact_digest=DIGEST, checks=checks, **values)


@pytest.mark.parametrize(
    ("statuses", "status", "count"),
    [
        ((Status.PASS, Status.PASS), Status.PASS, 0),
        ((Status.PASS, Status.NOT_MEASURED), Status.PASS, 0),
        ((Status.PASS, Status.INCONCLUSIVE), Status.INCONCLUSIVE, 0),
        ((Status.INCONCLUSIVE, Status.FAIL, Status.FAIL), Status.FAIL, 2),
        ((Status.NOT_MEASURED,), Status.NOT_MEASURED, 0),
        ((), Status.NOT_MEASURED, 0),
    ],
)
def test_checks_stand_together_as_their_worst(statuses, status, count):
    found = judge_checks("cpu", target(size_mb=1), examined(*statuses))
    assert (found.status, found.figure.value, found.required) == (status, count, True)
    assert found.reason.count("found so") == (statuses.count(status) if status is not Status.PASS else 0)


def test_examination_that_was_not_made_is_not_measured():
    assert judge_checks("cpu", target(size_mb=1), None).status is Status.NOT_MEASURED
    found = judge_checks("cpu", target(size_mb=1), examined(not_measured="not installed: openvino"))
    assert (found.status, found.figure) == (Status.NOT_MEASURED, None)
    assert found.reason == "cpu: failed_checks, limit 0: not measured (not installed: openvino)"
