"""Answers of a session to a whole split, and the score made of them."""

import numpy as np
import pytest
from fakes import make_artefact

from eval.scores import AnswersUnusableError, answer, choose_batch_size, macro_f1, score
from eval.statistics import right
from pipeline.base.errors import IntegrityError, ModelError
from pipeline.base.records import ACCURACY, Flips, Metric

SEQUENCES = [[5, 6], [1], [9, 9, 9], [2, 2, 2, 2, 2], [3, 1]]


class SumSession:
    """Answers with the sum of the real tokens and with their number, and notes the shapes it was given."""

    def __init__(self, spoil=lambda logits: logits):
        self.shapes, self.spoil = [], spoil

    def run(self, inputs):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        self.shapes.append(ids.shape)
        return {"logits": self.spoil(np.stack([(ids * mask).sum(1), mask.sum(1)], axis=1).astype(np.float32))}


EXPECTED = np.array([[sum(sequence), len(sequence)] for sequence in SEQUENCES], dtype=np.float32)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
def test_answers_come_back_in_the_order_of_the_examples(batch_size):
    """Though batches are sorted by length."""
    logits = answer(SumSession(), SEQUENCES, make_artefact(), pad_id=7, batch_size=batch_size)
    np.testing.assert_array_equal(logits, EXPECTED)


def test_batches_are_padded_no_further_than_their_longest():
    """Longest first, so that a lack of memory shows at once."""
    session = SumSession()
    answer(session, SEQUENCES, make_artefact(), pad_id=0, batch_size=2)
    assert session.shapes == [(2, 5), (2, 2), (1, 1)]


def test_only_lengths_that_the_artefact_takes_are_used():
    """An artefact with enumerated lengths gets the next longer one."""
    session = SumSession()
    logits = answer(session, SEQUENCES, make_artefact(lengths=(2, 4, 8)), pad_id=0, batch_size=1)
    assert [shape[1] for shape in session.shapes] == [8, 4, 2, 2, 2]
    np.testing.assert_array_equal(logits, EXPECTED)


def test_input_longer_than_the_artefact_takes_is_refused():
    """Never cut in silence."""
    with pytest.raises(ModelError, match=r"found an input of 5 tokens, expected at most 4"):
        answer(SumSession(), SEQUENCES, make_artefact(lengths=(2, 4)), pad_id=0)
    with pytest.raises(ModelError, match=r"found an input of 5 tokens, expected at most 3"):
        answer(SumSession(), SEQUENCES, make_artefact(max_length=3), pad_id=0)


def test_fixed_batch_is_filled_up_and_the_filling_taken_out():
    """Five examples in batches that are always of four."""
    session = SumSession()
    logits = answer(session, SEQUENCES, make_artefact(batch=4), pad_id=0)
    assert [shape[0] for shape in session.shapes] == [4, 4]
    np.testing.assert_array_equal(logits, EXPECTED)


def test_int8_is_asked_one_example_at_a_time():
    """Dynamic ranges span a batch, so a larger one gives other answers than the phone gets."""
    assert choose_batch_size(make_artefact(precision="int8")) == 1
    assert choose_batch_size(make_artefact(precision="fp16")) == 32
    assert choose_batch_size(make_artefact(batch=4)) == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_never_scored(bad):
    """A planted fault in one example; the message names its row."""

    def spoil(logits):
        logits[(logits[:, 0] == 27), 1] = bad
        return logits

    with pytest.raises(AnswersUnusableError, match="logits of test row 2 are not finite"):
        answer(SumSession(spoil), SEQUENCES, make_artefact(), pad_id=0, batch_size=2)


def test_answers_of_another_shape_are_refused():
    """Rows lost, or other classes from one batch to the next."""
    with pytest.raises(AnswersUnusableError, match=r"found logits of shape \(1, 2\), expected \(2, classes\)"):
        answer(SumSession(lambda logits: logits[:1]), SEQUENCES, make_artefact(), pad_id=0, batch_size=2)
    changing = SumSession(lambda logits: logits if len(logits) == 2 else logits[:, :1])
    with pytest.raises(AnswersUnusableError, match=r"found logits of shape \(1, 1\), expected \(1, 2\)"):
        answer(changing, SEQUENCES, make_artefact(), pad_id=0, batch_size=2)


LABELS = [0, 0, 1, 1, 2, 2, 2, 2]
STUDENT = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2, 2, 2, 0]]
TEACHER = [0, 0, 1, 1, 2, 2, 2, 2]
IDENTITY = {"target": "cpu", "runtime": "fake", "device": "local", "artefact_digest": "a" * 64, "metric": ACCURACY}


def make_score(logits, **changes):
    """A score of eight rows."""
    values = {
        "student_logits": STUDENT,
        "logits": logits,
        "values": right(LABELS[: len(logits)], logits.argmax(1)),
        "student_values": right(LABELS, STUDENT.argmax(1)),
        "teacher_values": right(LABELS, TEACHER),
        "further": {},
    }
    return score(**{**IDENTITY, **values, **changes})


def test_score_worked_by_hand():
    """The artefact loses row 0 and wins row 7 against the student; against the teacher it loses row 0."""
    logits = np.eye(3, dtype=np.float32)[[1, 0, 1, 1, 2, 2, 2, 2]]
    logits[3] *= 1.25
    found = make_score(logits)
    assert found.primary.value == 7 / 8
    assert found.agreement.value == 6 / 8
    assert found.flips_from_student == Flips(worse=1, better=1)
    assert found.flips_from_teacher == Flips(worse=1, better=0)
    assert found.drop_from_student.value == 0
    assert found.drop_from_teacher.value == pytest.approx(100 / 8)
    assert found.worst_logit_difference == 1.0
    assert found.predictions == (1, 0, 1, 1, 2, 2, 2, 2)
    assert found.values == (0, 1, 1, 1, 1, 1, 1, 1)
    assert found.primary.low < 7 / 8 < found.primary.high


def test_score_of_a_loss_counts_the_other_way_round():
    """Planted: less is better, so a row whose value rose is worse, and a mean that rose is a drop, in its own unit."""
    loss = Metric(name="loss", title="loss", unit="nats", scale=10.0, is_greater_better=False)
    before, after = np.full(8, 0.5), np.full(8, 0.5)
    after[:3] += 0.4
    after[3] -= 0.1
    found = make_score(STUDENT, metric=loss, values=after, student_values=before, teacher_values=after)
    assert found.flips_from_student == Flips(worse=3, better=1)
    assert found.drop_from_student.value == pytest.approx(10 * 1.1 / 8)
    assert found.drop_from_student.low < found.drop_from_student.value < found.drop_from_student.high
    assert (found.drop_from_teacher.value, found.flips_from_teacher) == (0, Flips(worse=0, better=0))
    assert found.primary.value == pytest.approx(after.mean())


def test_score_refuses_answers_to_other_examples():
    """Records that do not belong together."""
    with pytest.raises(AnswersUnusableError, match="expected the same examples and classes"):
        make_score(STUDENT[:7])
    with pytest.raises(AnswersUnusableError, match="expected the same examples and classes"):
        make_score(STUDENT, teacher_values=right(LABELS, TEACHER)[:7])
    with pytest.raises(IntegrityError, match="found answers to 7 rows, expected 8"):
        right(LABELS, TEACHER[:7])


@pytest.mark.parametrize("which", ["logits", "student_logits"])
def test_score_refuses_logits_that_are_not_finite(which):
    """On either side."""
    logits = {"logits": STUDENT.copy(), "student_logits": STUDENT.copy()}
    logits[which][4, 1] = np.nan
    with pytest.raises(AnswersUnusableError, match="is not finite; nothing was scored"):
        make_score(**logits)


def test_macro_f1_is_defined_when_a_class_is_missing():
    """A class that no row has and no answer names does not count; one that is only answered counts as zero."""
    assert macro_f1([0, 0, 2], [0, 0, 2]) == 1.0
    assert macro_f1([0, 0, 2], [0, 1, 2]) == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert macro_f1([1, 1], [1, 1]) == 1.0
