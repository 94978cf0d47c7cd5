"""One row for each model that the report compares: floors, teacher, student, and the artefact of every target.

Tables, figures and metrics.json all take their numbers from here, so that they cannot differ.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from eval import figures
from eval.slices import mean_by_slice
from eval.statistics import TooFewError, mean_interval
from pipeline.base.records import LINEAR, Interval, Measurement
from stages.reporting.evidence import Evidence, TargetEvidence, Trained

Role = Literal["floor", "teacher", "student", "target"]


@dataclass(frozen=True)
class ModelRow:
    """What is known of one model; None or empty where it was not measured or makes no sense."""

    name: str
    role: Role
    made_of: str
    score: Interval | None = None
    by_slice: Mapping[str, Interval] = field(default_factory=dict)
    drop: Interval | None = None
    agreement: Interval | None = None
    # other figures of the task, by name
    further: Mapping[str, float] = field(default_factory=dict)
    quantization_drop: Interval | None = None
    parameters: int | None = None
    size_bytes: int | None = None
    p50_ms: Interval | None = None
    p90_ms: Interval | None = None
    speedup: Interval | None = None
    load_ms: Interval | None = None
    first_call_ms: Interval | None = None
    memory_mb: Interval | None = None
    library_bytes: int | None = None


def compare_models(evidence: Evidence) -> list[ModelRow]:
    """Every model, floors first, then from teacher to artefacts."""
    rows = [
        ModelRow(
            name=f"{floor.name} floor",
            role="floor",
            made_of="TF-IDF and a linear classifier" if floor.name == LINEAR else "always the most common class",
            score=floor.primary,
            by_slice=_by_slice(evidence, floor.values) if floor.name == LINEAR else {},
            further=floor.further,
            size_bytes=floor.size_bytes,
            p50_ms=_exact(floor.latency_ms),
        )
        for floor in (evidence.floors.floors if evidence.floors is not None else ())
    ]
    if evidence.teacher is not None:
        rows.append(_teacher_row(evidence, evidence.teacher))
    if evidence.student is not None:
        rows.append(
            ModelRow(
                name="student",
                role="student",
                made_of="PyTorch, fp32, before export",
                score=mean_interval(evidence.student.values) if evidence.student.values else None,
                by_slice=_by_slice(evidence, evidence.student.values),
                parameters=evidence.student.parameters,
                size_bytes=evidence.student.weights_bytes,
            )
        )
    return [*rows, *(_target_row(one, evidence) for one in evidence.targets)]


def calls_ms(measurement: Measurement, model: figures.Model) -> list[float]:
    """Every timed call at the data's own lengths without warm-ups, on the clock that verdicts use."""
    return [call for process in figures.calls_ms(measurement, model) for call in process.tolist()]


def figure_or_none(figure: Callable[..., Interval], measurement: Measurement, **arguments: str) -> Interval | None:
    """A figure of a measurement, or None when there are no samples for it."""
    if measurement.not_measured is not None:
        return None
    try:
        return figure(measurement, **arguments)
    except TooFewError:
        return None


def _teacher_row(evidence: Evidence, teacher: Trained) -> ModelRow:
    timed = next((one for one in evidence.targets if calls_ms(one.measurement, "reference")), None)
    exported = next(iter(evidence.reference_bytes.items()), None)
    size = timed.measurement.reference_size_bytes if timed is not None else exported[1] if exported else None
    made_of = "PyTorch, fp32"
    if timed is not None:
        made_of = f"fp32 {timed.target.format} on {timed.measurement.runtime}"
    elif exported is not None:
        made_of = f"fp32 {exported[0]}"
    return ModelRow(
        name="teacher",
        role="teacher",
        made_of=made_of,
        score=mean_interval(teacher.values) if teacher.values else None,
        by_slice=_by_slice(evidence, teacher.values),
        parameters=teacher.parameters,
        size_bytes=size or teacher.weights_bytes,
        p50_ms=figure_or_none(figures.p50_ms, timed.measurement, model="reference") if timed else None,
        p90_ms=figure_or_none(figures.p90_ms, timed.measurement, model="reference") if timed else None,
    )


def _target_row(one: TargetEvidence, evidence: Evidence) -> ModelRow:
    score, measurement, student = one.score, one.measurement, evidence.student
    # a stand-in's answers count, its speed and memory say nothing
    timed = measurement if measurement.stand_in is None else measurement.model_copy(update={"not_measured": "stand-in"})
    return ModelRow(
        name=one.name,
        role="target",
        made_of=f"{one.target.precision} {one.target.format} on {one.target.runtime}",
        score=score.primary,
        by_slice=_by_slice(evidence, score.values),
        drop=score.drop_from_teacher,
        agreement=score.agreement,
        further=score.further,
        quantization_drop=score.drop_from_student,
        parameters=student.parameters if student is not None and one.artefact is not None else None,
        size_bytes=one.size_bytes,
        p50_ms=figure_or_none(figures.p50_ms, timed),
        p90_ms=figure_or_none(figures.p90_ms, timed),
        speedup=figure_or_none(figures.speedup, timed) if measurement.reference_digest else None,
        load_ms=figure_or_none(figures.load_ms, timed),
        first_call_ms=figure_or_none(figures.first_call_ms, timed),
        memory_mb=figure_or_none(figures.memory_mb, timed),
        library_bytes=measurement.library_bytes,
    )


def _by_slice(evidence: Evidence, values: Sequence[float]) -> dict[str, Interval]:
    """Empty for what was not measured, and for data without slices."""
    return mean_by_slice(evidence.rows.slices, values) if values else {}


def _exact(value: float | None) -> Interval | None:
    return Interval(value=value, low=value, high=value, confidence=1.0) if value is not None else None
