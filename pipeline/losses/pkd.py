"""Patient distillation: layer by layer, the class token's state points where the teacher's does.

The logit part of BERT-PKD, (1 - alpha) times the labels' cross-entropy plus alpha times softened logits, is the losses
cross_entropy and logit_kl with these weights.
"""

from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LayerLossParams
from pipeline.models.layer_maps import layer_misfit, layer_pairs
from pipeline.signals.divergences import mean_over_examples
from pipeline.signals.hidden_states import direction_distance, mean_over_pairs, projections
from pipeline.signals.reader import Signals

KIND = "signal"
NEEDS = ("hidden",)
ALIGNED_BY = "rows"  # the class token alone


class Params(LayerLossParams):
    """Settings of pkd."""


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """Mean of `pkd` over the mapped layers, the student's states first brought to the teacher's width.

    The published map for 6 student and 12 teacher layers, "skip", is teacher layers 2, 4, 6, 8, 10 for student layers
    1 to 5. "uniform" has the same pairs and the two last layers as well; for the published one write the pairs.
    """
    pairs = layer_pairs(params.map, len(student.hidden) - 1, len(teacher.hidden) - 1)
    return mean_over_pairs(
        partial(pkd, mask=student.mask), _first_tokens(student), _first_tokens(teacher), pairs, module
    )


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """The map must fit; widths may differ."""
    return layer_misfit(params.map, student.layers, teacher.layers)


def auxiliary(student: Shape, teacher: Shape, params: Params) -> nn.ModuleList | None:
    """A projection for each pair; None for equal widths, as in PKD."""
    return projections(student, teacher, layer_pairs(params.map, student.layers, teacher.layers))


def pkd(
    student: Float[Tensor, "batch width"],
    teacher: Float[Tensor, "batch width"],
    mask: Bool[Tensor, "batch length"],
) -> Float[Tensor, ""]:
    """Squared distance of the two class-token states at length 1, averaged over the examples that have a token.

    Args:
        student: first-token states, already as wide as the teacher's.
        teacher: first-token states; no gradient flows into them.
        mask: True for a real token.

    Returns:
        2 - 2 cos: 0 when the states agree up to a positive factor, 2 at right angles, 4 when opposite. A state of zeros
        is at a right angle to any other and gets no gradient.

    Source: BERT-PKD (Sun et al. 2019), from re-implementations. It sums over layers where `loss` takes the mean, so its
    factor beta, 10 to 1000, is a weight as many times larger here as there are pairs.
    """
    return mean_over_examples(direction_distance(student, teacher), mask)


def _first_tokens(signals: Signals) -> tuple[Tensor | None, ...]:
    """Taken out before the projection, which would otherwise be computed for every token."""
    return tuple(None if states is None else states[:, 0] for states in signals.hidden)
