"""Activations."""

import math

import torch
from torch import Tensor

from pipeline.mil.ops import number, operation

SOURCE = "iOS15/activation"


@operation(SOURCE)
def relu(x: Tensor) -> Tensor:
    """max(0, x)."""
    return x.relu()


@operation("iOS17/activation")
def leaky_relu(x: Tensor, alpha: Tensor | float = 0.01) -> Tensor:
    """x where it is at least 0, else alpha x."""
    return torch.where(x >= 0, x, alpha * x)


@operation(SOURCE)
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return x.sigmoid()


@operation(SOURCE)
def silu(x: Tensor) -> Tensor:
    """x sigmoid(x)."""
    return x * x.sigmoid()


@operation(SOURCE)
def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), written so that a large x does not overflow."""
    return x.clamp(min=0) + torch.log1p((-x.abs()).exp())


@operation(SOURCE)
def softmax(x: Tensor, axis: Tensor | int = -1) -> Tensor:
    """e^x over its sum along the axis, the greatest x subtracted first."""
    return x.softmax(number(axis))


@operation(SOURCE)
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """x times the normal distribution's share below x, exactly or in one of the two approximations."""
    if mode == "EXACT":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise ValueError(f"gelu has no mode '{mode}'; known: EXACT, TANH_APPROXIMATION, SIGMOID_APPROXIMATION")
