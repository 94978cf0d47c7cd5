"""One vector for a text: the mean of the student's last states points where the teacher's does.

Neither tokens, widths nor depths need agree, so any teacher can teach any student with it.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LossParams
from pipeline.signals.divergences import mean_over_examples
from pipeline.signals.hidden_states import direction_distance, projections
from pipeline.signals.reader import Signals, taken

KIND = "signal"
NEEDS = ("hidden",)
ALIGNED_BY = "rows"


class Params(LossParams):
    """Settings of sentence_cosine."""


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """`sentence_cosine` of the two last layers, the student's vector first brought to the teacher's width."""
    ours = mean_state(taken(student.hidden, -1), student.mask)
    if module is not None:
        (projection,) = module.children()
        # autocast would project in half precision
        with torch.autocast(ours.device.type, enabled=False):
            ours = projection(ours)
    return sentence_cosine(ours, mean_state(taken(teacher.hidden, -1), teacher.mask), student.mask)


def layers(student: Shape, teacher: Shape, params: Params) -> tuple[set[int], set[int]]:
    """The two last."""
    return {student.layers}, {teacher.layers}


def auxiliary(student: Shape, teacher: Shape, params: Params) -> nn.ModuleList | None:
    """A projection; None for equal widths."""
    return projections(student, teacher, ((student.layers, teacher.layers),))


def mean_state(
    states: Float[Tensor, "batch length width"], mask: Bool[Tensor, "batch length"]
) -> Float[Tensor, "batch width"]:
    """The mean of each example's valid tokens in float32, special tokens included; 0 where there is none."""
    total = torch.where(mask[..., None], states.float(), 0.0).sum(1)
    return total / mask.sum(1, keepdim=True).clamp(min=1)


def sentence_cosine(
    student: Float[Tensor, "batch width"],
    teacher: Float[Tensor, "batch width"],
    mask: Bool[Tensor, "batch length"],
) -> Float[Tensor, ""]:
    """Squared distance of two vectors at length 1, averaged over the examples that have a token.

    Args:
        student: a vector for each text, already as wide as the teacher's.
        teacher: the same; no gradient flows into them.
        mask: True for a real token of the student's.

    Returns:
        2 - 2 cos: 0 when the vectors agree up to a positive factor, 2 at right angles, 4 when opposite.

    Source: the mean of the last states is the vector that sentence-transformers' models were trained on (Reimers,
    Gurevych 2019); matching it is Reimers, Gurevych 2020, section 2, there by the squared difference as it is. The
    length is left out here, since a projection that is not exported could be all that has learned it.
    """
    return mean_over_examples(direction_distance(student, teacher), mask)
