"""Attention transfer on the scores before the softmax, as TinyBERT does it, without its padding faults."""

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LayerLossParams
from pipeline.models.layer_maps import heads_misfit, layer_misfit, layer_pairs
from pipeline.signals.divergences import mean_over_examples
from pipeline.signals.reader import Signals, attention_scores

KIND = "signal"
NEEDS = ("attention",)


class Params(LayerLossParams):
    """Settings of attention_score_mse."""

    center_rows: bool = Field(
        default=False, description="Take each row's mean over valid keys off first, which the softmax cannot see."
    )


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """Mean of `attention_score_mse` over the mapped layers."""
    pairs = layer_pairs(params.map, len(student.queries), len(teacher.queries))
    per_pair = [
        attention_score_mse(
            attention_scores(student, s), attention_scores(teacher, t), student.mask, params.center_rows
        )
        for s, t in pairs
    ]
    return torch.stack(per_pair).mean()


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """The map must fit, and heads are compared one by one."""
    return heads_misfit(student, teacher) or layer_misfit(params.map, student.layers, teacher.layers)


def attention_score_mse(
    student: Float[Tensor, "batch heads length length"],
    teacher: Float[Tensor, "batch heads length length"],
    mask: Bool[Tensor, "batch length"],
    center_rows: bool = False,
) -> Float[Tensor, ""]:
    """Squared difference of the scores over the valid block, averaged for each example, then over the batch.

    Args:
        student: scores before the softmax.
        teacher: the same; no gradient flows into them.
        mask: True for a real token.
        center_rows: compare each row after its mean over valid keys is taken off.

    Source: TinyBERT (Jiao et al. 2020), checked in its code. That code keeps padded query rows and divides by the
    padded length squared, so its loss falls as padding grows; here only valid queries and keys are summed and counted.
    It also finds padding by scores below -100, which real scores may be; here the mask decides. The row centring is
    ours: the softmax does not see a constant added to a row, so the student need not learn it.
    """
    block = (mask[:, :, None] & mask[:, None, :])[:, None]  # (B, 1, Q, K)
    difference = torch.where(block, student.float() - teacher.detach().float(), 0.0)
    tokens = mask.sum(1).clamp(min=1)
    if center_rows:
        row_mean = difference.sum(-1, keepdim=True) / tokens[:, None, None, None]
        difference = torch.where(block, difference - row_mean, 0.0)
    heads = student.shape[1]
    return mean_over_examples(difference.square().sum((1, 2, 3)) / (heads * tokens**2), mask)
