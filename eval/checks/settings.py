"""Runtime options are measured, not believed: the settings that ship are the fastest for one thread on this machine."""

from dataclasses import replace
from statistics import median
from types import ModuleType

from eval.checks import Subject, failed, passed
from eval.figures import moved, slowdown, speedups, why_unfit
from eval.latency import measure
from eval.wording import say
from pipeline.base import plugins
from pipeline.base.records import Check, Interval, Measurement, Status
from pipeline.settings.measure import MeasureSettings

TITLE = "runtime settings"
# Another setting must be this many times as fast before it is worth a change, and what is not seen to be must surely
# be less than SURELY_LESS: to be sure of less than WORTH itself takes many times as long, for what nobody would feel.
WORTH, SURELY_LESS = 1.05, 1.10
TIMING = MeasureSettings(processes=4, pairs=40, max_rounds=6, warmup=5, threads=1, lengths=())
# What is only told, and decides nothing, is told from one process.
TOLD = TIMING.model_copy(update={"processes": 1, "max_rounds": 1})


def applies(subject: Subject) -> bool:
    """Where the runtime has settings to choose from."""
    return bool(_variants(plugins.load("runtime", subject.runtime), subject))


def check(subject: Subject) -> Check:
    """Times the artefact with each other setting beside itself, in the same processes."""
    found: dict[str, Measurement] = {}
    problems: dict[str, str] = {}
    runtime = plugins.load("runtime", subject.runtime)
    variants = _variants(runtime, subject)
    advisable = [title for title, changed in variants.items() if _is_advisable(runtime, changed)]
    for title, changed in variants.items():
        timed = _time(subject, changed, decides=title in advisable)
        if timed.not_measured is None:
            found[title] = timed
        else:
            problems[title] = timed.not_measured
    facts = {
        "settings": subject.artefact.settings,
        "variants": variants,
        "times_as_fast": {title: speedups(timed) for title, timed in found.items()},
        "problems": problems,
    }
    shown = ", ".join(
        [
            *(_shown(title, timed, title in advisable) for title, timed in found.items()),
            # onnxruntime has no precise sums for files of fixed ranges: nobody need read that in every report
            *(f"{title} cannot run: {problem}" for title, problem in problems.items() if title in advisable),
        ]
    )
    said = f"times as fast as shipped: {shown}"
    statuses = {title: _status(found[title]) for title in advisable if title in found}
    better = [title for title, status in statuses.items() if status is Status.FAIL]
    if better:
        return failed(TITLE, f"{said}; set options.settings of the target to {variants[better[0]]}", **facts)
    open_ones = [title for title, status in statuses.items() if status is Status.INCONCLUSIVE]
    if open_ones:
        noise = why_unfit(found[open_ones[0]])
        why = f": {say(noise)}" if noise is not None else ""
        reason = f"{said}; whether {open_ones[0]} is {WORTH - 1:.0%} faster is undecided{why}"
        return Check(title=TITLE, status=Status.INCONCLUSIVE, reason=reason, facts=facts)
    if not found:
        reason = "; ".join(f"{title} cannot run: {problem}" for title, problem in problems.items())
        return Check(title=TITLE, status=Status.NOT_MEASURED, reason=reason, facts=facts)
    return passed(TITLE, said, **facts)


def _time(subject: Subject, changed: dict[str, str], *, decides: bool) -> Measurement:
    settings = {**subject.artefact.settings, **changed}
    other = replace(subject.exported, artefact=subject.artefact.model_copy(update={"settings": settings}))
    return measure(
        target=subject.target,
        runtime=subject.runtime,
        device=subject.device,
        candidate=other,
        reference=subject.exported,
        sequences=subject.sequences,
        pad_id=subject.pad_id,
        settings=TIMING if decides else TOLD,
        seed=subject.seed,
        undecided=(lambda timed: _status(timed) is Status.INCONCLUSIVE) if decides else None,
        with_loads=False,
    )


def _status(timed: Measurement) -> Status:
    """Whether a setting is not worth a change, is, or might be."""
    judged = moved(timed, _gain(timed))
    if judged is None:
        return Status.INCONCLUSIVE
    if judged.low > WORTH:
        return Status.FAIL
    return Status.PASS if judged.value <= WORTH and judged.high <= SURELY_LESS else Status.INCONCLUSIVE


def _gain(timed: Measurement) -> Interval:
    """How many times as fast as shipped; two settings of one file are as near to each other as twins are."""
    slower = slowdown(timed)
    return slower.model_copy(update={"value": 1 / slower.value, "low": 1 / slower.high, "high": 1 / slower.low})


def _variants(runtime: ModuleType, subject: Subject) -> dict[str, dict[str, str]]:
    return runtime.variants(subject.artefact) if hasattr(runtime, "variants") else {}


def _shown(title: str, timed: Measurement, decides: bool) -> str:
    if not decides:
        return f"{title} {median(speedups(timed)):.2f} in one process"
    ratio = _gain(timed)
    return f"{title} {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _is_advisable(runtime: ModuleType, changed: dict[str, str]) -> bool:
    """Whether being faster would be a reason to ship it.

    Threads are the app's to give: more of them cost battery, whatever they gain. And what is faster on this kind of CPU
    alone is no advice for a file that ships to others.
    """
    more_threads = any("thread" in name.lower() for name in changed)
    return not more_threads and set(getattr(runtime, "OF_THE_CPU", ())).isdisjoint(changed)
