"""Executes an ML Program in PyTorch: a reference for what the file says, not a device.

Two readings of an fp16 program:

- as stored: the result of every operation is rounded to the type that is declared for it. Sums inside one operation
  (matrix products, means, softmax) run in float32 and are rounded once. Core ML does not document what it does there,
  and the Neural Engine, GPU and CPU differ: one that sums in fp16 overflows earlier, one that fuses operations later.
  So this is an assumption. What overflows becomes infinite, and stays so.
- exact: nothing is rounded but the constants, which are stored as they are.

Many texts are answered at once, each as if it were alone, by `torch.func.vmap` over the program for one.
"""

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from pipeline.base.errors import ModelError
from pipeline.base.plugins import nearest
from pipeline.mil.ops import (  # noqa: F401  a file of operations registers them
    OPERATIONS,
    activation,
    classification,
    compression,
    elementwise,
    gathering,
    linear,
    normalization,
    reduction,
    shapes,
)
from pipeline.mil.ops.normalization import squared_deviations
from pipeline.mil.package import Constant, Operation, Package, Type

FLOATS = ("fp16", "fp32", "fp64")
# width and sign of the whole numbers that may wrap around
WHOLE = {"int8": (8, True), "int16": (16, True), "int32": (32, True), "uint8": (8, False), "uint16": (16, False)}
_FAILURES = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
)


@dataclass(frozen=True)
class Overflow:
    """An operation that gave something infinite or NaN from finite inputs, or a constant that holds it."""

    place: str
    # over all texts that were answered
    elements: int
    texts: int


@dataclass(frozen=True)
class Range:
    """The least and the greatest value that an operation gave."""

    low: float
    high: float
    # of a layer_norm, the largest sum of squared deviations that it took on its way; else 0
    squares: float = 0.0

    def __or__(self, other: "Range") -> "Range":
        """Of both together."""
        return Range(min(self.low, other.low), max(self.high, other.high), max(self.squares, other.squares))


class Interpreter:
    """A program, its constants decompressed once.

    Args:
        package: from `read_package`.
        exact: whether results stay as they were computed; constants are always as stored.
        compute: float32, or float64 in tests.

    Raises:
        ModelError: it has an operation that is not known here, or weights that do not decompress.
    """

    def __init__(self, package: Package, *, exact: bool = False, compute: torch.dtype = torch.float32) -> None:
        self.package, self._exact, self._compute = package, exact, compute
        self._constants: dict[str, Any] = {}
        self._program: list[Operation] = []
        for op in package.operations:
            if op.kind == "const":
                if not op.outputs or "val" not in op.attributes:
                    raise ModelError(f"{package.path}: {op.place} has no value or no name; export it again")
                self._constants[op.outputs[0][0]] = self._value(op.attributes["val"])
            elif op.kind.startswith("constexpr_"):
                self._constants.update(self._outputs(op, self._constants))
            else:
                self._definition(op)
                self._program.append(op)
        self._last_use = self._find_last_use()
        # every floating result, with its operation and type
        self.watched = tuple(
            (name, kind, op) for op in self._program for name, kind in op.outputs if kind.dtype in FLOATS
        )
        self.bad_constants = tuple(
            f"{'mask or table' if value.size > 1 else 'number'} '{name}'"
            for name, kind, value in package.constants()
            if kind.dtype in FLOATS and not np.isfinite(value.astype(np.float64)).all()
        )

    def constant(self, name: str) -> Tensor:
        """A constant by its name, decompressed."""
        return self._constants[name]

    @property
    def operations(self) -> tuple[Operation, ...]:
        """What is executed for each text, in order."""
        return tuple(self._program)

    def run(self, inputs: Mapping[str, Shaped[Tensor, "batch ..."]]) -> dict[str, Tensor]:
        """The model's outputs for a batch of inputs, each of the shape that the program takes for one.

        Raises:
            ModelError: an operation cannot be executed on what it is given.
        """
        return torch.func.vmap(self._answer)(dict(inputs))

    def ranges(self, inputs: Mapping[str, Shaped[Tensor, "batch ..."]]) -> dict[str, Range]:
        """The least and greatest value of every floating result, by its name, over a batch."""
        low, high, squares = torch.func.vmap(self._extremes)(dict(inputs))
        found = zip(self.watched, low.amin(0).tolist(), high.amax(0).tolist(), squares.amax(0).tolist(), strict=True)
        return {name: Range(*extremes) for (name, _, _), *extremes in found}

    def overflows(self, inputs: Mapping[str, Shaped[Tensor, "batch ..."]]) -> list[Overflow]:
        """Where something infinite or NaN comes from, in the order of the program, over a batch."""
        finite = torch.func.vmap(self._is_finite)(dict(inputs)).all(1)
        if finite.all():
            return []
        inputs = {name: value[~finite] for name, value in inputs.items()}
        counts = torch.func.vmap(self._count_bad)(dict(inputs))  # (B, results)
        index = {name: number for number, (name, _, _) in enumerate(self.watched)}
        found = []
        for number, (_, _, op) in enumerate(self.watched):
            before = [index[name] for name in op.reads if name in index]
            born = (counts[:, number] > 0) & (counts[:, before] == 0).all(1)
            if born.any():
                found.append(Overflow(op.place, int(counts[born, number].sum()), int(born.sum())))
        return found

    def shapes(self, inputs: Mapping[str, Shaped[Tensor, "batch ..."]]) -> dict[str, tuple[int, ...]]:
        """The shape of every floating result, by its name, for the first text of a batch."""
        first = {name: value[0] for name, value in inputs.items()}
        _, seen = self._execute(first, lambda value, *_: tuple(value.shape))
        return dict(zip((name for name, _, _ in self.watched), seen, strict=True))

    # --- one text ------------------------------------------------------------------------------------------------

    def _answer(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        values, _ = self._execute(inputs, None)
        return {name: values[name] for name in self.package.outputs if isinstance(values[name], Tensor)}

    def _extremes(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        def look(value: Tensor, op: Operation, known: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
            return value.amin(), value.amax(), self._squares(op, known, like=value)

        _, seen = self._execute(inputs, look)
        low, high, squares = (torch.stack(list(values)) for values in zip(*seen, strict=True))
        return low, high, squares

    def _squares(self, op: Operation, known: Mapping[str, Any], *, like: Tensor) -> Tensor:
        if op.kind != "layer_norm":
            return torch.zeros_like(like.amax())
        given = {name: self._argument(name, op.inputs[name], known) for name in ("x", "axes") if name in op.inputs}
        return squared_deviations(**given)

    def _is_finite(self, inputs: dict[str, Tensor]) -> Tensor:
        # a sum is finite unless something in it is not (or 10^38 is reached), and half the work of looking at each
        _, seen = self._execute(inputs, lambda value, *_: value.sum().isfinite())
        return torch.stack(seen)

    def _count_bad(self, inputs: dict[str, Tensor]) -> Tensor:
        _, seen = self._execute(inputs, lambda value, *_: value.isfinite().logical_not().sum())
        return torch.stack(seen)

    def _execute(self, inputs: dict[str, Tensor], watch: Any) -> tuple[dict[str, Any], list[Any]]:
        """Values that are still needed at the end, and what `watch(result, op, known)` says of each floating result."""
        values: dict[str, Any] = {name: self._cast(value) for name, value in inputs.items()}
        seen = []
        for op in self._program:
            known = ChainMap(values, self._constants)
            results = self._outputs(op, known)
            values.update(results)
            if watch is not None:
                seen += [watch(results[name], op, known) for name, kind in op.outputs if kind.dtype in FLOATS]
            for name in self._last_use.get(id(op), ()):
                values.pop(name, None)
        return values, seen

    def _outputs(self, op: Operation, known: Mapping[str, Any]) -> dict[str, Any]:
        """The results of one operation, by name, rounded to their declared types."""
        function = self._definition(op)
        try:
            arguments = {name: self._argument(name, given, known) for name, given in op.inputs.items()}
            # older programs give the parameters of constexpr operations as attributes
            arguments |= {name: self._value(value) for name, value in op.attributes.items() if name != "name"}
            found = function(**arguments)
        except _FAILURES as error:
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise ModelError(f"{self.package.path}: {op.place} cannot be executed: {said}; export it again") from error
        results = found if isinstance(found, tuple) else (found,)
        if len(results) != len(op.outputs):
            raise ModelError(f"{self.package.path}: {op.place} has {len(op.outputs)} outputs, expected {len(results)}")
        return {name: self._settle(value, kind, op) for (name, kind), value in zip(op.outputs, results, strict=True)}

    def _definition(self, op: Operation) -> Any:
        known = OPERATIONS.get(op.kind)
        if known is None:
            raise ModelError(
                f"{self.package.path}: operation {op.place} is not known to the reference interpreter"
                f"{nearest(op.kind, sorted(OPERATIONS))}; add it to pipeline/mil/ops with its test"
            )
        return known.function

    def _argument(self, name: str, given: tuple[Any, ...], known: Mapping[str, Any]) -> Any:
        values = [self._value(one) if isinstance(one, Constant) else known[one] for one in given]
        # `values` of concat, stack and einsum is a list, of one too
        return values if name == "values" or len(values) > 1 else values[0]

    def _value(self, constant: Constant) -> Any:
        if not isinstance(constant.value, np.ndarray):
            return constant.value
        array = constant.value
        if array.dtype == np.bool_:
            return torch.tensor(array)
        if np.issubdtype(array.dtype, np.floating):
            return torch.tensor(array.astype(np.float64)).to(self._compute)
        return torch.tensor(array.astype(np.int64))

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self._compute) if value.is_floating_point() else value.to(torch.int64)

    def _settle(self, value: Tensor, kind: Type, op: Operation) -> Any:
        """A result in its declared type, once its shape is what is declared."""
        if kind.dtype in {"dictionary", "string"}:  # the outputs of a classifier
            return value
        fits = len(kind.shape) == value.dim() and all(
            size in {None, found} for size, found in zip(kind.shape, value.shape, strict=True)
        )
        if not fits:
            raise ModelError(
                f"{self.package.path}: {op.place} gives the shape {tuple(value.shape)}, declared {kind}; "
                "its weights are not those it was written with: export it again"
            )
        if kind.dtype in FLOATS:
            value = value if value.is_floating_point() else value.to(self._compute)
            return value.half().to(self._compute) if kind.dtype == "fp16" and not self._exact else value
        if kind.dtype == "bool":
            return value if value.dtype == torch.bool else value != 0
        value = value.to(torch.int64)
        if kind.dtype not in WHOLE:
            return value
        bits, signed = WHOLE[kind.dtype]
        kept = value & ((1 << bits) - 1)
        return kept - ((kept >> (bits - 1)) << bits) if signed else kept

    def _find_last_use(self) -> dict[int, list[str]]:
        """Values that nobody asks for after an operation, by that operation's identity."""
        last = {name: id(op) for op in self._program for name in (*op.reads, *(name for name, _ in op.outputs))}
        found: dict[int, list[str]] = {}
        for name, op in last.items():
            if name not in self.package.outputs:
                found.setdefault(op, []).append(name)
        return found


def output_of(outputs: Mapping[str, Tensor], name: str, path: Any) -> Float[np.ndarray, "batch ..."]:
    """One output of a batch of texts, each of which the program answers by itself.

    Raises:
        ModelError: there is none of this name.
    """
    if name not in outputs:
        raise ModelError(f"{path}: found outputs {', '.join(outputs)}, expected {name}; export it again")
    found = outputs[name]
    return (found.squeeze(1) if found.dim() > 2 else found).to(torch.float32).numpy()  # a text is a batch of one
