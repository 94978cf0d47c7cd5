"""Attention transfer: each student head looks where the matching teacher head looks."""

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LayerLossParams
from pipeline.models.layer_maps import heads_misfit, layer_misfit, layer_pairs
from pipeline.signals.divergences import row_kl
from pipeline.signals.reader import Signals, attention_scores

KIND = "signal"
NEEDS = ("attention", "delimiters")  # NEEDS knows no settings: delimiters are read even where the switch is off


class Params(LayerLossParams):
    """Settings of attention_kl."""

    temperature: float = Field(default=1.0, gt=0, description="Divides the scores of both sides; > 0, 1 = as they are.")
    exclude_delimiters: bool = Field(
        default=False,
        description="Compare how attention is spread over the other tokens only: [CLS] and [SEP] leave the keys.",
    )


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """Mean of `attention_kl` over the mapped layers."""
    pairs = layer_pairs(params.map, len(student.queries), len(teacher.queries))
    keys = None
    if params.exclude_delimiters:
        assert student.delimiters is not None  # the reader insists on what NEEDS names
        keys = ~student.delimiters
    per_pair = [
        attention_kl(attention_scores(student, s), attention_scores(teacher, t), student.mask, params.temperature, keys)
        for s, t in pairs
    ]
    return torch.stack(per_pair).mean()


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """The map must fit, and heads are compared one by one."""
    return heads_misfit(student, teacher) or layer_misfit(params.map, student.layers, teacher.layers)


def attention_kl(
    student: Float[Tensor, "batch heads length length"],
    teacher: Float[Tensor, "batch heads length length"],
    mask: Bool[Tensor, "batch length"],
    temperature: float,
    keys: Bool[Tensor, "batch length"] | None = None,
) -> Float[Tensor, ""]:
    """Divergence of the student's attention from the teacher's, both given as scores before the softmax.

    Args:
        student: scores; padded keys and queries may hold anything finite.
        teacher: scores; no gradient flows into them.
        mask: True for a real token.
        temperature: > 0; higher spreads attention over more keys.
        keys: True for the keys to compare, all real tokens if absent. The probabilities of the others are spread over
            these in proportion, on both sides; a row without any key counts as 0. No query is left out.

    Returns:
        Nats per head and query, averaged for each example, then over the batch, times temperature squared.

    Raises:
        ValueError: temperature is not positive.

    Source: the attention half of MiniLM (Wang et al. 2020), with its per-example normalisation (from a
    re-implementation of the paper). The temperature is ours, and so is leaving out delimiters, an ablation: about half
    of the attention in middle layers is said to rest on [SEP] and to do nothing there (Clark et al. 2019, not verified
    against a source). The gradient reaches the query and key projections and what lies below, not this layer's value,
    output or feed-forward parts.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    return row_kl(student.float() / temperature, teacher.float() / temperature, mask, keys) * temperature**2
