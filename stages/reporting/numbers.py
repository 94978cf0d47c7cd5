"""The report for machines: metrics.json for `dvc metrics`, and tables for `dvc plots`.

A figure that was not measured is left out, so that nothing in metrics.json is other than a finite number. Plot tables
always exist, if only with their header, since dvc.yaml names them.
"""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.base.records import Interval, Metric
from stages.reporting.changes import confusion_changes
from stages.reporting.evidence import DEV_SCORE, Evidence
from stages.reporting.models import ModelRow, calls_ms

SIGNIFICANT = 6  # digits kept, so that a diff shows no noise of the last bits
QUANTILES = range(1, 101)  # percent; a distribution as a hundred points in place of thousands of calls

# Name in metrics.json -> field of a ModelRow. The score has the name of the task's metric.
INTERVALS = {
    "score_drop": "drop",
    "quantization_drop": "quantization_drop",
    "agreement": "agreement",
    "p50_ms": "p50_ms",
    "p90_ms": "p90_ms",
    "speedup_vs_teacher": "speedup",
    "load_ms": "load_ms",
    "first_call_ms": "first_call_ms",
    "memory_mb": "memory_mb",
}


def metrics(evidence: Evidence, rows: Sequence[ModelRow]) -> dict[str, Any]:
    """Nested numbers: what each model scores, weighs and takes, and how many budgets stand how."""
    found: dict[str, Any] = {"floors": {}, "teacher": {}, "student": {}, "targets": {}}
    for row in rows:
        values = _row_metrics(row, evidence.metric)
        if row.role == "floor":
            found["floors"][row.name.removesuffix(" floor")] = values
        elif row.role == "target":
            found["targets"][row.name] = values
        else:
            found[row.role] = values
    counts = Counter(verdict.status for verdict in evidence.verdicts)
    found["budgets"] = {status.value.replace(" ", "_"): count for status, count in sorted(counts.items())}
    return found


def plots(evidence: Evidence, rows: Sequence[ModelRow]) -> dict[str, str]:
    """File name -> CSV."""
    entries = evidence.student.log if evidence.student is not None else ()
    return {
        "score_by_size.csv": _csv(
            ("series", "size_mb", "score", "low", "high"),
            ((r.name, r.size_bytes / 1e6, *_ends(r.score)) for r in rows if r.size_bytes and r.score),
        ),
        "score_by_latency.csv": _csv(
            ("series", "p50_ms", "score", "low", "high"),
            ((r.name, r.p50_ms.value, *_ends(r.score)) for r in rows if r.p50_ms and r.score),
        ),
        "loss_terms.csv": _csv(
            ("series", "step", "value"),
            (
                (key.removeprefix("term_"), entry["step"], entry[key])
                for entry in entries
                for key in sorted(entry)
                if key.startswith("term_") and "step" in entry
            ),
        ),
        "dev_score.csv": _csv(
            ("step", "score"),
            ((entry["step"], entry[DEV_SCORE]) for entry in entries if {"step", DEV_SCORE} <= set(entry)),
        ),
        "latency_distribution.csv": _csv(("series", "percent", "latency_ms"), _latency_rows(evidence)),
        "ledger.csv": _csv(
            ("change", "examples"),
            (
                (f"{hop.before} to {hop.after}, {direction}", count)
                for hop in evidence.ledger.hops
                for direction, count in (("worse", hop.worse), ("better", hop.better))
            ),
        ),
        "confusion_changes.csv": _csv(("confusion", "change", "teacher", "shipped"), _confusion_rows(evidence)),
        "answers.csv": _csv(("actual", "answered"), _answer_rows(evidence)),
    }


def _row_metrics(row: ModelRow, metric: Metric) -> dict[str, float]:
    values = {name: _value(getattr(row, attribute)) for name, attribute in INTERVALS.items()}
    values |= {
        metric.name: _value(row.score),
        **{name.lower().replace(" ", "_"): value for name, value in row.further.items()},
    }
    values["parameters"] = row.parameters
    values["size_mb"] = row.size_bytes / 1e6 if row.size_bytes is not None else None
    return {
        name: round_number(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _value(figure: Interval | None) -> float | None:
    return figure.value if figure is not None else None


def round_number(value: float) -> float:
    """A number with the digits that carry meaning; whole ones stay whole."""
    return value if isinstance(value, int) else float(f"{value:.{SIGNIFICANT}g}")


def _ends(figure: Interval | None) -> tuple[float, float, float]:
    assert figure is not None
    return figure.value, figure.low, figure.high


def _latency_rows(evidence: Evidence) -> Iterable[tuple[str, int, float]]:
    for one in evidence.targets:
        for name, calls in (
            (one.name, calls_ms(one.measurement, "candidate")),
            (f"teacher beside {one.name}", calls_ms(one.measurement, "reference")),
        ):
            values = sorted(calls)
            for percent in QUANTILES if values else ():
                yield name, percent, values[math.ceil(percent / 100 * len(values)) - 1]


def _confusion_rows(evidence: Evidence) -> Iterable[tuple[str, int, int, int]]:
    for one in confusion_changes(evidence):
        yield f"{one.actual} as {one.answered}", one.change, one.before, one.after


def _answer_rows(evidence: Evidence) -> Iterable[tuple[str, str]]:
    if evidence.shipped is None or not evidence.rows.groups:
        return
    yield from zip(evidence.rows.groups, map(evidence.show, evidence.shipped.score.answers), strict=True)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([round_number(v) if isinstance(v, float) else v for v in row] for row in rows)
    return buffer.getvalue()
