"""How numbers, verdicts and their reasons are said to people, in one place: units, sensible digits, whole sentences.

Judging gives values (`pipeline.base.records.Reason`); the gate, the report, the summary and the logs say them from
here. Imports nothing heavy.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from eval.budgets import FloorComparison
from pipeline.base.records import (
    Accepted,
    BudgetVerdict,
    Change,
    Comparison,
    Interval,
    Metric,
    Reason,
    ReasonKind,
    Status,
    Verdict,
)
from pipeline.settings.budgets import CHECKS, TABLE

NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
# A sign beside each word, so that colour is not the only carrier.
MARKS = {Status.PASS: "✓", Status.FAIL: "✗", Status.INCONCLUSIVE: "≈", Status.NOT_MEASURED: "○"}
_DECIMALS = {"%": 1, "points": 2}  # of other units three significant digits


# --- numbers -----------------------------------------------------------------------------------------------------


def show(value: Any, decimals: int | None = None) -> str:
    """A number for people: fixed decimals, or three significant digits; a dash for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return NOTHING
    if decimals is None:
        magnitude = math.floor(math.log10(abs(value))) if value else 0
        decimals = min(6, max(0, 2 - magnitude))
    text = f"{value:,.{decimals}f}"
    is_zero = not text.strip("-0.,")
    return text.lstrip("-") if is_zero else text.replace("-", MINUS)


def show_whole(value: Any) -> str:
    """A count with separators."""
    return show(value, 0)


def show_percent(share: Any, decimals: int = 1) -> str:
    """A share of 1 as percent."""
    text = show(100 * share if isinstance(share, int | float) else None, decimals)
    return text if text == NOTHING else f"{text}{NBSP}%"


def show_with_unit(value: Any, unit: str, decimals: int | None = None) -> str:
    """A number with its unit, not broken across lines."""
    text = show(value, decimals)
    if text == NOTHING:
        return text
    return f"{text}{unit}" if unit in ("×", "") else f"{text}{NBSP}{unit}"


def show_interval(figure: Interval | None, decimals: int | None = None, scale: float = 1.0) -> str:
    """'[low, high]', or nothing when both ends are the figure itself."""
    if figure is None or figure.low == figure.high:
        return ""
    return f"[{show(figure.low * scale, decimals)}, {show(figure.high * scale, decimals)}]"


def show_megabytes(count: Any) -> str:
    """Bytes as megabytes of 10^6; a handful of bytes as bytes."""
    if isinstance(count, int) and count < 1000:
        return show_with_unit(count, "B", 0)
    return show_with_unit(count / 1e6 if isinstance(count, int | float) else None, "MB")


def show_millions(count: Any) -> str:
    """Parameters in millions."""
    return show_with_unit(count / 1e6 if isinstance(count, int | float) else None, "M")


def capitalized(text: str) -> str:
    """Text as a heading or a sentence begins, with the rest as it is: 'ROUGE-L' stays so."""
    return text[:1].upper() + text[1:]


def show_value(value: Any, metric: Metric, decimals: int | None = None) -> str:
    """A value of a task's metric with its unit."""
    scaled = metric.scale * value if isinstance(value, int | float) else None
    return show_with_unit(scaled, metric.unit, decimals_of(metric.unit) if decimals is None else decimals)


def decimals_of(unit: str) -> int | None:
    """How many decimals figures in this unit are shown with; None for three significant digits."""
    return _DECIMALS.get(unit)


def say_axis(title: str, metric: Metric) -> str:
    """A label with the metric's unit, where it has one."""
    return f"{title}, {metric.unit}" if metric.unit else title


# --- verdicts ----------------------------------------------------------------------------------------------------


def shorts(metric: Metric) -> dict[str, str]:
    """Budget -> its name at the head of a narrow column."""
    return {
        "score": metric.title,
        "score_drop": "behind teacher",
        "quantization_drop": "behind student",
        "agreement": "agrees",
        "floor_margin": "ahead of floor",
        "worst_slice": "worst slice",
        "speedup_vs_teacher": "speed-up",
        "p50_ms": "median",
        "p90_ms": "p90",
        "load_ms": "load",
        "memory_mb": "memory",
        "size_mb": "size",
        CHECKS: "checks failed",
    }


def show_limit(verdict: BudgetVerdict) -> str:
    """'at most 20.0 MB'."""
    return f"{verdict.side} {_limit(verdict)}"


def show_figure(verdict: BudgetVerdict) -> str:
    """The figure with its unit, without the interval."""
    value = verdict.figure.value * verdict.scale if verdict.figure is not None else None
    return show_with_unit(value, verdict.unit, _decimals(verdict))


def show_figure_interval(verdict: BudgetVerdict) -> str:
    """The interval of the figure, in its unit."""
    return show_interval(verdict.figure, _decimals(verdict), verdict.scale)


def why(verdict: BudgetVerdict) -> str:
    """What a table does not say in its other columns; often nothing."""
    told = [_say(reason, verdict) for reason in verdict.reasons]
    return "; ".join(told if verdict.accepted is None else [say_accepted(verdict.accepted), *told])


def say_accepted(accepted: Accepted) -> str:
    """An exception with its end and its reason."""
    return f"accepted until {accepted.until}: {accepted.because}"


def say_verdict(verdict: BudgetVerdict) -> str:
    """Target, budget, figure, interval, limit, status and reasons, as one line that can be searched."""
    # a budget that is named for any metric says which one it is
    title = f" ({verdict.title})" if verdict.title != TABLE[verdict.budget].title else ""
    figure = f" {show_figure(verdict)} {show_figure_interval(verdict)}".rstrip() if verdict.figure is not None else ""
    reasons = f" ({why(verdict)})" if why(verdict) else ""
    line = f"{verdict.target}: {verdict.budget}{title}{figure}, limit {_limit(verdict)}: {verdict.status}{reasons}"
    return line.replace(NBSP, " ")


def say(reason: Reason) -> str:
    """A reason as part of a sentence, when it has no figure in the unit of a budget."""
    return _SENTENCES[reason.kind](reason)


def first_line(found: FloorComparison, name: str) -> str:
    """The sentence every report begins with: whether a model beats the linear floor by more than chance."""
    verb = "beats" if found.is_beaten else "does NOT beat"
    ours, theirs = (show_value(mean, found.metric).replace(NBSP, " ") for mean in (found.mean, found.floor_mean))
    return (
        f"{capitalized(name)} {verb} the linear floor (TF-IDF and a linear classifier) by more than chance: "
        f"{found.metric.title} {ours} against {theirs} on {found.examples} test rows, {found.won} rows won and "
        f"{found.lost} lost, one-sided {found.test} p = {found.chance:.2g}."
    )


def headline(verdict: Verdict, day: str = "") -> str:
    """The verdict as one sentence, with the exceptions that are in force on a day; without one with all."""
    excused = [one for one in verdict.budgets if one.required and not one.decides(day)]
    more = f"; {len(excused)} more not kept and accepted for now" if excused else ""
    return _headline([one for one in verdict.budgets if one.decides(day)], verdict) + more


def _headline(required: Sequence[BudgetVerdict], verdict: Verdict) -> str:
    status = verdict.status
    count = sum(one.status is status for one in required)
    if not required:
        return "No target is required, so nothing was decided"
    if verdict.problems and status is Status.NOT_MEASURED:
        more = f", and {len(verdict.problems) - 1} more" if len(verdict.problems) > 1 else ""
        return f"Not decided, since not all evidence can be read: {verdict.problems[0]}{more}"
    of = f"of {len(required)} required budgets"
    return {
        Status.PASS: f"All {len(required)} required budgets are kept" if count > 1 else "The required budget is kept",
        Status.FAIL: f"{count} {of} {'fail' if count > 1 else 'fails'}",
        Status.INCONCLUSIVE: f"Undecided: {count} {of} {'are' if count > 1 else 'is'} inconclusive",
        Status.NOT_MEASURED: f"Not decided: {count} {of} {'were' if count > 1 else 'was'} not measured",
    }[status]


def _decimals(verdict: BudgetVerdict) -> int | None:
    return 0 if verdict.budget == CHECKS else decimals_of(verdict.unit)


def _limit(verdict: BudgetVerdict) -> str:
    return f"{verdict.limit * verdict.scale:g}{'' if verdict.unit in ('×', '') else NBSP}{verdict.unit}"


def _say(reason: Reason, verdict: BudgetVerdict) -> str:
    if reason.kind is not ReasonKind.WIDENED:
        return say(reason)
    widened = verdict.model_copy(update={"figure": reason.figure})
    return f"also with the interval widened to {show_figure(widened)} {show_figure_interval(widened)}"


# --- changes against a base ----------------------------------------------------------------------------------------

# what -> how people call more of it, and less
_MORE = {
    "time": ("slower", "faster"),
    "load": ("slower", "faster"),
    "first_call": ("slower", "faster"),
    "size": ("larger", "smaller"),
    "memory": ("more", "less"),
    "operations": ("more", "fewer"),
    "instructions": ("more", "fewer"),
}


def show_side(change: Change, value: float | None) -> str:
    """What the base has, or the head, with its unit."""
    return show_with_unit(value, change.unit, 0 if change.what == "operations" else decimals_of(change.unit))


def show_harm(change: Change) -> str:
    """'5.1 % slower', or nothing where nothing differs."""
    if change.harm is None:
        return NOTHING
    amount = show_with_unit(abs(change.harm.value), change.unit_of_harm, _decimals_of_harm(change))
    if not amount.strip("0." + NBSP + change.unit_of_harm):
        return "no change"
    more, less = _MORE.get(change.what, ("worse", "better"))
    return f"{amount} {more if change.harm.value > 0 else less}"


def show_harm_interval(change: Change) -> str:
    """From the least harm to the greatest; below 0 it is a gain."""
    return show_interval(change.harm, _decimals_of_harm(change))


def show_loss(change: Change, value: float | None) -> str:
    """A loss without a direction: noise, or what could have been seen."""
    return show_with_unit(value, change.unit_of_harm, _decimals_of_harm(change))


def is_moved(change: Change) -> bool:
    """Whether there is something to say of it: it is no pass, or it surely gained."""
    if change.status not in (Status.PASS, None) or any(one.kind is ReasonKind.RUNTIMES_APART for one in change.reasons):
        return True
    gained = -(change.tolerated or 0.0)
    return change.harm is not None and change.harm.high < min(gained, 0.0) and change.status is not None


def say_change(change: Change) -> str:
    """Target, both figures, the harm with its interval, the status and reasons, as one line that can be searched."""
    sides = f" {show_side(change, change.base)} to {show_side(change, change.head)}" if change.base is not None else ""
    interval = show_harm_interval(change)
    harm = f", {show_harm(change)}{f' {interval}' if interval else ''}" if change.harm is not None else ""
    status = "told" if change.status is None else "regression" if change.status is Status.FAIL else str(change.status)
    reasons = f" ({why_changed(change)})" if why_changed(change) else ""
    return f"{change.target}: {change.title}{sides}{harm}: {status}{reasons}".replace(NBSP, " ")


def why_changed(change: Change) -> str:
    """Reasons, and for what is undecided how long it would take."""
    told = [] if change.accepted is None else [say_accepted(change.accepted)]
    told += [say(reason) for reason in change.reasons]
    if change.status is Status.INCONCLUSIVE and change.harm is not None:
        would = (
            f"would be seen from {show_loss(change, change.could_see)} on, asked were {show_loss(change, change.seen)}"
        )
        needed = change.seconds_needed
        told.append(f"{would}; about {show(needed, 0)} s of measuring would do" if needed is not None else would)
    return "; ".join(told)


def compared_headline(comparison: Comparison) -> str:
    """A comparison as one sentence."""
    required = [change for change in comparison.changes if change.required and change.accepted is None]
    counts = {status: sum(change.status is status for change in required) for status in Status}
    against = f"against {comparison.base}"
    missing = len(comparison.required_not_compared)
    if counts[Status.FAIL]:
        plural = "s" if counts[Status.FAIL] > 1 else ""
        return f"{counts[Status.FAIL]} regression{plural} {against}"
    if counts[Status.INCONCLUSIVE]:
        return f"Undecided {against}: {counts[Status.INCONCLUSIVE]} of {len(required)} figures may be worse or not"
    if missing:
        return f"Cannot compare {missing} required target{'s' if missing > 1 else ''} {against}"
    if counts[Status.NOT_MEASURED]:
        return f"Not measured {against}: {counts[Status.NOT_MEASURED]} of {len(required)} figures"
    accepted = sum(change.required and change.accepted is not None for change in comparison.changes)
    if not counts[Status.PASS] and not accepted:
        return f"Nothing was compared {against}"
    return f"No regression {against}{f' but the {accepted} that are accepted for now' if accepted else ''}"


def _decimals_of_harm(change: Change) -> int | None:
    return {"%": 1, "points": 2, "": 0}.get(change.unit_of_harm)


# --- reasons -----------------------------------------------------------------------------------------------------

_ABSENT = {
    "score": "there is no score",
    "floors": "the floors were not measured",
    "measurement": "there is no measurement",
    "reference": "no reference: the teacher was not exported to this target's format",
    "exported reference": "the exported teacher that it was timed beside cannot be read; run `dvc repro` to export it",
    "artefact": "there is no artefact",
    "examination": "there is no examination",
}
_STAND_IN = {
    "score": "answered by a stand-in",
    "measurement": "executed by a stand-in, whose speed and memory say nothing",
}


def _figure(reason: Reason) -> Interval:
    assert reason.figure is not None
    return reason.figure


def _number(value: str | float | None) -> float:
    assert isinstance(value, int | float)
    return value


def _short(digest: str | float | None) -> str:
    return f"{str(digest)[:16]}…"


def _noisy(reason: Reason) -> str:
    ratio = _figure(reason)
    return (
        f"the runner is unfit: it timed a model at {ratio.value:.3f}x of itself "
        f"[{ratio.low:.3f}, {ratio.high:.3f}]; measure again on a quieter machine"
    )


def _advice(reason: Reason) -> str:
    if reason.expected is None:
        return "too close to the limit to settle"
    needed = _number(reason.expected)
    if reason.evidence == "score":
        return f"about {round(needed, -1):,.0f} test rows would settle it"
    return f"about {needed:.1f} times the samples would settle it"


def _clocks(reason: Reason) -> str:
    cpu, wall = _number(reason.found), _number(reason.expected)
    cause = "preemption, waiting, or work off the CPU" if cpu < wall else "a spinning thread pool?"
    return f"the clocks disagree: median {wall:.3g} ms on the wall, {cpu:.3g} ms of CPU time ({cause})"


# Every kind but WIDENED, which is in the unit of its budget.
_SENTENCES: dict[ReasonKind, Callable[[Reason], str]] = {
    ReasonKind.MISSING: lambda r: r.detail or _ABSENT[r.evidence or ""],
    ReasonKind.ANOTHER_TARGET: lambda r: (
        f"found the {r.evidence} of target '{r.found}', expected '{r.expected}'; run `dvc repro` to make it again"
    ),
    ReasonKind.ANOTHER_ARTEFACT: lambda r: (
        f"found the {r.evidence} of artefact {_short(r.found)}, expected {_short(r.expected)}; "
        "run `dvc repro` to make it again"
    ),
    ReasonKind.ANOTHER_REFERENCE: lambda r: (
        f"measured against reference {_short(r.found)}, expected {_short(r.expected)}; run `dvc repro` to measure again"
    ),
    ReasonKind.ANOTHER_SOURCE: lambda r: (
        f"the {r.evidence} was made from {r.detail} {_short(r.found)}, expected {_short(r.expected)}; "
        "run `dvc repro` to make it again"
    ),
    ReasonKind.ANOTHER_SPLIT: lambda r: (
        f"found answers to {r.found:.0f} test rows, expected {r.expected:.0f}; run `dvc repro` to score again"
    ),
    ReasonKind.STAND_IN: lambda r: f"{_STAND_IN[r.evidence or '']}: {r.detail}",
    ReasonKind.TOO_FEW_EXAMPLES: lambda r: (
        f"too few examples: found {r.found:.0f} test rows, at least {r.expected:.0f} are needed"
    ),
    ReasonKind.CLASSES_WITHOUT_ROWS: lambda r: f"too few examples: no test row of class {r.found}",
    ReasonKind.TOO_FEW_SAMPLES: lambda r: r.detail or "",
    ReasonKind.NO_TWINS: lambda r: f"nobody knows how noisy the run was: {r.detail}",
    ReasonKind.NOISY_RUNNER: _noisy,
    ReasonKind.STRADDLES: _advice,
    ReasonKind.SLOW_ON_THE_WALL: lambda r: (
        f"it passes by CPU time, but is {show(_figure(r).value)}{r.detail} {show_interval(r.figure)} on the wall clock"
    ),
    ReasonKind.DOES_NOT_BITE: lambda r: (
        "does not bite: "
        + ("the linear floor" if r.evidence == "floors" else "a figure twice as bad")
        + " would pass too"
    ),
    ReasonKind.WORST_SLICE: lambda r: (
        f"{r.evidence} is the worst of {_number(r.expected):.0f}{f', {r.detail}' if r.detail else ''}"
    ),
    ReasonKind.SAME_FILE: lambda r: "the same file, byte for byte",
    ReasonKind.OTHER_RUNTIME: lambda r: (
        f"the base is on record with {r.expected} and was executed in {r.found}: what the runtime itself changed is "
        "not in these figures; where an environment can hold the old one, give its Python as --base-python"
    ),
    ReasonKind.NO_RUNTIME_ON_RECORD: lambda r: (
        f"no record says which version the base's scores were made with; both were executed in {r.found}"
    ),
    ReasonKind.RUNTIMES_APART: lambda r: (
        f"the base was executed in {r.expected}, this version in {r.found}, in whole processes by turns"
    ),
    ReasonKind.SLICE_LOST: lambda r: (
        f"{r.evidence} lost {show(r.found, 1)}{r.detail} (p = {_number(r.expected):.2g}, all slices counted)"
    ),
    ReasonKind.CHECK: lambda r: f"{r.evidence}: {r.detail}",
    ReasonKind.CHECK_NOT_MADE: lambda r: f"{r.evidence}, not made: {r.detail}",
    ReasonKind.TWINS_DIFFER: lambda r: (
        f"ratios are off by about {abs(_figure(r).value - 1):.1%}: "
        f"a model was timed at {_figure(r).value:.3f}x of itself"
    ),
    ReasonKind.CLOCKS_DISAGREE: _clocks,
    ReasonKind.CPU_STOLEN: lambda r: (
        f"the host took {r.found:.1f} CPU seconds away during {r.expected:.1f} s of measuring"
    ),
}
