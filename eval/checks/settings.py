"""Runtime options are measured, not believed: the settings that ship are the fastest for one thread on this machine."""

from dataclasses import replace
from types import ModuleType

from eval.checks import Subject, failed, passed
from eval.figures import speedup
from eval.latency import measure
from pipeline.base import plugins
from pipeline.base.records import Check, Interval, Status
from pipeline.settings.measure import MeasureSettings

TITLE = "runtime settings"
# Another setting must be this many times as fast before it is worth a change.
WORTH = 1.05
TIMING = MeasureSettings(processes=3, pairs=40, max_rounds=1, warmup=5, threads=1, lengths=())
# What is only told, and decides nothing, is told from one process.
TOLD = TIMING.model_copy(update={"processes": 1})


def applies(subject: Subject) -> bool:
    """Where the runtime has settings to choose from."""
    return bool(_variants(plugins.load("runtime", subject.runtime), subject))


def check(subject: Subject) -> Check:
    """Times the artefact with each other setting beside itself, in the same processes."""
    found: dict[str, Interval] = {}
    problems: dict[str, str] = {}
    runtime = plugins.load("runtime", subject.runtime)
    variants = _variants(runtime, subject)
    advisable = {title for title, changed in variants.items() if _is_advisable(runtime, changed)}
    for title, changed in variants.items():
        settings = {**subject.artefact.settings, **changed}
        other = replace(subject.exported, artefact=subject.artefact.model_copy(update={"settings": settings}))
        timed = measure(
            target=subject.target,
            runtime=subject.runtime,
            device=subject.device,
            candidate=other,
            reference=subject.exported,
            sequences=subject.sequences,
            pad_id=subject.pad_id,
            settings=TIMING if title in advisable else TOLD,
            seed=subject.seed,
            with_loads=False,
            with_canary=False,
        )
        if timed.not_measured is None:
            found[title] = speedup(timed)
        else:
            problems[title] = timed.not_measured
    facts = {
        "settings": subject.artefact.settings,
        "variants": variants,
        "times_as_fast": {title: ratio.model_dump(mode="json") for title, ratio in found.items()},
        "problems": problems,
    }
    shown = ", ".join(
        [
            *(f"{title} {_shown(ratio, title in advisable)}" for title, ratio in found.items()),
            *(f"{title} cannot run: {problem}" for title, problem in problems.items()),
        ]
    )
    better = [title for title in found if title in advisable and found[title].low > WORTH]
    if better:
        advice = f"set options.settings of the target to {variants[better[0]]}"
        return failed(TITLE, f"times as fast as shipped: {shown}; {advice}", **facts)
    if not found:
        return Check(title=TITLE, status=Status.NOT_MEASURED, reason=shown, facts=facts)
    return passed(TITLE, f"times as fast as shipped: {shown}", **facts)


def _variants(runtime: ModuleType, subject: Subject) -> dict[str, dict[str, str]]:
    return runtime.variants(subject.artefact) if hasattr(runtime, "variants") else {}


def _shown(ratio: Interval, advisable: bool) -> str:
    # Processes differ more than calls, so an interval from one process is none.
    return f"{ratio.value:.2f}" + (f" [{ratio.low:.2f}, {ratio.high:.2f}]" if advisable else " in one process")


def _is_advisable(runtime: ModuleType, changed: dict[str, str]) -> bool:
    """Whether being faster would be a reason to ship it.

    Threads are the app's to give: more of them cost battery, whatever they gain. And what is faster on this kind of CPU
    alone is no advice for a file that ships to others.
    """
    more_threads = any("thread" in name.lower() for name in changed)
    return not more_threads and set(getattr(runtime, "OF_THE_CPU", ())).isdisjoint(changed)
