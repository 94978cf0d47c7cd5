"""Answers of a session to a whole split, and the score made of them."""

import numpy as np
import pytest
from fakes import make_artefact

from eval.scores import AnswersUnusableError, answer, choose_batch_size, score
from pipeline.base.errors import IntegrityError, ModelError
from pipeline.base.records import Flips, Metric, TensorFact
from pipeline.tasks import NO_CHOICE, single_label

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
    found = answer(SumSession(), SEQUENCES, make_artefact(), pad_id=7, batch_size=batch_size)
    assert list(found) == ["logits"]
    np.testing.assert_array_equal(found["logits"], EXPECTED)


def test_batches_are_padded_no_further_than_their_longest():
    """Longest first, so that a lack of memory shows at once."""
    session = SumSession()
    answer(session, SEQUENCES, make_artefact(), pad_id=0, batch_size=2)
    assert session.shapes == [(2, 5), (2, 2), (1, 1)]


def test_only_lengths_that_the_artefact_takes_are_used():
    """An artefact with enumerated lengths gets the next longer one."""
    session = SumSession()
    found = answer(session, SEQUENCES, make_artefact(lengths=(2, 4, 8)), pad_id=0, batch_size=1)
    assert [shape[1] for shape in session.shapes] == [8, 4, 2, 2, 2]
    np.testing.assert_array_equal(found["logits"], EXPECTED)


def test_input_longer_than_the_artefact_takes_is_refused():
    """Never cut in silence."""
    with pytest.raises(ModelError, match=r"found an input of 5 tokens, expected at most 4"):
        answer(SumSession(), SEQUENCES, make_artefact(lengths=(2, 4)), pad_id=0)
    with pytest.raises(ModelError, match=r"found an input of 5 tokens, expected at most 3"):
        answer(SumSession(), SEQUENCES, make_artefact(max_length=3), pad_id=0)


def test_fixed_batch_is_filled_up_and_the_filling_taken_out():
    """Five examples in batches that are always of four."""
    session = SumSession()
    found = answer(session, SEQUENCES, make_artefact(batch=4), pad_id=0)
    assert [shape[0] for shape in session.shapes] == [4, 4]
    np.testing.assert_array_equal(found["logits"], EXPECTED)


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
    with pytest.raises(AnswersUnusableError, match=r"found logits of shape \(1, 2\), expected \(2, 2\)"):
        answer(SumSession(lambda logits: logits[:1]), SEQUENCES, make_artefact(), pad_id=0, batch_size=2)
    changing = SumSession(lambda logits: logits if len(logits) == 2 else logits[:, :1])
    with pytest.raises(AnswersUnusableError, match=r"found logits of shape \(1, 1\), expected \(1, 2\)"):
        answer(changing, SEQUENCES, make_artefact(), pad_id=0, batch_size=2)


class TokenSession:
    """Answers each token with its id and its place, and spoils what stands in the padding."""

    def __init__(self, spoil=lambda values: values):
        self.shapes, self.spoil = [], spoil

    def run(self, inputs):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        self.shapes.append(ids.shape)
        values = np.stack([ids, np.broadcast_to(np.arange(ids.shape[1]), ids.shape)], axis=2).astype(np.float32)
        values[mask == 0] = 99.0
        return {"logits": self.spoil(values), "sums": (ids * mask).sum(1, keepdims=True).astype(np.float32)}


def token_artefact(width="length", **changes):
    """An artefact with one output that has two values a token, and one that has a value a row."""
    outputs = {"logits": ("batch", width, 2), "sums": ("batch", 1)}
    facts = tuple(TensorFact(name=name, dtype="float32", shape=shape) for name, shape in outputs.items())
    return make_artefact(**changes).model_copy(update={"outputs": facts})


TOKENS = np.full((len(SEQUENCES), 5, 2), NO_CHOICE, dtype=np.float32)
for row, sequence in enumerate(SEQUENCES):
    TOKENS[row, : len(sequence)] = [[token, place] for place, token in enumerate(sequence)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("lengths", [None, (3, 8)], ids=["any length", "two lengths"])
def test_values_of_tokens_are_cut_to_their_row_and_no_choice_stands_behind(lengths, batch_size):
    """Planted: 99 in every place of the padding, of batches that are shorter and longer than the longest row."""
    session = TokenSession()
    found = answer(session, SEQUENCES, token_artefact(lengths=lengths), pad_id=7, batch_size=batch_size)
    assert len({width for _, width in session.shapes}) > 1 or batch_size == 100
    np.testing.assert_array_equal(found["logits"], TOKENS)
    np.testing.assert_array_equal(found["sums"], EXPECTED[:, :1])


def test_values_of_tokens_come_from_a_batch_that_is_filled_up():
    """Five rows in batches that are always of four: the filling is in none of them."""
    session = TokenSession()
    found = answer(session, SEQUENCES, token_artefact(batch=4), pad_id=0)
    assert [shape[0] for shape in session.shapes] == [4, 4]
    np.testing.assert_array_equal(found["logits"], TOKENS)


def test_values_of_tokens_are_checked_as_others_are():
    """Rows lost, another number of values a token, too few tokens, and a value that is not finite."""

    def spoil(values):
        values[(values[:, 0, 0] == 9), 1] = np.nan
        return values

    with pytest.raises(AnswersUnusableError, match="logits of test row 2 are not finite"):
        answer(TokenSession(spoil), SEQUENCES, token_artefact(), pad_id=0, batch_size=2)
    for cut in (lambda values: values[:1], lambda values: values if values.shape[1] == 5 else values[:, :, :1]):
        with pytest.raises(AnswersUnusableError, match="found logits of shape"):
            answer(TokenSession(cut), SEQUENCES, token_artefact(), pad_id=0, batch_size=2)
    with pytest.raises(AnswersUnusableError, match="found logits of shape"):
        answer(TokenSession(lambda values: values[:, :-1]), SEQUENCES, token_artefact(), pad_id=0, batch_size=2)


LABELS = [0, 0, 1, 1, 2, 2, 2, 2]
STUDENT = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 2, 2, 2, 0]]
TEACHER = [0, 0, 1, 1, 2, 2, 2, 2]
IDENTITY = {"target": "cpu", "runtime": "fake", "device": "local", "artefact_digest": "a" * 64}


def make_score(logits, **changes):
    """A score of eight rows."""
    answers, of_student = logits.argmax(1).tolist(), STUDENT.argmax(1).tolist()
    values = {
        "metric": single_label.METRIC,
        "outputs": {"logits": logits},
        "student_outputs": {"logits": STUDENT},
        "answers": answers,
        "student_answers": of_student,
        "values": single_label.values(answers, LABELS[: len(logits)]),
        "student_values": single_label.values(of_student, LABELS),
        "teacher_values": single_label.values(TEACHER, LABELS),
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
    assert found.worst_output_difference == 1.0
    assert found.answers == (1, 0, 1, 1, 2, 2, 2, 2)
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


def test_score_of_a_task_whose_answers_are_numbers():
    """Planted toy: a row's answer is a degree, worth how far it is off; nothing is a class, and less is better."""
    degrees = np.linspace(0, 40, 50)
    off = Metric(name="mean_error", title="mean error", unit="degrees", scale=1.0, is_greater_better=False)
    given = {"student": degrees + 1.5, "artefact": degrees + np.where(np.arange(50) < 10, 3.5, 1.5)}
    found = make_score(
        STUDENT,
        metric=off,
        outputs={"logits": given["artefact"][:, None]},
        student_outputs={"logits": given["student"][:, None]},
        answers=given["artefact"].tolist(),
        student_answers=given["student"].tolist(),
        values=np.abs(given["artefact"] - degrees),
        student_values=np.abs(given["student"] - degrees),
        teacher_values=np.full(50, 0.5),
        further={"worst_error": 3.5},
    )
    assert found.answers == tuple(given["artefact"].tolist())
    assert found.primary.value == pytest.approx(1.9)
    assert found.agreement.value == 40 / 50
    assert found.drop_from_student.value == pytest.approx(0.4) and found.flips_from_student == Flips(worse=10, better=0)
    assert found.drop_from_teacher.value == pytest.approx(1.4) and found.flips_from_teacher == Flips(worse=50, better=0)
    assert found.worst_output_difference == pytest.approx(2.0)
    assert found.further == {"worst_error": 3.5}


def test_score_refuses_answers_to_other_examples():
    """Records that do not belong together."""
    with pytest.raises(AnswersUnusableError, match="expected the same examples and outputs"):
        make_score(STUDENT[:7])
    with pytest.raises(AnswersUnusableError, match="expected the same examples and outputs"):
        make_score(STUDENT, student_answers=TEACHER[:7])
    with pytest.raises(AnswersUnusableError, match="expected the same examples and outputs"):
        make_score(STUDENT, outputs={"spans": STUDENT})
    with pytest.raises(AnswersUnusableError, match="expected the same examples and outputs"):
        make_score(STUDENT, teacher_values=single_label.values(TEACHER, LABELS)[:7])
    with pytest.raises(IntegrityError, match="found answers to 7 rows, expected 8"):
        single_label.values(TEACHER[:7], LABELS)


@pytest.mark.parametrize("which", ["outputs", "student_outputs"])
def test_score_refuses_logits_that_are_not_finite(which):
    """On either side."""
    spoiled = STUDENT.copy()
    spoiled[4, 1] = np.nan
    with pytest.raises(AnswersUnusableError, match="is not finite; nothing was scored"):
        make_score(STUDENT, **{which: {"logits": spoiled}})
