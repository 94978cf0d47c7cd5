"""Attention transfer as squared differences of probabilities: bounded, but weak on long texts."""

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LayerLossParams
from pipeline.models.layer_maps import heads_misfit, layer_misfit, layer_pairs
from pipeline.signals.divergences import masked_probs, mean_over_examples
from pipeline.signals.reader import Signals, attention_scores

KIND = "signal"
NEEDS = ("attention",)


class Params(LayerLossParams):
    """Settings of attention_prob_mse."""

    scale_by_length: bool = Field(
        default=False, description="Multiply each example's value by its number of tokens, against the shrinking."
    )


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """Mean of `attention_prob_mse` over the mapped layers."""
    pairs = layer_pairs(params.map, len(student.queries), len(teacher.queries))
    per_pair = [
        attention_prob_mse(
            attention_scores(student, s), attention_scores(teacher, t), student.mask, params.scale_by_length
        )
        for s, t in pairs
    ]
    return torch.stack(per_pair).mean()


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """The map must fit, and heads are compared one by one."""
    return heads_misfit(student, teacher) or layer_misfit(params.map, student.layers, teacher.layers)


def attention_prob_mse(
    student: Float[Tensor, "batch heads length length"],
    teacher: Float[Tensor, "batch heads length length"],
    mask: Bool[Tensor, "batch length"],
    scale_by_length: bool = False,
) -> Float[Tensor, ""]:
    """Squared difference of the probabilities over the valid block, averaged for each example, then over the batch.

    Args:
        student: scores before the softmax; padded keys and queries may hold anything finite.
        teacher: the same; no gradient flows into them.
        mask: True for a real token.
        scale_by_length: give each row's sum of squares, averaged over heads and queries, in place of its mean.

    Returns:
        At most 2 / tokens, or 2 where scaled; 0 when the two agree.

    Source: named by overviews among the usual choices; the masking is as in attention_score_mse. Probabilities are of
    the order of 1 / tokens, so value and gradient shrink as texts grow, and long ones count for less; the scaling is
    ours and takes one of the two powers back. attention_kl has no such weakness.
    """
    difference = masked_probs(student, mask) - masked_probs(teacher.detach(), mask)  # 0 for padded keys
    per_row = difference.square().sum(-1)  # (B, H, Q)
    heads, tokens = student.shape[1], mask.sum(1).clamp(min=1)
    per_example = torch.where(mask[:, None, :], per_row, 0.0).sum((1, 2)) / (heads * tokens)  # (B,)
    return mean_over_examples(per_example if scale_by_length else per_example / tokens, mask)
