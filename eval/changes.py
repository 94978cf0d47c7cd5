"""Whether a change made a target worse than its base, and how sure that is. Needs no model and no runtime.

Two versions of a file were timed in the same processes, both twice, and answered the same test rows. Each loss has a
zone in `params.yaml`: surely beyond what is tolerated it is a regression, surely below what must be seen it passes, and
otherwise nobody knows. What has no zone is told.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from eval import figures
from eval.budgets import worst
from eval.statistics import (
    Samples,
    TooFewError,
    chance_of_gain,
    drop_interval,
    holm,
    mean_interval,
    median_ratio_interval,
    two_sided,
)
from pipeline.base.records import Change, Interval, Measurement, Metric, Reason, ReasonKind, Status
from pipeline.settings.budgets import OF_TIMINGS
from pipeline.settings.compare import Zone

CONFIDENCE = two_sided(OF_TIMINGS)
# A loss of its zone's `tolerated` and this many half-widths is seen nine times in ten: (z(0.99) + z(0.9)) / z(0.99).
NINE_IN_TEN = 1 + float(stats.norm.ppf(0.9) / stats.norm.ppf(OF_TIMINGS))
PERCENT = 100.0


def same_file(target: str) -> Change:
    """Base and head are one file, byte for byte: nothing can differ."""
    reason = Reason(kind=ReasonKind.SAME_FILE)
    return Change(
        target=target, what="file", title="model file", unit="", unit_of_harm="", status=Status.PASS, reasons=(reason,)
    )


def runtime_of(target: str, recorded: str | None, base: str | None, head: str) -> Change | None:
    """Whether the runtime itself may have changed something; None where it is the version on record.

    Args:
        target: its name.
        recorded: what the base's own scores were made with; None where no record says it.
        base: what the base was executed in, where that is an environment of its own.
        head: what the head was executed in, and the base where it has no other.
    """
    executed = base or head
    status = None
    if recorded not in (None, executed):
        status = Status.NOT_MEASURED
        reason = Reason(kind=ReasonKind.OTHER_RUNTIME, found=executed, expected=recorded)
    elif base is not None:
        reason = Reason(kind=ReasonKind.RUNTIMES_APART, found=head, expected=base)
    elif recorded is None:
        reason = Reason(kind=ReasonKind.NO_RUNTIME_ON_RECORD, found=head)
    else:
        return None
    return Change(
        target=target, what="runtime", title="runtime", unit="", unit_of_harm="", status=status, reasons=(reason,)
    )


def judge_time(measurement: Measurement, zone: Zone) -> Change:
    """The time of a call, the base being the measurement's reference.

    On a runner that finds a model slower than its own twin, the ends of the interval are moved first, or nothing is
    decided: see `eval.figures.moved`. What passes by CPU time must not be slow on the wall clock either.
    """
    found: dict[str, Any] = {
        "target": measurement.target,
        "what": "time",
        "title": "median time of a call",
        "unit": "ms",
        "unit_of_harm": "%",
        "tolerated": PERCENT * zone.tolerated,
        "seen": PERCENT * zone.seen,
        "seconds": sum(moment.get("elapsed_s", 0.0) for moment in measurement.conditions) or None,
    }
    if measurement.not_measured is not None:
        absent = Reason(kind=ReasonKind.MISSING, evidence="measurement", detail=measurement.not_measured)
        return Change(**found, status=Status.NOT_MEASURED, reasons=(absent,))
    try:
        ratio, wall = figures.slowdown(measurement), figures.slowdown(measurement, "wall")
        found |= {
            "base": figures.p50_ms(measurement, model="reference").value,
            "head": figures.p50_ms(measurement).value,
        }
    except TooFewError as error:
        few = Reason(kind=ReasonKind.TOO_FEW_SAMPLES, detail=str(error))
        return Change(**found, status=Status.INCONCLUSIVE, reasons=(few,))
    harm = _loss(ratio)
    found |= {"harm": harm, "noise": PERCENT * abs(figures.worst_twins(measurement).value - 1), **_power(harm, found)}
    doubt = figures.why_unfit(measurement)
    judged = figures.moved(measurement, ratio)
    reasons = [] if doubt is None else [doubt]
    status = Status.INCONCLUSIVE if judged is None else _decide(_loss(judged), found["tolerated"], found["seen"])
    if status is Status.PASS and wall.value >= 1 + zone.seen:
        status = Status.INCONCLUSIVE
        reasons.append(Reason(kind=ReasonKind.SLOW_ON_THE_WALL, figure=wall, detail="×"))
    return Change(**found, status=status, reasons=tuple(reasons))


def judge_score(target: str, base: Samples, head: Samples, metric: Metric, zone: Zone) -> Change:
    """The task's metric on the same test rows, paired.

    Args:
        target: its name.
        base: the metric on each of the base's answers.
        head: the same of the head's.
        metric: what they are.
        zone: in the unit of the metric's differences.
    """
    harm = drop_interval(base, head, metric, CONFIDENCE)
    found = {"tolerated": zone.tolerated, "seen": zone.seen}
    return Change(
        target=target,
        what="score",
        title=metric.title,
        unit=metric.unit,
        unit_of_harm=metric.unit_of_differences,
        base=metric.scale * mean_interval(base).value,
        head=metric.scale * mean_interval(head).value,
        harm=harm,
        could_see=_power(harm, found)["could_see"],
        status=_decide(harm, zone.tolerated, zone.seen),
        **found,
    )


def judge_slices(
    target: str, slices: Mapping[str, Sequence[str]], base: Samples, head: Samples, metric: Metric, level: float
) -> Change | None:
    """Whether any part of the test rows lost, which the mean over all of them hides.

    Args:
        target: its name.
        slices: kind of slice, such as class or length -> the slice of each row, empty for a row of none.
        base: the metric on each of the base's answers.
        head: the same of the head's.
        metric: what they are.
        level: chance of calling any slice worse that is not, for all of them together.

    Returns:
        A regression with a reason for each slice that lost, the worst first; None when there are no slices.
    """
    old, new = np.asarray(base, dtype=np.float64), np.asarray(head, dtype=np.float64)
    parts = {
        f"{kind} {name}": np.asarray(names) == name
        for kind, names in slices.items()
        for name in sorted(set(names))
        if name
    }
    if not parts:
        return None
    # the chance of a loss as large is that of a gain from head to base
    chances = holm([chance_of_gain(new[rows], old[rows], metric)[0] for rows in parts.values()])
    drops = {name: metric.drop(float(old[rows].mean()), float(new[rows].mean())) for name, rows in parts.items()}
    lost = sorted(
        (chance, -drops[name], name) for (name, chance) in zip(parts, chances, strict=True) if chance <= level
    )
    reasons = [
        Reason(kind=ReasonKind.SLICE_LOST, evidence=name, found=-gain, expected=chance, detail=_unit(metric))
        for chance, gain, name in lost
    ]
    smallest = min(int(rows.sum()) for rows in parts.values())
    return Change(
        target=target,
        what="slices",
        title=f"worst of {len(parts)} slices",
        unit=metric.unit,
        unit_of_harm=metric.unit_of_differences,
        harm=_exact(max(drops.values())),
        # that many rows of the smallest slice, when each turns from right to wrong
        could_see=metric.scale * math.ceil(math.log2(len(parts) / level)) / smallest,
        status=Status.FAIL if lost else Status.PASS,
        reasons=tuple(reasons),
    )


def judge_size(target: str, base_bytes: int, head_bytes: int, most: float | None) -> Change:
    """The artefact on disk; `most` is the share by which it may grow, None for any."""
    growth = PERCENT * (head_bytes / base_bytes - 1)
    return Change(
        target=target,
        what="size",
        title="size on disk",
        unit="MB",
        unit_of_harm="%",
        base=base_bytes / 1e6,
        head=head_bytes / 1e6,
        harm=_exact(growth),
        tolerated=None if most is None else PERCENT * most,
        status=None if most is None else Status.FAIL if head_bytes > (1 + most) * base_bytes else Status.PASS,
    )


def judge_instructions(target: str, base: Samples, head: Samples, most: float | None) -> Change:
    """Instructions of one call of each text under the emulator; `most` is the share by which they may grow."""
    before, after = float(np.sum(base)), float(np.sum(head))
    return Change(
        target=target,
        what="instructions",
        title="instructions of a call",
        unit="M",
        unit_of_harm="%",
        base=before / len(base) / 1e6,
        head=after / len(head) / 1e6,
        harm=_exact(PERCENT * (after / before - 1)),
        tolerated=None if most is None else PERCENT * most,
        status=None if most is None else Status.FAIL if after > (1 + most) * before else Status.PASS,
    )


def not_measured(target: str, what: str, title: str, why: str, *, decides: bool) -> Change:
    """A figure that could not be had here."""
    reason = Reason(kind=ReasonKind.MISSING, evidence=what, detail=why)
    status = Status.NOT_MEASURED if decides else None
    return Change(target=target, what=what, title=title, unit="", unit_of_harm="", status=status, reasons=(reason,))


def tell(target: str, what: str, title: str, unit: str, base: Samples, head: Samples) -> Change | None:
    """A figure of fresh processes, base and head in turn, which decides nothing; None where there are too few."""
    try:
        ratio = median_ratio_interval(head, base, CONFIDENCE)  # of pairs: a first call has a long tail
    except TooFewError:
        return None
    return Change(
        target=target,
        what=what,
        title=title,
        unit=unit,
        unit_of_harm="%",
        base=float(np.median(base)),
        head=float(np.median(head)),
        harm=_loss(ratio),
    )


def tell_value(target: str, what: str, title: str, unit: str, base: float, head: float) -> Change:
    """A figure that is as it is, of which more is worse, and that decides nothing."""
    return Change(
        target=target,
        what=what,
        title=title,
        unit=unit,
        unit_of_harm=unit,
        base=base,
        head=head,
        harm=_exact(head - base),
    )


def overall(changes: Iterable[Change], required_not_compared: Sequence[str]) -> Status:
    """How a comparison stands: a regression beats undecided; a required target without a base is not measured.

    What is accepted for now counts as kept.
    """
    found = {
        Status.PASS if change.accepted is not None else change.status
        for change in changes
        if change.required and change.status is not None
    }
    return worst(found | {Status.NOT_MEASURED} if required_not_compared else found)


def _decide(harm: Interval, tolerated: float, seen: float) -> Status:
    if harm.low > tolerated:
        return Status.FAIL
    return Status.PASS if harm.high < seen else Status.INCONCLUSIVE


def _loss(ratio: Interval) -> Interval:
    """A ratio of times as per cent that are lost."""
    ends = {key: PERCENT * (getattr(ratio, key) - 1) for key in ("value", "low", "high")}
    return ratio.model_copy(update=ends)


def _power(harm: Interval, zone: Mapping[str, Any]) -> dict[str, float | None]:
    """The smallest loss that would have been seen nine times in ten, and how many seconds would see `seen` as often."""
    reach = NINE_IN_TEN * (harm.value - harm.low)
    taken = zone.get("seconds")
    needed = taken * (reach / (zone["seen"] - zone["tolerated"])) ** 2 if taken is not None else None
    return {"could_see": zone["tolerated"] + reach, "seconds_needed": needed}


def _exact(value: float) -> Interval:
    return Interval(value=value, low=value, high=value, confidence=1.0)


def _unit(metric: Metric) -> str:
    return f" {metric.unit_of_differences}".rstrip()
