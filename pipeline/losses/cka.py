"""Similarity of representations: the student's states tell tokens apart as the teacher's do, whatever their width."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LayerLossParams
from pipeline.models.layer_maps import layer_misfit, layer_pairs
from pipeline.signals.cka import linear_cka
from pipeline.signals.reader import Signals, taken

KIND = "signal"
NEEDS = ("hidden",)
ALIGNED_BY = "characters"
IS_BATCH_STATISTIC = True


class Params(LayerLossParams):
    """Settings of cka."""


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """Mean of `cka` over the mapped layers."""
    pairs = layer_pairs(params.map, len(student.hidden) - 1, len(teacher.hidden) - 1)
    per_pair = [cka(taken(student.hidden, s), taken(teacher.hidden, t), student.mask) for s, t in pairs]
    return torch.stack(per_pair).mean()


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """The map must fit; widths may differ, and need no projection."""
    return layer_misfit(params.map, student.layers, teacher.layers)


def cka(
    student: Float[Tensor, "batch length student_width"],
    teacher: Float[Tensor, "batch length teacher_width"],
    mask: Bool[Tensor, "batch length"],
) -> Float[Tensor, ""]:
    """1 - linear CKA of the two models' states over the valid tokens of the whole batch.

    Args:
        student: hidden states.
        teacher: hidden states; no gradient flows into them.
        mask: True for a real token.

    Returns:
        0 when one is the other up to rotation, reflection, one factor and a shift of each column, 1 when unrelated, 2
        at most; 0 for fewer than four valid tokens, which cannot be told apart.

    Source: Kornblith et al. 2019 for the similarity; as a loss it is not theirs. With the plain estimator a batch of no
    more tokens than the states are wide has a loss near 0 whatever the student does, and next to no gradient; so it is
    the unbiased one here as well, whose value means the same in batches of any size. A long example counts by its
    tokens, and the batch's loss is not the mean of its examples' losses.
    """
    return 1 - linear_cka(student[mask], teacher.detach()[mask])
