"""Each MIL operation against NumPy in float64 over random shapes and values, and against coremltools' own folding.

`CASES` has a row for every operation that is registered; a new operation without one fails here.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.mil import interpreter
from pipeline.mil.ops import OPERATIONS
from pipeline.mil.quiet import import_coremltools

EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, 1e-8, -1e-8, 6.1e-5, 65504.0, -65504.0, 1e30]
SHAPES = [(1,), (3,), (2, 3), (1, 4, 2), (2, 1, 3, 2)]


class Draw:
    """Random arguments."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def shape(self, least: int = 1, most: int = 4) -> tuple[int, ...]:
        return tuple(int(n) for n in self.rng.integers(1, 5, self.rng.integers(least, most + 1)))

    def floats(self, shape: tuple[int, ...] | None = None, edges: bool = False, low: float = -4.0) -> np.ndarray:
        x = self.rng.uniform(low, 4.0, self.shape() if shape is None else shape)
        if edges:
            x = np.where(self.rng.random(x.shape) < 0.3, self.rng.choice(EDGES, x.shape), x)
        return x.astype(np.float32)

    def ints(self, shape: tuple[int, ...], low: int = -5, high: int = 6) -> np.ndarray:
        return self.rng.integers(low, high, shape).astype(np.int32)

    def bools(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.rng.random(shape) < 0.5

    def axis(self, rank: int) -> np.int32:
        return np.int32(self.rng.integers(-rank, rank))

    def axes(self, rank: int) -> np.ndarray:
        return self.rng.permutation(rank)[: self.rng.integers(1, rank + 1)].astype(np.int32)

    def flag(self) -> bool:
        return bool(self.rng.random() < 0.5)

    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """Two tensors that broadcast."""
        shape = self.shape()
        other = tuple(size if self.flag() else 1 for size in shape)[int(self.rng.integers(0, len(shape))) :]
        return self.floats(shape), self.floats(other)


Case = tuple[Callable[[Draw], dict[str, Any]], Callable[..., Any]]


def binary(reference: Callable[..., Any], positive: bool = False) -> Case:
    def draw(d: Draw) -> dict[str, Any]:
        x, y = d.pair()
        return {"x": np.abs(x) if positive else x, "y": y + np.float32(np.sign(y) + (y == 0))}

    return draw, reference


def compare(reference: Callable[..., Any]) -> Case:
    """Whole numbers, so that some are equal."""
    return lambda d: {"x": (x := d.ints((3, 4))).astype(np.float32), "y": d.ints(x.shape).astype(np.float32)}, reference


def logical(reference: Callable[..., Any]) -> Case:
    return lambda d: {"x": d.bools((3, 4)), "y": d.bools((3, 4))}, reference


def unary(reference: Callable[..., Any], low: float = -4.0, edges: bool = False, **extra: Any) -> Case:
    return lambda d: {"x": d.floats(low=low, edges=edges), **extra}, reference


def reduced(reference: Callable[..., Any]) -> Case:
    def draw(d: Draw) -> dict[str, Any]:
        x = d.floats()
        return {"x": x, "axes": d.axes(x.ndim), "keep_dims": d.flag()}

    return draw, lambda x, axes, keep_dims: reference(x, axis=tuple(axes), keepdims=keep_dims)


def arg(reference: Callable[..., Any]) -> Case:
    def draw(d: Draw) -> dict[str, Any]:
        shape = d.shape()
        # no two are equal: of several, any may be given
        return {
            "x": d.rng.permutation(math.prod(shape)).reshape(shape).astype(np.float32),
            "axis": d.axis(len(shape)),
            "keep_dims": d.flag(),
        }

    return draw, lambda x, axis, keep_dims: reference(x, axis=axis, keepdims=keep_dims)


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    return scipy.special.softmax(x, axis=axis)


def _layer_norm(x: np.ndarray, axes: Any, gamma: Any = None, beta: Any = None, epsilon: float = 1e-5) -> np.ndarray:
    over = tuple(sorted(int(a) % x.ndim for a in axes))
    shape = [size if axis in over else 1 for axis, size in enumerate(x.shape)]
    normed = (x - x.mean(over, keepdims=True)) / np.sqrt(x.var(over, keepdims=True) + epsilon)
    normed = normed if gamma is None else normed * gamma.reshape(shape)
    return normed if beta is None else normed + beta.reshape(shape)


def draw_layer_norm(d: Draw) -> dict[str, Any]:
    x = d.floats((2, 3, 4))
    axes = np.arange(d.rng.integers(1, 3), 3)
    shape = tuple(x.shape[a] for a in axes)
    return {
        "x": x,
        "axes": (axes - 3 * d.flag()).astype(np.int32),
        "gamma": d.floats(shape),
        "beta": d.floats(shape),
        "epsilon": np.float32(1e-3),
    }


def draw_batch_norm(d: Draw) -> dict[str, Any]:
    return {
        "x": d.floats((2, 3, 4)),
        **{name: d.floats((3,)) for name in ("mean", "gamma", "beta")},
        "variance": d.floats((3,), low=0.1),
        "epsilon": np.float32(1e-3),
    }


def _batch_norm(x: np.ndarray, mean: Any, gamma: Any, beta: Any, variance: Any, epsilon: float) -> np.ndarray:
    column = lambda v: v[None, :, None]  # noqa: E731
    return column(gamma) * (x - column(mean)) / np.sqrt(column(variance) + epsilon) + column(beta)


def draw_conv(d: Draw) -> dict[str, Any]:
    groups = int(d.rng.choice([1, 2]))
    size, kernel = d.rng.integers(5, 8, 2), d.rng.integers(1, 4, 2)
    return {
        "x": d.floats((1, 4, *map(int, size))),
        "weight": d.floats((6, 4 // groups, *map(int, kernel))),
        "bias": d.floats((6,)),
        "strides": d.rng.integers(1, 3, 2).astype(np.int32),
        "pad_type": str(d.rng.choice(["valid", "custom", "same", "same_lower"])),
        "pad": d.rng.integers(0, 3, 4).astype(np.int32),
        "dilations": np.ones(2, np.int32),
        "groups": np.int32(groups),
    }


def _conv(x: Any, weight: Any, bias: Any, strides: Any, pad_type: str, pad: Any, dilations: Any, groups: int) -> Any:
    """Sum by sum."""
    edges = [(0, 0), (0, 0)]
    if pad_type == "custom":
        edges = [(pad[0], pad[1]), (pad[2], pad[3])]
    elif pad_type != "valid":
        for i in (0, 1):
            size, kernel, step = x.shape[2 + i], weight.shape[2 + i], strides[i]
            total = max((-(-size // step) - 1) * step + kernel - size, 0)
            small, large = total // 2, total - total // 2
            edges[i] = (large, small) if pad_type == "same_lower" else (small, large)
    x = np.pad(x, [(0, 0), (0, 0), *edges])
    height, width = ((x.shape[2 + i] - weight.shape[2 + i]) // strides[i] + 1 for i in (0, 1))
    out = np.zeros((1, len(weight), height, width))
    per_in, per_out = weight.shape[1], len(weight) // groups
    for o, i, j in itertools.product(range(len(weight)), range(height), range(width)):
        first = (o // per_out) * per_in
        top, left = i * strides[0], j * strides[1]
        window = x[0, first : first + per_in, top : top + weight.shape[2], left : left + weight.shape[3]]
        out[0, o, i, j] = (window * weight[o]).sum() + bias[o]
    return out


def draw_slice(d: Draw) -> dict[str, Any]:
    x = d.floats((5, 6, 4))
    stride = d.rng.choice([1, 2, -1], 3).astype(np.int32)
    begin, end = np.zeros(3, np.int32), np.zeros(3, np.int32)
    for i, size in enumerate(x.shape):
        low = int(d.rng.integers(0, size - 2))
        high = int(d.rng.integers(low + 2, size + 1))
        begin[i], end[i] = (low, high) if stride[i] > 0 else (high - 1, low)
    squeeze = d.rng.random(3) < 0.3
    squeeze[0] = False
    return {
        "x": x,
        "begin": begin,
        "end": end,
        "stride": stride,
        "begin_mask": (d.rng.random(3) < 0.3) & ~squeeze,
        "end_mask": (d.rng.random(3) < 0.3) & ~squeeze,
        "squeeze_mask": squeeze,
    }


def _slice(x: Any, begin: Any, end: Any, stride: Any, begin_mask: Any, end_mask: Any, squeeze_mask: Any) -> Any:
    index = tuple(
        int(b) if single else slice(None if free else int(b), None if open_end else int(e), int(s))
        for b, e, s, free, open_end, single in zip(begin, end, stride, begin_mask, end_mask, squeeze_mask, strict=True)
    )
    return x[index]


def _split(x: Any, axis: Any, split_sizes: Any) -> list[Any]:
    return np.split(x, np.cumsum(split_sizes)[:-1], axis=axis)


def draw_sizes(d: Draw) -> dict[str, Any]:
    sizes = d.rng.integers(1, 4, 3).astype(np.int32)
    axis = int(d.rng.integers(0, 2))
    shape = [2, 2]
    shape[axis] = int(sizes.sum())
    return {"x": d.floats(tuple(shape)), "axis": np.int32(axis - 2 * d.flag()), "split_sizes": sizes}


def draw_gather(d: Draw) -> dict[str, Any]:
    x = d.floats((4, 5, 3))
    axis = d.axis(3)
    return {"x": x, "indices": d.ints((2, 3), 0, x.shape[axis]), "axis": axis, "validate_indices": False}


def draw_along(d: Draw) -> dict[str, Any]:
    x = d.floats((4, 5, 3))
    axis = d.axis(3)
    return {"x": x, "indices": d.ints(x.shape, 0, x.shape[axis]), "axis": axis, "validate_indices": False}


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers as bytes, the least significant bit first."""
    digits = (codes.reshape(-1, 1).astype(np.int64) >> np.arange(bits)) & 1
    return np.packbits(digits.reshape(-1).astype(np.uint8), bitorder="little")


def draw_affine(d: Draw) -> dict[str, Any]:
    axis = int(d.rng.integers(0, 2))
    data = d.rng.integers(-128, 128, (3, 4)).astype(np.int8)
    n = data.shape[axis]
    return {
        "quantized_data": data,
        "zero_point": d.rng.integers(-9, 9, n).astype(np.int8),
        "scale": d.floats((n,), low=0.01),
        "axis": np.int32(axis),
    }


def _affine(quantized_data: Any, zero_point: Any, scale: Any, axis: int) -> Any:
    shape = [-1, 1] if axis == 0 else [1, -1]
    return scale.reshape(shape) * (quantized_data.astype(np.float64) - zero_point.reshape(shape))


def draw_blockwise(d: Draw) -> dict[str, Any]:
    blocks = (int(d.rng.choice([1, 2, 4])), int(d.rng.choice([1, 3])))
    return {
        "data": d.rng.integers(-128, 128, (4, 6)).astype(np.int8),
        "scale": d.floats(blocks, low=0.01),
        "offset": d.rng.integers(-9, 9, blocks).astype(np.int8),
    }


def _blockwise(data: Any, scale: Any, offset: Any) -> Any:
    def at(v: Any, i: int, j: int) -> float:
        return float(v[i * v.shape[0] // data.shape[0], j * v.shape[1] // data.shape[1]])

    out = np.zeros(data.shape)
    for i, j in itertools.product(*map(range, data.shape)):
        out[i, j] = at(scale, i, j) * (float(data[i, j]) - at(offset, i, j))
    return out


def draw_lut16(d: Draw) -> dict[str, Any]:
    bits = int(d.rng.choice([1, 2, 4, 6, 8]))
    codes = d.rng.integers(0, 2**bits, (3, 5))
    return {
        "indices": pack(codes, bits),
        "lut": d.floats((2**bits,)),
        "shape": np.array(codes.shape, np.uint32),
    }


def _lut16(indices: Any, lut: Any, shape: Any) -> Any:
    bits, count = int(math.log2(len(lut))), int(np.prod(shape))
    whole = int.from_bytes(indices.tobytes(), "little")
    return np.array([lut[whole >> (bits * i) & (2**bits - 1)] for i in range(count)]).reshape(shape.astype(int))


def draw_sparse16(d: Draw) -> dict[str, Any]:
    mask = d.bools((3, 5))
    mask[0, 0] = True
    return {
        "nonzero_data": d.floats((int(mask.sum()),)),
        "mask": pack(mask.astype(np.uint8), 1),
        "shape": np.array(mask.shape, np.uint32),
    }


def _sparse16(nonzero_data: Any, mask: Any, shape: Any) -> Any:
    whole, rest = int.from_bytes(mask.tobytes(), "little"), list(nonzero_data)
    count = int(np.prod(shape))
    return np.array([rest.pop(0) if whole >> i & 1 else 0.0 for i in range(count)]).reshape(shape.astype(int))


def draw_joint_lut(d: Draw) -> dict[str, Any]:
    mask = d.bools((4, 6))
    mask[0, 0] = True
    return {
        "indices_mask": mask.astype(np.int8),
        "indices_nonzero_data": d.rng.integers(0, 4, int(mask.sum())).astype(np.uint8),
        "lut": d.floats((1, 1, 4, 1)),
    }


def _joint_lut(indices_mask: Any, indices_nonzero_data: Any, lut: Any) -> list[Any]:
    return [indices_mask, lut.reshape(-1)[indices_nonzero_data]]


def draw_joint_scale(d: Draw) -> dict[str, Any]:
    mask = d.bools((4, 6))
    mask[0, 0] = True
    return {
        "data_mask": mask.astype(np.int8),
        "nonzero_data": d.rng.integers(-128, 128, int(mask.sum())).astype(np.int8),
        "scale": d.floats((1, 6), low=0.01),
        "offset": d.rng.integers(-9, 9, (1, 6)).astype(np.int8),
    }


def _joint_scale(data_mask: Any, nonzero_data: Any, scale: Any, offset: Any) -> list[Any]:
    columns = np.nonzero(data_mask)[1]
    return [data_mask, scale[0, columns] * (nonzero_data.astype(np.float64) - offset[0, columns])]


def draw_quantize(d: Draw) -> dict[str, Any]:
    dtype = str(d.rng.choice(["int8", "uint8"]))
    scale = d.floats((4,), low=0.2)
    # between the halves, so that no rounding of a quotient decides; some beyond the type
    steps = d.ints((3, 4), -200, 300) + d.rng.uniform(-0.4, 0.4, (3, 4))
    return {
        "input": (steps * scale).astype(np.float32),
        "scale": scale,
        "zero_point": d.rng.integers(0, 9, 4).astype(dtype),
        "output_dtype": dtype,
        "axis": np.int32(1),
    }


def _quantize(input: Any, scale: Any, zero_point: Any, output_dtype: str, axis: int) -> Any:
    codes = np.rint(input / scale) + zero_point.astype(int)
    return np.clip(codes, *((-128, 127) if output_dtype == "int8" else (0, 255)))


def draw_attention(d: Draw) -> dict[str, Any]:
    q, k, v = (d.floats((2, 3, 4)) for _ in range(3))
    mask = d.bools((3, 3)) | np.eye(3, dtype=bool)
    return {"query": q, "key": k, "value": v, "attn_mask": mask if d.flag() else d.floats((3, 3))}


def _attention(query: Any, key: Any, value: Any, attn_mask: Any) -> Any:
    scores = query @ key.swapaxes(-1, -2) / 2.0
    scores = np.where(attn_mask, scores, -np.inf) if attn_mask.dtype == bool else scores + attn_mask
    return _softmax(scores, -1) @ value


def draw_einsum(d: Draw) -> dict[str, Any]:
    return {"values": [d.floats((2, 3, 4, 5)), d.floats((2, 5, 4, 6))], "equation": "nchw,nwhu->nchu"}


def draw_concat(d: Draw) -> dict[str, Any]:
    interleave = d.flag()
    sizes = (2, 2) if interleave else (2, 3)
    return {"values": [d.floats((2, n, 3)) for n in sizes], "axis": np.int32(1), "interleave": interleave}


def _concat(values: Any, axis: int, interleave: bool) -> Any:
    if not interleave:
        return np.concatenate(values, axis)
    return np.stack([part.take(i, axis) for i in range(values[0].shape[axis]) for part in values], axis)


def _cumsum(x: np.ndarray, axis: int, exclusive: bool, reverse: bool) -> np.ndarray:
    out = np.zeros_like(x)
    for row, column in np.ndindex(x.shape):
        before = slice(None, column + 1) if not reverse else slice(column, None)
        out[row, column] = x[row, before].sum() - (x[row, column] if exclusive else 0)
    return out


def draw_matmul(d: Draw) -> dict[str, Any]:
    flip_x, flip_y = d.flag(), d.flag()
    x, y = d.floats((2, 3, 4)), d.floats((4, 5))
    return {
        "x": x.swapaxes(-1, -2).copy() if flip_x else x,
        "y": y.T.copy() if flip_y else y,
        "transpose_x": flip_x,
        "transpose_y": flip_y,
    }


CASES: dict[str, Case] = {
    "add": binary(np.add),
    "sub": binary(np.subtract),
    "mul": binary(np.multiply),
    "real_div": binary(np.divide),
    "floor_div": binary(np.floor_divide),
    "mod": binary(np.mod),
    "pow": binary(np.power, positive=True),
    "maximum": binary(np.maximum),
    "minimum": binary(np.minimum),
    "equal": compare(np.equal),
    "not_equal": compare(np.not_equal),
    "greater": compare(np.greater),
    "greater_equal": compare(np.greater_equal),
    "less": compare(np.less),
    "less_equal": compare(np.less_equal),
    "logical_and": logical(np.logical_and),
    "logical_or": logical(np.logical_or),
    "logical_xor": logical(np.logical_xor),
    "logical_not": (lambda d: {"x": d.bools((3,))}, np.logical_not),
    "cast": (lambda d: {"x": 40 * d.floats(), "dtype": "int32"}, lambda x, dtype: np.trunc(x)),
    "abs": unary(np.abs, edges=True),
    "ceil": unary(np.ceil, edges=True),
    "floor": unary(np.floor, edges=True),
    "round": unary(np.rint, edges=True),
    "clip": unary(lambda x, alpha, beta: np.clip(x, alpha, beta), alpha=np.float32(-1), beta=np.float32(2)),
    "threshold": unary(lambda x, alpha: np.maximum(x, alpha), alpha=np.float32(-1)),
    "cos": unary(np.cos),
    "sin": unary(np.sin),
    "erf": unary(scipy.special.erf, edges=True),
    "exp": unary(np.exp),
    "exp2": unary(np.exp2),
    "inverse": unary(lambda x, epsilon: 1 / (x + epsilon), low=0.1, epsilon=np.float32(1e-3)),
    "log": unary(lambda x, epsilon: np.log(x + epsilon), low=0.1, epsilon=np.float32(1e-3)),
    "sign": unary(np.sign, edges=True),
    "sqrt": unary(np.sqrt, low=0.0),
    "rsqrt": unary(lambda x, epsilon: 1 / np.sqrt(x + epsilon), low=0.1, epsilon=np.float32(1e-3)),
    "square": unary(np.square),
    "tanh": unary(np.tanh, edges=True),
    "select": (
        lambda d: {"cond": d.bools((3, 4)), "a": d.floats((3, 4)), "b": d.floats((3, 4))},
        lambda cond, a, b: np.where(cond, a, b),
    ),
    "identity": unary(lambda x: x),
    "relu": unary(lambda x: np.maximum(x, 0), edges=True),
    "leaky_relu": unary(lambda x, alpha: np.where(x >= 0, x, alpha * x), alpha=np.float32(0.1)),
    "sigmoid": unary(scipy.special.expit, edges=True),
    "silu": unary(lambda x: x * scipy.special.expit(x)),
    "softplus": unary(lambda x: np.logaddexp(0, x), edges=True),
    "softmax": (lambda d: {"x": (x := d.floats()), "axis": d.axis(x.ndim)}, _softmax),
    "gelu": unary(lambda x, mode: x * scipy.special.ndtr(x), mode="EXACT"),
    "linear": (
        lambda d: {"x": d.floats((2, 3, 4)), "weight": d.floats((5, 4)), "bias": d.floats((5,))},
        lambda x, weight, bias: x @ weight.T + bias,
    ),
    "matmul": (
        draw_matmul,
        lambda x, y, transpose_x, transpose_y: (
            (x.swapaxes(-1, -2) if transpose_x else x) @ (y.swapaxes(-1, -2) if transpose_y else y)
        ),
    ),
    "einsum": (draw_einsum, lambda values, equation: np.einsum(equation, *values)),
    "scaled_dot_product_attention": (draw_attention, _attention),
    "conv": (draw_conv, _conv),
    "layer_norm": (draw_layer_norm, _layer_norm),
    "batch_norm": (draw_batch_norm, _batch_norm),
    "reduce_sum": reduced(np.sum),
    "reduce_mean": reduced(np.mean),
    "reduce_max": reduced(np.max),
    "reduce_min": reduced(np.min),
    "reduce_sum_square": reduced(lambda x, **rest: np.sum(x * x, **rest)),
    "reduce_l2_norm": reduced(lambda x, **rest: np.sqrt(np.sum(x * x, **rest))),
    "reduce_log_sum_exp": reduced(lambda x, **rest: scipy.special.logsumexp(x, **rest)),
    "reduce_argmax": arg(np.argmax),
    "reduce_argmin": arg(np.argmin),
    "cumsum": (
        lambda d: {"x": d.floats((3, 4)), "axis": np.int32(1), "exclusive": d.flag(), "reverse": d.flag()},
        _cumsum,
    ),
    "shape": (lambda d: {"x": d.floats()}, lambda x: np.array(x.shape)),
    "reshape": (
        lambda d: {
            "x": d.floats((2, 3, 4)),
            "shape": np.array([[0, 12, -1], [-1, 2, 2], [24, 1, 1]])[d.rng.integers(3)],
        },
        lambda x, shape: x.reshape([2 if size == 0 else size for size in shape]),
    ),
    "transpose": (
        lambda d: {"x": (x := d.floats()), "perm": d.rng.permutation(x.ndim).astype(np.int32)},
        lambda x, perm: x.transpose(perm),
    ),
    "expand_dims": (
        lambda d: {"x": d.floats((2, 3)), "axes": np.array([[0], [2], [-1], [0, 2]][d.rng.integers(4)], np.int32)},
        lambda x, axes: np.expand_dims(x, tuple(axes)),
    ),
    "squeeze": (
        lambda d: {"x": d.floats((1, 3, 1)), "axes": np.array([[0], [2], [-1], [0, 2]][d.rng.integers(4)], np.int32)},
        lambda x, axes: np.squeeze(x, tuple(axes)),
    ),
    "slice_by_index": (draw_slice, _slice),
    "slice_by_size": (
        lambda d: {"x": d.floats((5, 6)), "begin": d.ints((2,), 0, 3), "size": np.array([-1, 2], np.int32)},
        lambda x, begin, size: x[begin[0] :, begin[1] : begin[1] + 2],
    ),
    "reverse": (
        lambda d: {"x": (x := d.floats()), "axes": d.axes(x.ndim)},
        lambda x, axes: np.flip(x, tuple(axes)),
    ),
    "concat": (draw_concat, _concat),
    "stack": (
        lambda d: {"values": [d.floats((2, 3)), d.floats((2, 3))], "axis": np.int32(d.rng.integers(0, 3))},
        lambda values, axis: np.stack(values, axis),
    ),
    "split": (draw_sizes, _split),
    "tile": (lambda d: {"x": d.floats((2, 3)), "reps": d.ints((2,), 1, 4)}, lambda x, reps: np.tile(x, reps)),
    "fill": (
        lambda d: {"shape": d.ints((2,), 1, 4), "value": np.float32(2.5)},
        lambda shape, value: np.full(shape.astype(int), value),
    ),
    "range_1d": (
        lambda d: {"start": np.int32(1), "end": np.int32(d.rng.integers(3, 9)), "step": np.int32(2)},
        lambda start, end, step: np.arange(start, end, step),
    ),
    "one_hot": (
        lambda d: {"indices": d.ints((3,), 0, 4), "one_hot_vector_size": np.int32(4)},
        lambda indices, one_hot_vector_size: np.eye(4)[indices.astype(int)],
    ),
    "gather": (draw_gather, lambda x, indices, axis, validate_indices: np.take(x, indices.astype(int), axis)),
    "gather_along_axis": (
        draw_along,
        lambda x, indices, axis, validate_indices: np.take_along_axis(x, indices.astype(int), axis),
    ),
    "constexpr_affine_dequantize": (draw_affine, _affine),
    "constexpr_cast": (
        lambda d: {"source_val": d.floats((3,)).astype(np.float16), "output_dtype": "fp32"},
        lambda source_val, output_dtype: source_val,
    ),
    "constexpr_blockwise_shift_scale": (draw_blockwise, _blockwise),
    "constexpr_lut_to_dense": (draw_lut16, _lut16),
    "constexpr_sparse_to_dense": (draw_sparse16, _sparse16),
    "constexpr_lut_to_sparse": (draw_joint_lut, _joint_lut),
    "constexpr_sparse_blockwise_shift_scale": (draw_joint_scale, _joint_scale),
    "quantize": (draw_quantize, _quantize),
    "dequantize": (
        lambda d: {
            "input": d.rng.integers(-128, 128, (3, 4)).astype(np.int8),
            "scale": d.floats((3,), low=0.01),
            "zero_point": d.rng.integers(-9, 9, 3).astype(np.int8),
            "axis": np.int32(0),
        },
        lambda input, scale, zero_point, axis: scale[:, None] * (input.astype(int) - zero_point[:, None]),
    ),
    "classify": (
        lambda d: {"probabilities": d.floats((1, 4)), "classes": list("abcd")},
        lambda probabilities, classes: [np.argmax(probabilities), probabilities[0]],
    ),
}


def as_tensor(value: Any) -> Any:
    """An argument as the interpreter gives it, in float64."""
    if isinstance(value, list) and value and isinstance(value[0], np.ndarray):
        return [as_tensor(one) for one in value]
    if isinstance(value, str | list | bool):
        return value
    array = np.asarray(value)
    return torch.tensor(
        array.astype(np.float64 if array.dtype.kind == "f" else array.dtype if array.dtype == bool else np.int64)
    )


def as_reference(value: Any) -> Any:
    """The same, for NumPy."""
    if isinstance(value, list):
        return [as_reference(one) for one in value]
    if not isinstance(value, np.ndarray):
        return value
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def answers(name: str, arguments: dict[str, Any]) -> list[np.ndarray]:
    found = OPERATIONS[name].function(**{key: as_tensor(value) for key, value in arguments.items()})
    return [one.numpy() for one in (found if isinstance(found, tuple) else (found,))]


def same(found: list[np.ndarray], expected: Any, tolerance: float) -> None:
    expected = expected if isinstance(expected, list | tuple) else [expected]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == np.shape(other)
        np.testing.assert_allclose(
            one.astype(np.float64), np.asarray(other, np.float64), rtol=tolerance, atol=tolerance
        )


def test_every_operation_names_the_file_that_defines_it() -> None:
    """In the coremltools that is installed."""
    import_coremltools()
    from coremltools.converters.mil.mil.ops import defs

    for name, definition in OPERATIONS.items():
        text = (Path(defs.__file__).parent / f"{definition.source}.py").read_text("utf-8")
        assert f"class {name}(" in text, name


def test_every_operation_has_a_case() -> None:
    """And no case is for one that is gone."""
    assert set(CASES) == set(OPERATIONS) and interpreter.OPERATIONS is OPERATIONS


@pytest.mark.parametrize("name", sorted(CASES))
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31))
def test_each_operation_is_its_definition(name: str, seed: int) -> None:
    """In float64, against a definition written in NumPy alone."""
    draw, reference = CASES[name]
    arguments = draw(Draw(seed))
    with np.errstate(all="ignore"):
        expected = reference(*(as_reference(value) for value in arguments.values()))
    same(answers(name, arguments), expected, 1e-9)


# Operations that coremltools computes by itself where all arguments are constant. It has no rule for the others.
NO_FOLDING = {
    "cumsum",  # exclusive or reverse: it fails on its own arguments
    "concat",  # it folds as if nothing was ever interleaved
    "conv",
    "batch_norm",
    "classify",
    "identity",
    "one_hot",
    "silu",
    "quantize",
    "dequantize",
    "scaled_dot_product_attention",
}


@pytest.mark.parametrize("name", sorted(set(CASES) - NO_FOLDING))
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31))
def test_each_operation_is_what_coremltools_folds_it_to(name: str, seed: int) -> None:
    """Its own value inference, in float32; for compressed weights its own decompression."""
    ct = import_coremltools()
    from coremltools.converters.mil.mil import Builder, Function

    arguments = CASES[name][0](Draw(seed))
    old = name in {"constexpr_affine_dequantize", "constexpr_lut_to_dense", "constexpr_sparse_to_dense"}
    with np.errstate(all="ignore"), Function({}, opset_version=ct.target.iOS16 if old else ct.target.iOS18):
        made = getattr(Builder, name)(**{key: for_builder(name, key, value) for key, value in arguments.items()})
        made = list(made) if isinstance(made, list | tuple) else [made]
        folded = [one.val for one in made]
        if name.startswith("constexpr_"):
            values = made[0].op.materialized_val_inference()
            folded = list(values) if isinstance(values, tuple) else [values]
    assert all(value is not None for value in folded), f"coremltools folds no {name}; say so in NO_FOLDING"
    same(
        [one.reshape(np.shape(value)) for one, value in zip(answers(name, arguments), folded, strict=True)],
        folded,
        3e-5,
    )


def for_builder(name: str, key: str, value: Any) -> Any:
    """An argument as coremltools wants it: its own narrow types for masks and indices."""
    from coremltools.converters.mil.mil import types

    if (name, key) in {
        ("constexpr_lut_to_sparse", "indices_mask"),
        ("constexpr_sparse_blockwise_shift_scale", "data_mask"),
    }:
        return value.astype(types.np_uint1_dtype)
    if (name, key) == ("constexpr_lut_to_sparse", "indices_nonzero_data"):
        return value.astype(types.np_uint2_dtype)
    return value


# --- the second generation of the same names ---------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31))
def test_palettes_of_blocks_and_of_vectors_are_read_as_coremltools_reads_them(seed: int) -> None:
    """iOS 18: a palette for each block of the indices, and entries that are vectors laid along an axis."""
    import_coremltools()
    from coremltools.optimize import _utils

    d = Draw(seed)
    bits, width = int(d.rng.choice([1, 2, 4])), int(d.rng.choice([1, 2, 3]))
    blocks = (int(d.rng.choice([1, 2, 4])), int(d.rng.choice([1, 3])))
    indices = d.rng.integers(0, 2**bits, (4, 6)).astype(np.uint8)
    lut = d.floats((*blocks, 2**bits, width))
    axis = None if width == 1 else np.int32(d.rng.integers(0, 2))
    expected = _utils.lut_to_dense(indices, lut, axis)
    arguments = {"indices": indices, "lut": lut} | ({} if axis is None else {"vector_axis": axis})
    same(answers("constexpr_lut_to_dense", arguments), expected, 1e-6)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31))
def test_a_sparse_tensor_with_its_own_mask_is_what_coremltools_makes_of_it(seed: int) -> None:
    """iOS 18: the mask has the tensor's shape."""
    import_coremltools()
    from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_sparse_to_dense

    d = Draw(seed)
    mask = d.bools((3, 5))
    mask[0, 0] = True
    values = d.floats((int(mask.sum()),))
    expected = constexpr_sparse_to_dense.decompress(values, mask.astype(np.int8))
    same(answers("constexpr_sparse_to_dense", {"nonzero_data": values, "mask": mask.astype(np.int8)}), expected, 1e-6)


@pytest.mark.parametrize(
    ("mode", "reference"),
    [
        ("TANH_APPROXIMATION", lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
        ("SIGMOID_APPROXIMATION", lambda x: x * scipy.special.expit(1.702 * x)),
    ],
)
def test_gelu_has_two_approximations(mode: str, reference: Callable[[np.ndarray], np.ndarray]) -> None:
    """And no other."""
    x = np.linspace(-6, 6, 101)
    np.testing.assert_allclose(answers("gelu", {"x": x, "mode": mode})[0], reference(x), atol=1e-12)
    with pytest.raises(ValueError, match="gelu has no mode 'FAST'; known: EXACT"):
        answers("gelu", {"x": x, "mode": "FAST"})


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "rsqrt", "inverse", "real_div", "softmax", "layer_norm"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_not_hidden(name: str, value: float) -> None:
    """As in NumPy: an infinite or missing number shows in the answer wherever the definition lets it."""
    x = np.array([[1.0, value, 3.0]])
    arguments: dict[str, Any] = {"x": x}
    references: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "exp": np.exp,
        "log": lambda v: np.log(v + 1e-45),
        "sqrt": np.sqrt,
        "rsqrt": lambda v: 1 / np.sqrt(v + 1e-12),
        "inverse": lambda v: 1 / (v + 1e-4),
        "real_div": lambda v: v / 2,
        "softmax": lambda v: np.exp(v - v.max()) / np.exp(v - v.max()).sum(),
        "layer_norm": lambda v: (v - v.mean()) / np.sqrt(v.var() + 1e-5),
    }
    if name == "real_div":
        arguments["y"] = np.array(2.0)
    if name == "layer_norm":
        arguments["axes"] = np.array([1])
    with np.errstate(all="ignore"):
        expected = references[name](x)
    np.testing.assert_allclose(answers(name, arguments)[0], expected, atol=1e-12)
