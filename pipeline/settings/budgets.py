"""Every budget that a target may have: what it limits, in which unit, which side is good, what evidence it takes.

The one table of budgets, from which judging, the report and the documentation take units, sides and confidence. Only
how a figure is computed stands elsewhere, in `eval/budgets.py`, since it takes samples and statistics.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from pipeline.base.records import Metric
from pipeline.settings.base import Settings

Side = Literal["at least", "at most"]
Evidence = Literal["score", "floors", "measurement", "reference", "artefact", "examination"]

# Each end of an interval is a one-sided bound at this confidence (measuring.md, B3 and B5).
OF_SCORES, OF_TIMINGS = 0.95, 0.99
# Units that are those of the task's metric, and of a difference of two of its values.
METRIC, DIFFERENCE = "metric", "difference"
CHECKS = "failed_checks"  # judged beside the budgets, for every target


@dataclass(frozen=True)
class Budget:
    """What one budget means. The number in params.yaml times `scale` has the unit: 0.95 is shown as 95 %."""

    title: str  # {metric} stands for the title of the task's metric
    side: Side  # on which side of its limit the figure must be
    unit: str
    evidence: tuple[Evidence, ...]  # all of it is needed; the first decides how certain the figure is
    confidence: float | None = None  # None: the figure is exact
    scale: float = 1.0

    def for_metric(self, metric: Metric) -> "Budget":
        """The budget of a task that is judged by this metric; a loss must be at most what an accuracy is at least."""
        title = self.title.format(metric=metric.title)
        if self.unit == METRIC:
            side: Side = "at least" if metric.is_greater_better else "at most"
            return replace(self, title=title, side=side, unit=metric.unit, scale=metric.scale)
        unit = metric.unit_of_differences if self.unit == DIFFERENCE else self.unit
        return replace(self, title=title, unit=unit)


class Budgets(Settings):
    """Limits a target must keep; null or absent: not judged."""

    score: Annotated[float | None, Budget("{metric}", "at least", METRIC, ("score",), OF_SCORES)] = Field(
        default=None,
        description="Least of the task's metric on test: of accuracy a share, 0 to 1. The most, where less is better.",
    )
    score_drop: Annotated[
        float | None, Budget("{metric} behind the teacher", "at most", DIFFERENCE, ("score",), OF_SCORES)
    ] = Field(
        default=None, ge=0, description="Most that the metric may be worse than the teacher's: of accuracy in points."
    )
    quantization_drop: Annotated[
        float | None, Budget("{metric} behind the float student", "at most", DIFFERENCE, ("score",), OF_SCORES)
    ] = Field(
        default=None,
        ge=0,
        description="Most that the metric may be worse than that of the student it was exported from.",
    )
    agreement: Annotated[
        float | None, Budget("agreement with the student", "at least", "%", ("score",), OF_SCORES, 100.0)
    ] = Field(default=None, ge=0, le=1, description="Least share of test rows answered as the student does.")
    floor_margin: Annotated[
        float | None,
        Budget("{metric} ahead of the linear floor", "at least", DIFFERENCE, ("score", "floors"), OF_SCORES),
    ] = Field(
        default=None,
        description="Least that the metric is better than the linear floor's (TF-IDF and a linear classifier).",
    )
    worst_slice: Annotated[
        float | None, Budget("{metric} of the worst slice", "at least", METRIC, ("score", "floors"), OF_SCORES)
    ] = Field(
        default=None,
        description="Least of the task's metric on each class and each slice of test by itself, of 20 rows or more.",
    )
    speedup_vs_teacher: Annotated[
        float | None, Budget("speed-up over the teacher", "at least", "×", ("measurement", "reference"), OF_TIMINGS)
    ] = Field(
        default=None, gt=0, description="Least ratio of the teacher's latency to this one's, same runtime, same run."
    )
    p50_ms: Annotated[float | None, Budget("median latency", "at most", "ms", ("measurement",), OF_TIMINGS)] = Field(
        default=None, gt=0, description="Most milliseconds for the median call."
    )
    p90_ms: Annotated[
        float | None, Budget("90th percentile of latency", "at most", "ms", ("measurement",), OF_TIMINGS)
    ] = Field(default=None, gt=0, description="Most milliseconds for the 90th percentile.")
    load_ms: Annotated[float | None, Budget("load time", "at most", "ms", ("measurement",), OF_TIMINGS)] = Field(
        default=None, gt=0, description="Most milliseconds to load the artefact."
    )
    memory_mb: Annotated[float | None, Budget("memory added", "at most", "MB", ("measurement",), OF_TIMINGS)] = Field(
        default=None, gt=0, description="Most megabytes (10^6) of memory a process adds."
    )
    size_mb: Annotated[float | None, Budget("size on disk", "at most", "MB", ("artefact",))] = Field(
        default=None, gt=0, description="Most megabytes (10^6 bytes) on disk."
    )


# By name, in the order they are reported.
TABLE: dict[str, Budget] = {
    **{
        name: next(one for one in field.metadata if isinstance(one, Budget))
        for name, field in Budgets.model_fields.items()
    },
    CHECKS: Budget("checks that failed", "at most", "", ("examination",)),
}
