"""The same examples followed hop by hop."""

import numpy as np
import pytest

from eval.ledger import Ledger, compare, follow
from pipeline.base.errors import IntegrityError
from pipeline.base.records import read, write

LABELS = [0, 0, 1, 1, 2, 2]
TEACHER = [0, 0, 1, 1, 2, 0]
STUDENT = [0, 1, 1, 2, 2, 2]
INT8 = [1, 1, 1, 0, 2, 2]


def test_hops_worked_by_hand():
    """Teacher to student: rows 1 and 3 lost, row 5 won. Student to int8: row 0 lost, row 3 wrong in another way."""
    first, second = follow(LABELS, 3, TEACHER, STUDENT, {"cpu": INT8}).hops
    assert (first.before, first.after, second.before, second.after) == ("teacher", "student", "student", "cpu")
    assert (first.worse_rows, first.better_rows, first.changed_rows) == ((1, 3), (5,), (1, 3, 5))
    assert (first.worse_by_class, first.better_by_class) == ((1, 1, 0), (0, 0, 1))
    assert first.net_points.value == pytest.approx(-100 / 6)
    assert (second.worse, second.better, second.changed) == (1, 0, 2)
    assert (second.worse_rows, second.changed_rows) == ((0,), (0, 3))


def test_every_artefact_hangs_on_the_student():
    """The hops are a tree, not a chain from one artefact to the next."""
    ledger = follow(LABELS, 3, TEACHER, STUDENT, {"a": INT8, "b": TEACHER})
    assert [(hop.before, hop.after) for hop in ledger.hops] == [
        ("teacher", "student"),
        ("student", "a"),
        ("student", "b"),
    ]


def test_counts_agree_with_accuracies():
    """On random answers: net points are the difference of accuracies, classes and rows add up."""
    rng = np.random.default_rng(0)
    labels, old, new = rng.integers(0, 4, (3, 400)).tolist()
    hop = compare("x", "y", labels, 4, old, new)
    gain = np.mean(np.equal(new, labels)) - np.mean(np.equal(old, labels))
    assert hop.net_points.value == pytest.approx(100 * gain)
    assert sum(hop.worse_by_class) == hop.worse == len(hop.worse_rows)
    assert sum(hop.better_by_class) == hop.better == len(hop.better_rows)
    assert hop.changed == len(hop.changed_rows) == int(np.not_equal(old, new).sum())


def test_nothing_changed_is_a_hop_without_rows():
    """Yet its interval is not a point."""
    hop = compare("x", "y", LABELS, 3, TEACHER, TEACHER)
    assert (hop.worse, hop.better, hop.changed, hop.changed_rows) == (0, 0, 0, ())
    assert hop.net_points.low < 0 < hop.net_points.high


def test_answers_to_another_number_of_examples_are_refused():
    """A planted fault: one artefact was scored on fewer rows."""
    with pytest.raises(IntegrityError, match=r"'cpu': 5.*score again"):
        follow(LABELS, 3, TEACHER, STUDENT, {"cpu": INT8[:5]})


def test_ledger_survives_the_disk(tmp_path):
    """Written and read back as it was."""
    ledger = follow(LABELS, 3, TEACHER, STUDENT, {"cpu": INT8})
    write(ledger, tmp_path / "ledger.json")
    assert read(Ledger, tmp_path / "ledger.json") == ledger
