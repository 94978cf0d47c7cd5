"""Whether a target keeps its budgets, and how sure that is. Reads records only, so it needs no model and no runtime.

A budget passes when the whole interval lies on its good side, fails when it lies on the bad side, and is inconclusive
when the limit is inside. Each end of an interval is a one-sided bound at the confidence in this table:

| budget                   | good side | figure                                              | each end |
|--------------------------|-----------|-----------------------------------------------------|----------|
| accuracy, agreement      | at least  | share of test rows, Clopper-Pearson                 | 95 %     |
| accuracy_drop_points     | at most   | teacher to artefact, paired (measuring.md, B5)      | 95 %     |
| quantization_drop_points | at most   | float student to artefact, paired (B5)              | 95 %     |
| floor_margin_points      | at least  | artefact above the linear floor, paired (B5)        | 95 %     |
| speedup_vs_teacher       | at least  | median ratio over A B B A pairs, order statistics   | 99 %     |
| p50_ms, p90_ms           | at most   | percentile at the data's own lengths, order stat.;  | 99 %     |
|                          |           | by CPU time and by the wall clock                   |          |
| load_ms, memory_mb       | at most   | median over fresh processes, order statistics       | 99 %     |
| size_mb                  | at most   | exact                                               | -        |

On a runner that times a model against itself and finds a difference of more than 2 %, the ends of every timing are
moved outwards by twice that difference first; beyond a factor of 1.5 nothing is decided. (measuring.md, B3.5, has such
a runner decide nothing at all; then a clear pass is undecided on every machine with a neighbour.)

Sampling goes on in rounds until a verdict is reached, which looks at the data up to `measure.max_rounds` times: with
three rounds, a 99 % bound is wrong in at most 3 % of runs.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from eval import figures
from eval.statistics import TooFewError, drop_interval, flips, mcnemar, share_interval, two_sided
from pipeline.base.errors import IntegrityError
from pipeline.base.records import (
    LINEAR,
    BudgetVerdict,
    Examination,
    Floor,
    Floors,
    Interval,
    Measurement,
    Score,
    Status,
)
from pipeline.settings.params import Budgets, Target

ACCURACY_CONFIDENCE = two_sided(0.95)
UNFIT_LIMIT = 1.5  # an interval widened by more than this factor is a guess
MIN_EXAMPLES = 30  # below this even a share of 0.9 has an interval some 20 points wide
CHANCE = 0.05  # B5: the level of the McNemar alarm
MAX_GROWTH = 100  # advice to take more than this many times the samples is no advice

CHECKS = "failed_checks"  # judged beside the budgets, for every target

Evidence = Literal["score", "measurement", "size"]
T = TypeVar("T")


class _NotMeasuredError(Exception):
    """There is no figure to judge; the message is the reason."""


@dataclass(frozen=True)
class _Records:
    score: Score | None
    measurement: Measurement | None
    floors: Floors | None
    size_bytes: int | None


@dataclass(frozen=True)
class _Rule:
    """How one budget is judged. `scale` and `unit` are for people: 0.95 is shown as 95 %."""

    evidence: Evidence
    is_least: bool
    figure: Callable[[_Records], Interval]
    unit: str
    scale: float = 1.0


def judge(
    name: str,
    target: Target,
    *,
    score: Score | None,
    measurement: Measurement | None,
    floors: Floors | None,
    size_bytes: int | None,
    artefact_digest: str | None = None,
    reference_digest: str | None = None,
) -> list[BudgetVerdict]:
    """A verdict for every budget of a target that is set.

    Args:
        name: of the target.
        target: its row in params.yaml.
        score: None when there is none.
        measurement: None when there is none.
        floors: measured on the same test rows; they also hold the labels.
        size_bytes: of the artefact as shipped; None when there is no artefact.
        artefact_digest: of the exported artefact's card; records of another one are refused.
        reference_digest: of the card of the exported teacher.

    Raises:
        IntegrityError: a record belongs to another target, artefact, reference or test split.
    """
    _refuse_strangers(name, score, measurement, floors, artefact_digest, reference_digest)
    return _judge(name, target.budgets, target.required, _Records(score, measurement, floors, size_bytes), _RULES)


def judge_checks(name: str, target: Target, examination: Examination | None) -> BudgetVerdict:
    """The verdict on the checks that every artefact must pass: none may fail."""
    checks = examination.checks if examination is not None else ()
    by_status = {status: [check for check in checks if check.status is status] for status in Status}
    figure = None
    if examination is None or examination.not_measured is not None:
        status, note = (
            Status.NOT_MEASURED,
            "there is no examination" if examination is None else examination.not_measured,
        )
    else:
        status = next(
            (one for one in (Status.FAIL, Status.INCONCLUSIVE) if by_status[one]),
            Status.PASS if by_status[Status.PASS] else Status.NOT_MEASURED,
        )
        note = "; ".join(f"{check.title}: {check.reason}" for check in by_status[status] if status is not Status.PASS)
        count = len(by_status[Status.FAIL])
        figure = Interval(value=count, low=count, high=count, confidence=1.0)
    said = f"{name}: {CHECKS}{f' {figure.value:g}' if figure else ''}, limit 0: {status}{f' ({note})' if note else ''}"
    return BudgetVerdict(
        target=name, budget=CHECKS, limit=0, required=target.required, status=status, figure=figure, reason=said
    )


def judge_timing(name: str, budgets: Budgets, measurement: Measurement) -> list[BudgetVerdict]:
    """Verdicts for the budgets that a longer measurement could decide: latency, load time and memory."""
    rules = {budget: rule for budget, rule in _RULES.items() if rule.evidence == "measurement"}
    return _judge(name, budgets, True, _Records(None, measurement, None, None), rules)


def overall(verdicts: Iterable[BudgetVerdict]) -> Status:
    """How the required budgets stand together: a fail beats undecided, undecided beats a pass.

    No required budget at all is "not measured": without evidence nothing is green.
    """
    found = {verdict.status for verdict in verdicts if verdict.required}
    for status in (Status.FAIL, Status.INCONCLUSIVE, Status.NOT_MEASURED, Status.PASS):
        if status in found:
            return status
    return Status.NOT_MEASURED


def exit_status(status: Status) -> int:
    """What the gate ends with: 0 pass, 1 fail, 3 undecided or not measured."""
    return {Status.PASS: 0, Status.FAIL: 1}.get(status, 3)


def first_line(predictions: Sequence[int], floors: Floors, name: str = "the student") -> str:
    """The sentence every report begins with: whether a model beats the linear floor by more than chance.

    Args:
        predictions: its answers to the test rows.
        floors: measured on the same rows.
        name: what to call it.
    """
    floor, n = _linear_floor(floors), len(floors.labels)
    lost, won = flips(floors.labels, floor.predictions, predictions)
    right = sum(a == b for a, b in zip(floors.labels, predictions, strict=True))
    p = mcnemar(won, lost)
    verb = "beats" if p <= CHANCE else "does NOT beat"
    return (
        f"{name[:1].upper()}{name[1:]} {verb} the linear floor (TF-IDF and a linear classifier) by more than chance: "
        f"{right / n:.1%} against {floor.accuracy.value:.1%} of {n} test rows right, {won} rows won and {lost} lost, "
        f"one-sided exact McNemar p = {p:.2g}."
    )


def _judge(
    name: str, budgets: Budgets, required: bool, records: _Records, rules: dict[str, _Rule]
) -> list[BudgetVerdict]:
    limits = {budget: getattr(budgets, budget) for budget in rules}
    return [
        _judge_one(name, budget, limit, required, records, rules[budget])
        for budget, limit in limits.items()
        if limit is not None
    ]


def _judge_one(name: str, budget: str, limit: float, required: bool, records: _Records, rule: _Rule) -> BudgetVerdict:
    figure, status, note = None, Status.INCONCLUSIVE, ""
    try:
        _refuse_missing(records, rule)
        figure = rule.figure(records)
        doubt = _why_in_doubt(records, rule)
        judged = figure if doubt is None else _widened(figure, records, rule)
        status = _decide(judged, limit, rule.is_least) if judged is not None else Status.INCONCLUSIVE
        on_the_wall = _what_the_wall_says(budget, limit, records) if status is Status.PASS else None
        if on_the_wall is not None:
            status, note = Status.INCONCLUSIVE, on_the_wall
        elif status is Status.INCONCLUSIVE:
            note = doubt or _advice(figure, limit, records, rule)
        elif doubt is not None and judged is not None:
            note = f"also with the interval widened to {_show(judged, rule)}, since {doubt}"
    except TooFewError as error:
        note = str(error)
    except _NotMeasuredError as error:
        status, note = Status.NOT_MEASURED, str(error)
    if rule.evidence == "score" and records.score is not None and records.score.stand_in is not None:
        note = f"{note + '; ' if note else ''}answered by a stand-in: {records.score.stand_in}"
    reason = (
        f"{name}: {budget}{' ' + _show(figure, rule) if figure else ''}, "
        f"limit {limit * rule.scale:.4g}{rule.unit}: {status}{' (' + note + ')' if note else ''}"
    )
    return BudgetVerdict(
        target=name, budget=budget, limit=limit, required=required, status=status, figure=figure, reason=reason
    )


def _decide(figure: Interval, limit: float, is_least: bool) -> Status:
    if is_least:
        good, bad = figure.low >= limit, figure.high < limit
    else:
        good, bad = figure.high <= limit, figure.low > limit
    return Status.PASS if good else Status.FAIL if bad else Status.INCONCLUSIVE


def _refuse_missing(records: _Records, rule: _Rule) -> None:
    if rule.evidence == "size":
        if records.size_bytes is None:
            raise _NotMeasuredError("there is no artefact")
        return
    record = records.score if rule.evidence == "score" else records.measurement
    if record is None:
        raise _NotMeasuredError(f"there is no {rule.evidence}")
    if record.not_measured is not None:
        raise _NotMeasuredError(record.not_measured)
    if rule.evidence == "measurement" and record.stand_in is not None:
        raise _NotMeasuredError(f"executed by a stand-in, whose speed and memory say nothing: {record.stand_in}")


def _why_in_doubt(records: _Records, rule: _Rule) -> str | None:
    """Why no verdict can be given whatever the figure is."""
    if rule.evidence == "measurement":
        assert records.measurement is not None
        return figures.why_unfit(records.measurement)
    if rule.evidence == "score" and records.floors is not None:
        labels = records.floors.labels
        if len(labels) < MIN_EXAMPLES:
            return f"too few examples: found {len(labels)} test rows, at least {MIN_EXAMPLES} are needed"
        counts = Counter(labels)
        missing = [str(c) for c in range(records.floors.classes) if counts[c] == 0]
        if missing:
            return f"too few examples: no test row of class {', '.join(missing[:10])}"
    return None


def _what_the_wall_says(budget: str, limit: float, records: _Records) -> str | None:
    """Why a latency that passes by CPU time must not pass, or None: its user waits by the clock on the wall."""
    percentiles = {"p50_ms": figures.p50_ms, "p90_ms": figures.p90_ms}
    if budget not in percentiles or records.measurement is None:
        return None
    wall = percentiles[budget](records.measurement, clock="wall")
    if _decide(wall, limit, is_least=False) is Status.PASS:
        return None
    return f"it passes by CPU time, but took {wall.value:.3g} ms [{wall.low:.3g}, {wall.high:.3g}] on the wall clock"


def _widened(figure: Interval, records: _Records, rule: _Rule) -> Interval | None:
    """The interval of a timing taken on an unfit runner, each end moved by twice what the canary was off; else None.

    Without this a clear pass (twelve times as fast where one and a half was asked) would be undecided whenever a
    neighbour on the machine moves the canary by a few per cent. Beyond UNFIT_LIMIT nothing is decided.
    """
    if rule.evidence != "measurement" or records.measurement is None:
        return None
    try:
        canary = figures.canary_ratio(records.measurement)
    except TooFewError:
        return None
    factor = max(canary.high, 1 / canary.low) ** 2
    if factor > UNFIT_LIMIT:
        return None
    return figure.model_copy(update={"low": figure.low / factor, "high": figure.high * factor})


def _advice(figure: Interval, limit: float, records: _Records, rule: _Rule) -> str:
    """How many samples would bring the limit out of the interval, whose width shrinks as one over their root."""
    distance = abs(figure.value - limit)
    half = figure.high - figure.value if limit > figure.value else figure.value - figure.low
    if half <= 0 or distance * MAX_GROWTH**0.5 < half:
        return "too close to the limit to settle"
    if rule.evidence == "measurement":
        return f"about {(half / distance) ** 2:.1f} times the samples would settle it"
    assert records.score is not None
    n = len(records.score.predictions) * (half / distance) ** 2
    return f"about {round(n, -1):,.0f} test rows would settle it"


def _show(figure: Interval, rule: _Rule) -> str:
    value, low, high = (f"{number * rule.scale:.3g}" for number in (figure.value, figure.low, figure.high))
    return f"{value}{rule.unit}" + (f" [{low}, {high}]" if figure.low != figure.high else "")


def _refuse_strangers(
    name: str,
    score: Score | None,
    measurement: Measurement | None,
    floors: Floors | None,
    artefact_digest: str | None,
    reference_digest: str | None,
) -> None:
    for kind, record in (("score", score), ("measurement", measurement)):
        if record is None:
            continue
        if record.target != name:
            raise IntegrityError(
                f"{name}: found the {kind} of target '{record.target}'; run `dvc repro` to make it again"
            )
        if artefact_digest is not None and record.artefact_digest != artefact_digest:
            raise IntegrityError(
                f"{name}: found the {kind} of artefact {record.artefact_digest[:16]}…, expected "
                f"{artefact_digest[:16]}…; run `dvc repro` to make it again"
            )
    found = measurement.reference_digest if measurement is not None else None
    if found is not None and reference_digest is not None and found != reference_digest:
        raise IntegrityError(
            f"{name}: measured against reference {found[:16]}…, expected {reference_digest[:16]}…; "
            "run `dvc repro` to measure again"
        )
    if score is None or score.not_measured is not None or floors is None:
        return
    if len(score.predictions) != len(floors.labels):
        raise IntegrityError(
            f"{name}: found answers to {len(score.predictions)} test rows, expected {len(floors.labels)}; "
            "run `dvc repro` to score again"
        )


# --- the figures -------------------------------------------------------------------------------------------------


def _accuracy(records: _Records) -> Interval:
    score = _given(records.score)
    share = _given(score.accuracy)
    n = len(score.predictions)
    return share_interval(round(share.value * n), n, ACCURACY_CONFIDENCE)


def _agreement(records: _Records) -> Interval:
    score = _given(records.score)
    share = _given(score.agreement)
    n = len(score.predictions)
    return share_interval(round(share.value * n), n, ACCURACY_CONFIDENCE)


def _drop_from_teacher(records: _Records) -> Interval:
    score = _given(records.score)
    return drop_interval(*_given(score.flips_from_teacher), len(score.predictions), ACCURACY_CONFIDENCE)


def _drop_from_student(records: _Records) -> Interval:
    score = _given(records.score)
    return drop_interval(*_given(score.flips_from_student), len(score.predictions), ACCURACY_CONFIDENCE)


def _floor_margin(records: _Records) -> Interval:
    score, floors = _given(records.score), records.floors
    if floors is None:
        raise _NotMeasuredError("the floors were not measured")
    lost, won = flips(floors.labels, _linear_floor(floors).predictions, score.predictions)
    return drop_interval(won, lost, len(floors.labels), ACCURACY_CONFIDENCE)


def _speedup(records: _Records) -> Interval:
    measurement = _given(records.measurement)
    if measurement.reference_digest is None:
        raise _NotMeasuredError("no reference: the teacher was not exported to this target's format")
    return figures.speedup(measurement)


def _size_mb(records: _Records) -> Interval:
    size = _given(records.size_bytes) / 1e6
    return Interval(value=size, low=size, high=size, confidence=1.0)


def _given(value: T | None) -> T:
    assert value is not None
    return value


def _linear_floor(floors: Floors) -> Floor:
    return next(floor for floor in floors.floors if floor.name == LINEAR)


# Every field of Budgets, in the order they are reported.
_RULES: dict[str, _Rule] = {
    "accuracy": _Rule("score", True, _accuracy, " %", 100.0),
    "accuracy_drop_points": _Rule("score", False, _drop_from_teacher, " points"),
    "quantization_drop_points": _Rule("score", False, _drop_from_student, " points"),
    "agreement": _Rule("score", True, _agreement, " %", 100.0),
    "floor_margin_points": _Rule("score", True, _floor_margin, " points"),
    "speedup_vs_teacher": _Rule("measurement", True, _speedup, "x"),
    "p50_ms": _Rule("measurement", False, lambda records: figures.p50_ms(_given(records.measurement)), " ms"),
    "p90_ms": _Rule("measurement", False, lambda records: figures.p90_ms(_given(records.measurement)), " ms"),
    "load_ms": _Rule("measurement", False, lambda records: figures.load_ms(_given(records.measurement)), " ms"),
    "memory_mb": _Rule("measurement", False, lambda records: figures.memory_mb(_given(records.measurement)), " MB"),
    "size_mb": _Rule("size", False, _size_mb, " MB"),
}
