"""Where Core ML runs each operation, and what each choice of compute units takes to load, to answer first, and warm."""

from dataclasses import replace
from statistics import median
from typing import Any

from eval import figures
from eval.checks import Subject, failed, passed
from eval.latency import measure
from pipeline.base import plugins
from pipeline.base.records import Check
from pipeline.settings.measure import MeasureSettings

TITLE = "compute units"
FORMATS = ("coreml",)
TIMING = MeasureSettings(processes=3, pairs=40, max_rounds=1, warmup=5, threads=1, lengths=())


def applies(subject: Subject) -> bool:
    """Where the runtime tells its plan."""
    return hasattr(plugins.load("runtime", subject.runtime), "compute_plan")


def check(subject: Subject) -> Check:
    """The plan with the settings that ship, and the times with each."""
    runtime = plugins.load("runtime", subject.runtime)
    plan = runtime.compute_plan(subject.folder, subject.artefact)
    shipped = {**runtime.SETTINGS, **subject.artefact.settings}["compute_units"]
    times = {unit: _times(subject, unit) for unit in (shipped, *runtime.variants(subject.artefact))}
    total = sum(sum(kinds.values()) for kinds in plan.values())
    places = ", ".join(f"{sum(kinds.values())} of {total} operations on the {device}" for device, kinds in plan.items())
    shown = "; ".join(
        f"{unit}: load {one['load_ms']:.0f} ms, first {one['first_call_ms']:.1f} ms, then {one['p50_ms']:.2f} ms"
        if "p50_ms" in one
        else f"{unit}: {one['problem']}"
        for unit, one in times.items()
    )
    if "problem" in times[shipped]:
        return failed(TITLE, f"with the compute units that ship: {shown}", plan=plan, times=times)
    return passed(TITLE, f"{places}; {shown}", plan=plan, times=times)


def _times(subject: Subject, unit: str) -> dict[str, Any]:
    settings = {**subject.artefact.settings, "compute_units": unit}
    timed = measure(
        target=subject.target,
        runtime=subject.runtime,
        device=subject.device,
        candidate=replace(subject.exported, artefact=subject.artefact.model_copy(update={"settings": settings})),
        reference=None,
        sequences=subject.sequences,
        pad_id=subject.pad_id,
        settings=TIMING,
        seed=subject.seed,
    )
    if timed.not_measured is not None:
        return {"problem": timed.not_measured}
    return {
        "load_ms": median(timed.load_ms),
        "first_call_ms": median(timed.first_call_ms),
        "p50_ms": figures.p50_ms(timed).value,
    }
