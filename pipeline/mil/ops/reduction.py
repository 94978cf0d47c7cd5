"""Reductions along axes; without axes, over all of them."""

import torch
from torch import Tensor

from pipeline.mil.ops import flag, ints, number, operation

SOURCE = "iOS15/reduction"


def _over(x: Tensor, axes: Tensor | None) -> list[int]:
    return ints(axes) or list(range(x.dim()))


@operation(SOURCE)
def reduce_sum(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
    """Sum."""
    return x.sum(_over(x, axes), keepdim=flag(keep_dims))


@operation(SOURCE)
def reduce_mean(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
    """Mean."""
    return x.mean(_over(x, axes), keepdim=flag(keep_dims))


@operation(SOURCE)
def reduce_max(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
    """Greatest."""
    return x.amax(_over(x, axes), keepdim=flag(keep_dims))


@operation(SOURCE)
def reduce_min(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
    """Least."""
    return x.amin(_over(x, axes), keepdim=flag(keep_dims))


@operation(SOURCE)
def reduce_sum_square(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
    """Sum of squares."""
    return (x * x).sum(_over(x, axes), keepdim=flag(keep_dims))


@operation(SOURCE)
def reduce_l2_norm(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
    """Square root of the sum of squares."""
    return (x * x).sum(_over(x, axes), keepdim=flag(keep_dims)).sqrt()


@operation(SOURCE)
def reduce_log_sum_exp(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
    """Logarithm of the sum of e^x."""
    return torch.logsumexp(x, _over(x, axes), keepdim=flag(keep_dims))


@operation("iOS17/reduction")
def reduce_argmax(
    x: Tensor, axis: Tensor | int = -1, keep_dims: Tensor | bool = False, output_dtype: str = "int32"
) -> Tensor:
    """Place of the greatest; of several, any."""
    return x.argmax(number(axis), keepdim=flag(keep_dims))


@operation("iOS17/reduction")
def reduce_argmin(
    x: Tensor, axis: Tensor | int = -1, keep_dims: Tensor | bool = False, output_dtype: str = "int32"
) -> Tensor:
    """Place of the least; of several, any."""
    return x.argmin(number(axis), keepdim=flag(keep_dims))


@operation("iOS15/tensor_operation")
def cumsum(
    x: Tensor, axis: Tensor | int = 0, exclusive: Tensor | bool = False, reverse: Tensor | bool = False
) -> Tensor:
    """Running sum, with or without the element itself, from the start or from the end."""
    along = number(axis)
    turned = x.flip(along) if flag(reverse) else x
    total = turned.cumsum(along)
    if flag(exclusive):  # shifted rather than subtracted, which would lose digits
        first = torch.zeros_like(total.narrow(along, 0, 1))
        total = torch.cat([first, total.narrow(along, 0, total.shape[along] - 1)], along)
    return total.flip(along) if flag(reverse) else total
