"""What a comparison found: its record, its table and its plot."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from eval.statistics import seeds_difference
from eval.wording import show_value
from pipeline import tasks
from pipeline.base import records
from pipeline.base.errors import SettingsError
from pipeline.base.files import write_atomically
from pipeline.base.records import Card, Floors, Interval, Metric, Record, open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.prepared import TEST_ANSWERS, read_encoded
from stages.comparing.methods_file import BASELINE, Job, MethodsFile
from stages.comparing.places import Places
from stages.reporting.drawing import BLUE, INK, MUTED, ORANGE, STYLE


class MethodResult(Record):
    """One method over its seeds."""

    about: str
    seeds: tuple[int, ...]
    steps: int
    parameters: int
    dev_score: tuple[float, ...]  # one for each seed
    test_score: tuple[float, ...]
    # gained on logits only, on test, in the unit of the metric's differences
    difference: Interval | None
    seconds: tuple[float | None, ...]  # None: the run was interrupted and went on
    peak_mb: tuple[float, ...]
    # nats, from the nearest head of the mapped teacher layer, means over seeds
    attention_before: float
    attention_after: float


class Comparison(Record):
    """Everything the table shows."""

    recipe: str
    # of dev_score, test_score and the like
    metric: Metric
    test_rows: int
    student: dict[str, Any]
    training: dict[str, Any]
    teacher_score: float
    teacher_parameters: int
    linear_score: float
    # between seeds, pooled over methods with two seeds or more; None when there is none
    seed_sd: float | None
    device: str
    methods: dict[str, MethodResult]


def collect(recipe: str, methods: MethodsFile, finished: Sequence[Job], places: Places, settings: Any) -> Comparison:
    """The record of every finished run.

    Args:
        recipe: the recipe's name.
        methods: the list that is compared.
        finished: runs to count.
        places: where they lie.
        settings: the effective settings of the baseline.
    """
    data = Workspace(places.data(settings))
    _, test = read_encoded(data, "test", settings.data.max_length)
    task = tasks.of(settings, data.data)
    runs: dict[str, list[tuple[int, Card, dict[str, Any], np.ndarray]]] = {}
    for job in finished:
        folder = places.run(job.method, job.seed)
        cost = json.loads((folder / "cost.json").read_text("utf-8"))
        card = open_folder(folder / "model", "student")
        answers = json.loads((folder / "model" / TEST_ANSWERS).read_text("utf-8"))
        runs.setdefault(job.method, []).append((job.seed, card, cost, task.values(answers, test.targets)))
    sd, df = _pooled_sd([[float(right.mean()) for *_, right in found] for found in runs.values()])
    baseline = np.stack([right for *_, right in runs[BASELINE]]) if BASELINE in runs else None
    results = {}
    for name, found in ((name, runs[name]) for name in methods.methods if name in runs):
        facts, costs = [card.facts for _, card, _, _ in found], [cost for _, _, cost, _ in found]
        ours = np.stack([right for *_, right in found])
        results[name] = MethodResult(
            about=methods.methods[name].about,
            seeds=tuple(seed for seed, *_ in found),
            steps=facts[0]["steps"],
            parameters=facts[0]["parameters"],
            dev_score=tuple(fact["dev_score"] for fact in facts),
            test_score=tuple(fact["test_score"] for fact in facts),
            difference=None if baseline is None or name == BASELINE else seeds_difference(ours, baseline, sd, df),
            seconds=tuple(cost["seconds"] for cost in costs),
            peak_mb=tuple(cost["peak_mb"] for cost in costs),
            attention_before=statistics.mean(cost["attention_distance"]["before"] for cost in costs),
            attention_after=statistics.mean(cost["attention_distance"]["after"] for cost in costs),
        )
    whole = Workspace(places.workspace)
    teacher = open_folder(whole.teacher, "teacher").facts
    floors = records.read(Floors, whole.floors)
    return Comparison(
        recipe=recipe,
        metric=task.METRIC,
        test_rows=len(test),
        student=settings.student.model_dump(mode="json", by_alias=True),
        training=settings.distill.training.model_dump(mode="json"),
        teacher_score=teacher["test_score"],
        teacher_parameters=teacher["parameters"],
        linear_score=next(f.primary.value for f in floors.floors if f.name == records.LINEAR),
        seed_sd=sd,
        device=next(cost["device"] for found in runs.values() for _, _, cost, _ in found),
        methods=results,
    )


def best(dev_score: Mapping[str, float], count: int, metric: Metric) -> list[str]:
    """The names with the best score on dev; test is not looked at."""
    sign = -1 if metric.is_greater_better else 1
    return sorted(dev_score, key=lambda name: (sign * dev_score[name], name))[:count]


def _pooled_sd(scores: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    several = [found for found in scores if len(found) > 1]
    df = sum(len(found) - 1 for found in several)
    if not df:
        return None, 0
    return math.sqrt(sum((len(found) - 1) * statistics.variance(found) for found in several) / df), df


def write(comparison: Comparison, places: Places) -> None:
    """Writes record, table and plot."""
    records.write(comparison, places.record)
    write_atomically(places.table, table(comparison))
    write_atomically(places.plot, plot(comparison))


def read(path: Path) -> Comparison:
    """A record written by `write`."""
    if not path.is_file():
        raise SettingsError(f"{path}: no such record; `decant methods` writes one")
    return records.read(Comparison, path)


def table(comparison: Comparison) -> str:
    """The record as Markdown, best mean first, controls among the methods."""
    metric = comparison.metric
    rows = sorted(
        comparison.methods.items(),
        key=lambda item: statistics.mean(item[1].test_score),
        reverse=metric.is_greater_better,
    )
    lines = "".join(_row(name, result, metric) for name, result in rows)
    student, training = comparison.student, comparison.training
    sizes = f"{student['layers']} layers" + (f", {student['hidden']} wide" if student["hidden"] else "")
    steps = sorted({result.steps for _, result in rows})
    seeds = (
        f"{metric.scale * comparison.seed_sd:.2f} {metric.unit_of_differences} between seeds"
        if comparison.seed_sd is not None
        else "one seed each, so what seeds add is not in the intervals"
    )
    return (
        f"**{comparison.recipe}**: {comparison.test_rows:,} test rows; teacher "
        f"{show_value(comparison.teacher_score, metric)} "
        f"({comparison.teacher_parameters / 1e6:.1f} M parameters), bag of words "
        f"{show_value(comparison.linear_score, metric)}. "
        f"Every student: {sizes}, {rows[0][1].parameters / 1e6:.2f} M parameters, "
        f"{' or '.join(f'{n:,}' for n in steps)} steps of {training['batch_size']} rows at a learning rate of "
        f"{training['learning_rate']:g}, unless a method changes it. Standard deviation: {seeds}. Intervals are not "
        "corrected for the number of methods, and those with several seeds were the best on dev with their first.\n\n"
        f"| method | test {metric.title} | seeds | against logits only, {metric.unit_of_differences} (95 %) | "
        "training, s | peak memory, MB | "
        "attention, nats from the teacher's: before → after |\n|---|---|---|---|---|---|---|\n" + lines
    )


def _row(name: str, result: MethodResult, metric: Metric) -> str:
    score = show_value(statistics.mean(result.test_score), metric)
    if len(result.test_score) > 1:
        score += f" ± {metric.scale * statistics.stdev(result.test_score):.2f}"
    gain = "–"
    if result.difference is not None:
        low, high = result.difference.low, result.difference.high
        # One seed says nothing of what another would have given.
        verdict = (
            "one seed" if len(result.seeds) < 2 else "helps" if low > 0 else "hurts" if high < 0 else "no difference"
        )
        gain = f"{result.difference.value:+.2f} [{low:+.2f}, {high:+.2f}], {verdict}"
    known = [seconds for seconds in result.seconds if seconds is not None]
    return (
        f"| {name} | {score} | {len(result.seeds)} | {gain} | "
        f"{f'{statistics.mean(known):.0f}' if known else 'not measured'} | {max(result.peak_mb):,.0f} | "
        f"{result.attention_before:.3f} → {result.attention_after:.3f} |\n"
    )


def plot(comparison: Comparison) -> str:
    """The score on test of every method and seed beside teacher and bag of words, as SVG."""
    import io

    from matplotlib.figure import Figure

    metric = comparison.metric
    rows = sorted(
        comparison.methods.items(),
        key=lambda item: statistics.mean(item[1].test_score),
        reverse=not metric.is_greater_better,
    )
    with mpl.rc_context({**STYLE, "svg.hashsalt": comparison.recipe, "svg.fonttype": "path"}):
        figure = Figure(figsize=(8, 1.2 + 0.3 * len(rows)), dpi=72, layout="constrained", facecolor="white")
        axes = figure.subplots()
        for place, (name, result) in enumerate(rows):
            color = ORANGE if name in ("logits_only", "no_teacher") else BLUE
            points = [metric.scale * score for score in result.test_score]
            axes.plot(points, [place] * len(points), "o", color=color, alpha=0.5, markersize=5)
            axes.plot([statistics.mean(points)], [place], "|", color=color, markersize=16, markeredgewidth=3)
        for value, label in ((comparison.teacher_score, "teacher"), (comparison.linear_score, "bag of words")):
            axes.axvline(metric.scale * value, color=MUTED, linestyle="--", linewidth=1)
            axes.text(metric.scale * value, len(rows) - 0.4, label, color=MUTED, ha="center", va="bottom", fontsize=10)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows], color=INK)
        axes.set_ylim(-0.7, len(rows) + 0.3)
        axes.set_xlabel(
            f"test {metric.title}, {metric.unit} ({comparison.recipe}; dots: seeds, bars: means; orange: controls)"
        )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
