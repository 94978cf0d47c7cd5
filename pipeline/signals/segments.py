"""Hidden states and vectors of pieces of text, for two models that cut it otherwise."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.data.alignment import NOWHERE
from pipeline.signals.reader import Signals


def both_by_segment(batch: Mapping[str, Tensor], student: Signals, teacher: Signals) -> tuple[Signals, Signals]:
    """The signals of two models by the pieces of text that a batch's columns of segments number."""
    count = int(batch["segments"].max()) + 1
    return by_segment(student, batch["segments"], count), by_segment(teacher, batch["teacher_segments"], count)


def by_segment(signals: Signals, segments: Int[Tensor, "batch length"], count: int) -> Signals:
    """The signals as if every segment of a text were one token: the mean of what its tokens have.

    Queries, keys and values are averaged as states are, so relations of pieces of text can be compared. Maps of
    attention cannot be had from them.

    Args:
        signals: of a batch.
        segments: the number of each token's segment, NOWHERE for a token without one and for padding.
        count: how many segments a row is given; more than it has leave the last ones empty, as padding is.
    """
    inside = (segments != NOWHERE) & signals.mask
    # One place more takes the tokens of no segment.
    places = torch.where(inside, segments, count)
    sizes = torch.zeros(len(segments), count + 1, device=segments.device).scatter_add_(1, places, inside.float())

    def mean(tensor: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch segments width"]:
        width = tensor.shape[-1]
        sums = tensor.new_zeros(len(tensor), count + 1, width, dtype=torch.float32)
        sums = sums.scatter_add(1, places[..., None].expand(-1, -1, width), tensor.float())
        return sums[:, :count] / sizes[:, :count, None].clamp(min=1)

    def by_head(tensor: Tensor) -> Tensor:
        heads = tensor.shape[1]
        return mean(tensor.transpose(1, 2).flatten(2)).unflatten(-1, (heads, -1)).transpose(1, 2)

    def of_heads(layers: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        return tuple(None if tensor is None else by_head(tensor) for tensor in layers)

    return replace(
        signals,
        mask=sizes[:, :count] > 0,
        delimiters=None,
        hidden=tuple(None if tensor is None else mean(tensor) for tensor in signals.hidden),
        queries=of_heads(signals.queries),
        keys=of_heads(signals.keys),
        values=of_heads(signals.values),
        biases=(),
    )
