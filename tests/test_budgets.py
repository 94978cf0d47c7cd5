"""Every verdict can be reached, and nothing is green without evidence."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from fakes import ROOT, make_measurement

from eval import budgets as module
from eval.budgets import Facts, compare_with_floor, exit_status, judge, judge_timing, overall
from eval.scores import score as make_score
from eval.statistics import mean_interval, share_interval
from eval.wording import first_line, say_verdict
from pipeline.base.records import (
    Check,
    Examination,
    Floor,
    Floors,
    Metric,
    ReasonKind,
    Score,
    Status,
)
from pipeline.settings.budgets import CHECKS, TABLE, Budgets
from pipeline.settings.targets import Target
from pipeline.tasks import single_label

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
        metric=single_label.METRIC,
        outputs={"logits": logits[answers(wrong, labels)]},
        student_outputs={"logits": logits[answers(student, labels)]},
        answers=answers(wrong, labels),
        student_answers=answers(student, labels),
        values=single_label.values(answers(wrong, labels), labels),
        student_values=single_label.values(answers(student, labels), labels),
        teacher_values=single_label.values(answers(teacher, labels), labels),
        further={},
    )


def floors(wrong=range(60, 130), labels=LABELS, known="0123"):
    """Floors of which the linear one is wrong on the rows named."""
    found = answers(wrong, labels)
    values = single_label.values(found, labels)
    linear = Floor(
        name="linear",
        primary=mean_interval(values),
        size_bytes=10,
        latency_ms=None,
        answers=tuple(found),
        values=tuple(values),
    )
    majority = linear.model_copy(update={"name": "majority"})
    return Floors(
        examples=len(labels),
        metric=single_label.METRIC,
        groups=tuple(map(str, labels)),
        known_groups=tuple(known),
        floors=(majority, linear),
    )


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
    return judge(target(**{budget: limit}), facts(**changes))[0]


def facts(**changes):
    """Everything that a target is judged by."""
    values = {"score": score(), "measurement": make_measurement(), "floors": floors(), "size_bytes": 12_300_000}
    values["reference_digest"] = REFERENCE
    return Facts(**{"name": "cpu", **values, **changes})


def kinds(found):
    """The kinds of a verdict's reasons, in order."""
    return [reason.kind for reason in found.reasons]


# budget -> limits that pass, straddle and fail with the records above
LIMITS = {
    "score": (0.90, 0.95, 0.99),
    "score_drop": (6.0, 2.0, 0.5),
    "quantization_drop": (1.0, 0.1, None),
    "agreement": (0.98, 0.999, None),
    "floor_margin": (5.0, 12.5, 20.0),
    "worst_slice": (0.6, 0.95, 0.99),
    "speedup_vs_teacher": (3.0, 4.0, 5.0),
    "p50_ms": (3.0, 2.0, 1.0),
    "p90_ms": (3.0, 2.13, 1.0),
    "load_ms": (80.0, 53.0, 20.0),
    "memory_mb": (50.0, 40.000003, 30.0),
    "size_mb": (13.0, None, 12.0),
}


def test_every_budget_of_the_settings_is_judged():
    """A new field of Budgets without a rule would never be looked at."""
    assert list(module._FIGURES) == list(Budgets.model_fields) == list(LIMITS)
    assert list(TABLE) == [*Budgets.model_fields, CHECKS]


def test_documentation_has_the_table_of_budgets():
    """Every budget, and the confidence of its interval's ends, as judging takes them."""
    rows = re.findall(r"^\| (`.*?) \|.*\| (.*?) \|$", (ROOT / "docs/verdicts.md").read_text("utf-8"), re.MULTILINE)
    told = {name: method for names, method in rows for name in re.findall("`([a-z0-9_]+)`", names)}
    assert list(told) == list(Budgets.model_fields)
    for name, method in told.items():
        confidence = TABLE[name].confidence
        assert method.endswith(f"{confidence:.0%}".replace("%", " %") if confidence else "exact"), name


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
    assert found.status is status, say_verdict(found)
    assert say_verdict(found).startswith(f"cpu: {budget} ")
    assert f": {status}" in say_verdict(found)
    assert found.figure is not None
    assert (found.limit, found.budget, found.target, found.required) == (limit, budget, "cpu", True)


# budget -> a limit that bites, and one that a figure twice as bad, or the linear floor (82.5 %), would keep too
BITES = {
    "score": (0.84, 0.82),
    "score_drop": (6.0, 15.0),
    "quantization_drop": (5.0, 13.0),
    "agreement": (0.99, 0.97),
    "speedup_vs_teacher": (3.0, 1.5),
    "p50_ms": (3.0, 6.0),
    "p90_ms": (3.0, 6.0),
    "load_ms": (80.0, 200.0),
    "memory_mb": (50.0, 100.0),
    "size_mb": (13.0, 25.0),
}


@pytest.mark.parametrize("budget", BITES)
def test_a_budget_that_could_hardly_fail_is_said_not_to_bite(budget):
    """It passes all the same: that it says nothing is for its owner to see."""
    bites, blunt = (verdict(budget, limit) for limit in BITES[budget])
    assert (bites.status, kinds(bites)) == (Status.PASS, []), say_verdict(bites)
    assert (blunt.status, kinds(blunt)) == (Status.PASS, [ReasonKind.DOES_NOT_BITE])
    assert "does not bite: " in say_verdict(blunt)
    of_floor = TABLE[budget].evidence[0] == "score" and budget != "agreement"
    assert ("the linear floor would pass too" in say_verdict(blunt)) == of_floor


def test_a_net_below_everything_and_what_is_not_kept_are_no_blunt_budgets():
    """The floor's own budget is never kept by the floor; and what fails has bitten."""
    assert kinds(verdict("floor_margin", 0.0)) == []
    assert ReasonKind.DOES_NOT_BITE not in kinds(verdict("p90_ms", 1.0))
    assert kinds(verdict("score", 0.5, floors=None)) == []  # nobody knows what the floor scores


def test_drops_and_agreement_fail_when_they_should():
    """A conversion that spoils 40 of 400 answers."""
    spoiled = score(wrong=range(60))
    assert verdict("quantization_drop", 1.0, score=spoiled).status is Status.FAIL
    assert verdict("agreement", 0.97, score=spoiled).status is Status.FAIL


def test_reasons_read_in_units_of_people():
    """Points, percent, milliseconds, times, megabytes."""

    def said(budget, limit):
        return say_verdict(verdict(budget, limit))

    assert said("score", 0.9) == "cpu: score (accuracy) 95.0 % [92.8, 96.7], limit 90 %: pass"
    assert said("size_mb", 12.0) == "cpu: size_mb 12.3 MB, limit 12 MB: fail"
    assert said("score_drop", 6.0) == (
        "cpu: score_drop (accuracy behind the teacher) 2.00 points [1.13, 3.51], limit 6 points: pass"
    )
    assert said("p90_ms", 1.0).startswith("cpu: p90_ms 2.1")
    assert said("p90_ms", 1.0).endswith("], limit 1 ms: fail")
    assert "× [" in said("speedup_vs_teacher", 3.0)


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
    assert kinds(found) == [ReasonKind.MISSING]
    assert say_verdict(found).endswith(": not measured (needs macOS)")


def test_missing_records_are_not_measured():
    """No score, no measurement, no artefact, no floors, no reference."""
    alone = make_measurement(reference_digest=None)
    for budget, changes, evidence, said in (
        ("score", {"score": None}, "score", "there is no score"),
        ("p50_ms", {"measurement": None}, "measurement", "there is no measurement"),
        ("size_mb", {"size_bytes": None}, "artefact", "there is no artefact"),
        ("size_mb", {"size_bytes": None, "no_artefact": "needs macOS"}, "artefact", "needs macOS"),
        ("floor_margin", {"floors": None}, "floors", "the floors were not measured"),
        (
            "speedup_vs_teacher",
            {"measurement": alone},
            "reference",
            "no reference: the teacher was not exported to this target's format",
        ),
        (
            "speedup_vs_teacher",
            {"reference_digest": None},
            "exported reference",
            "the exported teacher that it was timed beside cannot be read; run `dvc repro` to export it",
        ),
    ):
        found = verdict(budget, 1.0, **changes)
        (reason,) = found.reasons
        assert (found.status, reason.kind, reason.evidence) == (Status.NOT_MEASURED, ReasonKind.MISSING, evidence)
        assert say_verdict(found).endswith(f": not measured ({said})")


def test_stand_in_is_named_and_its_speed_means_nothing():
    """Its answers count, and say whose they are."""
    stand_in = "an interpreter, not the phone's runtime"
    found = verdict("score", 0.9, score=score().model_copy(update={"stand_in": stand_in}))
    assert (found.status, kinds(found)) == (Status.PASS, [ReasonKind.STAND_IN])
    assert say_verdict(found).endswith(f": pass (answered by a stand-in: {stand_in})")
    slow = verdict("p50_ms", 99.0, measurement=make_measurement(stand_in=stand_in))
    assert (slow.status, kinds(slow)) == (Status.NOT_MEASURED, [ReasonKind.STAND_IN])
    assert f"executed by a stand-in, whose speed and memory say nothing: {stand_in}" in say_verdict(slow)


TIMINGS = ["speedup_vs_teacher", "p50_ms", "p90_ms", "load_ms", "memory_mb"]


@pytest.mark.parametrize("limit", [0.001, 1000.0])
@pytest.mark.parametrize("budget", TIMINGS)
def test_very_unfit_runner_decides_nothing(budget, limit):
    """Neither the clearest pass nor the clearest fail."""
    found = verdict(budget, limit, measurement=make_measurement(twins=1.4))
    assert (found.status, kinds(found)) == (Status.INCONCLUSIVE, [ReasonKind.NOISY_RUNNER])
    assert "the runner is unfit" in say_verdict(found)


@pytest.mark.parametrize("limit", [0.001, 1000.0])
@pytest.mark.parametrize("budget", TIMINGS)
def test_slightly_unfit_runner_decides_what_is_clear_and_says_so(budget, limit):
    """A limit far from the figure is decided by the widened interval."""
    found = verdict(budget, limit, measurement=make_measurement(twins=1.05))
    assert found.status in {Status.PASS, Status.FAIL}
    assert kinds(found)[:2] == [ReasonKind.WIDENED, ReasonKind.NOISY_RUNNER]
    widened = found.reasons[0].figure
    assert widened.low < found.figure.low < found.figure.high < widened.high
    assert "also with the interval widened to " in say_verdict(found) and "the runner is unfit" in say_verdict(found)


def test_slightly_unfit_runner_leaves_what_is_close_undecided():
    """5 % above the median: a pass on a quiet machine, undecided on one that is off by 5 % itself."""
    quiet = make_measurement(noise=0.005)
    limit = 1.05 * verdict("p50_ms", 1000.0, measurement=quiet).figure.value
    assert verdict("p50_ms", limit, measurement=quiet).status is Status.PASS
    unfit = make_measurement(twins=1.05, noise=0.005)
    assert verdict("p50_ms", limit, measurement=unfit).status is Status.INCONCLUSIVE


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"n": 40}, "found 8 calls in a process, at least 10"), ({"processes": 1}, "found 1, at least 2 are needed")],
)
def test_too_few_calls_or_processes_are_inconclusive(changes, said):
    """8 calls in a process bound no 90th percentile; one process bounds nothing."""
    found = verdict("p90_ms", 50.0, measurement=make_measurement(**changes))
    assert found.status is Status.INCONCLUSIVE
    assert kinds(found) == [ReasonKind.TOO_FEW_SAMPLES]
    assert said in say_verdict(found)


@pytest.mark.parametrize("budget", ["score", "score_drop", "agreement", "floor_margin"])
def test_too_few_examples_are_inconclusive(budget):
    """Fewer than 30 rows, or a class without one, whatever the figure."""
    few = LABELS[:20]
    found = verdict(budget, 0.0, score=score(range(1), range(1), (), few), floors=floors((), few))
    assert found.status is Status.INCONCLUSIVE
    assert "too few examples: found 20 test rows, at least 30 are needed" in say_verdict(found)
    found = verdict(budget, 0.0, floors=floors(known="01234"))
    assert found.status is Status.INCONCLUSIVE
    assert "too few examples: no test row of class 4" in say_verdict(found)


def test_advice_grows_with_the_square_of_closeness():
    """95 % with a limit of 94 %: about three times the rows; with the limit at the figure there is no advice."""
    found = verdict("score", 0.94)
    assert kinds(found) == [ReasonKind.STRADDLES]
    assert say_verdict(found).endswith("inconclusive (about 1,910 test rows would settle it)")
    assert say_verdict(verdict("score", 0.95)).endswith("(too close to the limit to settle)")
    assert "times the samples would settle it" in say_verdict(verdict("p50_ms", 2.01))


def test_rows_asked_for_do_settle_it():
    """The advice followed: the same shares on that many rows pass."""
    rows = 2000  # a little more than 1,910
    labels = [i % 4 for i in range(rows)]
    many = score(range(100), range(100), (), labels)
    assert verdict("score", 0.94, score=many, floors=floors((), labels)).status is Status.PASS


def test_rarely_passes_at_the_limit_itself():
    """With the truth at the limit, a one-sided 95 % bound lets at most 5 % pass and at most 5 % fail."""
    rng = np.random.default_rng(0)
    limit, statuses = 0.93, []
    for hits in rng.binomial(N, limit, 1000):
        share = share_interval(int(hits), N, module.SCORE_CONFIDENCE)
        statuses.append(module._decide(share, limit, TABLE["score"]))
    assert statuses.count(Status.PASS) <= 60
    assert statuses.count(Status.FAIL) <= 60


def test_swapped_records_are_not_believed():
    """Another target's, another artefact's, another reference's, another test split's: none is judged."""
    swapped = make_measurement(artefact_digest=REFERENCE, reference_digest=DIGEST)
    for budget, changes, kind, said in (
        ("score", {"name": "web"}, ReasonKind.ANOTHER_TARGET, "found the score of target 'cpu', expected 'web'"),
        (
            "p50_ms",
            {"measurement": swapped, "artefact_digest": DIGEST},
            ReasonKind.ANOTHER_ARTEFACT,
            "found the measurement of artefact bbbbbbbbbbbbbbbb…, expected aaaaaaaaaaaaaaaa…; run `dvc repro`",
        ),
        (
            "p50_ms",
            {"reference_digest": "c" * 64},
            ReasonKind.ANOTHER_REFERENCE,
            "measured against reference bbbbbbbbbbbbbbbb…, expected cccccccccccccccc…; run `dvc repro`",
        ),
        (
            "score",
            {"score": score().model_copy(update={"sources": {"data": DIGEST}}), "sources": {"data": REFERENCE}},
            ReasonKind.ANOTHER_SOURCE,
            "the score was made from data aaaaaaaaaaaaaaaa…, expected bbbbbbbbbbbbbbbb…; run `dvc repro`",
        ),
        (
            "score",
            {"floors": floors(labels=LABELS[:399])},
            ReasonKind.ANOTHER_SPLIT,
            "found answers to 400 test rows, expected 399; run `dvc repro` to score again",
        ),
    ):
        found = verdict(budget, 1000.0, **changes)
        assert (found.status, kinds(found)) == (Status.NOT_MEASURED, [kind])
        assert said in say_verdict(found)
    found = verdict("score", 0.9, artefact_digest=DIGEST, reference_digest=REFERENCE)
    assert (found.status, found.reasons) == (Status.PASS, ())


def test_only_budgets_that_are_set_are_judged():
    """None set, only the checks are judged; timing has its own list."""
    none = target(score=0.5).model_copy(update={"budgets": Budgets()})
    assert [one.budget for one in judge(none, facts())] == [CHECKS]
    both = target(score=0.5, p50_ms=99.0)
    assert [one.budget for one in judge(both, facts())] == ["score", "p50_ms", CHECKS]
    assert [one.budget for one in judge_timing("cpu", both.budgets, make_measurement())] == ["p50_ms"]


def make_verdict(status, required=True):
    """A verdict with this status."""
    return verdict("score", 0.5).model_copy(update={"required": required, "status": status})


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

    def line(wrong, floor, name="the student"):
        return first_line(compare_with_floor(single_label.values(answers(wrong), LABELS), floors(wrong=floor)), name)

    better = line(range(20), range(60, 130))
    assert better.startswith(
        "The student beats the linear floor (TF-IDF and a linear classifier) by more than chance: "
    )
    assert "accuracy 95.0 % against 82.5 % on 400 test rows, 70 rows won and 20 lost, one-sided exact McNemar" in better
    same = line(range(5), range(60, 68), "the artefact for cpu")
    assert same.startswith("The artefact for cpu does NOT beat the linear floor")
    assert "does NOT beat" in line(range(60, 130), range(20))


def test_judging_needs_no_heavy_package():
    """The gate runs where no model can."""
    code = (
        "import sys, eval.budgets; "
        "print([m for m in ('torch', 'transformers', 'onnx', 'onnxruntime', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_speed_up_that_passes_by_cpu_time_alone_does_not_pass():
    """Review C6: twice as fast by CPU time, while who waits on the wall sees 1.1 times."""
    measurement = make_measurement(2.0, 4.2, noise=0.01)
    slow = [
        one.model_copy(update={"wall_ns": tuple(int(1.9 * ns) for ns in one.wall_ns)})
        if one.model.startswith("candidate")
        else one
        for one in measurement.series
    ]
    assert verdict("speedup_vs_teacher", 2.0, measurement=measurement).status is Status.PASS
    found = verdict("speedup_vs_teacher", 2.0, measurement=measurement.model_copy(update={"series": tuple(slow)}))
    assert (found.status, kinds(found)) == (Status.INCONCLUSIVE, [ReasonKind.SLOW_ON_THE_WALL])
    assert "it passes by CPU time, but is 1.11× [1.10, 1.11] on the wall clock" in say_verdict(found)


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
    assert (found.status, kinds(found)) == (Status.INCONCLUSIVE, [ReasonKind.SLOW_ON_THE_WALL])
    assert "it passes by CPU time, but is " in say_verdict(found) and "on the wall clock" in say_verdict(found)


# --- checks ------------------------------------------------------------------------------------------------------


def examined(*statuses, **values):
    checks = tuple(Check(title=f"check {i}", status=status, reason="found so") for i, status in enumerate(statuses))
    return Examination(target="cpu", runtime="onnxruntime", artefact_digest=DIGEST, checks=checks, **values)


def checks(examination, optional=()):
    """The verdict on the checks, which is the last."""
    chosen = target(size_mb=1).model_copy(update={"optional_checks": optional})
    return judge(chosen, facts(examination=examination))[-1]


@pytest.mark.parametrize(
    ("statuses", "status", "count"),
    [
        ((Status.PASS, Status.PASS), Status.PASS, 0),
        ((Status.PASS, Status.NOT_MEASURED), Status.NOT_MEASURED, 0),
        ((Status.NOT_MEASURED, Status.INCONCLUSIVE), Status.INCONCLUSIVE, 0),
        ((Status.PASS, Status.INCONCLUSIVE), Status.INCONCLUSIVE, 0),
        ((Status.INCONCLUSIVE, Status.FAIL, Status.FAIL), Status.FAIL, 2),
        ((Status.NOT_MEASURED,), Status.NOT_MEASURED, 0),
        ((), Status.NOT_MEASURED, 0),
    ],
)
def test_checks_stand_together_as_their_worst(statuses, status, count):
    found = checks(examined(*statuses))
    assert (found.status, found.figure.value, found.required) == (status, count, True)
    assert say_verdict(found).count("found so") == (statuses.count(status) if status is not Status.PASS else 0)


def test_a_check_may_go_unmade_only_where_the_target_says_so():
    """Then it is told and decides nothing; once made, it counts, and it never stands for all of them."""
    made = examined(Status.PASS, Status.NOT_MEASURED, Status.NOT_MEASURED)
    named = [one.model_copy(update={"name": name}) for one, name in zip(made.checks, "abc", strict=True)]
    made = made.model_copy(update={"checks": tuple(named)})
    assert checks(made, ("b",)).status is checks(made, ("c",)).status is Status.NOT_MEASURED
    found = checks(made, ("b", "c"))
    assert (found.status, kinds(found)) == (Status.PASS, [ReasonKind.CHECK_NOT_MADE] * 2)
    assert "check 1, not made: found so" in say_verdict(found)
    alone = made.model_copy(update={"checks": made.checks[1:]})
    assert checks(alone, ("b", "c")).status is Status.NOT_MEASURED
    failed = made.checks[1].model_copy(update={"status": Status.FAIL})
    assert checks(made.model_copy(update={"checks": (made.checks[0], failed)}), ("b",)).status is Status.FAIL


def test_examination_that_was_not_made_is_not_measured():
    assert checks(None).status is Status.NOT_MEASURED
    found = checks(examined(not_measured="not installed: openvino"))
    assert (found.status, found.figure) == (Status.NOT_MEASURED, None)
    assert say_verdict(found) == "cpu: failed_checks, limit 0: not measured (not installed: openvino)"


# --- a metric of which less is better ----------------------------------------------------------------------------

LOSS = Metric(name="log_loss", title="log loss", unit="nats", scale=1.0, is_greater_better=False)
SPREAD = np.random.default_rng(0).gamma(2.0, 0.1, N)


def loss_facts(artefact=0.3, student=0.3, teacher=0.25, floor=0.5):
    """Facts of models whose loss on each row is `SPREAD` around the mean given; the rows are the same, so differences
    are far more certain than the losses themselves."""
    noise = np.random.default_rng(1).normal(0, 0.01, N)
    mine, of_student, of_teacher, of_floor = (
        tuple(mean + SPREAD - SPREAD.mean() + sign * (noise - noise.mean()))
        for mean, sign in ((artefact, 1), (student, -1), (teacher, -1), (floor, -1))
    )
    linear = floors().floors[1].model_copy(update={"values": of_floor, "primary": mean_interval(of_floor)})
    changes = {"values": mine, "student_values": of_student, "teacher_values": of_teacher}
    return facts(
        score=score().model_copy(update={"metric": LOSS, **changes}),
        floors=floors().model_copy(update={"metric": LOSS, "floors": (linear,)}),
    )


def test_rows_that_are_of_no_group_lack_none():
    """A task without classes is judged on its rows alone; too few of them are still too few."""
    known = loss_facts()
    ungrouped = {"groups": (), "known_groups": ()}
    found = judge(target(score=0.4), replace(known, floors=known.floors.model_copy(update=ungrouped)))[0]
    assert (found.status, found.reasons) == (Status.PASS, ())
    few = known.floors.model_copy(update={**ungrouped, "examples": 29})
    score_of_few = known.score.model_copy(update={"values": known.score.values[:29]})
    assert kinds(judge(target(score=0.4), replace(known, floors=few, score=score_of_few))[0]) == [
        ReasonKind.TOO_FEW_EXAMPLES
    ]


def test_a_class_that_is_answered_badly_is_found_though_the_mean_is_good():
    """Planted fault: 40 of the 50 rows of one class are wrong, 91 % of all rows are right."""
    labels = [0] * 50 + [1] * 200 + [2] * 200 + [3] * 10
    known = facts(score=score(range(40), range(40), range(40), labels), floors=floors(range(40, 200), labels))
    found = judge(target(worst_slice=0.4), known)[0]
    assert (found.status, found.figure.value) == (Status.FAIL, 0.2)
    assert "class 0 is the worst of 3, 1 with fewer than 20 rows not judged" in say_verdict(found)
    assert judge(target(score=0.88), known)[0].status is Status.PASS
    # a large slice that surely fails is named, not a small one that is lower by chance
    parts = ("small",) * 20 + ("large",) * 440
    wrong = [*range(6), *range(20, 140)]
    two = facts(
        score=score(wrong, wrong, wrong, labels),
        floors=known.floors.model_copy(update={"groups": (), "known_groups": (), "slices": parts}),
    )
    found = judge(target(worst_slice=0.8), two)[0]
    assert found.status is Status.FAIL and "slice large is the worst" in say_verdict(found), say_verdict(found)
    sliced = known.floors.model_copy(update={"groups": (), "known_groups": (), "slices": ("a", "b") * 230})
    assert judge(target(worst_slice=0.8), replace(known, floors=sliced))[0].status is Status.PASS
    none = known.floors.model_copy(update={"groups": (), "known_groups": ()})
    assert kinds(judge(target(worst_slice=0.8), replace(known, floors=none))[0]) == [ReasonKind.TOO_FEW_SAMPLES]


@pytest.mark.parametrize(
    ("budget", "limits", "figure"),
    [
        ("score", (0.4, 0.3, 0.2), 0.3),
        ("score_drop", (0.06, 0.05, 0.04), 0.05),
        ("quantization_drop", (0.1, 0.0, None), 0.0),
        ("floor_margin", (0.19, 0.2, 0.21), 0.2),
    ],
)
def test_less_of_a_loss_is_better(budget, limits, figure):
    """The planted fault: a direction that is not turned round passes what must fail, for score, drop and margin."""
    for limit, status in zip(limits, (Status.PASS, Status.INCONCLUSIVE, Status.FAIL), strict=True):
        if limit is not None:
            found = judge(target(**{budget: limit}), loss_facts())[0]
            assert (found.status, found.unit) == (status, "nats"), say_verdict(found)
            assert found.figure.value == pytest.approx(figure, abs=1e-12)
    assert judge(target(quantization_drop=0.01), loss_facts(artefact=0.4))[0].status is Status.FAIL


def test_a_loss_is_spoken_of_as_a_loss():
    """Title and unit of the metric, no word of accuracy, and the limit on the side where it must be."""
    found = judge(target(score=0.4), loss_facts())[0]
    assert (found.title, found.side) == ("log loss", "at most")
    assert say_verdict(found).startswith("cpu: score (log loss) 0.300 nats [")
    drop = judge(target(score_drop=0.06), loss_facts())[0]
    assert say_verdict(drop).startswith("cpu: score_drop (log loss behind the teacher) 0.0500 nats [")
    known = loss_facts()
    line = first_line(compare_with_floor(known.score.values, known.floors), "the student")
    assert line.startswith("The student beats the linear floor")
    assert "log loss 0.300 nats against 0.500 nats on 400 test rows, 400 rows won and 0 lost" in line
    worse = loss_facts(artefact=0.6)
    assert "does NOT beat" in first_line(compare_with_floor(worse.score.values, worse.floors), "the student")
