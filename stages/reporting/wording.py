"""How numbers and budgets are said to people: units, sensible digits, one sign for minus. Imports nothing heavy."""

import math
from dataclasses import dataclass
from typing import Any

from pipeline.base.records import BudgetVerdict, Interval, Status

NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
# A sign beside each word, so that colour is not the only carrier.
MARKS = {Status.PASS: "✓", Status.FAIL: "✗", Status.INCONCLUSIVE: "≈", Status.NOT_MEASURED: "○"}


@dataclass(frozen=True)
class BudgetWords:
    """How one budget is said. `scale` turns the recorded number into the one that is shown."""

    label: str
    limit: str  # "at least" or "at most"
    unit: str
    scale: float = 1.0
    decimals: int | None = None  # None: three significant digits


# Every field of pipeline.settings.params.Budgets, and the checks; in the same words everywhere.
BUDGETS = {
    "accuracy": BudgetWords("accuracy", "at least", "%", 100, 1),
    "accuracy_drop_points": BudgetWords("accuracy lost to the teacher", "at most", "points", 1, 2),
    "quantization_drop_points": BudgetWords("accuracy lost to the float student", "at most", "points", 1, 2),
    "agreement": BudgetWords("agreement with the student", "at least", "%", 100, 1),
    "floor_margin_points": BudgetWords("accuracy above the linear floor", "at least", "points", 1, 2),
    "speedup_vs_teacher": BudgetWords("speed-up over the teacher", "at least", "×"),
    "p50_ms": BudgetWords("median latency", "at most", "ms"),
    "p90_ms": BudgetWords("90th percentile of latency", "at most", "ms"),
    "load_ms": BudgetWords("load time", "at most", "ms"),
    "memory_mb": BudgetWords("memory added", "at most", "MB"),
    "size_mb": BudgetWords("size on disk", "at most", "MB"),
    "failed_checks": BudgetWords("checks that failed", "at most", "", 1, 0),
}


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


def show_limit(verdict: BudgetVerdict) -> str:
    """'at most 20.0 MB'."""
    words = BUDGETS[verdict.budget]
    limit = f"{verdict.limit * words.scale:g}"
    return f"{words.limit} {limit}{'' if words.unit in ('×', '') else NBSP}{words.unit}"


def show_figure(verdict: BudgetVerdict) -> str:
    """The figure with its unit, without the interval."""
    words = BUDGETS[verdict.budget]
    value = verdict.figure.value * words.scale if verdict.figure is not None else None
    return show_with_unit(value, words.unit, words.decimals)


def show_figure_interval(verdict: BudgetVerdict) -> str:
    """The interval of the figure, in its unit."""
    words = BUDGETS[verdict.budget]
    return show_interval(verdict.figure, words.decimals, words.scale)


def why(verdict: BudgetVerdict) -> str:
    """The part of the reason that a table does not say in its other columns; often nothing."""
    _, _, note = verdict.reason.partition(f": {verdict.status} (")
    if note:
        return note.removesuffix(")")
    return verdict.reason if verdict.figure is None else ""


def headline(status: Status, verdicts: tuple[BudgetVerdict, ...]) -> str:
    """The verdict as one sentence."""
    required = [verdict for verdict in verdicts if verdict.required]
    count = sum(verdict.status is status for verdict in required)
    if not required:
        return "No target is required, so nothing was decided"
    of = f"of {len(required)} required budgets"
    return {
        Status.PASS: f"All {len(required)} required budgets are kept" if count > 1 else "The required budget is kept",
        Status.FAIL: f"{count} {of} {'fail' if count > 1 else 'fails'}",
        Status.INCONCLUSIVE: f"Undecided: {count} {of} {'are' if count > 1 else 'is'} inconclusive",
        Status.NOT_MEASURED: f"Not decided: {count} {of} {'were' if count > 1 else 'was'} not measured",
    }[status]
