"""index.html: one file that needs no network, for a phone or a wide screen, by day or by night.

What is computed for the page is computed here; the template only places it. Every text that comes from data is escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from eval import figures as timing
from eval import wording
from eval.budgets import worst
from pipeline.base.records import LINEAR, BudgetVerdict, Interval, Metric, Reason, Status, Verdict
from pipeline.settings.budgets import TABLE
from stages.reporting import figures
from stages.reporting.changes import Confusion, Flip, confusion_changes, flipped
from stages.reporting.evidence import DEV_SCORE, Evidence, TargetEvidence
from stages.reporting.models import ModelRow, calls_ms, figure_or_none

TEMPLATE = "page.html.jinja"
FILTERS = ("show", "show_whole", "show_percent", "show_with_unit", "show_interval", "show_megabytes", "show_millions")
WORDS = ("show_value", "show_limit", "show_figure", "show_figure_interval", "why", "say", "decimals_of", "capitalized")

# How the figures of the page were obtained: figure, method. One place, so that no figure goes without.
METHODS = (
    (
        "{metric}",
        "mean over test rows of what the exported file answers in its own runtime; Clopper-Pearson where a row is "
        "right or wrong, else Student's; 95 %",
    ),
    (
        "{metric} behind and ahead",
        "the same rows before and after, paired; of right and wrong answers the normal interval from 25 changed ones, "
        "else Tango's; of other values Student's",
    ),
    ("agreement", "share of test rows answered as the float student answers them in PyTorch; Clopper-Pearson"),
    (
        "floor",
        "TF-IDF with a linear classifier, trained on train; compared on the same test rows, paired",
    ),
    (
        "latency",
        "one text a call at the data's own lengths; a percentile of each process, Student's interval over processes, "
        "each end at 99 %; no sample left out",
    ),
    ("speed-up", "of each process the median ratio over pairs of calls, teacher and artefact in turn (A B B A)"),
    (
        "twins",
        "both timed against second sessions of themselves in the same processes; if they differ, nothing is sure",
    ),
    ("load, first call, memory", "median over fresh processes that hold this one model"),
    ("size", "bytes of the exported artefact, without tokenizer; 1 MB is 10^6 bytes"),
    ("tokenizing", "timed by itself, never part of a call"),
)


@dataclass(frozen=True)
class LatencyView:
    """How one target was timed."""

    one: TargetEvidence
    svg: str | None
    clock: str
    calls: int
    processes: int
    rounds: int
    twins: Any
    first_call_ms: Any
    warnings: tuple[Reason, ...]


@dataclass(frozen=True)
class Line:
    """A target in the first table: how its budgets stand together, and each of them, or None."""

    one: TargetEvidence
    status: Status
    cells: list[BudgetVerdict | None]


@dataclass(frozen=True)
class HopView:
    """One hop of the ledger with texts that changed hands."""

    hop: Any
    flips: list[Flip]


def render_page(evidence: Evidence, verdict: Verdict, rows: Sequence[ModelRow]) -> str:
    """The whole page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stages.reporting", ""),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,  # a card of another shape leaves a gap, not an error
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {name: getattr(wording, name) for name in FILTERS + WORDS}
    lead, separator, detail = verdict.first_line.partition(": ")
    changes = confusion_changes(evidence)
    return environment.get_template(TEMPLATE).render(
        evidence=evidence,
        verdict=verdict,
        rows=rows,
        slices=evidence.slice_rows,
        lead=lead + ("." if separator else ""),
        detail=wording.capitalized(detail),
        headline=wording.headline(verdict),
        marks=wording.MARKS,
        shorts=wording.shorts(evidence.metric),
        columns=_columns(evidence),
        matrix=_matrix(evidence),
        metric=evidence.metric,
        further=list(dict.fromkeys(name for row in rows for name in row.further)),
        keys=_key_figures(evidence, rows),
        figures={name: Markup(svg) for name, svg in _figures(evidence, rows, changes).items() if svg},
        latencies=[_latency(one) for one in evidence.targets if one.measurement.not_measured is None],
        hops=[HopView(hop, flipped(evidence, hop)) for hop in evidence.ledger.hops],
        changes=changes,
        unmeasured=_unmeasured(evidence),
        majority=next((row for row in rows if row.role == "floor" and not row.name.startswith(LINEAR)), None),
        methods=[(name.format(metric=evidence.metric.title), how) for name, how in METHODS],
        machine=_machine(evidence),
    )


def _columns(evidence: Evidence) -> list[str]:
    """Budgets that any target has, in the order of the table."""
    used = {verdict.budget for verdict in evidence.verdicts}
    return [budget for budget in TABLE if budget in used]


def _matrix(evidence: Evidence) -> list[Line]:
    lines = []
    for one in evidence.targets:
        found = {verdict.budget: verdict for verdict in one.verdicts}
        status = worst({verdict.status for verdict in one.verdicts if verdict.accepted is None})
        lines.append(Line(one, status, [found.get(budget) for budget in _columns(evidence)]))
    return lines


def _figures(evidence: Evidence, rows: Sequence[ModelRow], changes: Sequence[Confusion]) -> dict[str, str | None]:
    log = evidence.student.log if evidence.student is not None else ()
    teacher_dev = evidence.teacher.card.facts.get(DEV_SCORE) if evidence.teacher is not None else None
    return {
        "size": figures.score_by_size(rows, evidence.metric),
        "latency": figures.score_by_latency(rows, evidence.metric),
        "ledger": figures.ledger_bars(evidence.ledger.hops),
        "losses": figures.loss_terms(log),
        "dev": figures.dev_score(log, teacher_dev, evidence.metric),
        "confusions": figures.confusion_bars(
            changes, "teacher", evidence.shipped.name if evidence.shipped is not None else ""
        ),
    }


def _key_figures(evidence: Evidence, rows: Sequence[ModelRow]) -> list[tuple[str, str, str]]:
    """(name, from teacher to what ships, what that comes to) for the four figures people ask for first."""
    teacher = next((row for row in rows if row.role == "teacher"), None)
    shipped = evidence.shipped
    row = next((row for row in rows if shipped is not None and row.role == "target" and row.name == shipped.name), None)
    if teacher is None or row is None:
        return []
    keys = []
    if teacher.score and row.score and row.drop:
        keys.append(_key_score(evidence.metric, teacher.score, row.score, row.drop))
    for name, before, after, say in (
        ("Size on disk", teacher.size_bytes, row.size_bytes, wording.show_megabytes),
        ("Parameters", teacher.parameters, row.parameters, wording.show_millions),
    ):
        if before and after:
            change = f"{wording.show(before / after)}× fewer" if name == "Parameters" else ""
            keys.append((name, f"{say(before)} → {say(after)}", change or f"{wording.show(before / after)}× smaller"))
    if teacher.p50_ms and row.p50_ms and row.speedup:
        arrow = f"{wording.show(teacher.p50_ms.value)} → {wording.show_with_unit(row.p50_ms.value, 'ms')}"
        faster = f"{wording.show(row.speedup.value)}× faster {wording.show_interval(row.speedup)}"
        keys.append(("Median latency", arrow, faster))
    return keys


def _key_score(metric: Metric, teacher: Interval, shipped: Interval, drop: Interval) -> tuple[str, str, str]:
    """A change as it is read: below 0 is a loss of accuracy, and a gain where less is better."""
    arrow = f"{wording.show_value(teacher.value, metric)} → {wording.show_value(shipped.value, metric)}"
    unit, decimals = metric.unit_of_differences, wording.decimals_of(metric.unit)
    value, low, high = drop.value, drop.low, drop.high
    if metric.is_greater_better:
        value, low, high = -value, -high, -low
    change = f"{wording.show(value, decimals)} {unit}".rstrip()
    return (
        f"{wording.capitalized(metric.title)} on test",
        arrow,
        f"{change} [{wording.show(low, decimals)}, {wording.show(high, decimals)}]",
    )


def _latency(one: TargetEvidence) -> LatencyView:
    found = one.measurement
    models: dict[str, timing.Model] = {one.name: "candidate", "teacher": "reference"}
    samples = {name: calls_ms(found, model) for name, model in models.items()}
    marks = {}
    for name, model in models.items():
        percentiles = (("p50", timing.p50_ms), ("p90", timing.p90_ms))
        figures_found = ((label, figure_or_none(get, found, model=model)) for label, get in percentiles)
        marks[name] = [(label, figure) for label, figure in figures_found if figure is not None]
    series = [series for series in found.series if series.model == "candidate" and series.lengths == "data"]
    return LatencyView(
        one=one,
        svg=Markup(figures.latency_distribution(one.name, samples, marks) or ""),
        clock="CPU time" if timing.primary_clock(found) == "cpu" else "wall clock",
        calls=len(samples[one.name]),
        processes=len(series),
        rounds=len({series.round for series in series}),
        twins=figure_or_none(timing.twin_ratio, found),
        first_call_ms=figure_or_none(timing.first_call_ms, found),
        warnings=timing.find_warnings(found),
    )


def _unmeasured(evidence: Evidence) -> list[tuple[str, str, str]]:
    """(target, what, reason) of everything without a figure."""
    found = []
    for one in evidence.targets:
        for what, reason in (
            (f"{evidence.metric.title} and agreement", one.score.not_measured),
            ("latency and memory", one.measurement.not_measured),
            ("parity of the export", one.parity_not_measured),
        ):
            if reason:
                found.append((one.name, what, reason))
        found += [
            (one.name, verdict.budget, wording.why(verdict))
            for verdict in one.verdicts
            if verdict.status is Status.NOT_MEASURED and one.score.not_measured is None is one.measurement.not_measured
        ]
    return found


def _machine(evidence: Evidence) -> list[tuple[str, str]]:
    """Facts about the machine as (name, value), nested ones in one line."""
    return [(name.replace("_", " "), _flat(value)) for name, value in sorted(evidence.machine.items())]


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_flat(inner)}" for name, inner in sorted(value.items()) if inner is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(_flat, value))
    return "not known" if value is None else str(value)
