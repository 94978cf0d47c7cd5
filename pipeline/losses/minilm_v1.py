"""MiniLM v1: the student's last layer attends, and relates values to each other, as one teacher layer does.

Compares head by head, so widths and depths may differ but not the number of heads; minilm_v2 asks for neither.
"""

from dataclasses import replace

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LossParams
from pipeline.models.layer_maps import heads_misfit
from pipeline.signals.divergences import row_kl
from pipeline.signals.reader import Signals, attention_scores

KIND = "signal"
NEEDS = ("attention", "values")


class Params(LossParams):
    """Settings of minilm_v1."""

    teacher_layer: int | None = Field(
        default=None, gt=0, description="Teacher layer to learn from, counted from 1; the last if absent, as in MiniLM."
    )


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """Divergence of the attention of the student's last layer, plus that of its value relation.

    Returns:
        Nats per head and valid token, averaged for each example, then over the batch; the sum of the two.

    Source: MiniLM (Wang et al. 2020), its equations and per-example normalisation from re-implementations. The gradient
    reaches the query, key and value projections of the last layer and what lies below, not its output or feed-forward
    parts.
    """
    ours, theirs = len(student.queries), params.teacher_layer or len(teacher.queries)
    attention = row_kl(attention_scores(student, ours), attention_scores(teacher, theirs), student.mask)
    relation = row_kl(value_scores(student, ours), value_scores(teacher, theirs), student.mask)
    return attention + relation


def layers(student: Shape, teacher: Shape, params: Params) -> tuple[set[int], set[int]]:
    """The student's last and one of the teacher's."""
    return {student.layers}, {params.teacher_layer or teacher.layers}


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """Heads are compared one by one, and the teacher must have the layer."""
    if params.teacher_layer is not None and params.teacher_layer > teacher.layers:
        return f"teacher_layer is {params.teacher_layer}, but the teacher has {teacher.layers} layers"
    return heads_misfit(student, teacher)


def value_scores(signals: Signals, layer: int) -> Float[Tensor, "batch heads length length"]:
    """Products of the values of each head with each other, over the root of the head's width; layers count from 1."""
    # what attention would be if the values were queries and keys
    return attention_scores(replace(signals, queries=signals.values, keys=signals.values, biases=()), layer)
