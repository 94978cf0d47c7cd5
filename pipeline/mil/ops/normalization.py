"""Normalisation."""

import torch
from torch import Tensor

from pipeline.mil.ops import ints, operation


@operation("iOS17/normalization")
def layer_norm(
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    """gamma (x - mean) / sqrt(variance + epsilon) + beta, mean and variance (by n) over the axes."""
    over = _over(x, axes)
    variance, mean = torch.var_mean(x, dim=over, correction=0, keepdim=True)
    normed = (x - mean) / (variance + epsilon).sqrt()
    shape = [size if axis in over else 1 for axis, size in enumerate(x.shape)]
    if gamma is not None:
        normed = normed * gamma.reshape(shape)
    return normed if beta is None else normed + beta.reshape(shape)


@operation("iOS17/normalization")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    """gamma (x - mean) / sqrt(variance + epsilon) + beta, with given statistics of each channel (dimension 1)."""
    shape = [1, -1, *([1] * (x.dim() - 2))]
    normed = (x - mean.reshape(shape)) / (variance.reshape(shape) + epsilon).sqrt()
    if gamma is not None:
        normed = normed * gamma.reshape(shape)
    return normed if beta is None else normed + beta.reshape(shape)


def squared_deviations(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """The largest sum of (x - mean)^2 over the axes: what a variance is summed from."""
    over = _over(x, axes)
    return (x - x.mean(dim=over, keepdim=True)).square().sum(over).amax()


def _over(x: Tensor, axes: Tensor | None) -> list[int]:
    return sorted(axis % x.dim() for axis in (ints(axes) or range(x.dim())))
