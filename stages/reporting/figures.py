"""The report's figures as SVG text, or None where there is nothing to show.

Lines and points carry their name beside them in place of a legend, and differ in marker or dash as well as in colour.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.ticker import MaxNLocator, NullLocator

from eval.ledger import Hop
from eval.wording import capitalized, say_axis, show, show_value
from pipeline.base.records import Interval, Metric
from stages.reporting.changes import Confusion
from stages.reporting.drawing import (
    BLUE,
    DASHES,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    SERIES,
    STYLE,
    clip,
    label_ends,
    log_axis,
    new_axes,
    place_labels,
    svg,
)
from stages.reporting.evidence import DEV_SCORE
from stages.reporting.models import ModelRow

ROLE_STYLE = {"floor": ("s", MUTED), "teacher": ("D", ORANGE), "student": ("o", GREEN), "target": ("o", BLUE)}


def score_by_size(rows: Sequence[ModelRow], metric: Metric) -> str | None:
    """The score on test against bytes on disk."""
    points = [(row, row.size_bytes / 1e6) for row in rows if row.size_bytes and row.score and row.role != "student"]
    return _score_against(points, metric, "size on disk, MB (log scale)", "score_by_size", "size")


def score_by_latency(rows: Sequence[ModelRow], metric: Metric) -> str | None:
    """The score on test against the median call."""
    points = [(row, row.p50_ms.value) for row in rows if row.p50_ms and row.score]
    return _score_against(points, metric, "median latency, ms (log scale)", "score_by_latency", "latency")


def ledger_bars(hops: Sequence[Hop]) -> str | None:
    """For each hop, answers that became worse to the left and answers that became better to the right."""
    if not hops:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = new_axes(height=70 + 46 * len(hops))
        widest = max(1, *(max(hop.worse, hop.better) for hop in hops))
        for y, hop in enumerate(hops):
            axes.barh(y, -hop.worse, 0.5, color=ORANGE)
            axes.barh(y, hop.better, 0.5, color=BLUE)
            axes.annotate(f"{hop.worse}", (-hop.worse, y), (-5, 0), "data", "offset points", ha="right", va="center")
            axes.annotate(f"{hop.better}", (hop.better, y), (5, 0), "data", "offset points", ha="left", va="center")
        axes.axvline(0, color=INK, linewidth=1)
        axes.set(xlim=(-1.3 * widest, 1.3 * widest), ylim=(len(hops) - 0.4, -0.9))
        axes.set_yticks(range(len(hops)), [f"{hop.before} →\n{hop.after}" for hop in hops])
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.grid(False)
        axes.xaxis.set_major_locator(NullLocator())
        axes.spines[:].set_visible(False)
        axes.text(-0.04 * widest, -0.62, "← became worse", ha="right", color=MUTED)
        axes.text(0.04 * widest, -0.62, "became better →", ha="left", color=MUTED)
        words = "; ".join(f"{h.before} to {h.after}: {h.worse} became worse, {h.better} better" for h in hops)
        return svg(figure, "ledger", f"Answers that changed hands. {words}.")


def loss_terms(log: Sequence[dict[str, Any]]) -> str | None:
    """Each loss term, unweighted, against the step."""
    entries = [entry for entry in log if "step" in entry and "loss" in entry]
    terms = sorted({key for entry in entries for key in entry if key.startswith("term_")})
    lines = {
        term.removeprefix("term_"): [(e["step"], e[term]) for e in entries if e.get(term, 0) > 0] for term in terms
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    return _curves(lines, "value (log scale)", "loss_terms", "Loss terms by step", is_log=True)


def dev_score(log: Sequence[dict[str, Any]], teacher: Any, metric: Metric) -> str | None:
    """The student's score on dev against the step, with the teacher's as a line."""
    points = [(entry["step"], metric.scale * entry[DEV_SCORE]) for entry in log if {"step", DEV_SCORE} <= set(entry)]
    if not points:
        return None
    lines = {"student": points}
    if isinstance(teacher, int | float):
        lines["teacher"] = [(points[0][0], metric.scale * teacher), (points[-1][0], metric.scale * teacher)]
    title = f"{capitalized(metric.title)} on dev by step"
    return _curves(lines, say_axis(f"{metric.title} on dev", metric), "dev_score", title, is_log=False)


def latency_distribution(
    name: str, samples: Mapping[str, Sequence[float]], marks: Mapping[str, Sequence[tuple[str, Interval]]]
) -> str | None:
    """The share of calls that took at most so long, for the candidate and the teacher.

    Args:
        name: of the target.
        samples: model -> milliseconds of each call.
        marks: model -> (name, figure) of the percentiles to mark.
    """
    calls = {model: sorted(values) for model, values in samples.items() if values}
    if not calls:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = new_axes(height=270)
        log_axis(axes, [value for values in calls.values() for value in values], margin=1.6)
        words = []
        for i, (model, values) in enumerate(calls.items()):
            colour = (BLUE, ORANGE)[i % 2]
            shares = [100 * (rank + 1) / len(values) for rank in range(len(values))]
            axes.step(values, shares, where="post", color=colour, linestyle=DASHES[i])
            for label, mark in marks.get(model, []):
                height = 50 if label == "p50" else 90
                axes.plot(mark.value, height, "o", color=colour, markersize=7, markeredgecolor=INK)
                axes.annotate(
                    f"{label} {show(mark.value)}", (mark.value, height), (9, -5), "data", "offset points", va="top"
                )
                words.append(f"{model} {label} {show(mark.value)} ms")
            # left of the candidate and right of the teacher, where their percentiles leave room
            share, dx, ha = ((0.7, -9, "right"), (0.25, 9, "left"))[i % 2]
            at = (values[int(share * len(values))], 100 * share)
            axes.annotate(model, at, (dx, 0), "data", "offset points", color=colour, weight="bold", ha=ha, va="center")
        axes.set(ylim=(0, 104), xlabel="latency of a call, ms (log scale)", ylabel="calls done, %")
        axes.set_yticks([0, 50, 90, 100])
        return svg(figure, f"latency_{name}", f"Latency of '{name}': {', '.join(words)}.")


def confusion_bars(changes: Sequence[Confusion], before: str, after: str) -> str | None:
    """How often a class was taken for another by the teacher and by what ships."""
    if not changes:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = new_axes(height=84 + 30 * len(changes))
        for y, change in enumerate(changes):
            axes.plot([change.before, change.after], [y, y], color=MUTED, linewidth=1.5)
            axes.plot(change.before, y, "D", color=ORANGE, markersize=7)
            axes.plot(change.after, y, "o", color=BLUE, markersize=8)
        axes.set(ylim=(len(changes) - 0.4, -1.1), xlabel="test rows", xlim=(-0.5, None))
        axes.set_yticks(range(len(changes)), [clip(f"{c.actual} → {c.answered}", 34) for c in changes], fontsize=10.5)
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.grid(axis="y", visible=False)
        axes.text(0, 1.0, f"◆ {before}", transform=axes.transAxes, va="top", color=ORANGE, weight="bold")
        axes.text(0.5, 1.0, f"● {after}", transform=axes.transAxes, va="top", color=BLUE, weight="bold")
        words = "; ".join(f"{c.actual} taken for {c.answered}: {c.before} then {c.after}" for c in changes)
        return svg(figure, "confusions", f"Confusions of {before} and {after}. {words}.")


def _score_against(
    points: Sequence[tuple[ModelRow, float]], metric: Metric, x_label: str, name: str, what: str
) -> str | None:
    """Points with intervals. The majority class is far below and would flatten the rest, so it is only named."""
    shown = [(row, x) for row, x in points if not row.name.startswith("majority")]
    if not shown:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = new_axes()
        log_axis(axes, [x for _, x in shown], margin=2.0)
        places = []
        for row, x in shown:
            assert row.score is not None
            marker, colour = ROLE_STYLE[row.role]
            y, low, high = (metric.scale * end for end in (row.score.value, row.score.low, row.score.high))
            axes.plot([x, x], [low, high], color=colour, linewidth=1.2, alpha=0.6)
            axes.plot(x, y, marker, color=colour, markersize=8)
            places.append((row.name, x, y))
        axes.set(xlabel=x_label, ylabel=say_axis(f"test {metric.title}", metric))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
        place_labels(axes, places)
        words = "; ".join(f"{label} {show(x)} and {show_value(y / metric.scale, metric)}" for label, x, y in places)
        return svg(figure, name, f"Test {metric.title} against {what}: {words}.")


def _curves(
    lines: Mapping[str, list[tuple[float, float]]], y_label: str, name: str, title: str, *, is_log: bool
) -> str:
    with mpl.rc_context(STYLE):
        figure, axes = new_axes()
        if is_log:
            log_axis(axes, [y for points in lines.values() for _, y in points], axis="y")
        for i, (label, points) in enumerate(lines.items()):
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=SERIES[i % len(SERIES)], linestyle=DASHES[i % len(DASHES)], label=label)
        axes.set(xlabel="training step", ylabel=y_label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        label_ends(axes, lines)
        words = "; ".join(
            f"{label} from {show(points[0][1])} to {show(points[-1][1])}" for label, points in lines.items()
        )
        return svg(figure, name, f"{title}: {words}.")
