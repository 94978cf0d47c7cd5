"""The same examples followed hop by hop."""

import numpy as np
import pytest

from eval import ledger as module
from eval.ledger import Answers, Ledger, follow
from pipeline.base.errors import IntegrityError
from pipeline.base.records import Metric, read, write
from pipeline.tasks.single_label import METRIC, values

LABELS = [0, 0, 1, 1, 2, 2]
GROUPS = ["no", "no", "yes", "yes", "maybe", "maybe"]


def answers(*given, labels=LABELS):
    """Answers with what they are worth."""
    return Answers(given, values(given, labels))


TEACHER = answers(0, 0, 1, 1, 2, 0)
STUDENT = answers(0, 1, 1, 2, 2, 2)
INT8 = answers(1, 1, 1, 0, 2, 2)


def compare(before, after, groups, first, second):
    """A hop of right and wrong answers."""
    return module.compare(before, after, groups, METRIC, first, second)


def test_hops_worked_by_hand():
    """Teacher to student: rows 1 and 3 lost, row 5 won. Student to int8: row 0 lost, row 3 wrong in another way."""
    first, second = follow(GROUPS, METRIC, TEACHER, STUDENT, {"cpu": INT8}).hops
    assert (first.before, first.after, second.before, second.after) == ("teacher", "student", "student", "cpu")
    assert (first.worse_rows, first.better_rows, first.changed_rows) == ((1, 3), (5,), (1, 3, 5))
    assert (first.worse_by_group, first.better_by_group) == ({"no": 1, "yes": 1}, {"maybe": 1})
    assert first.net.value == pytest.approx(-100 / 6)
    assert (second.worse, second.better, second.changed) == (1, 0, 2)
    assert (second.worse_rows, second.changed_rows) == ((0,), (0, 3))


def test_every_artefact_hangs_on_the_student():
    """The hops are a tree, not a chain from one artefact to the next."""
    ledger = follow(GROUPS, METRIC, TEACHER, STUDENT, {"a": INT8, "b": TEACHER})
    assert [(hop.before, hop.after) for hop in ledger.hops] == [
        ("teacher", "student"),
        ("student", "a"),
        ("student", "b"),
    ]


def test_counts_agree_with_accuracies():
    """On random answers: net points are the difference of accuracies, classes and rows add up."""
    rng = np.random.default_rng(0)
    labels, old, new = rng.integers(0, 4, (3, 400)).tolist()
    hop = compare(
        "x", "y", [f"class {label}" for label in labels], answers(*old, labels=labels), answers(*new, labels=labels)
    )
    gain = np.mean(np.equal(new, labels)) - np.mean(np.equal(old, labels))
    assert hop.net.value == pytest.approx(100 * gain)
    assert sum(hop.worse_by_group.values()) == hop.worse == len(hop.worse_rows)
    assert sum(hop.better_by_group.values()) == hop.better == len(hop.better_rows)
    assert hop.changed == len(hop.changed_rows) == int(np.not_equal(old, new).sum())


def test_nothing_changed_is_a_hop_without_rows():
    """Yet its interval is not a point."""
    hop = compare("x", "y", GROUPS, TEACHER, TEACHER)
    assert (hop.worse, hop.better, hop.changed, hop.changed_rows) == (0, 0, 0, ())
    assert hop.net.low < 0 < hop.net.high


def test_answers_to_another_number_of_examples_are_refused():
    """A planted fault: one artefact was scored on fewer rows; or the groups are those of another split."""
    with pytest.raises(IntegrityError, match=r"'cpu': 5.*score again"):
        follow(GROUPS, METRIC, TEACHER, STUDENT, {"cpu": Answers(INT8.answers[:5], INT8.values[:5])})
    with pytest.raises(IntegrityError, match=r"'test rows': 5.*score again"):
        follow(GROUPS[:5], METRIC, TEACHER, STUDENT, {})


def test_without_groups_nothing_is_counted_by_group():
    """A task may have none; all else is as it was."""
    found, grouped = (follow(groups, METRIC, TEACHER, STUDENT, {"cpu": INT8}) for groups in ((), GROUPS))
    for one, other in zip(found.hops, grouped.hops, strict=True):
        assert (one.worse_by_group, one.better_by_group) == ({}, {})
        assert one == other.model_copy(update={"worse_by_group": {}, "better_by_group": {}})


def test_ledger_survives_the_disk(tmp_path):
    """Written and read back as it was."""
    ledger = follow(GROUPS, METRIC, TEACHER, STUDENT, {"cpu": INT8})
    write(ledger, tmp_path / "ledger.json")
    assert read(Ledger, tmp_path / "ledger.json") == ledger


def test_less_is_better_turns_worse_and_better_round():
    """Planted: a loss that rises on row 0 and falls on rows 1 and 2, though no answer changed."""
    loss = Metric(name="loss", title="loss", unit="", scale=1.0, is_greater_better=False)
    first = Answers([0] * 6, [0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    second = Answers([0] * 6, [0.6, 0.2, 0.1, 0.5, 0.5, 0.5])
    hop = module.compare("x", "y", GROUPS, loss, first, second)
    assert (hop.worse_rows, hop.better_rows, hop.changed) == ((0,), (1, 2), 0)
    assert hop.net.value == pytest.approx((0.3 + 0.4 - 0.1) / 6)
