"""The same test examples followed from the teacher to the student to every artefact, hop by hop.

Two models of equal accuracy may be wrong about different examples; only the ledger shows where answers changed hands.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from eval.statistics import drop_interval
from pipeline.base.errors import IntegrityError
from pipeline.base.records import Interval, Record


class Hop(Record):
    """What changed between the answers of two models to the same examples."""

    before: str
    after: str
    examples: int
    # examples that went from right to wrong, and from wrong to right
    worse: int
    better: int
    # examples whose answer changed at all, from one wrong class to another included
    changed: int
    # accuracy gained, in points of 100; below 0 is a loss
    net_points: Interval
    # by true class
    worse_by_class: tuple[int, ...]
    better_by_class: tuple[int, ...]
    # row numbers in the test split
    worse_rows: tuple[int, ...]
    better_rows: tuple[int, ...]
    changed_rows: tuple[int, ...]


class Ledger(Record):
    """Every hop of the chain: teacher to student, then student to each artefact."""

    examples: int
    classes: int
    hops: tuple[Hop, ...]


def follow(
    labels: Sequence[int],
    classes: int,
    teacher: Sequence[int],
    student: Sequence[int],
    artefacts: Mapping[str, Sequence[int]],
) -> Ledger:
    """The ledger of a run.

    Args:
        labels: true class of each test row.
        classes: how many there are.
        teacher: the teacher's answers.
        student: the float student's answers, in PyTorch.
        artefacts: name of a target -> what its artefact answered in its runtime; targets without answers are left out.

    Raises:
        IntegrityError: two sets of answers are not to the same number of examples.
    """
    answers = {"labels": labels, "teacher": teacher, "student": student, **artefacts}
    counts = {name: len(values) for name, values in answers.items()}
    if len(set(counts.values())) > 1:
        raise IntegrityError(f"answers to other numbers of examples: {counts}; run `dvc repro` to score again")
    hops = [compare("teacher", "student", labels, classes, teacher, student)]
    hops += [compare("student", name, labels, classes, student, artefacts[name]) for name in artefacts]
    return Ledger(examples=len(labels), classes=classes, hops=tuple(hops))


def compare(
    before: str, after: str, labels: Sequence[int], classes: int, first: Sequence[int], second: Sequence[int]
) -> Hop:
    """One hop: what changed from the `first` answers, of the model `before`, to the `second` ones, of `after`."""
    truth, old, new = np.asarray(labels), np.asarray(first), np.asarray(second)
    worse, better, changed = (old == truth) & (new != truth), (old != truth) & (new == truth), old != new
    gain = drop_interval(int(better.sum()), int(worse.sum()), len(truth))
    return Hop(
        before=before,
        after=after,
        examples=len(truth),
        worse=int(worse.sum()),
        better=int(better.sum()),
        changed=int(changed.sum()),
        net_points=gain,
        worse_by_class=tuple(np.bincount(truth[worse], minlength=classes).tolist()),
        better_by_class=tuple(np.bincount(truth[better], minlength=classes).tolist()),
        worse_rows=tuple(np.flatnonzero(worse).tolist()),
        better_rows=tuple(np.flatnonzero(better).tolist()),
        changed_rows=tuple(np.flatnonzero(changed).tolist()),
    )
