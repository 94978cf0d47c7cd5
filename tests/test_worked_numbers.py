"""Each loss against numbers worked by hand, and against a plain float64 loop over valid tokens written apart from it.

The literals were worked in float64 from the published formulas; the loops crop padding away instead of masking it.
"""

import numpy as np
import pytest
import torch

from pipeline.losses.attention_kl import attention_kl
from pipeline.losses.attention_score_mse import attention_score_mse
from pipeline.losses.cross_entropy import cross_entropy
from pipeline.losses.hidden_mse import hidden_mse
from pipeline.losses.logit_kl import logit_kl
from pipeline.losses.logit_mse import logit_mse
from pipeline.losses.minilm_v2 import relation_kl, split_heads
from pipeline.quantization.plan import activation_scale, quantize_weight
from pipeline.signals.divergences import row_kl

TEACHER_LOGITS, STUDENT_LOGITS = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 2.0]])
ALL_VALID = torch.tensor([[True, True]])


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 1.150421), (2.0, 1.280627), (4.0, 1.319630)])
def test_logit_kl(temperature, expected):
    """Three classes in opposite order."""
    assert logit_kl(STUDENT_LOGITS, TEACHER_LOGITS, temperature).item() == pytest.approx(expected, abs=1e-6)


def test_logit_kl_has_the_direction_teacher_to_student():
    """Teacher (2,0,0), student uniform: 0.433040; the reverse would be 0.474266."""
    teacher, student = torch.tensor([[2.0, 0.0, 0.0]]), torch.zeros(1, 3)
    assert logit_kl(student, teacher, 1.0).item() == pytest.approx(0.433040, abs=1e-6)
    assert logit_kl(teacher, student, 1.0).item() == pytest.approx(0.474266, abs=1e-6)


def test_logit_kl_gradient_is_temperature_times_the_difference_of_probabilities():
    """The closed form, for one example."""
    student = STUDENT_LOGITS.clone().requires_grad_()
    logit_kl(student, TEACHER_LOGITS, 4.0).backward()
    expected = 4.0 * ((STUDENT_LOGITS / 4).softmax(-1) - (TEACHER_LOGITS / 4).softmax(-1))
    torch.testing.assert_close(student.grad, expected)


def test_logit_mse_is_twice_the_limit_of_logit_kl():
    """Squares 4, 0, 4 over 3 classes; logit_kl tends to 4/3 as the temperature grows."""
    assert logit_mse(STUDENT_LOGITS, TEACHER_LOGITS).item() == pytest.approx(8 / 3, abs=1e-6)
    limit = logit_kl(STUDENT_LOGITS.double(), TEACHER_LOGITS.double(), 30.0).item()
    assert limit == pytest.approx(4 / 3, abs=1e-3)


def test_cross_entropy():
    """-log softmax(2,1,0)[0] = 0.407606; smoothing 0.3 leaves 0.8 on it and puts 0.1 on each other class."""
    label = torch.tensor([0])
    assert cross_entropy(TEACHER_LOGITS, label, 0.0).item() == pytest.approx(0.407606, abs=1e-6)
    assert cross_entropy(TEACHER_LOGITS, label, 0.3).item() == pytest.approx(0.407606 + 0.3, abs=1e-6)


# one row of three valid keys and a padded one, the same for each valid query
MASK = torch.tensor([[True, True, True, False]])
TEACHER_SCORES = torch.tensor([2.0, 1.0, 0.0, 5.0]).expand(1, 1, 4, 4)
STUDENT_SCORES = torch.tensor([1.0, 1.0, 1.0, -3.0]).expand(1, 1, 4, 4)


def test_attention_kl():
    """0.266217; the reverse direction would give 0.308994, a forgotten key mask 4.515542."""
    assert attention_kl(STUDENT_SCORES, TEACHER_SCORES, MASK, 1.0).item() == pytest.approx(0.266217, abs=1e-6)
    assert attention_kl(TEACHER_SCORES, STUDENT_SCORES, MASK, 1.0).item() == pytest.approx(0.308994, abs=1e-6)
    forgotten = row_kl(STUDENT_SCORES, TEACHER_SCORES, torch.ones_like(MASK)).item()
    assert forgotten == pytest.approx(4.515542, abs=1e-6)


def test_attention_score_mse():
    """Squares 1, 0, 1 over 3 valid keys; the differences have mean 0, so centring changes nothing here."""
    for center_rows in (False, True):
        result = attention_score_mse(STUDENT_SCORES, TEACHER_SCORES, MASK, center_rows).item()
        assert result == pytest.approx(0.666667, abs=1e-6)


def test_attention_score_mse_does_not_fall_with_padding():
    """A difference of 1 in each score, 4 tokens of 8: 1, where TinyBERT's code gives 0.5."""
    mask = torch.arange(8)[None, :] < 4
    assert attention_score_mse(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), mask).item() == pytest.approx(1.0)


def test_hidden_mse():
    """(1,2,3) and (3,2,1) normalise to -a,0,a and a,0,-a with a^2 = 3/2: (6 + 0 + 6) / 3 = 4, but for the epsilon."""
    student, teacher = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[3.0, 2.0, 1.0]]])
    result = hidden_mse(student, teacher, torch.tensor([[True]])).item()
    assert result == pytest.approx(4 * (2 / 3) / (2 / 3 + 1e-5), abs=1e-6)


def test_minilm_v2():
    """Two tokens, two relation heads, one of the three vectors: relations, each head's divergence, and their mean."""
    teacher = torch.tensor([[[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, -1.0]]])
    student = torch.tensor([[[1.0, 1.0], [1.0, -1.0]]])
    theirs, ours = split_heads(teacher, 2), split_heads(student, 2)
    relations = theirs @ theirs.transpose(-1, -2)
    torch.testing.assert_close(relations[0, 0], 0.707107 * torch.eye(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(relations[0, 1], 1.414214 * torch.eye(2), atol=1e-6, rtol=0)
    for head, expected in enumerate((0.058800, 0.023869)):
        one = [side[:, head : head + 1] @ side[:, head : head + 1].transpose(-1, -2) for side in (ours, theirs)]
        assert row_kl(*one, ALL_VALID).item() == pytest.approx(expected, abs=1e-6)
    assert relation_kl(student, teacher, ALL_VALID, 2).item() == pytest.approx(0.041334, abs=1e-6)


# --- against float64 loops ---

LENGTHS = (5, 3, 1)


def draw(*size, seed):
    """Random float64 numbers, so that the comparison is with the same input rounded once."""
    return np.random.default_rng(seed).normal(size=size)


def softmax(row):
    """Probabilities of one row."""
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def kl(teacher_row, student_row):
    """Divergence of two rows of scores."""
    p, q = softmax(teacher_row), softmax(student_row)
    return float((p * np.log(p / q)).sum())


def mask():
    """True for the first tokens of each example."""
    return torch.arange(max(LENGTHS))[None, :] < torch.tensor(LENGTHS)[:, None]


def as_torch(*arrays):
    """float32 tensors, as in training."""
    return [torch.tensor(array, dtype=torch.float32) for array in arrays]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_logit_losses_agree_with_float64(temperature):
    """Seven examples of four classes."""
    student, teacher = draw(7, 4, seed=1), draw(7, 4, seed=2)
    labels = np.array([0, 1, 2, 3, 0, 1, 2])
    expected = np.mean([kl(t / temperature, s / temperature) for s, t in zip(student, teacher, strict=True)])
    assert logit_kl(*as_torch(student, teacher), temperature).item() == pytest.approx(
        expected * temperature**2, abs=1e-6
    )
    assert logit_mse(*as_torch(student, teacher)).item() == pytest.approx(np.mean((student - teacher) ** 2), abs=1e-6)
    target = 0.9 * np.eye(4)[labels] + 0.1 / 4
    surprise = -np.mean([(t * np.log(softmax(s))).sum() for s, t in zip(student, target, strict=True)])
    assert cross_entropy(*as_torch(student), torch.tensor(labels), 0.1).item() == pytest.approx(surprise, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_attention_kl_agrees_with_float64(temperature):
    """Row by row over the valid block."""
    student, teacher = draw(3, 2, 5, 5, seed=1), draw(3, 2, 5, 5, seed=2)
    expected = np.mean(
        [
            np.mean(
                [
                    kl(teacher[b, h, i, :n] / temperature, student[b, h, i, :n] / temperature)
                    for h in range(2)
                    for i in range(n)
                ]
            )
            for b, n in enumerate(LENGTHS)
        ]
    )
    result = attention_kl(*as_torch(student, teacher), mask(), temperature).item()
    assert result == pytest.approx(expected * temperature**2, abs=1e-6)


@pytest.mark.parametrize("center_rows", [False, True])
def test_attention_score_mse_agrees_with_float64(center_rows):
    """Over the valid block, each side centred by itself."""
    student, teacher = draw(3, 2, 5, 5, seed=1), draw(3, 2, 5, 5, seed=2)
    per_example = []
    for b, n in enumerate(LENGTHS):
        ours, theirs = student[b, :, :n, :n], teacher[b, :, :n, :n]
        if center_rows:
            ours, theirs = ours - ours.mean(-1, keepdims=True), theirs - theirs.mean(-1, keepdims=True)
        per_example.append(((ours - theirs) ** 2).mean())
    result = attention_score_mse(*as_torch(student, teacher), mask(), center_rows).item()
    assert result == pytest.approx(np.mean(per_example), abs=1e-6)


def test_hidden_mse_agrees_with_float64():
    """Token by token."""
    student, teacher = draw(3, 5, 8, seed=1), draw(3, 5, 8, seed=2)

    def normalise(vector):
        return (vector - vector.mean()) / np.sqrt(vector.var() + 1e-5)

    expected = np.mean(
        [
            np.mean([((normalise(student[b, i]) - normalise(teacher[b, i])) ** 2).mean() for i in range(n)])
            for b, n in enumerate(LENGTHS)
        ]
    )
    assert hidden_mse(*as_torch(student, teacher), mask()).item() == pytest.approx(expected, abs=1e-6)


def test_minilm_v2_agrees_with_float64():
    """Relation head by relation head, the widths of both sides different."""
    student, teacher, heads = draw(3, 5, 8, seed=1), draw(3, 5, 12, seed=2), 4

    def relation(vectors, head):
        size = vectors.shape[-1] // heads
        part = vectors[:, head * size : (head + 1) * size]
        return part @ part.T / np.sqrt(size)

    expected = np.mean(
        [
            np.mean(
                [
                    kl(relation(teacher[b, :n], r)[i], relation(student[b, :n], r)[i])
                    for r in range(heads)
                    for i in range(n)
                ]
            )
            for b, n in enumerate(LENGTHS)
        ]
    )
    assert relation_kl(*as_torch(student, teacher), mask(), heads).item() == pytest.approx(expected, abs=1e-6)


def test_the_wrong_reduction_would_be_noticed():
    """Planted fault: torch's "mean" divides by the classes too, and is a third of what it should be."""
    log_student, teacher = STUDENT_LOGITS.log_softmax(-1), TEACHER_LOGITS.softmax(-1)
    faulty = (teacher * (teacher.log() - log_student)).mean().item()
    assert faulty != pytest.approx(1.150421, abs=1e-6)
    assert faulty == pytest.approx(1.150421 / 3, abs=1e-6)


def test_quantisers_of_section_14():
    """Symmetric for each output channel, and asymmetric over a range."""
    quantized, scale = quantize_weight(torch.tensor([[0.5, -1.27, 0.003, 1.0]]), per_channel=True)
    assert (scale.item(), quantized.tolist()) == (pytest.approx(0.01, abs=1e-6), [[50, -127, 0, 100]])
    step, zero = activation_scale(torch.tensor(-1.0), torch.tensor(3.0))
    assert (step.item(), zero.item()) == (pytest.approx(0.015686, abs=1e-6), 64)
