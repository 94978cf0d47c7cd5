"""Whether a target keeps its budgets, and how sure that is. Reads records only, so it needs no model and no runtime.

A budget passes when the whole interval lies on its good side, fails when it lies on the bad side, and is inconclusive
when the limit is inside. What each budget is, on which side its figure must be and how sure each end of its interval is
stands in `pipeline/settings/budgets.py`; here is how its figure is computed. Verdicts give their reasons in values;
`eval/wording.py` makes sentences of them.

On a runner that times a model against its twin and finds a difference of more than 2 %, the ends of every timing are
moved outwards by twice that difference first; beyond a factor of 1.5 nothing is decided. (measuring.md, B3.5, has such
a runner decide nothing at all; then a clear pass is undecided on every machine with a neighbour.)

Sampling goes on in rounds until a verdict is reached, which looks at the data up to `measure.max_rounds` times: with
three rounds, a 99 % bound is wrong in at most 3 % of runs.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from eval import figures
from eval.slices import LEAST_ROWS, large, mean_by_slice
from eval.statistics import (
    TooFewError,
    chance_of_gain,
    drop_interval,
    flips,
    mean_interval,
    share_interval,
    two_sided,
)
from pipeline.base.records import (
    LINEAR,
    BudgetVerdict,
    Examination,
    Floor,
    Floors,
    Interval,
    Measurement,
    Metric,
    Reason,
    ReasonKind,
    Score,
    Status,
)
from pipeline.settings.budgets import CHECKS, OF_SCORES, TABLE, Budget, Budgets, Evidence
from pipeline.settings.targets import Target

MIN_EXAMPLES = 30  # below this even a share of 0.9 has an interval some 20 points wide
CHANCE = 0.05  # B5: the level of the McNemar alarm
SCORE_CONFIDENCE = two_sided(OF_SCORES)
TWICE = 2.0  # a figure that could be this many times as bad and pass says nothing of a regression
MAX_GROWTH = 100  # advice to take more than this many times the samples is no advice
# Stands in a verdict when neither a score nor floors say what the task is judged by.
UNKNOWN = Metric(name="score", title="score", unit="", scale=1.0, is_greater_better=True)

T = TypeVar("T")


@dataclass(frozen=True)
class Facts:
    """All that one target is judged by. What is None was not made, or could not be read."""

    name: str
    score: Score | None = None
    measurement: Measurement | None = None
    examination: Examination | None = None
    # measured on the same test rows; they also hold what rows are grouped by
    floors: Floors | None = None
    # of the artefact as shipped, and why there is none
    size_bytes: int | None = None
    no_artefact: str | None = None
    # of the exported artefact's card, and of the exported teacher's: records of others are not believed
    artefact_digest: str | None = None
    reference_digest: str | None = None
    # of the other folders that records are made from, those that can be read: data, teacher, student
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """What the task is judged by."""
        records = (self.score, self.floors)
        return next((one.metric for one in records if one is not None and one.metric is not None), UNKNOWN)


@dataclass(frozen=True)
class FloorComparison:
    """A model beside the linear floor, on the same test rows."""

    metric: Metric
    examples: int
    mean: float
    floor_mean: float
    won: int
    lost: int
    # that the model is no better than the floor and won by luck
    chance: float
    # what the chance was computed by
    test: str

    @property
    def is_beaten(self) -> bool:
        return self.chance <= CHANCE


def judge(target: Target, facts: Facts) -> list[BudgetVerdict]:
    """A verdict for every budget of a target that is set, in the order of `TABLE`, and one for its checks."""
    return [*_judge(target.budgets, target.required, facts, _FIGURES), _judge_checks(target, facts)]


def judge_timing(name: str, budgets: Budgets, measurement: Measurement) -> list[BudgetVerdict]:
    """Verdicts for the budgets that a longer measurement could decide: latency, load time and memory."""
    timed = [budget for budget in _FIGURES if TABLE[budget].evidence[0] == "measurement"]
    facts = Facts(name, measurement=measurement, reference_digest=measurement.reference_digest)
    return _judge(budgets, True, facts, timed)


def overall(verdicts: Iterable[BudgetVerdict], problems: Collection[str] = (), *, day: str = "") -> Status:
    """How the required budgets stand together: a fail beats undecided, undecided beats a pass.

    No required budget at all is "not measured": without evidence nothing is green. So is a run of which something
    could not be read: what is damaged may be what a figure was made from. What is accepted until `day` or later, as
    2027-01-31, does not count; without a day every exception is in force.
    """
    found = {verdict.status for verdict in verdicts if verdict.decides(day)}
    return worst(found | {Status.NOT_MEASURED} if problems else found)


def worst(statuses: Collection[Status]) -> Status:
    """The status of several together; not measured when there are none."""
    order = (Status.FAIL, Status.INCONCLUSIVE, Status.NOT_MEASURED, Status.PASS)
    return next((status for status in order if status in statuses), Status.NOT_MEASURED)


def exit_status(status: Status) -> int:
    """What the gate ends with: 0 pass, 1 fail, 3 undecided or not measured."""
    return {Status.PASS: 0, Status.FAIL: 1}.get(status, 3)


def compare_with_floor(values: Sequence[float], floors: Floors) -> FloorComparison:
    """Whether a model beats the linear floor by more than chance; every report begins with it.

    Args:
        values: the metric on each of its answers to the test rows.
        floors: measured on the same rows.
    """
    floor = _linear_floor(floors)
    counts = flips(floor.values, values, floors.metric)
    chance, test = chance_of_gain(floor.values, values, floors.metric)
    return FloorComparison(
        metric=floors.metric,
        examples=floors.examples,
        mean=sum(values) / len(values),
        floor_mean=floor.primary.value,
        won=counts.better,
        lost=counts.worse,
        chance=chance,
        test=test,
    )


# --- one budget --------------------------------------------------------------------------------------------------


def _judge(budgets: Budgets, required: bool, facts: Facts, chosen: Iterable[str]) -> list[BudgetVerdict]:
    limits = {budget: getattr(budgets, budget) for budget in chosen}
    return [_judge_one(budget, limit, required, facts) for budget, limit in limits.items() if limit is not None]


def _judge_one(budget: str, limit: float, required: bool, facts: Facts) -> BudgetVerdict:
    row = TABLE[budget].for_metric(facts.metric)
    absent = next((found for kind in row.evidence if (found := _ABSENT[kind](facts)) is not None), None)
    figure: Interval | None = None
    if absent is not None:
        status, reasons = Status.NOT_MEASURED, [absent]
    else:
        try:
            figure = _FIGURES[budget](facts)
        except TooFewError as error:
            status, reasons = Status.INCONCLUSIVE, [Reason(kind=ReasonKind.TOO_FEW_SAMPLES, detail=str(error))]
        else:
            status, reasons = _weigh(budget, row, figure, limit, facts)
            if budget == "worst_slice":
                reasons.insert(0, _which_is_worst(facts, status))
            if status is Status.PASS and (blunt := _why_blunt(budget, row, figure, limit, facts)) is not None:
                reasons.append(blunt)
    if row.evidence[0] == "score" and facts.score is not None and facts.score.stand_in is not None:
        reasons.append(Reason(kind=ReasonKind.STAND_IN, evidence="score", detail=facts.score.stand_in))
    return _verdict(facts, budget, row, limit, required, status, figure, reasons)


def _weigh(budget: str, row: Budget, figure: Interval, limit: float, facts: Facts) -> tuple[Status, list[Reason]]:
    """Where a figure stands to its limit, as far as its evidence is to be trusted."""
    doubt = _why_in_doubt(row, facts)
    judged = figures.widened(figure, doubt)
    if judged is None:
        assert doubt is not None
        return Status.INCONCLUSIVE, [doubt]
    status = _decide(judged, limit, row)
    if status is Status.INCONCLUSIVE:
        return status, [doubt or _advice(figure, limit, row, facts)]
    slow = _slow_on_the_wall(budget, row, limit, facts) if status is Status.PASS else None
    if slow is not None:
        return Status.INCONCLUSIVE, [slow]
    return status, [] if doubt is None else [Reason(kind=ReasonKind.WIDENED, figure=judged), doubt]


def _decide(figure: Interval, limit: float, row: Budget) -> Status:
    if row.side == "at least":
        good, bad = figure.low >= limit, figure.high < limit
    else:
        good, bad = figure.high <= limit, figure.low > limit
    return Status.PASS if good else Status.FAIL if bad else Status.INCONCLUSIVE


def _why_in_doubt(row: Budget, facts: Facts) -> Reason | None:
    """Why a figure may be other than its interval says."""
    if row.evidence[0] == "measurement":
        return figures.why_unfit(_given(facts.measurement))
    if row.evidence[0] == "score" and facts.floors is not None:
        found = facts.floors.examples
        if found < MIN_EXAMPLES:
            return Reason(kind=ReasonKind.TOO_FEW_EXAMPLES, found=found, expected=MIN_EXAMPLES)
        empty = sorted(set(facts.floors.known_groups) - set(facts.floors.groups))
        if empty:
            return Reason(kind=ReasonKind.CLASSES_WITHOUT_ROWS, found=", ".join(empty[:10]))
    return None


def _slow_on_the_wall(budget: str, row: Budget, limit: float, facts: Facts) -> Reason | None:
    """Why a time that passes by CPU time must not pass, or None: its user waits by the clock on the wall.

    A latency must keep its limit by both clocks. A ratio must be on the good side of it: on the wall its interval has
    the neighbours in it, which took from both models alike.
    """
    if budget not in _CLOCKED:
        return None
    wall = _CLOCKED[budget](_given(facts.measurement), clock="wall")
    exactly = wall.model_copy(update={"low": wall.value, "high": wall.value})
    judged = wall if budget in _PERCENTILES else exactly
    if _decide(judged, limit, row) is Status.PASS:
        return None
    return Reason(kind=ReasonKind.SLOW_ON_THE_WALL, figure=wall, detail=row.unit if row.unit == "×" else f" {row.unit}")


def _why_blunt(budget: str, row: Budget, figure: Interval, limit: float, facts: Facts) -> Reason | None:
    """Why a budget that is kept could hardly fail, or None: a figure TWICE as bad, or the linear floor, would pass too.

    The end of the interval that is nearest to the limit is what is doubled: a limit may not be nearer than the data or
    the samples can tell. What is wrong doubles, so of an agreement the rest.
    """
    if budget == "floor_margin":  # a net below everything, which the floor itself never passes
        return None
    if row.evidence[0] == "score" and budget != "agreement":
        return _kept_by_the_floor(budget, row, limit, facts)
    if row.side == "at most":
        twice = TWICE * figure.high
    else:
        twice = 1 - TWICE * (1 - figure.low) if budget == "agreement" else figure.low / TWICE
    is_kept = _decide(_exact(twice), limit, row) is Status.PASS
    return Reason(kind=ReasonKind.DOES_NOT_BITE, expected=twice * row.scale) if is_kept else None


def _kept_by_the_floor(budget: str, row: Budget, limit: float, facts: Facts) -> Reason | None:
    if facts.floors is None:
        return None
    score = _given(facts.score).model_copy(update={"values": _linear_floor(facts.floors).values})
    figure = _FIGURES[budget](replace(facts, score=score))
    is_kept = _decide(_exact(figure.value), limit, row) is Status.PASS
    return Reason(kind=ReasonKind.DOES_NOT_BITE, evidence="floors") if is_kept else None


def _advice(figure: Interval, limit: float, row: Budget, facts: Facts) -> Reason:
    """How much would bring the limit out of the interval, whose width shrinks as one over the root of the samples.

    Expected is a number of test rows, or how many times the samples; None when it is too close to settle.
    """
    distance = abs(figure.value - limit)
    half = figure.high - figure.value if limit > figure.value else figure.value - figure.low
    growth = None if half <= 0 or distance * MAX_GROWTH**0.5 < half else (half / distance) ** 2
    if growth is not None and row.evidence[0] == "score":
        growth *= len(_given(facts.score).values)
    return Reason(kind=ReasonKind.STRADDLES, evidence=row.evidence[0], expected=growth)


def _verdict(
    facts: Facts,
    budget: str,
    row: Budget,
    limit: float,
    required: bool,
    status: Status,
    figure: Interval | None,
    reasons: Sequence[Reason],
) -> BudgetVerdict:
    return BudgetVerdict(
        target=facts.name,
        budget=budget,
        title=row.title,
        limit=limit,
        side=row.side,
        unit=row.unit,
        scale=row.scale,
        required=required,
        status=status,
        figure=figure,
        reasons=tuple(reasons),
    )


def _judge_checks(target: Target, facts: Facts) -> BudgetVerdict:
    """The verdict on the checks that every artefact must pass whatever its budgets are: none may fail or be unmade."""
    absent = _ABSENT["examination"](facts)
    if absent is not None:
        return _verdict(facts, CHECKS, TABLE[CHECKS], 0, target.required, Status.NOT_MEASURED, None, [absent])
    checks = _given(facts.examination).checks
    excused = [
        check for check in checks if check.status is Status.NOT_MEASURED and check.name in target.optional_checks
    ]
    status = worst({check.status for check in checks if check not in excused})
    told = excused if status is Status.PASS else [check for check in checks if check.status is status]
    reasons = [
        Reason(
            kind=ReasonKind.CHECK_NOT_MADE if check.status is Status.NOT_MEASURED else ReasonKind.CHECK,
            evidence=check.title,
            detail=check.reason,
        )
        for check in told
    ]
    figure = _exact(sum(check.status is Status.FAIL for check in checks))
    return _verdict(facts, CHECKS, TABLE[CHECKS], 0, target.required, status, figure, reasons)


# --- evidence ----------------------------------------------------------------------------------------------------


def why_strange(record: Score | Measurement | Examination, facts: Facts) -> Reason | None:
    """Why a record is not to be believed, or None: it belongs to another target, artefact, reference or test split."""

    def differs(kind: ReasonKind, found: str | float, expected: str | float) -> Reason:
        return Reason(kind=kind, evidence=type(record).__name__.lower(), found=found, expected=expected)

    if record.target != facts.name:
        return differs(ReasonKind.ANOTHER_TARGET, record.target, facts.name)
    # a record that only says why nothing was measured may name no artefact
    if facts.artefact_digest is not None and record.artefact_digest not in ("", facts.artefact_digest):
        return differs(ReasonKind.ANOTHER_ARTEFACT, record.artefact_digest, facts.artefact_digest)
    theirs = record.reference_digest if isinstance(record, Measurement) else None
    if theirs is not None and facts.reference_digest not in (None, theirs):
        return differs(ReasonKind.ANOTHER_REFERENCE, theirs, _given(facts.reference_digest))
    for name, digest in record.sources.items():
        if facts.sources.get(name, digest) != digest:
            found = differs(ReasonKind.ANOTHER_SOURCE, digest, facts.sources[name])
            return found.model_copy(update={"detail": name})
    rows = len(record.values) if isinstance(record, Score) and record.not_measured is None else None
    if rows is not None and facts.floors is not None and rows != facts.floors.examples:
        return differs(ReasonKind.ANOTHER_SPLIT, rows, facts.floors.examples)
    return None


def _absent_record(kind: str, record: Score | Measurement | Examination | None, facts: Facts) -> Reason | None:
    if record is None:
        return Reason(kind=ReasonKind.MISSING, evidence=kind)
    strange = why_strange(record, facts)
    if strange is None and record.not_measured is not None:
        return Reason(kind=ReasonKind.MISSING, evidence=kind, detail=record.not_measured)
    return strange


def _absent_measurement(facts: Facts) -> Reason | None:
    absent = _absent_record("measurement", facts.measurement, facts)
    stand_in = _given(facts.measurement).stand_in if absent is None else None
    if stand_in is not None:
        return Reason(kind=ReasonKind.STAND_IN, evidence="measurement", detail=stand_in)
    return absent


def _absent_reference(facts: Facts) -> Reason | None:
    if _given(facts.measurement).reference_digest is None:
        return Reason(kind=ReasonKind.MISSING, evidence="reference")
    if facts.reference_digest is None:
        return Reason(kind=ReasonKind.MISSING, evidence="exported reference")
    return None


def _absent_artefact(facts: Facts) -> Reason | None:
    if facts.size_bytes is not None:
        return None
    return Reason(kind=ReasonKind.MISSING, evidence="artefact", detail=facts.no_artefact)


def _absent(kind: str, record: object) -> Reason | None:
    return Reason(kind=ReasonKind.MISSING, evidence=kind) if record is None else None


# What there must be for a figure -> why there is none, or None. Those before it in a budget's evidence are there.
_ABSENT: dict[Evidence, Callable[[Facts], Reason | None]] = {
    "score": lambda facts: _absent_record("score", facts.score, facts),
    "floors": lambda facts: _absent("floors", facts.floors),
    "measurement": _absent_measurement,
    "reference": _absent_reference,
    "artefact": _absent_artefact,
    "examination": lambda facts: _absent_record("examination", facts.examination, facts),
}


# --- the figures -------------------------------------------------------------------------------------------------


def _score(facts: Facts) -> Interval:
    return mean_interval(_given(facts.score).values, SCORE_CONFIDENCE)


def _drop_from_teacher(facts: Facts) -> Interval:
    score = _given(facts.score)
    return drop_interval(score.teacher_values, score.values, facts.metric, SCORE_CONFIDENCE)


def _drop_from_student(facts: Facts) -> Interval:
    score = _given(facts.score)
    return drop_interval(score.student_values, score.values, facts.metric, SCORE_CONFIDENCE)


def _agreement(facts: Facts) -> Interval:
    score = _given(facts.score)
    n = len(score.values)
    return share_interval(round(_given(score.agreement).value * n), n, SCORE_CONFIDENCE)


def _floor_margin(facts: Facts) -> Interval:
    """What would be lost by going back to the floor."""
    floor = _linear_floor(_given(facts.floors))
    return drop_interval(_given(facts.score).values, floor.values, facts.metric, SCORE_CONFIDENCE)


def _worst_slice(facts: Facts) -> Interval:
    """The worst ends over all slices: each end holds for all slices together (Bonferroni's correction).

    A limit is then kept when every slice surely keeps it, and broken when some slice surely does.
    """
    by_slice = _by_slice(facts)
    worse = min if facts.metric.is_greater_better else max
    ends = {key: worse(getattr(one, key) for one in by_slice.values()) for key in ("value", "low", "high")}
    return Interval(**ends, confidence=SCORE_CONFIDENCE)


def _by_slice(facts: Facts) -> dict[str, Interval]:
    """Every class and every slice of the data that has rows enough.

    Raises:
        TooFewError: there is none.
    """
    floors, values = _given(facts.floors), _given(facts.score).values
    kinds = {kind: large(names) for kind, names in (("class", floors.groups), ("slice", floors.slices)) if names}
    count = sum(len({name for name in names if name}) for names in kinds.values())
    if not count:
        raise TooFewError(f"no class and no slice has {LEAST_ROWS} test rows")
    each = 1 - (1 - SCORE_CONFIDENCE) / count
    return {
        f"{kind} {name}": found
        for kind, names in kinds.items()
        for name, found in mean_by_slice(names, values, each).items()
    }


def _which_is_worst(facts: Facts, status: Status) -> Reason:
    """The slice whose end decided, and how many were too small."""
    by_slice = _by_slice(facts)
    is_greater_better = facts.metric.is_greater_better
    end = "high" if (status is Status.FAIL) == is_greater_better else "low"
    worse = min if is_greater_better else max
    name = worse(by_slice, key=lambda one: getattr(by_slice[one], end))
    floors = _given(facts.floors)
    counts = [count for names in (floors.groups, floors.slices) for name, count in Counter(names).items() if name]
    small = sum(count < LEAST_ROWS for count in counts)
    detail = f"{small} with fewer than {LEAST_ROWS} rows not judged" if small else None
    return Reason(kind=ReasonKind.WORST_SLICE, evidence=name, expected=len(by_slice), detail=detail)


def _of_samples(figure: Callable[..., Interval]) -> Callable[[Facts], Interval]:
    return lambda facts: figure(_given(facts.measurement))


def _exact(value: float) -> Interval:
    return Interval(value=value, low=value, high=value, confidence=1.0)


def _given(value: T | None) -> T:
    assert value is not None
    return value


def _linear_floor(floors: Floors) -> Floor:
    return next(floor for floor in floors.floors if floor.name == LINEAR)


_PERCENTILES: dict[str, Callable[..., Interval]] = {"p50_ms": figures.p50_ms, "p90_ms": figures.p90_ms}
_CLOCKED = {**_PERCENTILES, "speedup_vs_teacher": figures.speedup}
# Every field of Budgets; the confidence is that of the table.
_FIGURES: dict[str, Callable[[Facts], Interval]] = {
    "score": _score,
    "score_drop": _drop_from_teacher,
    "quantization_drop": _drop_from_student,
    "agreement": _agreement,
    "floor_margin": _floor_margin,
    "worst_slice": _worst_slice,
    "speedup_vs_teacher": _of_samples(figures.speedup),
    **{name: _of_samples(figure) for name, figure in _PERCENTILES.items()},
    "load_ms": _of_samples(figures.load_ms),
    "memory_mb": _of_samples(figures.memory_mb),
    "size_mb": lambda facts: _exact(_given(facts.size_bytes) / 1e6),
}
