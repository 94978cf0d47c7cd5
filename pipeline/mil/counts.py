"""What a program has to do for one text, counted from its operations and shapes. Nothing here is a time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipeline.mil.blobs import BITS
from pipeline.mil.interpreter import Interpreter
from pipeline.mil.package import Constant, Operation


@dataclass(frozen=True)
class Counts:
    """Of one text of one length."""

    operations: int
    multiply_accumulates: int
    # as stored, before any decompression
    weight_bytes: int
    # every floating input read and result written once, as if nothing was fused
    activation_bytes: int


def count(interpreter: Interpreter, length: int) -> Counts:
    """The counts at one input length."""
    ids = torch.ones((1, 1, length), dtype=torch.int64)
    shapes: dict[str, tuple[int, ...]] = interpreter.shapes({"input_ids": ids, "attention_mask": ids})
    sizes = {name: math.prod(shapes[name]) * BITS[kind.dtype] // 8 for name, kind, _ in interpreter.watched}
    moved = sum(
        sizes.get(name, 0) for op in interpreter.operations for name in (*op.reads, *(name for name, _ in op.outputs))
    )
    weights = sum(
        (value.size * BITS[kind.dtype] + 7) // 8
        for _, kind, value in interpreter.package.constants()
        if kind.dtype in BITS
    )
    products = sum(_products(op, shapes, interpreter) for op in interpreter.operations)
    return Counts(len(interpreter.operations), products, weights, moved)


def _products(op: Operation, shapes: Mapping[str, tuple[int, ...]], interpreter: Interpreter) -> int:
    """Multiply-accumulates: one for each element of the result and each term of its sum."""

    def shape(parameter: str, number: int = 0) -> tuple[int, ...]:
        argument = op.inputs[parameter][number]
        if isinstance(argument, Constant):
            return tuple(argument.value.shape)
        return shapes[argument] if argument in shapes else tuple(interpreter.constant(argument).shape)

    results = math.prod(shapes.get(op.outputs[0][0], ()))
    if op.kind == "linear":
        return results * shape("weight")[-1]
    if op.kind == "conv":
        return results * math.prod(shape("weight")[1:])
    if op.kind == "matmul":
        flipped = "transpose_x" in op.inputs and _is_set(op, interpreter)
        return results * shape("x")[-2 if flipped else -1]
    if op.kind == "einsum":  # nchw,nwhu->nchu: summed over the first operand's last axis
        return results * shape("values")[-1]
    if op.kind == "scaled_dot_product_attention":  # Q K^T, and the weights times V
        keys, width = shape("key")[-2], shape("query")[-1]
        return results // shape("value")[-1] * keys * width + results * keys
    return 0


def _is_set(op: Operation, interpreter: Interpreter) -> bool:
    (argument,) = op.inputs["transpose_x"]
    return bool(argument.value if isinstance(argument, Constant) else interpreter.constant(argument))
