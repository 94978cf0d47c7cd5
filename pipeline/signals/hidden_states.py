"""Comparing hidden states: the widths, directions and averages that several losses share."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.models.layer_maps import Pairs
from pipeline.signals.divergences import mean_over_examples
from pipeline.signals.reader import taken

# Length below which a vector is taken for zero, which has no direction: the slope of a direction grows with 1 / length,
# so a shorter one would get a gradient that drowns all others. Behind a layer norm a state is about sqrt(width) long.
NO_DIRECTION = 1e-6


def projections(student: Shape, teacher: Shape, pairs: Pairs) -> nn.ModuleList | None:
    """A linear map without bias for each pair, from the student's width to the teacher's; None for equal widths.

    TinyBERT's paper gives the embeddings a map of their own and its code shares one for all; here each pair has one.
    """
    if student.hidden == teacher.hidden:
        return None
    return nn.ModuleList(nn.Linear(student.hidden, teacher.hidden, bias=False) for _ in pairs)


def mean_over_pairs(
    compare: Callable[[Tensor, Tensor], Tensor],
    student: tuple[Tensor | None, ...],
    teacher: tuple[Tensor | None, ...],
    pairs: Pairs,
    module: nn.Module | None,
) -> Float[Tensor, ""]:
    """Mean of a comparison over pairs of layers, the student's states first brought to the teacher's width.

    Args:
        compare: takes the student's and the teacher's states of one pair, equally wide.
        student: one entry for each hidden state, the embedding output first; all its tokens or the first of them.
        teacher: the same.
        pairs: places in these two.
        module: what `projections` gave for the same pairs.
    """
    maps = list(module.children()) if module is not None else [nn.Identity()] * len(pairs)
    per_pair = []
    for (s, t), projection in zip(pairs, maps, strict=True):
        ours = taken(student, s)
        # autocast would project in half precision
        with torch.autocast(ours.device.type, enabled=False):
            projected = projection(ours.float())
        per_pair.append(compare(projected, taken(teacher, t)))
    return torch.stack(per_pair).mean()


def mean_over_tokens(per_token: Float[Tensor, "batch length"], mask: Bool[Tensor, "batch length"]) -> Float[Tensor, ""]:
    """Mean over each example's valid tokens, then over the examples that have one; 0 when none has."""
    per_example = torch.where(mask, per_token, 0.0).sum(1) / mask.sum(1).clamp(min=1)
    return mean_over_examples(per_example, mask)


def direction_distance(
    student: Float[Tensor, "*vectors width"], teacher: Float[Tensor, "*vectors width"]
) -> Float[Tensor, "*vectors"]:
    """Squared distance of two vectors of length 1, which is 2 - 2 cos: 0 for the same direction, 4 for the opposite.

    A zero vector counts as standing at a right angle to any other, so 2, and as equal to another zero vector; it gets
    no gradient, and neither does the teacher. float32.
    """
    (ours, we_point), (theirs, they_point) = _unit_vectors(student), _unit_vectors(teacher.detach())
    # not 2 - 2 cos as it stands: for directions that nearly agree that is the rounding error of two large numbers
    distance = (ours - theirs).square().sum(-1)
    return torch.where(we_point & they_point, distance, 2.0 * (we_point ^ they_point))


def _unit_vectors(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The vectors at length 1, and whether each has a direction at all; one that has none stays as it is."""
    vectors = vectors.float()
    squares = vectors.square().sum(-1)
    points = squares > NO_DIRECTION**2
    # the root of 0 has an infinite slope, which torch.where would turn into NaN
    return vectors / torch.where(points, squares, 1.0).sqrt()[..., None], points
