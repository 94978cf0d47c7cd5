"""Losses on hidden states, MiniLM v1 and the distillation token: worked numbers, float64 loops, invariances, CKA maps.

The literals were worked by hand or in float64 from the published formulas; the loops crop padding away instead of
masking it. What every loss obeys is in test_losses.py.
"""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_losses import STUDENT, TEACHER, change, load, make_signals, two_models, value, with_gradient
from test_worked_numbers import LENGTHS, as_torch, draw, kl, mask, softmax
from torch.nn import functional

from pipeline.base.errors import SettingsError
from pipeline.losses.cka import cka
from pipeline.losses.cross_entropy import cross_entropy
from pipeline.losses.distillation_token import distillation_token
from pipeline.losses.hidden_cosine import hidden_cosine
from pipeline.losses.hidden_mse import hidden_mse
from pipeline.losses.minilm_v1 import value_scores
from pipeline.losses.pkd import pkd
from pipeline.signals.cka import best_monotone_map, cka_matrix, linear_cka
from pipeline.signals.divergences import row_kl
from pipeline.signals.hidden_states import direction_distance
from pipeline.signals.reader import attention_scores

ONE = torch.tensor([[True]])  # one example of one token
CROSS = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


# --- worked by hand ---


def test_pkd():
    """(3,4) and (0,2) at length 1 are (0.6,0.8) and (0,1): 0.36 + 0.04."""
    assert pkd(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]), ONE).item() == pytest.approx(0.4, abs=1e-6)


def test_hidden_cosine():
    """The same two states have cosine 0.8; opposite ones are at 2, those at a right angle at 1."""
    three_four = torch.tensor([[[3.0, 4.0]]])
    for other, expected in (([0.0, 2.0], 0.2), ([-6.0, -8.0], 2.0), ([-4.0, 3.0], 1.0), ([0.3, 0.4], 0.0)):
        assert hidden_cosine(three_four, torch.tensor([[other]]), ONE).item() == pytest.approx(expected, abs=1e-6)


def test_hidden_mse_without_normalisation():
    """(1,2,3) and (3,2,1): (4 + 0 + 4) / 3."""
    student, teacher = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[3.0, 2.0, 1.0]]])
    assert hidden_mse(student, teacher, ONE, normalize=False).item() == pytest.approx(8 / 3, abs=1e-6)


def test_cka():
    """Four points on a cross and two at its centre, beside the first coordinate.

    With n = 6, K K' sums 8, 4 and 4 for both, one and the product, squares sum 4, 2 and to 4, 2, 2 in products:
    8 - 6/4 * 4 + 16/20 = 2.8, 4 - 6/4 * 2 + 4/20 = 1.2, 4 - 6/4 * 2 + 8/20 = 1.4; 1.4 / sqrt(2.8 * 1.2). The plain
    estimator has 4 / sqrt(8 * 4), the 0.707107 that is published for the cross alone.
    """
    points = torch.cat([CROSS, torch.zeros(2, 2)])
    expected = 1.4 / math.sqrt(2.8 * 1.2)
    assert linear_cka(points, points[:, :1]).item() == pytest.approx(expected, abs=1e-6)
    result = cka(points[None, :, :1], points[None], torch.ones(1, 6, dtype=torch.bool)).item()
    assert result == pytest.approx(1 - expected, abs=1e-6)
    assert plain_cka(CROSS, CROSS[:, :1]).item() == pytest.approx(0.707107, abs=1e-6)


def test_distillation_token_as_in_deit():
    """Class token (1,0) with label 0 and distillation token (0,1) with the teacher's choice 1: each log(1 + 1/e)."""
    class_token, token = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    hard = distillation_token(token, torch.tensor([[-1.0, 3.0]]), ONE, "hard", 2.0).item()
    assert hard == pytest.approx(0.313262, abs=1e-6)
    both = 0.5 * cross_entropy(class_token, torch.tensor([0]), 0.0).item() + 0.5 * hard
    assert both == pytest.approx(0.313262, abs=1e-6)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 1.150421), (2.0, 1.280627), (4.0, 1.319630)])
def test_soft_distillation_token(temperature, expected):
    """The divergence of three classes in opposite order, as in logit_kl."""
    head, teacher = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    assert distillation_token(head, teacher, ONE, "soft", temperature).item() == pytest.approx(expected, abs=1e-6)


def one_layer(values, like):
    """Signals of one layer with these values of shape (heads, tokens, width) and attention spread evenly."""
    values = torch.tensor([values])
    attention = {name: (torch.zeros_like(values),) for name in ("queries", "keys")}
    return replace(like, mask=torch.ones(1, values.shape[2], dtype=torch.bool), values=(values,), **attention)


def test_minilm_v1():
    """Two heads of two tokens: value relations diag(0.707107) and diag(1.414214) against ones and (1,-1;-1,1)."""
    like = replace(make_signals(TEACHER, 1, (2,)), hidden=(), output_weights=(), delimiters=None)
    teacher = one_layer([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, -1.0]]], like)
    student = one_layer([[[1.0], [1.0]], [[1.0], [-1.0]]], like)
    for head, size in enumerate((0.707107, 1.414214)):
        torch.testing.assert_close(value_scores(teacher, 1)[0, head], size * torch.eye(2), atol=1e-6, rtol=0)
    file, params = load("minilm_v1")
    assert value(file, params, student, teacher) == pytest.approx((0.058800 + 0.023869) / 2, abs=1e-6)


# --- against float64 loops ---


def mean_of_examples(per_token):
    """Mean over each example's tokens, then over examples."""
    return np.mean([np.mean([per_token(b, i) for i in range(n)]) for b, n in enumerate(LENGTHS)])


def cosine(one, other):
    """Of the angle between two vectors."""
    return one @ other / np.sqrt((one @ one) * (other @ other))


def test_losses_on_single_states_agree_with_float64():
    """Token by token, and for pkd the first one."""
    student, teacher = draw(3, 5, 8, seed=1), draw(3, 5, 8, seed=2)
    ours, theirs = as_torch(student, teacher)
    expected = mean_of_examples(lambda b, i: ((student[b, i] - teacher[b, i]) ** 2).mean())
    assert hidden_mse(ours, theirs, mask(), normalize=False).item() == pytest.approx(expected, abs=1e-6)
    expected = mean_of_examples(lambda b, i: 1 - cosine(student[b, i], teacher[b, i]))
    assert hidden_cosine(ours, theirs, mask()).item() == pytest.approx(expected, abs=1e-6)
    expected = np.mean([2 - 2 * cosine(student[b, 0], teacher[b, 0]) for b in range(3)])
    assert pkd(ours[:, 0], theirs[:, 0], mask()).item() == pytest.approx(expected, abs=1e-6)


def cka_loop(x, y):
    """By way of kernels over the rows without their diagonals (Song et al. 2012), not of columns as in the code."""
    n = len(x)
    k, m = ((side @ side.T) * (1 - np.eye(n)) for side in (x, y))

    def dependence(a, b):
        return (a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a @ b).sum()

    return dependence(k, m) / np.sqrt(dependence(k, k) * dependence(m, m))


def valid_rows(states):
    """What is left of a batch without its padding."""
    return np.concatenate([states[b, :n] for b, n in enumerate(LENGTHS)])


def test_cka_agrees_with_float64():
    """All valid tokens of the batch, the widths different."""
    student, teacher = draw(3, 5, 4, seed=1) + 3, draw(3, 5, 6, seed=2)
    expected = 1 - cka_loop(valid_rows(student), valid_rows(teacher))
    assert cka(*as_torch(student, teacher), mask()).item() == pytest.approx(expected, abs=1e-6)


def test_minilm_v1_agrees_with_float64():
    """Head by head and row by row over the valid block, for attention and for values."""
    sizes = ((3, 2, 5, 4), (3, 2, 5, 6))  # batch, heads, length, width of a head
    fields = {"queries": 1, "keys": 2, "values": 3}
    arrays = [
        {name: draw(*size, seed=10 * side + seed) for name, seed in fields.items()} for side, size in enumerate(sizes)
    ]
    like = replace(make_signals(TEACHER, 1, LENGTHS), hidden=(), output_weights=())
    student, teacher = (
        replace(like, **{name: tuple(as_torch(array)) for name, array in side.items()}) for side in arrays
    )

    def rows(side, left, right, b, h, i, n):
        return side[left][b, h, i] @ side[right][b, h, :n].T / np.sqrt(side[left].shape[-1])

    expected = sum(
        np.mean(
            [
                np.mean(
                    [kl(*(rows(side, *pair, b, h, i, n) for side in arrays[::-1])) for h in range(2) for i in range(n)]
                )
                for b, n in enumerate(LENGTHS)
            ]
        )
        for pair in (("queries", "keys"), ("values", "values"))
    )
    file, params = load("minilm_v1")
    assert value(file, params, student, teacher) == pytest.approx(expected, abs=1e-6)


def test_distillation_token_agrees_with_float64():
    """The head's product written out, for both forms."""
    states, weight, bias, teacher = draw(3, 8, seed=1), draw(3, 8, seed=2), draw(3, seed=3), draw(3, 3, seed=4)
    head = torch.nn.Linear(8, 3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(weight))
        head.bias.copy_(torch.tensor(bias))
    answers = states @ weight.T + bias
    soft = np.mean([kl(t / 1.5, s / 1.5) for s, t in zip(answers, teacher, strict=True)]) * 1.5**2
    hard = -np.mean([np.log(softmax(s)[t.argmax()]) for s, t in zip(answers, teacher, strict=True)])
    ours = replace(make_signals(TEACHER, 1), hidden=(), output_weights=(), token=as_torch(states)[0])
    theirs = replace(make_signals(TEACHER, 2), logits=as_torch(teacher)[0])
    for form, expected in (("soft", soft), ("hard", hard)):
        file, params = load("distillation_token", form=form, temperature=1.5)
        assert value(file, params, ours, theirs, head) == pytest.approx(expected, abs=1e-6)


# --- what leaves a loss as it is ---


def features(rows, width, seed):
    """Random rows, in float32."""
    return as_torch(draw(rows, width, seed=seed))[0]


def check_cka_ignores_rotation_scale_and_shift(similarity):
    """Of either side."""
    x, y = features(20, 4, 1), features(20, 6, 2)
    rotation = torch.linalg.qr(features(4, 4, 3)).Q
    expected = similarity(x, y).item()
    for same in (x @ rotation, x[:, [2, 0, 3, 1]], 1e3 * x, -1e-3 * x, x + features(1, 4, 4), 5 * x @ rotation - 7):
        assert similarity(same, y).item() == pytest.approx(expected, abs=1e-5)
        assert similarity(y, same).item() == pytest.approx(expected, abs=1e-5)


def test_cka_ignores_rotation_scale_and_shift():
    """So that no projection is needed; one factor for all columns, not one for each."""
    check_cka_ignores_rotation_scale_and_shift(linear_cka)
    x, y = features(20, 4, 1), features(20, 6, 2)
    stretched = x * torch.tensor([1.0, 10.0, 1.0, 1.0])
    assert linear_cka(stretched, y).item() != pytest.approx(linear_cka(x, y).item(), abs=1e-2)


def plain_cka(x, y):
    """The estimator that is biased for few rows."""
    x, y = x - x.mean(0), y - y.mean(0)
    return (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


@pytest.mark.parametrize("rows", [40, 320, 2000])
def test_cka_of_unrelated_features_is_about_zero_however_few_the_rows(rows):
    """192 and 384 columns; planted fault: with the plain estimator 320 rows come out at 0.45."""
    found = [linear_cka(features(rows, 192, seed), features(rows, 384, seed + 100)).item() for seed in range(5)]
    assert max(map(abs, found)) < 4 / rows
    assert abs(sum(found) / 5) < 2 / rows
    if rows == 320:
        assert plain_cka(features(320, 192, 0), features(320, 384, 100)).item() == pytest.approx(0.45, abs=0.02)


def test_cka_of_few_rows_still_has_a_gradient():
    """12 tokens of 32 columns, where the plain estimator is near 1 for anything and has little to say."""

    def slope(similarity):
        student = features(12, 32, 1).requires_grad_()
        similarity(student, features(12, 32, 2)).backward()
        return student.grad.norm().item()

    assert slope(linear_cka) > 1.5 * slope(plain_cka)


def test_cka_of_what_does_not_vary():
    """Fewer than two rows, and the same row again and again, are alike among themselves and unlike all else."""
    for rows in (0, 1, 3):
        assert linear_cka(features(rows, 4, 1), features(rows, 6, 2)).item() == 1
    # large, so that centring leaves rounding errors which must not count as features
    constant, varying = features(1, 4, 1).expand(9, 4) * 1e3 + 0.1, features(9, 6, 2)
    assert linear_cka(constant, varying).item() == linear_cka(varying, constant).item() == 0
    assert linear_cka(constant, 3 * constant).item() == 1


def test_direction_is_all_that_cosine_and_pkd_see():
    """A positive factor for each state changes neither, on either side; a negative one does."""
    student, teacher = features(15, 8, 1).view(3, 5, 8), features(15, 8, 2).view(3, 5, 8)
    factors = features(15, 1, 3).view(3, 5, 1).exp()
    expected = hidden_cosine(student, teacher, mask()).item()
    assert hidden_cosine(factors * student, 100 * teacher, mask()).item() == pytest.approx(expected, abs=1e-6)
    assert hidden_cosine(-student, teacher, mask()).item() == pytest.approx(2 - expected, abs=1e-6)
    first = pkd(student[:, 0], teacher[:, 0], mask()).item()
    assert pkd(factors[:, 0] * student[:, 0], teacher[:, 0], mask()).item() == pytest.approx(first, abs=1e-6)


def test_a_small_angle_is_not_lost_in_rounding():
    """1e-4: squared 1e-8, which 2 - 2 cos in float32 would give as 0."""
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1e-4])
    assert direction_distance(one, other).item() == pytest.approx(1e-8, rel=1e-3)
    assert 2 - 2 * functional.cosine_similarity(one, other, dim=0).item() == 0


def zero_gradient(distance):
    """Largest entry of the gradient that a student's zero state gets."""
    student = torch.zeros(1, 4, requires_grad=True)
    distance(student, torch.ones(1, 4)).sum().backward()
    return student.grad.abs().max().item()


def test_a_state_of_zeros_has_no_direction():
    """At a right angle to any other, equal to another one, and without gradient."""
    zero, other = torch.zeros(1, 4), torch.ones(1, 4)
    assert direction_distance(zero, other).item() == direction_distance(other, zero).item() == 2
    assert direction_distance(zero, zero).item() == 0
    assert zero_gradient(direction_distance) == 0
    assert zero_gradient(lambda a, b: (functional.normalize(a) - functional.normalize(b)).square()) > 1e9


@pytest.mark.parametrize("name", ["hidden_mse", "hidden_cosine", "pkd", "cka", "minilm_v1"])
def test_signals_that_are_all_zero_give_finite_gradients(name):
    """On either side, and on both."""
    file, params = load(name)
    for zero_student, zero_teacher in ((True, False), (False, True), (True, True)):
        student, teacher, module = two_models(file, params)
        student = with_gradient(change(student, torch.zeros_like) if zero_student else student)
        teacher = change(teacher, torch.zeros_like) if zero_teacher else teacher
        result = file.loss(student, teacher, params, module)
        result.backward()
        assert torch.isfinite(result)
        grads = [t.grad for t in (*student.hidden, *student.queries, *student.values) if t.grad is not None]
        assert grads
        assert all(torch.isfinite(grad).all() for grad in grads)


def test_without_normalisation_hidden_mse_sees_scale_and_shift():
    """With it, it sees neither."""
    signals = make_signals(TEACHER, 1)
    moved = 3 * signals.hidden[1] + 5
    assert hidden_mse(moved, signals.hidden[1], signals.mask).item() == pytest.approx(0.0, abs=1e-6)
    assert hidden_mse(moved, signals.hidden[1], signals.mask, normalize=False).item() > 10
    moved = change(signals, lambda tensor: 3 * tensor + 5)
    for normalize in (True, False):
        file, params = load("hidden_mse", normalize=normalize)
        assert (value(file, params, moved, signals) < 1e-6) == normalize


def test_pkd_sees_the_first_token_only():
    """And is the same for an example that is longer."""
    file, params = load("pkd")
    student, teacher, module = two_models(file, params)
    expected = value(file, params, student, teacher, module)
    others = torch.arange(max(6, 4, 1)) > 0

    def garbage(tensor):
        return torch.where(others[:, None], 99.0, tensor)

    assert value(file, params, change(student, garbage), change(teacher, garbage), module) == expected
    assert value(file, params, change(student, lambda t: t.roll(1, -2)), teacher, module) != expected


def check_minilm_v1_compares_head_by_head(file, params):
    """Reordering both or turning values changes nothing; attention and values each count for themselves."""
    student, teacher = make_signals(STUDENT, 1), make_signals(TEACHER, 2)
    expected = value(file, params, student, teacher)

    def reordered(signals, *fields):
        moved = {name: tuple(tensor[:, [2, 0, 3, 1]] for tensor in getattr(signals, name)) for name in fields}
        return replace(signals, **moved)

    everything = ("queries", "keys", "values")
    both = reordered(student, *everything), reordered(teacher, *everything)
    assert value(file, params, *both) == pytest.approx(expected, rel=1e-5)
    for fields in (everything, ("queries", "keys"), ("values",)):
        assert value(file, params, reordered(student, *fields), teacher) != pytest.approx(expected, rel=1e-4)
    width = STUDENT.hidden // STUDENT.heads
    rotation = torch.linalg.qr(features(width, width, 5)).Q
    turned = replace(student, values=tuple(tensor @ rotation for tensor in student.values))
    assert value(file, params, turned, teacher) == pytest.approx(expected, rel=1e-5)


def test_minilm_v1_compares_head_by_head():
    """Relations are inner products, which an orthogonal map keeps."""
    check_minilm_v1_compares_head_by_head(*load("minilm_v1"))


def test_minilm_v1_reads_the_last_student_layer_and_one_of_the_teacher():
    """The last unless another is named; both ways of saying the last give the same."""
    student, teacher = make_signals(STUDENT, 1), make_signals(TEACHER, 2)
    file, params = load("minilm_v1")
    assert file.layers(STUDENT, TEACHER, params) == ({2}, {4})
    assert file.layers(STUDENT, TEACHER, file.Params(teacher_layer=3)) == ({2}, {3})
    by_layer = [value(file, file.Params(teacher_layer=layer), student, teacher) for layer in (1, 2, 3, 4)]
    assert len(set(by_layer)) == 4
    assert value(file, params, student, teacher) == by_layer[3]


# --- planted faults ---


def without_centring(x, y):
    """CKA that takes the columns as they are."""
    return (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def test_a_cka_that_does_not_centre_is_caught():
    """The number worked by hand does not catch it: those columns are centred already."""
    assert without_centring(CROSS, CROSS[:, :1]).item() == pytest.approx(0.707107, abs=1e-6)
    with pytest.raises(AssertionError):
        check_cka_ignores_rotation_scale_and_shift(without_centring)


def test_a_cka_that_centres_over_padding_is_caught():
    """Padded rows at 0 move the mean of the others."""
    student, teacher = draw(3, 5, 4, seed=1) + 3, draw(3, 5, 6, seed=2)
    ours, theirs = (torch.where(mask()[..., None], side, 0.0).flatten(0, 1) for side in as_torch(student, teacher))
    expected = cka_loop(valid_rows(student), valid_rows(teacher))
    assert linear_cka(ours, theirs).item() != pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("scores", [attention_scores, value_scores], ids=["no values", "no attention"])
def test_half_a_minilm_v1_is_caught(scores, monkeypatch):
    """One of the two divergences taken twice."""
    file, params = load("minilm_v1")

    def half(student, teacher, params, module=None):
        return 2 * row_kl(scores(student, len(student.queries)), scores(teacher, len(teacher.queries)), student.mask)

    monkeypatch.setattr(file, "loss", half)
    with pytest.raises(AssertionError):
        check_minilm_v1_compares_head_by_head(file, params)


# --- what does not fit, and what is learned beside the student ---


def test_a_teacher_layer_that_is_not_there_does_not_fit_minilm_v1():
    """Layers are counted from 1, so the last is allowed."""
    file, params = load("minilm_v1", teacher_layer=5)
    assert file.misfit(STUDENT, TEACHER, params) == "teacher_layer is 5, but the teacher has 4 layers"
    assert file.misfit(STUDENT, replace(TEACHER, layers=5), params) is None


def test_a_student_without_the_token_does_not_fit():
    """The message names the setting; other classes are reported too."""
    file, params = load("distillation_token")
    message = file.misfit(replace(STUDENT, distillation_token=False), TEACHER, params)
    assert message.endswith("set student.distillation_token to true")
    message = file.misfit(replace(STUDENT, choices=2), TEACHER, params)
    assert message == "the student has 2 classes and the teacher 3; they must be the same"


def test_the_token_has_a_head_of_its_own_even_between_equal_widths():
    """From the student's width to the classes."""
    file, params = load("distillation_token")
    for student in (STUDENT, replace(TEACHER, distillation_token=True)):
        head = file.auxiliary(student, TEACHER, params)
        assert (head.in_features, head.out_features) == (student.hidden, 3)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_the_token_needs_a_positive_temperature(temperature):
    """In the soft form, which uses it."""
    logits = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="must be above 0"):
        distillation_token(logits, logits, ONE, "soft", temperature)


@pytest.mark.parametrize(("name", "pairs"), [("hidden_mse", 2), ("hidden_cosine", 1), ("pkd", 2)])
def test_each_pair_has_a_projection_where_widths_differ(name, pairs):
    """As many as the default map has pairs: DistilBERT compares the last layers only."""
    file, params = load(name)
    assert file.auxiliary(TEACHER, TEACHER, params) is None
    shapes = [tuple(parameter.shape) for parameter in file.auxiliary(STUDENT, TEACHER, params).parameters()]
    assert shapes == [(96, 48)] * pairs


# --- maps chosen by CKA ---


def test_cka_matrix_compares_every_layer_with_every_layer():
    """The valid tokens of each pair, by the loop."""
    ours, theirs = ([draw(3, 5, width, seed=seed) for seed in seeds] for width, seeds in ((4, (1, 2)), (6, (3, 4, 5))))
    expected = [[cka_loop(valid_rows(one), valid_rows(other)) for other in theirs] for one in ours]
    matrix = cka_matrix(as_torch(*ours), as_torch(*theirs), mask())
    np.testing.assert_allclose(matrix, expected, atol=1e-6)
    rows = [[torch.tensor(valid_rows(states), dtype=torch.float32) for states in side] for side in (ours, theirs)]
    np.testing.assert_allclose(cka_matrix(*rows), expected, atol=1e-6)


def test_a_student_made_of_turned_teacher_layers_finds_them_again():
    """Layers 2 and 5 of 5, each rotated and stretched, with some noise."""
    teacher = [features(200, 6, seed) for seed in range(5)]
    rotation = torch.linalg.qr(features(6, 6, 9)).Q
    student = [3 * teacher[layer] @ rotation + 0.3 * features(200, 6, 20 + layer) for layer in (1, 4)]
    assert best_monotone_map(cka_matrix(student, teacher)) == ((1, 2), (2, 5))


def test_the_best_map_keeps_the_order():
    """Each layer by itself would take the other's: 0.9 + 0.9 is not to be had, 0.5 + 0.6 is."""
    assert best_monotone_map([[0.1, 0.5, 0.9], [0.9, 0.3, 0.6]]) == ((1, 2), (2, 3))
    assert best_monotone_map([[0.5, 0.5, 0.5]]) == ((1, 1),)  # of equals the lower
    assert best_monotone_map([[-3.0, -1.0], [-2.0, -5.0]]) == ((1, 1), (2, 2))  # the only one there is


@st.composite
def matrices(draw_value):
    """Up to 5 student and 7 teacher layers; eighths, whose sums are exact, so that ties are ties."""
    student_layers = draw_value(st.integers(1, 5))
    teacher_layers = draw_value(st.integers(student_layers, 7))
    entries = st.integers(-8, 8).map(lambda number: number / 8)
    row = st.lists(entries, min_size=teacher_layers, max_size=teacher_layers)
    return draw_value(st.lists(row, min_size=student_layers, max_size=student_layers))


@given(matrix=matrices())
def test_the_best_map_is_the_best_of_all(matrix):
    """Every increasing choice of teacher layers tried; between equals the one whose last layers are lower."""
    choices = combinations(range(1, len(matrix[0]) + 1), len(matrix))
    scored = [(-sum(row[t - 1] for row, t in zip(matrix, choice, strict=True)), choice[::-1]) for choice in choices]
    _, best = min(scored)
    assert best_monotone_map(matrix) == tuple(enumerate(best[::-1], start=1))


def test_a_student_deeper_than_its_teacher_has_no_such_map():
    """As for the named maps."""
    with pytest.raises(SettingsError, match="the student has 2 layers and the teacher 1"):
        best_monotone_map([[1.0], [1.0]])
