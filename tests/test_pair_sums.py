"""Weights that cannot saturate a sum of 16 bits: the rule, the cure, and the kernel that it is about."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.base import emulation
from pipeline.quantization.pair_sums import PAIR_LIMIT, least_scale, saturating_product, unsafe_pairs
from pipeline.quantization.plan import quantize_weight

ROOT = Path(__file__).resolve().parents[1]


def exact_product(activations, weights):
    return activations.astype(np.int64) @ weights.astype(np.int64).T


def test_the_limit_is_the_largest_that_is_safe():
    """255 * 128 fits into 16 bits, 255 * 129 does not."""
    full = np.full((1, 2), 255, np.uint8)
    for pair, is_safe in (((64, 64), True), ((127, 2), False), ((-127, -1), True), ((-127, -2), False)):
        weights = np.array([pair], np.int8)
        assert (saturating_product(full, weights) == exact_product(full, weights)).all() == is_safe
        assert unsafe_pairs(weights).any() != is_safe


def test_only_neighbours_from_an_even_place_are_a_pair():
    """1 and 2 are added later, in 32 bits; the last of an odd number stands alone."""
    assert unsafe_pairs(np.array([[0, 127, 127, 0, 127]], np.int8)).tolist() == [[False, False, False]]
    assert unsafe_pairs(np.array([[127, 127, 0, 0, 127]], np.int8)).tolist() == [[True, False, False]]


def test_unlike_signs_cannot_saturate():
    """Whatever the activations."""
    weights = np.array([[127, -127]], np.int8)
    corners = np.array([[0, 0], [0, 255], [255, 0], [255, 255]], np.uint8)
    assert not unsafe_pairs(weights).any()
    np.testing.assert_array_equal(saturating_product(corners, weights), exact_product(corners, weights))


@settings(max_examples=200, deadline=None)
@given(arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.floats(-10, 10, width=32)))
@pytest.mark.parametrize("per_channel", [True, False])
def test_safe_weights_have_the_same_sums_with_and_without_vnni(per_channel, weight):
    """For activations at their limits, where a sum would clip first."""
    codes, scale = quantize_weight(torch.from_numpy(weight), per_channel, pair_safe=True)
    assert not unsafe_pairs(codes.numpy()).any()
    assert (scale > 0).all() and torch.isfinite(scale).all()
    rng = np.random.default_rng(0)
    activations = rng.choice(np.array([0, 255], np.uint8), (16, weight.shape[1]))
    np.testing.assert_array_equal(
        saturating_product(activations, codes.numpy()), exact_product(activations, codes.numpy())
    )


def test_a_row_without_an_unsafe_pair_keeps_its_bytes():
    """The cure touches what needs it, and costs it less than a range of 7 bits, which doubles every scale."""
    torch.manual_seed(0)
    weight = torch.randn(64, 96)
    plain, scale = quantize_weight(weight, True)
    safe, raised = quantize_weight(weight, True, pair_safe=True)
    needy = torch.from_numpy(unsafe_pairs(plain.numpy()).any(axis=1))
    assert 0 < needy.sum() < len(needy)
    kept = raised == scale
    assert torch.equal(plain[kept], safe[kept])
    assert (raised <= 2 * scale).all() and (kept | torch.from_numpy(least_scale(weight.numpy()) > scale.numpy())).all()
    error = ((safe * raised[:, None] - weight) ** 2).sum()
    seven_bits = (weight / (2 * scale[:, None])).round() * 2 * scale[:, None]
    assert error < ((seven_bits - weight) ** 2).sum()


KERNEL = """
import sys
import numpy as np, onnxruntime
from onnx import TensorProto, helper, numpy_helper
rng = np.random.default_rng(0)
activations = rng.integers(200, 256, (3, 37)).astype(np.uint8)
weights = (rng.integers(90, 128, (5, 37)) * rng.choice([-1, 1], (5, 37))).astype(np.int8)
value = helper.make_tensor_value_info
graph = helper.make_graph(
    [helper.make_node("MatMulInteger", ["a", "w"], ["y"])], "g",
    [value("a", TensorProto.UINT8, activations.shape)], [value("y", TensorProto.INT32, (3, 5))],
    [numpy_helper.from_array(np.ascontiguousarray(weights.T), "w")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
from pipeline.quantization.pair_sums import saturating_product
found = session.run(None, {"a": activations})[0]
exact = activations.astype(np.int64) @ weights.astype(np.int64).T
print((found == exact).all(), (found == saturating_product(activations, weights)).all())
"""


# The kernel exists on no other CPU: without qemu-user only a machine without VNNI could show it.
@pytest.mark.skipif(emulation.why_unusable() is not None, reason=str(emulation.why_unusable()))
def test_onnxruntimes_kernel_without_vnni_is_the_one_described():
    """To the last digit, so the NumPy product stands for it where no such CPU is at hand."""
    done = subprocess.run(
        [*emulation.prefix(), sys.executable, "-c", KERNEL], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]


def test_the_limit_has_its_reason():
    """So that nobody raises it to get a file through."""
    assert 255 * PAIR_LIMIT <= 2**15 - 1 < 255 * (PAIR_LIMIT + 1)
