"""MiniLM v2: the student's last layer relates tokens to each other as one teacher layer does.

Compares how queries, keys and values relate among themselves, so neither heads, widths nor depths need agree.
"""

import math

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.families import Shape
from pipeline.losses import LossParams
from pipeline.signals.divergences import row_kl
from pipeline.signals.reader import Signals, taken

KIND = "signal"
NEEDS = ("attention", "values")
ALIGNED_BY = "characters"  # relations of vectors, not maps of attention

# Scores of one chunk of relation heads: 64 MiB in float32. All 48 heads at once, with softmax copies, need far more.
CHUNK_SCORES = 2**24


class Params(LossParams):
    """Settings of minilm_v2."""

    relation_heads: int = Field(
        default=48, gt=0, description="Into how many heads both sides are split again; must divide both hidden sizes."
    )
    teacher_layer: int | None = Field(
        default=None,
        gt=0,
        description="Teacher layer to learn from, counted from 1; the last if absent. RoBERTa-large: 19 of 24.",
    )


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """Sum of `relation_kl` over queries, keys and values of the student's last layer."""
    layer = (params.teacher_layer or len(teacher.queries)) - 1
    sides = [(student.queries, teacher.queries), (student.keys, teacher.keys), (student.values, teacher.values)]
    per_vector = [
        relation_kl(
            _join_heads(taken(ours, -1)), _join_heads(taken(theirs, layer)), student.mask, params.relation_heads
        )
        for ours, theirs in sides
    ]
    return torch.stack(per_vector).sum()


def layers(student: Shape, teacher: Shape, params: Params) -> tuple[set[int], set[int]]:
    """The student's last and one of the teacher's."""
    return {student.layers}, {params.teacher_layer or teacher.layers}


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """The relation heads must divide both widths, and the teacher must have the layer."""
    common = math.gcd(student.hidden, teacher.hidden)
    if common % params.relation_heads:
        divisors = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        return (
            f"relation_heads is {params.relation_heads}, which must divide the student's hidden size {student.hidden} "
            f"and the teacher's {teacher.hidden}; use one of {divisors}"
        )
    if params.teacher_layer is not None and params.teacher_layer > teacher.layers:
        return f"teacher_layer is {params.teacher_layer}, but the teacher has {teacher.layers} layers"
    return None


def relation_kl(
    student: Float[Tensor, "batch length student_width"],
    teacher: Float[Tensor, "batch length teacher_width"],
    mask: Bool[Tensor, "batch length"],
    relation_heads: int,
) -> Float[Tensor, ""]:
    """Divergence of the student's token relations from the teacher's, for one of queries, keys or values.

    Args:
        student: vectors with all attention heads joined.
        teacher: the same; no gradient flows into them.
        mask: True for a real token.
        relation_heads: divides both widths.

    Returns:
        Nats per relation head and valid token, averaged for each example, then over the batch.

    Raises:
        ValueError: relation_heads does not divide both widths.

    Source: MiniLMv2 (Wang et al. 2021), from an industrial re-implementation that follows its equations. Relation heads
    come in chunks that are computed again in the backward pass: the sum is the same and memory that of one chunk.
    """
    ours, theirs = split_heads(student, relation_heads), split_heads(teacher.detach(), relation_heads)
    batch, length = mask.shape
    size = max(1, CHUNK_SCORES // (batch * length**2))
    if size >= relation_heads:
        return _chunk_kl(ours, theirs, mask)
    total = ours.new_zeros(())
    for some_ours, some_theirs in zip(ours.split(size, 1), theirs.split(size, 1), strict=True):
        # row_kl divides by the heads it is given, so each chunk counts by its share
        part = checkpoint(_chunk_kl, some_ours, some_theirs, mask, use_reentrant=False, preserve_rng_state=False)
        total = total + part * (some_ours.shape[1] / relation_heads)
    return total


def split_heads(
    vectors: Float[Tensor, "batch length width"], relation_heads: int
) -> Float[Tensor, "batch relation_heads length relation_width"]:
    """The vectors in float32, cut into relation heads and scaled so that their products are already divided by sqrt(d).

    Scaling each factor by d ** -0.25, not the product by d ** -0.5, keeps a relation of large vectors from overflowing.

    Raises:
        ValueError: relation_heads does not divide the width.
    """
    width = vectors.shape[-1]
    if width % relation_heads:
        raise ValueError(f"relation_heads is {relation_heads}, which does not divide the width {width}")
    return vectors.float().unflatten(-1, (relation_heads, -1)).transpose(1, 2) * (width // relation_heads) ** -0.25


def _chunk_kl(student: Tensor, teacher: Tensor, mask: Bool[Tensor, "batch length"]) -> Float[Tensor, ""]:
    # autocast would turn even float32 factors into half precision
    with torch.autocast(student.device.type, enabled=False):
        return row_kl(student @ student.transpose(-1, -2), teacher @ teacher.transpose(-1, -2), mask)


def _join_heads(vectors: Float[Tensor, "batch heads length head_width"]) -> Float[Tensor, "batch length width"]:
    return vectors.transpose(1, 2).flatten(2)
