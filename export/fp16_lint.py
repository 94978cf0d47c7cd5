"""What fp16 would do to a program, told before it is converted: where a number leaves 65,504 or falls under 2^-25.

The program in fp32 is executed by the reference interpreter on calibration rows, which gives the range of every
operation's result; a margin stands for texts that were not among them. From these ranges and the constants follow

- overflow: a result, or a constant, beyond 65,504. It becomes infinite, and 0 x infinity or infinity - infinity NaN.
- underflow: a number on its own that is not 0 but becomes it, such as the 1e-12 of a LayerNorm, which is harmless
  unless a variance is 0.
- accumulation: a sum of a linear layer or a LayerNorm that may pass 65,504 on its way although its result does not.
  Only a device that sums in fp16 would overflow there; no document says which do.

To keep an overflow away, the operation stays in fp32 and so do those that read its result: a cast in between would
overflow as well.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pipeline.data.batches import pad
from pipeline.mil.interpreter import Interpreter, Range
from pipeline.mil.package import Constant, Operation, read_package

LARGEST, SMALLEST = 65_504.0, 2.0**-25  # what is at most half of the least fp16 is rounded to 0
MARGIN = 2.0  # calibration rows are a few hundred of the texts that will come
BATCH = 32
FILE = "fp16.json"

Kind = Literal["overflow", "underflow", "accumulation"]


@dataclass(frozen=True)
class Finding:
    """One operation that fp16 may change."""

    kind: Kind
    operation: str
    # the nearest module with weights, on the way from the inputs to the operation
    module: str
    largest: float
    reason: str


@dataclass(frozen=True)
class Lint:
    """All findings, and the operations that would have to stay in fp32."""

    findings: tuple[Finding, ...]
    keep: tuple[str, ...]
    rows: int

    def write(self, folder: Path) -> None:
        """Beside the artefact, for the check that compares with what overflows in the end."""
        text = json.dumps(
            {"rows": self.rows, "keep": self.keep, "findings": [asdict(one) for one in self.findings]}, indent=1
        )
        (folder / FILE).write_text(text + "\n", "utf-8")


def lint(
    path: Path, rows: Sequence[Sequence[int]], lengths: Sequence[int], modules: Mapping[str, str], pad_id: int
) -> Lint:
    """What to expect of this program in fp16.

    Args:
        path: the package in fp32.
        rows: token ids of calibration rows.
        lengths: that the package takes, ascending.
        modules: constant in the package -> weight of the model, such as 'bert.pooler.dense.weight'.
        pad_id: to fill up with.
    """
    interpreter, ranges = calibrate(path, rows, lengths, modules, pad_id)
    return _judge(interpreter, ranges, modules, len(rows))


def calibrate(
    path: Path, rows: Sequence[Sequence[int]], lengths: Sequence[int], modules: Mapping[str, str], pad_id: int
) -> tuple[Interpreter, dict[str, Range]]:
    """The program, and the range of each floating result over all rows; arguments as for `lint`."""
    interpreter = Interpreter(read_package(path))
    ranges: dict[str, Range] = {}
    for batch in _batches(rows, lengths, pad_id):
        for name, found in interpreter.ranges(batch).items():
            ranges[name] = found | ranges.get(name, found)
    return interpreter, ranges


def _batches(rows: Sequence[Sequence[int]], lengths: Sequence[int], pad_id: int) -> Iterable[dict[str, torch.Tensor]]:
    by_length: dict[int, list[Sequence[int]]] = {}
    for row in rows:
        by_length.setdefault(next((length for length in lengths if length >= len(row)), lengths[-1]), []).append(row)
    for length, group in by_length.items():
        for start in range(0, len(group), BATCH):
            # a row that is too long is cut: it gives a range all the same
            padded = pad([row[:length] for row in group[start : start + BATCH]], pad_id, length)
            yield {name: value[:, None] for name, value in padded.items()}


def _judge(interpreter: Interpreter, ranges: Mapping[str, Range], modules: Mapping[str, str], rows: int) -> Lint:
    constants = {name: value for name, kind, value in interpreter.package.constants() if kind.dtype == "fp32"}
    made_by = {name: op for op in interpreter.operations for name, _ in op.outputs}
    findings: list[Finding] = []
    for op in interpreter.operations:
        if op.kind == "classify":
            continue
        where = _module(op, made_by, modules)
        results = {name: _reach(ranges[name]) for name, _ in op.outputs if name in ranges}
        given = [one for arguments in op.inputs.values() for one in arguments]
        numbers = [_value(one, constants) for one in given]
        top = max((float(np.abs(value).max()) for value in numbers if value is not None and value.size), default=0.0)

        def add(kind: Kind, size: float, reason: str, result: str = op.outputs[0][0], where: str = where) -> None:
            findings.append(Finding(kind, result, where, size, reason))

        large = {name: size for name, size in results.items() if MARGIN * size > LARGEST}
        if top > LARGEST:
            add("overflow", top, f"a constant of {top:.3g}, beyond {LARGEST:,.0f}")
        for name, size in large.items():
            add("overflow", size, f"{size:,.0f} on {rows} rows, times {MARGIN:g} beyond {LARGEST:,.0f}", name)
        if top <= LARGEST and not large and (sums := _sums(op, constants, ranges)) > LARGEST:
            add("accumulation", sums, f"sums of up to {sums:,.0f}, if the device sums in fp16")
        if any(
            value is not None and value.size == 1 and 0 < abs(float(value.reshape(-1)[0])) < SMALLEST
            for value in numbers
        ):
            add("underflow", 0.0, "a constant that is not 0 becomes 0")
    return Lint(tuple(findings), _keep(findings, interpreter.operations), rows)


def _reach(found: Range) -> float:
    return max(abs(found.low), abs(found.high))


def _value(argument: str | Constant, constants: Mapping[str, np.ndarray]) -> np.ndarray | None:
    if isinstance(argument, Constant):
        floating = isinstance(argument.value, np.ndarray) and argument.type.dtype == "fp32"
        return argument.value if floating else None
    return constants.get(argument)


def _sums(op: Operation, constants: Mapping[str, np.ndarray], ranges: Mapping[str, Range]) -> float:
    """How large sums on the way to a result may be.

    Of a linear layer a bound: the largest row of |W| times the largest |x|, plus the largest |bias|. Of a LayerNorm
    what was seen, with the margin: its width times the largest x^2 would be 380 times as much where a few coordinates
    are large in every text, as in BERT.
    """
    if op.kind == "layer_norm":
        return MARGIN * ranges[op.outputs[0][0]].squares
    x = next((one for one in op.inputs.get("x", ()) if isinstance(one, str)), None)
    if x is None or x not in ranges:
        return 0.0
    if op.kind == "linear":
        weight, bias = (
            _value(op.inputs[name][0], constants) if name in op.inputs else None for name in ("weight", "bias")
        )
        if weight is None:
            return 0.0
        return float(np.abs(weight).sum(1).max()) * _reach(ranges[x]) + (
            0.0 if bias is None else float(np.abs(bias).max())
        )
    return 0.0


def _module(op: Operation, made_by: Mapping[str, Operation], modules: Mapping[str, str]) -> str:
    """The module whose weights the operation reads, or the nearest before it."""
    waiting, seen = [op], set()
    while waiting:
        now = waiting.pop(0)
        names = now.reads
        for name in names:
            if name in modules:
                found = modules[name].rpartition(".")[0]
                return found if now is op else f"after {found}"
        for name in names:
            if name in made_by and name not in seen:
                seen.add(name)
                waiting.append(made_by[name])
    return "the inputs"


def _keep(findings: Sequence[Finding], operations: Sequence[Operation]) -> tuple[str, ...]:
    """Operations whose result is too large, and those that read it."""
    large = {one.operation for one in findings if one.kind == "overflow"}
    kept = []
    for op in operations:
        if op.kind == "classify":
            continue
        if large & {*op.reads, *(name for name, _ in op.outputs)}:
            kept.append(op.outputs[0][0])
    return tuple(kept)
