"""Is it really int8: integer kernels where the plan wants them, a smaller file, and faster than the model in float.

What a file says of its weights is not what a runtime makes of them, so kernels are counted in the runtime's own
optimised graph, and time is measured beside the float twin in the same processes.
"""

from collections.abc import Sequence
from typing import Any

from eval.checks import Subject, failed, passed
from eval.figures import speedup, why_unfit, widened
from eval.latency import measure
from eval.wording import say
from pipeline.base import plugins
from pipeline.base.records import Check, Measurement, Status
from pipeline.settings.measure import MeasureSettings

TITLE = "really int8"
# Weights take a quarter; scales, float biases, what the plan excludes and the graph itself come on top.
LARGEST_SHARE = 0.6
TIMING = MeasureSettings(processes=5, pairs=40, max_rounds=3, warmup=5, threads=1, lengths=())


def applies(subject: Subject) -> bool:
    """Where 8 bits were asked for."""
    return subject.artefact.precision in {"int8", "w8a8"}


def check(subject: Subject) -> Check:
    """Counts kernels, compares sizes, and times the artefact beside its float twin."""
    with subject.open(count_kernels=True) as session:
        kernels = session.kernels
    twin = subject.float_twin
    assert twin is not None, "an int8 artefact is examined beside its float twin"
    share = subject.exported.size_bytes / twin.size_bytes
    facts: dict[str, Any] = {
        "share_of_float_size": share,
        "kernels": kernels.model_dump(mode="json") if kernels else None,
    }
    if share > LARGEST_SHARE:
        return failed(
            TITLE,
            f"{subject.exported.size_bytes / 1e6:.1f} MB, {share:.0%} of the same model in float, expected at most "
            f"{LARGEST_SHARE:.0%}: its weights are mostly float; see the plan's exclude and the exporter's notes",
            **facts,
        )
    if kernels is not None and (stray := _stray(kernels.float_weights, subject)):
        return failed(
            TITLE,
            f"{len(stray)} of {len(stray) + kernels.integer} matrix products with weights run in float: "
            f"{', '.join(stray[:4])}{', …' if len(stray) > 4 else ''}; the plan keeps only "
            f"{', '.join(subject.exclude) or 'nothing'} in float",
            **facts,
        )
    if kernels is not None and kernels.integer == 0:
        return failed(TITLE, "no product with weights runs on integer kernels; see the exporter's notes", **facts)
    if not_timed := getattr(plugins.load("runtime", subject.runtime), "NOT_TIMED", None):
        said = f"{kernels.integer} products with 8-bit weights, " if kernels is not None else ""
        return passed(TITLE, f"{said}{share:.0%} of the float size; not timed: {not_timed}", **facts)
    timed = measure(
        target=subject.target,
        runtime=subject.runtime,
        device=subject.device,
        candidate=subject.exported,
        reference=twin,
        sequences=subject.sequences,
        pad_id=subject.pad_id,
        settings=TIMING,
        seed=subject.seed,
        undecided=lambda timed: _judge_speed(timed, facts).status is Status.INCONCLUSIVE,
        with_loads=False,
    )
    facts["times_as_fast_as_float"] = speedup(timed).model_dump(mode="json") if timed.not_measured is None else None
    return _judge_speed(timed, facts)


def _judge_speed(timed: Measurement, facts: dict[str, Any]) -> Check:
    counted = facts["kernels"] or {}
    share = f"{facts['share_of_float_size']:.0%} of the float size"
    kernels = f"{counted['integer']} products on integer kernels, " if counted else "kernels cannot be seen, "
    if timed.not_measured is not None:
        return failed(TITLE, f"{kernels}{share}; could not be timed beside its float twin: {timed.not_measured}")
    ratio, noise = speedup(timed), why_unfit(timed)
    times = f"{ratio.value:.2f} times as fast as in float [{ratio.low:.2f}, {ratio.high:.2f}]"
    judged = widened(ratio, noise)
    if judged is not None and judged.high < 1:
        return failed(TITLE, f"{kernels}{share}, but {times}: ship the float file instead", **facts)
    if judged is None or judged.low < 1:
        reason = f"{kernels}{share}; {times}{f': {say(noise)}' if noise is not None else ''}"
        return Check(title=TITLE, status=Status.INCONCLUSIVE, reason=reason, facts=facts)
    return passed(TITLE, f"{kernels}{share}, {times}", **facts)


def _stray(floats: Sequence[str], subject: Subject) -> list[str]:
    """Products in float that the plan does not keep so; of those without a name, as many as are beyond its number."""
    kept = (*subject.exclude, *subject.artefact.kept_in_float)
    nameless = [name for name in floats if name.startswith("#")]
    named = [name for name in floats if name not in nameless and not _is_kept(name, kept)]
    return [*named, *nameless[len(kept) :]]


def _is_kept(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
