"""Elements by their places. A place outside is an error here, where Core ML may answer anything.

So is a negative one, which counted from the end before iOS 17: no encoder asks for one.
"""

import torch
from torch import Tensor

from pipeline.mil.ops import number, operation

SOURCE = "iOS17/scatter_gather"


@operation(SOURCE)
def gather(
    x: Tensor,
    indices: Tensor,
    axis: Tensor | int = 0,
    batch_dims: Tensor | int = 0,
    validate_indices: Tensor | bool = False,
) -> Tensor:
    """x at these places along an axis; the shape of the places takes the place of the axis."""
    along = number(axis) % x.dim()
    if number(batch_dims) != 0:
        raise ValueError("gather with batch_dims is not executed here; no encoder that Decant exports has one")
    if along == 0 and x.dim() == 2:
        return torch.nn.functional.embedding(indices, x)
    taken = torch.index_select(x, along, indices.reshape(-1))
    return taken.reshape((*x.shape[:along], *indices.shape, *x.shape[along + 1 :]))


@operation(SOURCE)
def gather_along_axis(
    x: Tensor, indices: Tensor, axis: Tensor | int = 0, validate_indices: Tensor | bool = False
) -> Tensor:
    """Element by element: along the axis, x at the place that stands in `indices`."""
    return torch.gather(x, number(axis), indices)
