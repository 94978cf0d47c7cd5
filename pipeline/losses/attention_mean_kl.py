"""Attention transfer between averaged heads: for models whose numbers of heads differ."""

import math

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LayerLossParams
from pipeline.models.layer_maps import layer_misfit, layer_pairs
from pipeline.signals.divergences import log_row_kl, masked_log_probs
from pipeline.signals.reader import Signals, attention_scores

KIND = "signal"
NEEDS = ("attention",)
# Of the contract: the order of one model's heads may make no difference to the loss, as it does for the others.
IS_BLIND_TO_HEAD_ORDER = True


class Params(LayerLossParams):
    """Settings of attention_mean_kl."""

    groups: bool = Field(
        default=False,
        description="Average only as many neighbouring teacher heads as there are to each student head, and compare "
        "head by head; false: average all heads of a layer, on both sides.",
    )


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """Mean of `attention_mean_kl` over the mapped layers."""
    pairs = layer_pairs(params.map, len(student.queries), len(teacher.queries))
    per_pair = []
    for s, t in pairs:
        ours, theirs = attention_scores(student, s), attention_scores(teacher, t)
        per_pair.append(attention_mean_kl(ours, theirs, student.mask, ours.shape[1] if params.groups else 1))
    return torch.stack(per_pair).mean()


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """The map must fit; for groups, the teacher's heads must divide evenly among the student's."""
    if params.groups and teacher.heads % student.heads:
        return (
            f"the teacher's {teacher.heads} attention heads do not divide into {student.heads} groups, one for each of "
            "the student's; set groups to false, or use minilm_v2, a2d, or shd for fewer student heads"
        )
    return layer_misfit(params.map, student.layers, teacher.layers)


def attention_mean_kl(
    student: Float[Tensor, "batch student_heads length length"],
    teacher: Float[Tensor, "batch teacher_heads length length"],
    mask: Bool[Tensor, "batch length"],
    groups: int,
) -> Float[Tensor, ""]:
    """Divergence of the student's averaged attention from the teacher's, both given as scores before the softmax.

    Args:
        student: scores; padded keys and queries may hold anything finite.
        teacher: scores; no gradient flows into them.
        mask: True for a real token.
        groups: into how many groups of neighbours each side's heads are averaged; divides both head counts.

    Returns:
        Nats per group and query, averaged for each example, then over the batch.

    Source: named by overviews as a way around different head counts; the form is ours. The mean of distributions is a
    distribution. What is lost is which head looks where: one group is blind to any exchange of heads.
    """
    ours, theirs = mean_log_probs(student, mask, groups), mean_log_probs(teacher.detach(), mask, groups)
    return log_row_kl(ours, theirs, mask, mask)


def mean_log_probs(
    scores: Float[Tensor, "batch heads length length"], mask: Bool[Tensor, "batch length"], groups: int
) -> Float[Tensor, "batch groups length length"]:
    """Logarithm of each group's mean probabilities; taken in the logarithm throughout, so that no zero is met."""
    log_probs = masked_log_probs(scores, mask).unflatten(1, (groups, -1))  # (B, groups, heads of a group, Q, K)
    return log_probs.logsumexp(2) - math.log(log_probs.shape[2])
