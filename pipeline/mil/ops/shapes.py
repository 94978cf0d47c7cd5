"""Shapes: looking at them, changing them, cutting and joining."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.mil.ops import flag, ints, number, operation

TRANSFORMATION, OPERATION = "iOS17/tensor_transformation", "iOS15/tensor_operation"


@operation(OPERATION)
def shape(x: Tensor) -> Tensor:
    """The sizes of x."""
    return torch.tensor(x.shape, dtype=torch.int64)


@operation(TRANSFORMATION)
def reshape(x: Tensor, shape: Tensor) -> Tensor:
    """x in another shape: -1 is what is left, and 0 the size of x there where the ranks are equal."""
    wanted = ints(shape)
    if len(wanted) == x.dim():
        wanted = [old if size == 0 else size for size, old in zip(wanted, x.shape, strict=True)]
    return x.reshape(wanted)


@operation(TRANSFORMATION)
def transpose(x: Tensor, perm: Tensor) -> Tensor:
    """Dimensions in another order."""
    return x.permute(ints(perm))


@operation(TRANSFORMATION)
def expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    """Dimensions of 1 at places of the result."""
    rank = x.dim() + len(ints(axes))
    for axis in sorted(axis % rank for axis in ints(axes)):
        x = x.unsqueeze(axis)
    return x


@operation(TRANSFORMATION)
def squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Without these dimensions of 1, or without all of them; others that are named stay, as in PyTorch."""
    return x.squeeze(ints(axes)) if axes is not None else x.squeeze()


@operation(TRANSFORMATION)
def slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """NumPy's x[begin:end:stride] in each dimension; a mask drops an end, or takes the one element at `begin`."""
    rank = x.dim()
    steps = ints(stride) or [1] * rank
    from_start, to_end, single = (ints(mask) or [0] * rank for mask in (begin_mask, end_mask, squeeze_mask))
    index: list[Tensor | int | slice] = []
    for axis, (low, high, step) in enumerate(zip(ints(begin), ints(end), steps, strict=True)):
        if single[axis]:
            index.append(0 if from_start[axis] else low)
            continue
        places = slice(None if from_start[axis] else low, None if to_end[axis] else high, step)
        # PyTorch has no negative steps
        index.append(places if step > 0 else torch.tensor(range(*places.indices(x.shape[axis])), dtype=torch.int64))
    for axis in reversed(range(rank)):  # one dimension at a time: together, lists of places would pair up
        place = index[axis]
        if isinstance(place, Tensor):
            x = x.index_select(axis, place)
        elif isinstance(place, int):
            x = x.select(axis, place)
        else:
            x = x[(slice(None),) * axis + (place,)]
    return x


@operation(TRANSFORMATION)
def slice_by_size(x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
    """From `begin`, this many elements in each dimension; -1 is all that are left."""
    for axis, (start, count) in enumerate(zip(ints(begin), ints(size), strict=True)):
        first = start % x.shape[axis] if start < 0 else start
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


@operation(TRANSFORMATION)
def reverse(x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Back to front along these axes, or along all."""
    return x.flip(ints(axes) or list(range(x.dim())))


@operation(OPERATION)
def concat(values: Sequence[Tensor], axis: Tensor | int, interleave: Tensor | bool = False) -> Tensor:
    """Joined along an axis, one after the other or in turn."""
    along = number(axis)
    parts = [value.reshape(1) if value.dim() == 0 else value for value in values]
    if flag(interleave):
        along %= parts[0].dim()
        return torch.stack(parts, along + 1).flatten(along, along + 1)
    return torch.cat(parts, along)


@operation(OPERATION)
def stack(values: Sequence[Tensor], axis: Tensor | int) -> Tensor:
    """Joined along a new axis."""
    return torch.stack(list(values), number(axis))


@operation(OPERATION)
def split(
    x: Tensor, axis: Tensor | int, num_splits: Tensor | int | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Cut along an axis, into equal parts or into these sizes."""
    along = number(axis)
    if split_sizes is not None:
        return x.split(ints(split_sizes), along)
    assert num_splits is not None, "split has neither num_splits nor split_sizes"
    return x.split(x.shape[along] // number(num_splits), along)


@operation(OPERATION)
def tile(x: Tensor, reps: Tensor) -> Tensor:
    """Repeated this many times in each dimension."""
    return x.repeat(ints(reps))


@operation(OPERATION)
def fill(shape: Tensor, value: Tensor | float = 0.0) -> Tensor:
    """One value everywhere."""
    return torch.full(ints(shape), value.item() if isinstance(value, Tensor) else value)


@operation(OPERATION)
def range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    """start, start + step, ... below end."""
    return torch.arange(start.item(), end.item(), step.item())


@operation(OPERATION)
def one_hot(
    indices: Tensor,
    one_hot_vector_size: Tensor,
    axis: Tensor | int = -1,
    on_value: Tensor | int = 1,
    off_value: Tensor | int = 0,
) -> Tensor:
    """on_value at the index along a new axis, off_value elsewhere."""
    places = torch.arange(number(one_hot_vector_size))
    hot = indices.unsqueeze(-1) == places
    chosen = torch.where(hot, torch.as_tensor(on_value), torch.as_tensor(off_value))
    return chosen.movedim(-1, number(axis))
