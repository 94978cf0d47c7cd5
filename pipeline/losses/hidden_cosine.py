"""Direction of hidden states: each token's state points where the teacher's does, as in DistilBERT's last layer."""

from functools import partial

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LayerLossParams, LayerMap
from pipeline.models.layer_maps import layer_misfit, layer_pairs
from pipeline.signals.hidden_states import direction_distance, mean_over_pairs, mean_over_tokens, projections
from pipeline.signals.reader import Signals

KIND = "signal"
NEEDS = ("hidden",)
ALIGNED_BY = "characters"


class Params(LayerLossParams):
    """Settings of hidden_cosine."""

    # last_only as in DistilBERT
    map: LayerMap = Field(default="last_only", description=LayerLossParams.model_fields["map"].description)


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """Mean of `hidden_cosine` over the mapped layers, the student's states first brought to the teacher's width."""
    pairs = layer_pairs(params.map, len(student.hidden) - 1, len(teacher.hidden) - 1)
    compare = partial(hidden_cosine, mask=student.mask)
    return mean_over_pairs(compare, student.hidden, teacher.hidden, pairs, module)


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """The map must fit; widths may differ."""
    return layer_misfit(params.map, student.layers, teacher.layers)


def auxiliary(student: Shape, teacher: Shape, params: Params) -> nn.ModuleList | None:
    """A projection for each pair; None for equal widths, as in DistilBERT."""
    return projections(student, teacher, layer_pairs(params.map, student.layers, teacher.layers))


def hidden_cosine(
    student: Float[Tensor, "batch length width"],
    teacher: Float[Tensor, "batch length width"],
    mask: Bool[Tensor, "batch length"],
) -> Float[Tensor, ""]:
    """1 - cosine of the angle between the two states of a token, averaged over valid tokens, then over the batch.

    Args:
        student: hidden states, already as wide as the teacher's.
        teacher: hidden states; no gradient flows into them.
        mask: True for a real token.

    Returns:
        0 when all states agree up to a positive factor for each token, 1 at right angles, 2 when opposite. A state of
        zeros is at a right angle to any other and gets no gradient.

    Source: DistilBERT (Sanh et al. 2019), checked in its code, which averages over all valid tokens of the batch, so
    that a long example weighs more; here each example weighs the same. Its three terms have weights 5 (logits), 2
    (masked words) and 1 (this).
    """
    return mean_over_tokens(direction_distance(student, teacher) / 2, mask)
