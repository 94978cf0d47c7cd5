"""Models that cost nothing to train: what a student must beat before its size and latency are worth talking about."""

import time
from collections.abc import Callable

import numpy as np

from eval.statistics import mean_interval
from pipeline.base.records import Floor, Floors
from pipeline.data.examples import Examples
from pipeline.tasks import Answer, Task, Texts

TIMED_CALLS = 100


def measure_floors(task: Task, train: Examples, test: Examples, seed: int, timed: bool = True) -> Floors:
    """The task's floors, trained on train and scored on test.

    Args:
        task: with the space of its answers.
        train: dev is no part of it, since a floor chooses nothing.
        test: the test split.
        seed: of whatever a floor draws.
        timed: False leaves the latency out, so that the same inputs give the same record.
    """
    floors = []
    for model in task.fit_floors(train.texts, train.numbers, task.space, seed):
        answers = model.answer(test.texts)
        values = task.values(answers, test.numbers)
        floors.append(
            Floor(
                name=model.name,
                primary=mean_interval(values),
                further=task.further(answers, test.numbers),
                size_bytes=model.size_bytes,
                latency_ms=_median_call_ms(model.answer, test.texts) if timed and model.is_timed else None,
                answers=tuple(answers),
                values=tuple(values.tolist()),
            )
        )
    return Floors(
        examples=len(test),
        metric=task.METRIC,
        groups=test.groups,
        known_groups=tuple(sorted(set(train.groups))),
        slices=test.slices,
        floors=tuple(floors),
    )


def _median_call_ms(answer: Callable[[Texts], list[Answer]], texts: Texts) -> float:
    """One text a call, as an app would ask; the first, slower call is one of many and hardly moves a median."""
    samples_ns = []
    for text in texts[:TIMED_CALLS]:
        start = time.perf_counter_ns()
        answer([text])
        samples_ns.append(time.perf_counter_ns() - start)
    return float(np.median(samples_ns)) / 1e6
