"""The distance between attention heads: worked numbers, and what must not matter to it."""

import math

import pytest
import torch
from toy_models import toy_model

from pipeline.data.prepared import EncodedSplit
from pipeline.signals.attention_analysis import attention_distance, head_divergences, jensen_shannon

SPLIT = EncodedSplit(
    names=tuple("abcdef"),
    ids=[[2, 5, 9, 3], [2, 7, 3], [2, 50, 40, 30, 20, 10, 3], [2, 8, 8, 3], [2, 3], [2, 41, 9, 13, 3]],
    targets=(0, 1, 2, 0, 1, 2),
    pad_id=0,
)


def test_worked_numbers():
    """methods.md 10.3, without smoothing and with it."""
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.7])
    assert jensen_shannon(p, q).item() == pytest.approx(0.253102, abs=1e-6)
    one, other = torch.eye(2)
    assert jensen_shannon(one, other).item() == pytest.approx(math.log(2), abs=1e-6)
    maps = torch.eye(2)[None, None, :1].expand(1, 1, 2, 2), torch.eye(2)[None, None, 1:].expand(1, 1, 2, 2)
    smoothed = head_divergences(*maps, torch.ones(1, 2, dtype=torch.bool))
    assert smoothed.item() == pytest.approx(0.688847, abs=1e-6)


def test_divergences_are_of_each_pair_of_heads_over_valid_rows():
    """Garbage in padded rows and keys changes nothing; the matrix has the student's heads as rows."""
    maps = torch.rand(2, 5, 4, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    maps = torch.where(mask[:, None, None, :], maps, 0.0)
    maps = maps / maps.sum(-1, keepdim=True)
    found = head_divergences(maps[:, :2], maps, mask)
    assert found.shape == (2, 2, 5)
    assert found[:, 0, 0].tolist() == pytest.approx([0, 0], abs=1e-7)
    assert (found[:, 0, 1:] > 1e-4).all()
    broken = maps.clone()
    broken[1, :, 2:] = 77.0
    torch.testing.assert_close(head_divergences(broken[:, :2], broken, mask), found)
    alone = head_divergences(maps[1:, :2, :2, :2], maps[1:, :, :2, :2], mask[1:, :2])
    torch.testing.assert_close(alone, found[1:])


def test_a_model_is_at_no_distance_from_itself():
    """And at some from another; the order of heads does not matter."""
    model = toy_model()
    assert attention_distance(model, model, SPLIT) == pytest.approx(0.0, abs=1e-6)
    other = toy_model(seed=1)
    far = attention_distance(other, model, SPLIT)
    assert 0.01 < far < math.log(2)
    for layer in other.bert.encoder.layer:
        output = layer.attention.output.dense.weight
        output.data = output.data.unflatten(1, (4, 8)).flip(1).flatten(1, 2)
        for part in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
            part.weight.data = part.weight.data.unflatten(0, (4, 8)).flip(0).flatten(0, 1)
            part.bias.data = part.bias.data.unflatten(0, (4, 8)).flip(0).flatten(0, 1)
    assert attention_distance(other, model, SPLIT) == pytest.approx(far, rel=1e-4)


def test_students_of_any_shape_are_compared():
    """Fewer or more layers, other heads."""
    for changes in ({"num_hidden_layers": 1, "num_attention_heads": 2}, {"num_hidden_layers": 5}):
        assert attention_distance(toy_model(seed=1, **changes), toy_model(), SPLIT) > 0
