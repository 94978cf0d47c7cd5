"""Products of matrices, attention and convolution. Sums run in the type that is given: float32 for an fp16 program."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.mil.ops import flag, ints, number, operation

SOURCE = "iOS17/linear"


@operation(SOURCE)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, over the last dimension of x."""
    product = x @ weight.transpose(-1, -2)
    return product if bias is None else product + bias


@operation(SOURCE)
def matmul(x: Tensor, y: Tensor, transpose_x: Tensor | bool = False, transpose_y: Tensor | bool = False) -> Tensor:
    """Matrix product over the last two dimensions, either operand transposed first where asked."""
    return (x.transpose(-1, -2) if flag(transpose_x) else x) @ (y.transpose(-1, -2) if flag(transpose_y) else y)


@operation("iOS15/linear")
def einsum(values: Sequence[Tensor], equation: str) -> Tensor:
    """Einstein summation of two tensors of rank 3 or 4; a dimension of 1 broadcasts."""
    return torch.einsum(equation, *values)


@operation("iOS18/transformers")
def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(E) + mask) V; a mask of truth values keeps what is true."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(attn_mask.logical_not(), -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


@operation("iOS17/conv")
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    """Convolution over one to three spatial dimensions."""
    spatial = x.dim() - 2
    steps, spread = ints(strides) or [1] * spatial, ints(dilations) or [1] * spatial
    edges = _edges(x, weight, pad_type, ints(pad), steps, spread)
    # functional.pad counts from the last dimension
    padded = functional.pad(x, [edge for pair in reversed(edges) for edge in pair])
    call = (functional.conv1d, functional.conv2d, functional.conv3d)[spatial - 1]
    return call(padded, weight, bias, stride=steps, dilation=spread, groups=number(groups))


def _edges(
    x: Tensor, weight: Tensor, kind: str, given: list[int], steps: list[int], spread: list[int]
) -> list[tuple[int, int]]:
    """Padding before and after each spatial dimension."""
    sizes, kernels = x.shape[2:], weight.shape[2:]
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        return list(zip(given[::2], given[1::2], strict=True))
    edges = []
    for size, kernel, step, dilation in zip(sizes, kernels, steps, spread, strict=True):
        total = max((math.ceil(size / step) - 1) * step + (kernel - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        edges.append((more, less) if kind == "same_lower" else (less, more))
    return edges
