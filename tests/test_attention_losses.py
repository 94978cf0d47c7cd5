"""The losses on attention maps: worked numbers, float64 loops that crop padding, and what each promises for itself.

The literals were worked in float64 from the published formulas; the loops know nothing of the code. What every loss
obeys is in test_losses.py, whose checks run here once more with a student that has fewer heads.
"""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import test_losses
import torch
from pydantic import ValidationError
from test_losses import TEACHER, make_signals, value, with_gradient
from toy_models import toy_batch, toy_model

from pipeline.base import plugins
from pipeline.families import Shape
from pipeline.losses import a2d, attention_kl, attention_kl_adaptive, attention_mean_kl, attention_prob_mse, shd
from pipeline.models.layer_maps import heads_misfit
from pipeline.signals.divergences import masked_probs, row_kl
from pipeline.signals.reader import SignalReader, attention_scores

FEW_HEADS = Shape(layers=2, hidden=48, heads=2, ffn=0, choices=3, distillation_token=True)
LENGTHS = test_losses.LENGTHS

# one row of three valid keys and a padded one, the same for each valid query
MASK = torch.tensor([[True, True, True, False]])
TEACHER_SCORES = torch.tensor([2.0, 1.0, 0.0, 5.0]).expand(1, 1, 4, 4)
STUDENT_SCORES = torch.tensor([1.0, 1.0, 1.0, -3.0]).expand(1, 1, 4, 4)


# --- float64, one example at a time, padding cropped ---


def softmax(scores):
    """Probabilities over the last axis."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def kl(p, q):
    """Nats of each row."""
    return (p * np.log(p / q)).sum(-1)


def maps(signals, layer, example, temperature=1.0):
    """Attention probabilities of one example: heads, queries, keys."""
    n = int(signals.mask[example].sum())
    query, key = (vectors[layer - 1][example, :, :n].double().numpy() for vectors in (signals.queries, signals.keys))
    return softmax(query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1]) / temperature)


def all_maps(signals, example):
    """Those of all layers, one below the other."""
    return np.concatenate([maps(signals, layer, example) for layer in range(1, len(signals.queries) + 1)])


def mean_of(function, pairs=((1, 2), (2, 4))):
    """Mean over examples of the mean over mapped layers of `function(student layer, teacher layer, example)`."""
    return np.mean([np.mean([function(s, t, example) for s, t in pairs]) for example in range(len(LENGTHS))])


def squeezed(probabilities, values, output_weight, target):
    """Teacher heads merged by the published pseudo-code, one example, contributions as wide as the model."""
    width = values.shape[-1]
    slices = [output_weight[:, h * width : (h + 1) * width] for h in range(len(values))]
    heads = [(p, v @ w.T) for p, v, w in zip(probabilities, values, slices, strict=True)]
    while len(heads) > target:
        k = min(len(heads) // 2, len(heads) - target)
        heads = [merge(heads[2 * i], heads[2 * i + 1]) for i in range(k)] + heads[2 * k :]
    return np.stack([p for p, _ in heads])


def merge(one, other):
    """Two heads in one, with the share that `share_of` finds."""
    share = share_of(one, other)
    return share * one[0] + (1 - share) * other[0], one[1] + other[1]


def share_of(one, other):
    """The closed form, kept between 0 and 1."""
    difference, both = one[0] - other[0], one[1] + other[1]
    u, w = difference @ one[1], difference @ both
    return min(1.0, max(0.0, (u * w).sum() / (w * w).sum())) if (w * w).sum() > 1e-12 else 0.5


def residual(share, one, other):
    """What a merged head leaves of what the two did."""
    together = one[0] @ one[1] + other[0] @ other[1]
    return ((together - (share * one[0] + (1 - share) * other[0]) @ (one[1] + other[1])) ** 2).sum()


def two_models(student_shape=FEW_HEADS, teacher_shape=TEACHER):
    """Random signals of both sides."""
    return make_signals(student_shape, 1), make_signals(teacher_shape, 2)


# --- exclude_delimiters ---


def test_attention_kl_without_delimiters():
    """Keys 1 and 2 of four: 2, 1 against 1, 1 is KL((0.731059, 0.268941) || (0.5, 0.5)) = 0.110944 in every row."""
    keys = torch.tensor([[True, True, False, False]])
    mask = torch.tensor([[True] * 4])
    result = attention_kl.attention_kl(STUDENT_SCORES, TEACHER_SCORES, mask, 1.0, keys).item()
    assert result == pytest.approx(0.110944, abs=1e-6)
    everything = torch.ones_like(mask)
    whole = attention_kl.attention_kl(STUDENT_SCORES, TEACHER_SCORES, mask, 1.0, everything)
    assert torch.equal(whole, attention_kl.attention_kl(STUDENT_SCORES, TEACHER_SCORES, mask, 1.0))


def without_delimiters(student, teacher):
    """The columns cut out and the rest divided by its sum; rows stay, and an example without columns counts as 0."""

    def one(s, t, example):
        n = int(student.mask[example].sum())
        kept = ~student.delimiters[example, :n].numpy()
        if not kept.any():
            return 0.0
        ours, theirs = (maps(*side, example)[..., kept] for side in ((student, s), (teacher, t)))
        return kl(theirs / theirs.sum(-1, keepdims=True), ours / ours.sum(-1, keepdims=True)).mean()

    return mean_of(one)


def test_excluded_delimiters_agree_with_float64():
    """One of the examples has nothing but delimiters."""
    student, teacher = two_models(test_losses.STUDENT)
    assert [int((student.mask & ~student.delimiters)[b].sum()) for b in range(3)] == [4, 2, 0]
    params = attention_kl.Params(exclude_delimiters=True)
    assert value(attention_kl, params, student, teacher) == pytest.approx(
        without_delimiters(student, teacher), abs=1e-6
    )


def test_what_delimiters_attract_is_not_seen():
    """Keys that lie at delimiters may be anything when they are excluded, and only then."""
    student, teacher = two_models(test_losses.STUDENT)
    moved = tuple(torch.where(student.delimiters[:, None, :, None], 3 * keys, keys) for keys in student.keys)
    for exclude in (True, False):
        params = attention_kl.Params(exclude_delimiters=exclude)
        before = value(attention_kl, params, student, teacher)
        after = value(attention_kl, params, replace(student, keys=moved), teacher)
        assert (after == pytest.approx(before, abs=1e-6)) == exclude


# --- probabilities ---


def test_attention_prob_mse():
    """Squares 0.110163, 0.007851, 0.059196 over 3 valid keys; three times that where scaled by length."""
    result = attention_prob_mse.attention_prob_mse(STUDENT_SCORES, TEACHER_SCORES, MASK).item()
    assert result == pytest.approx(0.059070, abs=1e-6)
    scaled = attention_prob_mse.attention_prob_mse(STUDENT_SCORES, TEACHER_SCORES, MASK, scale_by_length=True).item()
    assert scaled == pytest.approx(0.177210, abs=1e-6)


@pytest.mark.parametrize("scale_by_length", [False, True])
def test_attention_prob_mse_agrees_with_float64(scale_by_length):
    """The mean of the valid block, times its side where scaled."""
    student, teacher = two_models(test_losses.STUDENT)

    def one(s, t, example):
        difference = maps(student, s, example) - maps(teacher, t, example)
        return (difference**2).mean() * (difference.shape[-1] if scale_by_length else 1)

    params = attention_prob_mse.Params(scale_by_length=scale_by_length)
    assert value(attention_prob_mse, params, student, teacher) == pytest.approx(mean_of(one), abs=1e-6)


def test_gradients_of_attention_prob_mse_shrink_with_length():
    """Sixteen times the tokens: without scaling far less than a sixteenth of the gradient, with it more."""

    def gradient(length, scale):
        generator = torch.Generator().manual_seed(0)
        student, teacher = torch.randn(2, 1, 4, length, length, generator=generator)
        student.requires_grad_()
        mask = torch.ones(1, length, dtype=torch.bool)
        attention_prob_mse.attention_prob_mse(student, teacher, mask, scale).backward()
        return student.grad.norm().item()

    plain, scaled = (gradient(128, scale) / gradient(8, scale) for scale in (False, True))
    assert scaled == pytest.approx(16 * plain)
    assert plain < 1 / 500


# --- averaged heads ---


def test_attention_mean_kl():
    """Two teacher heads, (2, 1, 0) and its reverse, have the mean (0.377636, 0.244728, 0.377636): 0.018207 to even."""
    teacher = torch.cat((TEACHER_SCORES, torch.tensor([0.0, 1.0, 2.0, 9.0]).expand(1, 1, 4, 4)), 1)
    result = attention_mean_kl.attention_mean_kl(STUDENT_SCORES, teacher, MASK, 1).item()
    assert result == pytest.approx(2 * 0.377636 * math.log(3 * 0.377636) + 0.244728 * math.log(3 * 0.244728), abs=1e-6)


@pytest.mark.parametrize("groups", [False, True])
def test_attention_mean_kl_agrees_with_float64(groups):
    """Two student heads and four teacher heads."""
    student, teacher = two_models()

    def one(s, t, example):
        ours, theirs = maps(student, s, example), maps(teacher, t, example)
        if groups:
            theirs = np.stack([(theirs[0] + theirs[1]) / 2, (theirs[2] + theirs[3]) / 2])
        else:
            ours, theirs = ours.mean(0), theirs.mean(0)
        return kl(theirs, ours).mean()

    params = attention_mean_kl.Params(groups=groups)
    assert value(attention_mean_kl, params, student, teacher) == pytest.approx(mean_of(one), abs=1e-6)


def test_groups_of_one_are_plain_attention_kl():
    """And the order of heads matters then, which the average of all does not see."""
    student, teacher = two_models(test_losses.STUDENT)
    grouped = attention_mean_kl.Params(groups=True)
    plain = value(attention_kl, attention_kl.Params(), student, teacher)
    assert value(attention_mean_kl, grouped, student, teacher) == pytest.approx(plain, abs=1e-6)
    test_losses.check_head_permutation(attention_mean_kl, grouped)
    with pytest.raises(AssertionError):
        test_losses.check_head_permutation(attention_mean_kl, attention_mean_kl.Params())


def test_heads_that_do_not_divide_do_not_form_groups():
    """The message names both counts; the average of all heads takes them."""
    student = replace(FEW_HEADS, heads=3)
    assert "4 attention heads do not divide into 3" in attention_mean_kl.misfit(
        student, TEACHER, attention_mean_kl.Params(groups=True)
    )
    assert attention_mean_kl.misfit(student, TEACHER, attention_mean_kl.Params()) is None


# --- learned weights and temperatures ---


def adaptive(form, shape=test_losses.STUDENT, scale=(0.7, -0.4), **settings):
    """Settings, and a module that has learned something."""
    params = attention_kl_adaptive.Params(form=form, **settings)
    module = attention_kl_adaptive.auxiliary(shape, TEACHER, params)
    with torch.no_grad():
        module.scale.copy_(torch.tensor(scale))
    return params, module


FORMS = ("layer_weights", "layer_temperatures")


@pytest.mark.parametrize("form", FORMS)
def test_adaptive_losses_agree_with_float64(form):
    """With weights, or temperatures, that are not those at the start."""
    student, teacher = two_models(test_losses.STUDENT)
    params, module = adaptive(form, entropy_bonus=0.5)
    temperatures = np.ones(2)
    if form == "layer_temperatures":
        temperatures = 0.5 + 3.5 / (1 + np.exp(-(np.array([0.7, -0.4]) + math.log(1 / 6))))
    divergences = [
        np.mean([kl(maps(teacher, t, b, tau), maps(student, s, b, tau)).mean() for b in range(3)]) * tau**2
        for (s, t), tau in zip(((1, 2), (2, 4)), temperatures, strict=True)
    ]
    weights = softmax(np.array([0.7, -0.4])) if form == "layer_weights" else np.full(2, 0.5)
    expected = weights @ divergences + 0.5 * (math.log(2) + (weights * np.log(weights)).sum())
    assert value(attention_kl_adaptive, params, student, teacher, module) == pytest.approx(expected, abs=1e-6)
    found = attention_kl_adaptive.learned(module)
    assert found[form] == pytest.approx(list(weights if form == "layer_weights" else temperatures), abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_adaptive_losses_start_as_plain_attention_kl(form):
    """Even weights and temperature 1; 0 for equal models; and heads are compared one by one."""
    student, teacher = two_models(test_losses.STUDENT)
    params, module = adaptive(form, scale=(0.0, 0.0))
    plain = value(attention_kl, attention_kl.Params(), student, teacher)
    assert value(attention_kl_adaptive, params, student, teacher, module) == pytest.approx(plain, abs=1e-6)
    params, module = adaptive(form, TEACHER, (0.0,) * 4)
    assert value(attention_kl_adaptive, params, teacher, teacher, module) == pytest.approx(0.0, abs=1e-6)
    params, module = adaptive(form, TEACHER, (3.0, -2.0, 0.5, 0.0))
    if form == "layer_weights":  # uneven weights cost, whatever they weigh
        assert value(attention_kl_adaptive, params, teacher, teacher, module) > 0.1
    params, module = adaptive(form)

    def permute(signals):
        return test_losses.change(signals, lambda tensor: tensor[:, [2, 0, 3, 1]] if tensor.dim() == 4 else tensor)

    expected = value(attention_kl_adaptive, params, student, teacher, module)
    both = value(attention_kl_adaptive, params, permute(student), permute(teacher), module)
    assert both == pytest.approx(expected, rel=1e-5)
    assert value(attention_kl_adaptive, params, permute(student), teacher, module) != pytest.approx(expected, rel=1e-4)


def test_a_layer_that_cannot_be_matched_counts_less_but_not_nothing():
    """Three layers like the teacher's and one unlike it: its weight goes to softmax(-divergence / bonus)."""
    teacher = make_signals(TEACHER, 2)
    unlike = -3 * teacher.queries[3]
    student = replace(teacher, queries=(*(1.1 * layer for layer in teacher.queries[:3]), unlike))
    params, module = adaptive("layer_weights", TEACHER, (0.0,) * 4)
    divergences = [
        value(attention_kl, attention_kl.Params(map=((layer, layer),)), student, teacher) for layer in range(1, 5)
    ]
    train(module, lambda: attention_kl_adaptive.loss(student, teacher, params, module), steps=300)
    weights = attention_kl_adaptive.learned(module)["layer_weights"]
    assert weights == pytest.approx(list(softmax(-np.array(divergences))), abs=1e-3)
    assert 0 < weights[3] < 0.15
    assert sum(weights) == pytest.approx(1.0)


def test_the_temperatures_gradient_is_that_of_the_loss():
    """Against differences: with the teacher's side cut off from it, the temperature would go elsewhere."""
    student, teacher = two_models(test_losses.STUDENT)
    params, module = adaptive("layer_temperatures")
    attention_kl_adaptive.loss(student, teacher, params, module).backward()
    for pair in range(2):
        ends = []
        for step in (1e-2, -1e-2):
            moved = [0.7, -0.4]
            moved[pair] += step
            ends.append(value(attention_kl_adaptive, params, student, teacher, adaptive(params.form, scale=moved)[1]))
        assert module.scale.grad[pair].item() == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=1e-2, abs=1e-5)


def test_a_temperature_does_not_escape_to_zero():
    """Where the loss would vanish for any two models: it stops at 0.5, and can come back."""
    scores = torch.tensor([8.0, 0.0, 0.0]).expand(1, 1, 3, 3)
    mask = torch.ones(1, 3, dtype=torch.bool)
    at = {tau: row_kl(-scores / tau, scores / tau, mask).item() * tau**2 for tau in (1.0, 0.5, 0.01)}
    assert at[0.01] < 0.1 < at[0.5] < at[1.0]
    teacher = make_signals(TEACHER, 2)
    teacher = replace(teacher, queries=tuple(3 * layer for layer in teacher.queries))
    student = replace(teacher, queries=tuple(-layer for layer in teacher.queries))
    params, module = adaptive("layer_temperatures", TEACHER, (0.0,) * 4)
    train(module, lambda: attention_kl_adaptive.loss(student, teacher, params, module), steps=200)
    lowest = attention_kl_adaptive.learned(module)["layer_temperatures"]
    assert all(0.5 <= temperature < 0.6 for temperature in lowest)
    assert module.scale.grad.all()


def test_adaptive_loss_needs_equal_heads_and_a_price():
    """A free choice of weights would drop all layers but one."""
    assert attention_kl_adaptive.misfit(TEACHER, TEACHER, attention_kl_adaptive.Params()) is None
    message = attention_kl_adaptive.misfit(FEW_HEADS, TEACHER, attention_kl_adaptive.Params())
    assert "the student has 2 attention heads and the teacher 4" in message
    with pytest.raises(ValidationError, match="entropy_bonus"):
        attention_kl_adaptive.Params(entropy_bonus=0.0)


def train(module, loss, steps, learning_rate=0.1):
    """Adam on the module alone."""
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


# --- Align-to-Distill ---

TEACHER_MAP = torch.tensor([[0.9, 0.1], [0.2, 0.8]])[None, None]
EVEN_MAP = torch.full((1, 1, 2, 2), 0.5)
TWO = torch.tensor([[True, True]])
A2D_FORMS = ("row", "released")


def test_a2d():
    """Rows 0.368064 and 0.192745, whose mean is 0.280404; the released form sees 0.058941 of it."""
    assert a2d.row_form(EVEN_MAP, TEACHER_MAP.log(), TWO).item() == pytest.approx(0.280404, abs=1e-6)
    for row, expected in ((0, 0.368064), (1, 0.192745)):
        one = TEACHER_MAP[:, :, [row, row]]
        assert a2d.row_form(EVEN_MAP, one.log(), TWO).item() == pytest.approx(expected, abs=1e-6)
    assert a2d.released_form(EVEN_MAP, TEACHER_MAP, TWO).item() == pytest.approx(0.058941, abs=1e-6)


@pytest.mark.parametrize(("length", "released", "row"), [(16, 0.0514, 2.77), (128, 0.0076, 4.85)])
def test_the_released_form_hardly_tells_maps_apart(length, released, row):
    """Everyone looks at himself against everyone looks everywhere."""
    mask = torch.ones(1, length, dtype=torch.bool)
    own, even = torch.eye(length)[None, None], torch.full((1, 1, length, length), 1 / length)
    assert a2d.released_form(even, own, mask).item() == pytest.approx(released, abs=5e-5)
    assert a2d.row_form(even, own.clamp(min=1e-30).log(), mask).item() == pytest.approx(row, abs=5e-3)


@pytest.mark.parametrize(
    ("student", "teacher", "weights"), [((3, 4), (6, 4), 12 * 24), ((6, 12), (12, 12), 72 * 144)], ids=str
)
def test_parameters_of_the_alignment(student, teacher, weights):
    """312 and 10,512 for the released one, which has a bias for each teacher head."""
    shapes = [Shape(layers=n, hidden=48, heads=h, ffn=0, choices=2) for n, h in (student, teacher)]
    for form, expected in (("row", weights), ("released", weights + teacher[0] * teacher[1])):
        module = a2d.auxiliary(*shapes, a2d.Params(form=form))
        assert sum(parameter.numel() for parameter in module.parameters()) == expected
    assert expected in (312, 10_512)


def aligned(student_shape, teacher_shape, seed=0, **settings):
    """Settings, and a module whose numbers are random."""
    params = a2d.Params(**settings)
    module = a2d.auxiliary(student_shape, teacher_shape, params)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return params, module


@pytest.mark.parametrize("form", A2D_FORMS)
def test_a2d_agrees_with_float64(form):
    """Four student heads in all and sixteen of the teacher."""
    student, teacher = two_models()
    params, module = aligned(FEW_HEADS, TEACHER, form=form, entropy_bonus=0.3)
    weight = module.weight.detach().double().numpy()
    mixture = softmax(weight) if form == "row" else weight
    per_example = []
    for example in range(len(LENGTHS)):
        theirs = all_maps(teacher, example)
        ours = np.einsum("gf,fij->gij", mixture, all_maps(student, example))
        if form == "row":
            per_example.append(kl(theirs, ours).mean())
        else:
            per_example.append(
                sum(kl(softmax(t.ravel()), softmax(o.ravel())) for t, o in zip(theirs, ours, strict=True))
            )
    shares = np.abs(mixture) / np.abs(mixture).sum(-1, keepdims=True)
    use = shares.mean(0)
    expected = np.mean(per_example) + 0.3 * (math.log(4) + (use * np.log(use)).sum())
    assert value(a2d, params, student, teacher, module) == pytest.approx(expected, rel=1e-5)
    entropies = -(shares * np.log(shares)).sum(-1)
    assert a2d.learned(module)["entropy_nats"] == pytest.approx(list(entropies), abs=1e-5)


SIX_HEADS = Shape(layers=1, hidden=48, heads=6, ffn=0, choices=2)


def permuted(form):
    """Eight random texts of ten tokens, six heads; the student is the teacher with its heads in another order."""
    teacher = make_signals(SIX_HEADS, 3, (10,) * 8)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(4))
    student = replace(teacher, queries=(teacher.queries[0][:, order],), keys=(teacher.keys[0][:, order],))
    params = a2d.Params(form=form)
    where = order.argsort().tolist()  # of each teacher head among the student's
    return student, teacher, params, a2d.auxiliary(SIX_HEADS, SIX_HEADS, params), where


@pytest.mark.parametrize("form", A2D_FORMS)
def test_a2d_recovers_a_planted_permutation(form):
    """In 400 Adam steps on the alignment alone, the maps as they are."""
    student, teacher, params, module, where = permuted(form)
    before = value(a2d, params, student, teacher, module)
    train(module, lambda: a2d.loss(student, teacher, params, module), steps=400)
    assert value(a2d, params, student, teacher, module) < 1e-2 * before
    found = a2d.learned(module)
    assert found["chosen"] == [[1, head + 1] for head in where]
    assert form == "released" or max(found["entropy_nats"]) < 0.1


@pytest.mark.parametrize("form", A2D_FORMS)
def test_a2d_is_zero_at_the_right_alignment_only(form):
    """Equal models under an even alignment are not at 0."""
    student, teacher, params, module, where = permuted(form)
    assert value(a2d, params, student, teacher, module) > 1e-3
    with torch.no_grad():
        module.weight.zero_()
        module.weight[range(6), where] = 1.0 if form == "released" else 100.0
    assert value(a2d, params, student, teacher, module) == pytest.approx(0.0, abs=1e-6)
    assert a2d.learned(module)["entropy_nats"] == pytest.approx([0.0] * 6, abs=1e-6)


@pytest.mark.parametrize("form", A2D_FORMS)
def test_student_heads_may_move_with_their_columns(form):
    """Across layers too; without the columns the loss changes."""
    student, teacher = two_models()
    params, module = aligned(FEW_HEADS, TEACHER, form=form)
    expected = value(a2d, params, student, teacher, module)
    order = [2, 0, 3, 1]

    def move(layered):
        joined = torch.cat(layered, 1)[:, order]
        return joined[:, :2], joined[:, 2:]

    moved = replace(student, queries=move(student.queries), keys=move(student.keys))
    assert value(a2d, params, moved, teacher, module) != pytest.approx(expected, rel=1e-4)
    with torch.no_grad():
        module.weight.copy_(module.weight[:, order])
    assert value(a2d, params, moved, teacher, module) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", A2D_FORMS)
def test_chunks_of_teacher_heads_give_the_same_loss_and_gradient(form, monkeypatch):
    """Including a last chunk that is smaller than the others."""
    results = []
    for heads in (10**6, 7):
        monkeypatch.setattr(a2d, "CHUNK_SCORES", heads * len(LENGTHS) * max(LENGTHS) ** 2)
        student, teacher = two_models()
        student = with_gradient(student)
        params, module = aligned(FEW_HEADS, TEACHER, form=form)
        loss = a2d.loss(student, teacher, params, module)
        loss.backward()
        results.append((loss.detach(), [module.weight.grad, *(layer.grad for layer in student.queries)]))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("form", A2D_FORMS)
def test_an_identity_starts_from_the_uniform_map(form):
    """Two student layers on teacher layers 2 and 4; the rows of 1 and 3 start even."""
    params = a2d.Params(form=form, init="identity")
    module = a2d.auxiliary(test_losses.STUDENT, TEACHER, params)
    found = a2d.learned(module)
    assert found["teacher_heads"][4:6] == [[2, 1], [2, 2]]
    assert found["chosen"][4:8] == [[1, head] for head in range(1, 5)]
    assert found["chosen"][12:] == [[2, head] for head in range(1, 5)]
    mixture = torch.tensor(found["mixture"])
    assert mixture[4, 0].item() == pytest.approx(1.0 if form == "released" else 0.9)
    torch.testing.assert_close(mixture[:4], torch.full((4, 8), 1 / 8))
    assert found["entropy_nats"][:4] == pytest.approx([math.log(8)] * 4)


def test_what_the_alignment_learned_names_layers_and_heads():
    """Rows are teacher heads, columns student heads, all plain values."""
    params = a2d.Params(teacher_layers=(3,))
    module = a2d.auxiliary(FEW_HEADS, TEACHER, params)
    with torch.no_grad():
        module.weight[:, 2] = torch.tensor([9.0, 9.0, -9.0, -9.0])
        module.weight[2:, 1] = 1.0
    found = a2d.learned(module)
    assert found["teacher_heads"] == [[3, 1], [3, 2], [3, 3], [3, 4]]
    assert found["student_heads"] == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert found["chosen"] == [[2, 1], [2, 1], [1, 2], [1, 2]]
    assert all(type(number) is float for row in found["mixture"] for number in (*row, *found["entropy_nats"]))


def test_teacher_layers_alone_are_read():
    """The others may be absent; a YAML list will do, a name or nothing will not."""
    params = a2d.Params(teacher_layers=[2, 4])
    assert a2d.layers(FEW_HEADS, TEACHER, params) == ({1, 2}, {2, 4})
    student, teacher = two_models()
    module = a2d.auxiliary(FEW_HEADS, TEACHER, params)
    expected = value(a2d, params, student, teacher, module)
    bare = {name: (None, getattr(teacher, name)[1], None, getattr(teacher, name)[3]) for name in ("queries", "keys")}
    assert value(a2d, params, student, replace(teacher, **bare), module) == expected
    for wrong in ([], [0], ["2"]):
        with pytest.raises(ValidationError, match="teacher_layers"):
            a2d.Params(teacher_layers=wrong)


def test_uneven_use_of_student_heads_costs():
    """Nothing where all are used alike, ln 4 where one of four does everything."""
    student, teacher = two_models()
    free, priced = a2d.Params(), a2d.Params(entropy_bonus=0.5)
    module = a2d.auxiliary(FEW_HEADS, TEACHER, priced)

    def price():
        return value(a2d, priced, student, teacher, module) - value(a2d, free, student, teacher, module)

    assert price() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        module.weight[:, 1] = 100.0
    assert price() == pytest.approx(0.5 * math.log(4), abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "student", "message"),
    [
        ({"teacher_layers": (5,)}, FEW_HEADS, "teacher_layers names layer 5, but the teacher has 4 layers"),
        ({"teacher_layers": (2, 2)}, FEW_HEADS, "names a layer twice"),
        ({"init": "identity"}, FEW_HEADS, "the student has 2 attention heads and the teacher 4; use init: uniform"),
        ({"init": "identity"}, replace(TEACHER, layers=5), "needs a layer map"),
        ({"init": "identity", "teacher_layers": (1, 3)}, test_losses.STUDENT, r"to \[2, 4\] only"),
    ],
    ids=str,
)
def test_alignments_that_do_not_fit(settings, student, message):
    """The message says what to change."""
    with pytest.raises(ValueError, match=message):
        raise ValueError(a2d.misfit(student, TEACHER, a2d.Params(**settings)))


# --- Squeezing-Heads Distillation ---

LOOK_APART = (torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.5, 0.5]]))


def share(first, second, values, clamp=True):
    """`merge_share` of one example and pair, each head with one number a token and an output slice of 1."""
    values = torch.tensor(values).T[None, None]  # (B, P, L, 2)
    return shd.merge_share(first[None, None], second[None, None], values, torch.ones(1, 2, 1), TWO, clamp).item()


@pytest.mark.parametrize(
    ("values", "unclamped", "expected"),
    [(((2.0, 0.0), (1.0, 0.0)), 2 / 3, 2 / 3), (((2.0, 0.0), (0.0, 1.0)), 2.0, 1.0)],
    ids=["a", "b"],
)
def test_shares_worked_by_hand(values, unclamped, expected):
    """Inside the interval nothing is left over; outside it the nearer end is taken."""
    one, other = ((m.double().numpy(), np.array(v)[:, None]) for m, v in zip(LOOK_APART, values, strict=True))
    assert share(*LOOK_APART, values, clamp=False) == pytest.approx(unclamped, abs=1e-6)
    assert share(*LOOK_APART, values) == pytest.approx(expected, abs=1e-6)
    assert residual(unclamped, one, other) == pytest.approx(0.0, abs=1e-12)
    if unclamped > 1:
        assert residual(0.5, one, other) == pytest.approx(2.25)
        assert residual(1.0, one, other) < 2.25
    else:
        assert (expected * one[0] + (1 - expected) * other[0])[0] == pytest.approx([2 / 3, 1 / 3])


def test_shares_of_heads_that_do_the_same():
    """Half for equal maps, for values that cancel, and for equal values."""
    assert share(LOOK_APART[0], LOOK_APART[0], ((2.0, 0.0), (1.0, 3.0))) == 0.5
    assert share(*LOOK_APART, ((2.0, 1.0), (-2.0, -1.0))) == 0.5
    assert share(*LOOK_APART, ((2.0, 1.0), (2.0, 1.0))) == pytest.approx(0.5, abs=1e-6)


def random_pairs(width, model, pairs=40, length=6):
    """Two maps, values and slices for each pair, one example."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, pairs, length, length, generator=generator).mul(2).softmax(-1)
    values = torch.randn(1, pairs, length, 2 * width, generator=generator)
    return first, second, values, torch.randn(pairs, 2 * width, model, generator=generator)


@pytest.mark.parametrize(("width", "model", "at_the_ends"), [(3, 8, False), (1, 1, True)])
def test_the_share_is_the_best_of_a_fine_grid(width, model, at_the_ends):
    """And swapping the two heads gives the rest of 1; heads that work on one number often want more than all of it."""
    first, second, values, slices = random_pairs(width, model)
    mask = torch.ones(1, 6, dtype=torch.bool)
    shares = shd.merge_share(first, second, values, slices, mask)[0]
    swapped = shd.merge_share(second, first, values.roll(width, -1), slices.roll(width, 1), mask)[0]
    torch.testing.assert_close(swapped, 1 - shares, atol=1e-4, rtol=0)
    grid = np.linspace(0, 1, 1001)
    for pair in range(40):
        maps_of = [side[0, pair].double().numpy() for side in (first, second)]
        flows = [
            (values[0, pair, :, part].double() @ slices[pair, part].double()).numpy()
            for part in (slice(0, width), slice(width, 2 * width))
        ]
        one, other = zip(maps_of, flows, strict=True)
        best = grid[np.argmin([residual(candidate, one, other) for candidate in grid])]
        assert shares[pair].item() == pytest.approx(best, abs=1e-3)
    assert ((shares > 0) & (shares < 1)).any()
    assert ((shares == 0) | (shares == 1)).any().item() == at_the_ends


@pytest.mark.parametrize(
    "counts",
    [
        (16, 8, 6),
        (25, 13, 12),
        (25, 16),
        (40, 32),
        (12, 8),
        (12, 6, 5),
        (9, 5, 3),
        (16, 8, 4, 2, 1),
        (12, 12),
        (7, 4, 3),
    ],
    ids=str,
)
def test_head_counts_reach_every_target(counts):
    """Never below it, as the published schedule would go for 6 of 16 and 12 of 25."""
    expected = [counts[0]] if counts[0] == counts[-1] else list(counts)
    assert shd.head_counts(counts[0], counts[-1]) == expected


@pytest.mark.parametrize(("teacher_heads", "student_heads"), [(12, 8), (12, 5), (16, 6), (13, 1), (4, 2), (4, 4)])
def test_shd_agrees_with_float64(teacher_heads, student_heads):
    """Against heads merged one pair at a time with contributions as wide as the model."""
    large = Shape(layers=4, hidden=4 * teacher_heads, heads=teacher_heads, ffn=0, choices=3)
    small = Shape(layers=2, hidden=4 * student_heads, heads=student_heads, ffn=0, choices=3)
    student, teacher = two_models(small, large)

    def one(s, t, example):
        theirs = maps(teacher, t, example)
        values = teacher.values[t - 1][example, :, : theirs.shape[-1]].double().numpy()
        target = squeezed(theirs, values, teacher.output_weights[t - 1].double().numpy(), student_heads)
        return kl(target, maps(student, s, example)).mean()

    assert value(shd, shd.Params(), student, teacher) == pytest.approx(mean_of(one), abs=2e-6)


def test_equal_heads_make_shd_plain_attention_kl():
    """Nothing is merged, and neither values nor output projection matter."""
    student, teacher = two_models(test_losses.STUDENT)
    plain = value(attention_kl, attention_kl.Params(), student, teacher)
    assert value(shd, shd.Params(), student, teacher) == pytest.approx(plain, abs=1e-6)
    assert value(shd, shd.Params(), teacher, teacher) == pytest.approx(0.0, abs=1e-6)


def test_squeezed_heads_are_distributions_over_valid_keys():
    """Rows add up to 1, no entry is negative, padded keys have nothing; equal heads stay what they are."""
    teacher = make_signals(TEACHER, 2)
    # the second head of a pair half undoes what the first does, so that the best share of the first is 2
    values = teacher.values[0][:, :1] * torch.tensor([2.0, -1.0, 2.0, -1.0])[:, None, None]
    rest = (values, torch.eye(24).repeat(4, 4), teacher.mask)
    probabilities = masked_probs(attention_scores(teacher, 1), teacher.mask)
    for target in (3, 2, 1):
        merged = shd.squeeze(probabilities, *rest, target)
        assert merged.shape[1] == target
        torch.testing.assert_close(merged.sum(-1), torch.ones(merged.shape[:3]))
        assert (merged >= 0).all()
        assert not torch.where(teacher.mask[:, None, None, :], 0.0, merged).any()
    same = probabilities[:, :1].expand(-1, 4, -1, -1)
    torch.testing.assert_close(shd.squeeze(same, *rest, 1), same[:, :1])


def test_shd_looks_at_what_teacher_heads_contribute():
    """Values and output projection of the teacher decide; no gradient flows into any of them."""
    student, teacher = with_gradient(make_signals(FEW_HEADS, 1)), with_gradient(make_signals(TEACHER, 2))
    loss = shd.loss(student, teacher, shd.Params())
    loss.backward()
    assert all(tensor.grad is None for tensor in test_losses.tensors_of(teacher))
    assert all(tensor.grad is None for name in shd.TEACHER_ONLY for tensor in getattr(student, name))
    for name in shd.TEACHER_ONLY:
        ours, theirs = (
            replace(side, **{name: tuple(-tensor.flip(-1) for tensor in getattr(side, name))})
            for side in (student, teacher)
        )
        assert value(shd, shd.Params(), ours, teacher) == loss.item()
        assert value(shd, shd.Params(), student, theirs) != pytest.approx(loss.item(), rel=1e-4)


def test_the_slices_of_the_projection_are_those_of_the_heads():
    """In a real model the heads' contributions add up to what the projection gives, but for its bias."""
    model = toy_model("bert")
    dense, seen = model.bert.encoder.layer[0].attention.output.dense, []
    dense.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with SignalReader(model, shd.NEEDS, frozen=True) as reader:
        signals = reader.read(toy_batch())
    probabilities = masked_probs(attention_scores(signals, 1), signals.mask)
    flows = [signals.values[0][:, h] @ signals.output_weights[0][:, h * 8 : (h + 1) * 8].T for h in range(4)]
    total = sum(probabilities[:, h] @ flow for h, flow in enumerate(flows))
    torch.testing.assert_close((total + dense.bias)[signals.mask], seen[0][signals.mask], atol=1e-4, rtol=1e-4)


def test_heads_cannot_become_more():
    """The message names both counts and the losses that take any."""
    message = shd.misfit(TEACHER, replace(TEACHER, heads=2), shd.Params())
    assert "the student has 4 attention heads and the teacher only 2" in message
    assert "a2d" in message
    assert shd.misfit(FEW_HEADS, TEACHER, shd.Params()) is None


# --- all of them ---


def test_heads_that_differ_are_refused_with_the_losses_that_take_them():
    """One message for every loss that compares heads one by one."""
    message = heads_misfit(FEW_HEADS, TEACHER)
    assert "the student has 2 attention heads and the teacher 4" in message
    assert all(name in message for name in ("minilm_v2", "a2d", "attention_mean_kl", "shd"))
    assert heads_misfit(TEACHER, TEACHER) is None
    for name in ("attention_kl", "attention_score_mse", "attention_prob_mse", "attention_kl_adaptive"):
        file = plugins.load("loss", name)
        assert file.misfit(FEW_HEADS, TEACHER, file.Params()) == message
    for name in ("minilm_v2", "a2d", "attention_mean_kl", "shd"):
        file = plugins.load("loss", name)
        assert file.misfit(FEW_HEADS, TEACHER, file.Params()) is None


ANY_HEADS = {
    "shd": (shd, shd.Params()),
    "a2d row": (a2d, a2d.Params()),
    "a2d released": (a2d, a2d.Params(form="released")),
    "all heads averaged": (attention_mean_kl, attention_mean_kl.Params()),
    "groups averaged": (attention_mean_kl, attention_mean_kl.Params(groups=True)),
}
CHECKS = [
    test_losses.check_positive_on_different,
    test_losses.check_padding,
    test_losses.check_batch_composition,
    test_losses.check_gradient,
    partial(test_losses.check_finite, lengths=(1, 1)),
    partial(test_losses.check_finite, lengths=(4, 0, 2)),
    partial(test_losses.check_finite, lengths=(0, 0)),
    partial(test_losses.check_float32_under_autocast, dtype=torch.bfloat16),
    partial(test_losses.check_float32_under_autocast, dtype=torch.float16),
]


@pytest.mark.parametrize(("file", "params"), ANY_HEADS.values(), ids=ANY_HEADS)
def test_the_laws_hold_for_a_student_with_fewer_heads(file, params, monkeypatch):
    """All checks of test_losses.py but those that such a student cannot pass."""
    monkeypatch.setattr(test_losses, "two_models", partial(test_losses.two_models, student_shape=FEW_HEADS))
    for check in CHECKS:
        check(file, params)


# --- each test catches its fault ---


def delimiters_without_renormalising(student, teacher, mask, temperature, keys=None):
    """Columns are dropped after the softmax."""
    ours, theirs = (masked_probs(scores, mask).clamp(min=1e-30) for scores in (student, teacher))
    terms = torch.where((mask & keys)[:, None, None, :], theirs * (theirs / ours).log(), 0.0).sum(-1)
    rows = torch.where(mask[:, None, :], terms, 0.0).sum((1, 2))
    return (rows / (student.shape[1] * mask.sum(1))).mean()


def delimiters_without_their_rows(student, teacher, mask, temperature, keys=None):
    """Rows are dropped as well."""
    return row_kl(student, teacher, mask & keys)


@pytest.mark.parametrize("fault", [delimiters_without_renormalising, delimiters_without_their_rows])
def test_delimiter_faults_are_caught(fault, monkeypatch):
    """By the float64 loop."""
    monkeypatch.setattr(attention_kl, "attention_kl", fault)
    with pytest.raises(AssertionError):
        test_excluded_delimiters_agree_with_float64()


def published_schedule(heads, target):
    """All neighbours are merged in every round."""
    counts = [heads]
    while counts[-1] > target:
        counts.append(-(-counts[-1] // 2))
    return counts


def share_of_the_second(*inputs, clamp=True):
    """The two heads are mixed up."""
    return 1 - RIGHT_SHARE(*inputs, clamp)


def share_over_padding(first, second, values, slices, mask, clamp=True):
    """Padded queries take part."""
    return RIGHT_SHARE(first, second, values, slices, torch.ones_like(mask), clamp)


def unclamped_share(first, second, values, slices, mask, clamp=True):
    """The merged rows need not be probabilities."""
    return RIGHT_SHARE(first, second, values, slices, mask, False)


def squeeze_of_the_transposed_projection(maps, values, output_weight, mask, target):
    """Its rows are taken for its columns, which fit as well."""
    return RIGHT_SQUEEZE(maps, values, output_weight.T, mask, target)


RIGHT_SHARE, RIGHT_SQUEEZE = shd.merge_share, shd.squeeze


@pytest.mark.parametrize(
    ("name", "fault", "test"),
    [
        ("head_counts", published_schedule, partial(test_head_counts_reach_every_target, (16, 8, 6))),
        ("merge_share", share_of_the_second, partial(test_shd_agrees_with_float64, 4, 2)),
        ("merge_share", share_over_padding, partial(test_shd_agrees_with_float64, 4, 2)),
        ("merge_share", unclamped_share, test_squeezed_heads_are_distributions_over_valid_keys),
        ("squeeze", squeeze_of_the_transposed_projection, partial(test_shd_agrees_with_float64, 4, 2)),
    ],
    ids=lambda entry: getattr(entry, "__name__", ""),
)
def test_squeezing_faults_are_caught(name, fault, test, monkeypatch):
    """Each by the test that is there for it."""
    test()
    monkeypatch.setattr(shd, name, fault)
    with pytest.raises(AssertionError):
        test()


def softmax_over_padding(aligned, teacher, mask):
    """As released: the softmax spreads over padded entries too."""
    return RIGHT_RELEASED(aligned, teacher, torch.ones_like(mask))


def softmax_of_one_side(aligned, log_teacher, mask):
    """The aligned rows go through a softmax though they are probabilities already."""
    return row_kl(aligned, log_teacher, mask)


def mixed_teacher_rows(maps, mixture, bias=None):
    """The alignment's rows in the wrong order."""
    return RIGHT_ALIGN(maps, mixture.flip(0), bias)


RIGHT_RELEASED, RIGHT_ALIGN = a2d.released_form, a2d.align


@pytest.mark.parametrize(
    ("name", "fault", "form"),
    [
        ("released_form", softmax_over_padding, "released"),
        ("row_form", softmax_of_one_side, "row"),
        ("align", mixed_teacher_rows, "row"),
        ("align", mixed_teacher_rows, "released"),
    ],
    ids=lambda entry: getattr(entry, "__name__", entry),
)
def test_alignment_faults_are_caught(name, fault, form, monkeypatch):
    """By the float64 loop."""
    test_a2d_agrees_with_float64(form)
    monkeypatch.setattr(a2d, name, fault)
    with pytest.raises(AssertionError):
        test_a2d_agrees_with_float64(form)


def test_a_temperature_that_is_cut_off_on_one_side_is_caught(monkeypatch):
    """What row_kl would do."""

    def cut(log_student, log_teacher, mask, keys):
        return RIGHT_LOG_ROW_KL(log_student, log_teacher.detach(), mask, keys)

    monkeypatch.setattr(attention_kl_adaptive, "log_row_kl", cut)
    with pytest.raises(AssertionError):
        test_the_temperatures_gradient_is_that_of_the_loss()


RIGHT_LOG_ROW_KL = attention_kl_adaptive.log_row_kl
