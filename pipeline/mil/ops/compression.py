"""Weights that are stored smaller than they are used, and activations in 8 bits.

Two generations: iOS 16 packs codes and masks into bytes and gives the shape beside them; iOS 18 declares narrow types
and one scale or table for each block. Which one is meant shows in the parameters.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.mil.blobs import unpack
from pipeline.mil.ops import ints, number, operation

CONSTEXPR, COMPRESSION, QUANTIZATION = "iOS16/constexpr_ops", "iOS18/compression", "iOS17/quantization_ops"


def _along(parameter: Tensor, rank: int, axis: Tensor | int | None) -> Tensor:
    """A scale or zero point that broadcasts along its axis."""
    if parameter.dim() == 0:
        return parameter
    shape = [1] * rank
    shape[number(axis) if axis is not None else 0] = -1
    return parameter.reshape(shape)


def _bits(packed: Tensor, width: int, count: int) -> Tensor:
    """Whole numbers of `width` bits from bytes, least significant bit first."""
    values = unpack(packed.numpy().astype(np.uint8).tobytes(), f"uint{width}", count, "packed values")
    return torch.from_numpy(values.astype(np.int64))


@operation(CONSTEXPR)
def constexpr_affine_dequantize(
    quantized_data: Tensor, zero_point: Tensor, scale: Tensor, axis: Tensor | int
) -> Tensor:
    """scale (data - zero_point), one for all or one for each place along the axis."""
    rank = quantized_data.dim()
    return _along(scale, rank, axis) * (quantized_data - _along(zero_point, rank, axis))


@operation(CONSTEXPR)
def constexpr_cast(source_val: Tensor, output_dtype: str) -> Tensor:
    """fp16 as fp32."""
    return source_val


@operation(COMPRESSION)
def constexpr_blockwise_shift_scale(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    """scale (data - offset), one for each block; a block is data.shape / scale.shape."""
    shifted = data if offset is None else data - _spread(offset, data)
    return _spread(scale, data) * shifted


def _spread(parameter: Tensor, like: Tensor) -> Tensor:
    """Each element repeated over its block."""
    for axis, (size, blocks) in enumerate(zip(like.shape, parameter.shape, strict=True)):
        if size % blocks:
            raise ValueError(f"{blocks} blocks do not divide a dimension of {size}")
        if blocks not in {1, size}:
            parameter = parameter.repeat_interleave(size // blocks, axis)
    return parameter


@operation(COMPRESSION)
def constexpr_lut_to_dense(
    indices: Tensor, lut: Tensor, shape: Tensor | None = None, vector_axis: Tensor | int | None = None
) -> Tensor:
    """The entries of a palette at these indices.

    iOS 16: one palette, indices packed into bytes, and a shape. iOS 18: a palette for each block of the indices, with
    entries of one value or of a vector that is laid along `vector_axis`.
    """
    if shape is not None:
        sizes = ints(shape)
        count = int(torch.tensor(sizes).prod())
        return lut[_bits(indices, len(lut).bit_length() - 1, count)].reshape(sizes)
    palettes, width = lut.shape[-2:]
    blocks = lut.shape[:-2]
    # which palette each index reads: places of the blocks, spread over them
    which = _spread(torch.arange(blocks.numel()).reshape(blocks), indices)
    vectors = lut.reshape(-1, width)[which * palettes + indices]
    if width == 1:
        return vectors.squeeze(-1)
    axis = number(vector_axis if vector_axis is not None else -1) % indices.dim()
    return vectors.movedim(-1, axis + 1).flatten(axis, axis + 1)


@operation(COMPRESSION)
def constexpr_sparse_to_dense(nonzero_data: Tensor, mask: Tensor, shape: Tensor | None = None) -> Tensor:
    """Values where the mask has a 1, in order, and 0 elsewhere. iOS 16 packs the mask into bytes."""
    if shape is not None:
        sizes = ints(shape)
        mask = _bits(mask, 1, int(torch.tensor(sizes).prod())).reshape(sizes)
    dense = torch.zeros(mask.shape, dtype=nonzero_data.dtype)
    dense[mask != 0] = nonzero_data
    return dense


@operation(COMPRESSION)
def constexpr_lut_to_sparse(
    indices_mask: Tensor, indices_nonzero_data: Tensor, lut: Tensor, vector_axis: Tensor | int | None = None
) -> tuple[Tensor, Tensor]:
    """Mask and values, as `constexpr_sparse_to_dense` takes them, of a palette that is read at 1s only."""
    indices = constexpr_sparse_to_dense(indices_nonzero_data, indices_mask)
    dense, mask = constexpr_lut_to_dense(indices, lut, vector_axis=vector_axis), indices_mask
    if lut.shape[-1] > 1:
        assert vector_axis is not None, "a palette of vectors has an axis to lay them along"
        mask = mask.repeat_interleave(lut.shape[-1], number(vector_axis))
    return mask, dense[mask != 0]


@operation(COMPRESSION)
def constexpr_sparse_blockwise_shift_scale(
    data_mask: Tensor, nonzero_data: Tensor, scale: Tensor, offset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mask and values, as `constexpr_sparse_to_dense` takes them, of 8-bit data that is there at 1s only."""
    dense = constexpr_blockwise_shift_scale(constexpr_sparse_to_dense(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask != 0]


@operation(QUANTIZATION)
def quantize(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    output_dtype: str = "int8",
    axis: Tensor | int | None = None,
) -> Tensor:
    """round(x / scale) + zero_point, kept within the type; halves go to the even number."""
    low, high = (-128, 127) if output_dtype == "int8" else (0, 255)
    codes = (input / _along(scale, input.dim(), axis)).round()
    if zero_point is not None:
        codes = codes + _along(zero_point, input.dim(), axis)
    return codes.clamp(low, high).to(torch.int64)


@operation(QUANTIZATION)
def dequantize(
    input: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    axis: Tensor | int | None = None,
) -> Tensor:
    """scale (codes - zero_point)."""
    shifted = input if zero_point is None else input - _along(zero_point, input.dim(), axis)
    return _along(scale, input.dim(), axis) * shifted
