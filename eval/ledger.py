"""The same test examples followed from the teacher to the student to every artefact, hop by hop.

Two models of equal score may be wrong about different examples; only the ledger shows where answers changed hands.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from eval.statistics import drop_interval
from pipeline.base.errors import IntegrityError
from pipeline.base.records import Interval, Metric, Record


@dataclass(frozen=True)
class Answers:
    """What a model answered to each example, and the metric on it."""

    answers: Sequence[Any]
    values: Sequence[float]


class Hop(Record):
    """What changed between the answers of two models to the same examples."""

    before: str
    after: str
    examples: int
    # examples whose value became worse, and better: that went from right to wrong, and from wrong to right
    worse: int
    better: int
    # examples whose answer changed at all, from one wrong class to another included
    changed: int
    # gained, in the unit of the metric's differences; below 0 is a loss
    net: Interval
    # by the task's groups, those with any
    worse_by_group: dict[str, int]
    better_by_group: dict[str, int]
    # row numbers in the test split
    worse_rows: tuple[int, ...]
    better_rows: tuple[int, ...]
    changed_rows: tuple[int, ...]


class Ledger(Record):
    """Every hop of the chain: teacher to student, then student to each artefact."""

    examples: int
    hops: tuple[Hop, ...]


def follow(
    groups: Sequence[str],
    metric: Metric,
    teacher: Answers,
    student: Answers,
    artefacts: Mapping[str, Answers],
) -> Ledger:
    """The ledger of a run.

    Args:
        groups: the task's group of each test row; empty when it has none.
        metric: what the values are.
        teacher: the teacher's answers.
        student: the float student's, in PyTorch.
        artefacts: name of a target -> those of its artefact in its runtime; targets without answers are left out.

    Raises:
        IntegrityError: two sets of answers are not to the same number of examples.
    """
    answers = {"teacher": teacher, "student": student, **artefacts}
    counts = {name: len(one.answers) for name, one in answers.items()}
    if groups:
        counts["test rows"] = len(groups)
    if len(set(counts.values())) > 1:
        raise IntegrityError(f"answers to other numbers of examples: {counts}; run `dvc repro` to score again")
    hops = [("teacher", "student"), *(("student", name) for name in artefacts)]
    found = (compare(*hop, groups, metric, *(answers[name] for name in hop)) for hop in hops)
    return Ledger(examples=len(teacher.answers), hops=tuple(found))


def compare(before: str, after: str, groups: Sequence[str], metric: Metric, first: Answers, second: Answers) -> Hop:
    """One hop: what changed from the `first` answers, of the model `before`, to the `second` ones, of `after`."""
    changed = np.array([old != new for old, new in zip(first.answers, second.answers, strict=True)], bool)
    gain = np.asarray(second.values) - np.asarray(first.values)
    better, worse = (gain > 0, gain < 0) if metric.is_greater_better else (gain < 0, gain > 0)
    return Hop(
        before=before,
        after=after,
        examples=len(changed),
        worse=int(worse.sum()),
        better=int(better.sum()),
        changed=int(changed.sum()),
        net=drop_interval(second.values, first.values, metric),
        worse_by_group=_count(groups, worse),
        better_by_group=_count(groups, better),
        worse_rows=tuple(np.flatnonzero(worse).tolist()),
        better_rows=tuple(np.flatnonzero(better).tolist()),
        changed_rows=tuple(np.flatnonzero(changed).tolist()),
    )


def _count(groups: Sequence[str], chosen: Bool[np.ndarray, " rows"]) -> dict[str, int]:
    return dict(sorted(Counter(group for group, is_one in zip(groups, chosen, strict=False) if is_one).items()))
