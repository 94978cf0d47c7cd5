"""Attention transfer: each student head looks where the matching teacher head looks."""

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from pipeline.architectures import Shape
from pipeline.divergences import row_kl
from pipeline.layer_maps import layer_misfit, layer_pairs
from pipeline.losses import LayerLossParams
from pipeline.signals import Signals, attention_scores

KIND = "signal"
NEEDS = ("attention",)


class Params(LayerLossParams):
    """Settings of attention_kl."""

    temperature: float = Field(default=1.0, gt=0, description="Divides the scores of both sides; > 0, 1 = as they are.")


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """Mean of `attention_kl` over the mapped layers."""
    pairs = layer_pairs(params.map, len(student.queries), len(teacher.queries))
    per_pair = [
        attention_kl(attention_scores(student, s), attention_scores(teacher, t), student.mask, params.temperature)
        for s, t in pairs
    ]
    return torch.stack(per_pair).mean()


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """The map must fit, and heads are compared one by one."""
    if student.heads != teacher.heads:
        return (
            f"the student has {student.heads} attention heads and the teacher {teacher.heads}; they must be the same, "
            "or use minilm_v2, which compares any"
        )
    return layer_misfit(params.map, student.layers, teacher.layers)


def attention_kl(
    student: Float[Tensor, "batch heads length length"],
    teacher: Float[Tensor, "batch heads length length"],
    mask: Bool[Tensor, "batch length"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Divergence of the student's attention from the teacher's, both given as scores before the softmax.

    Args:
        student: scores; padded keys and queries may hold anything finite.
        teacher: scores; no gradient flows into them.
        mask: True for a real token.
        temperature: > 0; higher spreads attention over more keys.

    Returns:
        Nats per head and query, averaged for each example, then over the batch, times temperature squared.

    Raises:
        ValueError: temperature is not positive.

    Source: the attention half of MiniLM (Wang et al. 2020), with its per-example normalisation (from a
    re-implementation of the paper). The temperature is ours. The gradient reaches the query and key projections and
    what lies below, not this layer's value, output or feed-forward parts.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    return row_kl(student.float() / temperature, teacher.float() / temperature, mask) * temperature**2
