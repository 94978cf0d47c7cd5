"""Does the file hold the student's weights: each constant decompressed and compared with the weight it is made of.

Answers alone would let a small mistake pass as the price of compression: two swapped entries of a palette, or a
transposed square matrix in a layer that matters little. Each kind of compression has its own bound:

- fp32 and fp16: a rounding.
- 8 bits: half a step of its row, where a step is the largest weight over 127.
- palettes: the entry is the nearest of the palette. Where channels share palettes or weights are pruned, that is not
  known from outside, and only a correlation is asked for.
"""

import json
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float

from eval.checks import Subject, failed, passed
from eval.runtimes import coreml_reference
from pipeline.mil.package import Constant, Operation, Package
from pipeline.records import Check

TITLE = "weights"
NAMES = "weights.json"  # written by export/to_coreml.py
LEAST_CORRELATION = 0.9


def applies(subject: Subject) -> bool:
    """Where a file beside the artefact says which weight is where."""
    return (subject.folder / NAMES).is_file()


def check(subject: Subject) -> Check:
    """Every constant that has a name in the student."""
    student = _student(subject.student)
    names = json.loads((subject.folder / NAMES).read_text("utf-8"))
    worst, kinds = 0.0, {}
    with coreml_reference.open_session(subject.folder, subject.artefact, subject.threads) as session:
        for constant, parts in names.items():
            stored = session.interpreter.constant(constant).numpy().astype(np.float64)
            expected = student[parts[0]] + sum(student[part][0] for part in parts[1:])
            if stored.size != expected.size:
                return failed(
                    TITLE,
                    f"{parts[0]}: {stored.shape} in the file, {expected.shape} in the student; export it again",
                )
            kinds[constant] = kind = _kind(session.package, constant)
            off = _distance(stored.reshape(expected.shape), expected, kind)
            worst = max(worst, off)
            if not off <= 1:
                return failed(
                    TITLE,
                    f"{parts[0]}: the values in the file ({kind}) are up to {off:.3g} times as far from the student's "
                    "as this compression can put them: entries swapped, a matrix transposed, or another model's; "
                    "export it again",
                    constant=constant,
                )
    counted = {kind: sum(one == kind for one in kinds.values()) for kind in sorted(set(kinds.values()))}
    said = ", ".join(f"{count} {kind}" for kind, count in counted.items())
    return passed(TITLE, f"{len(names)} tensors are the student's ({said})", worst=worst, kinds=counted)


def _student(folder: Path) -> dict[str, Float[np.ndarray, "*shape"]]:
    from safetensors.numpy import load_file

    return {k: v.astype(np.float64) for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def _kind(package: Package, constant: str) -> str:
    op = next(op for op in package.operations if op.outputs and op.outputs[0][0] == constant)
    if op.kind in {"constexpr_blockwise_shift_scale", "constexpr_affine_dequantize"}:
        return "8 bits"
    if op.kind == "constexpr_lut_to_dense":
        return "palette" if _palettes(op) == 1 else "grouped palettes"
    return "pruned" if op.kind == "constexpr_sparse_to_dense" else op.outputs[0][1].dtype


def _palettes(op: Operation) -> int:
    """How many palettes it reads: one before iOS 18, then one for each block of the indices."""
    lut = op.inputs["lut"][0] if "lut" in op.inputs else op.attributes["lut"]
    assert isinstance(lut, Constant), "the inputs of a constexpr operation are constants"
    return math.prod(size or 1 for size in lut.type.shape[:-2])


def _distance(stored: np.ndarray, expected: np.ndarray, kind: str) -> float:
    """The largest error over what is allowed."""
    error = np.abs(stored - expected)
    if kind in {"fp16", "fp32"}:
        digits = 2.0**-11 if kind == "fp16" else 2.0**-23
        return float((error / (digits * np.abs(expected) + 2.0**-24)).max())
    rounding = 2.0**-10 * np.abs(expected) + 2.0**-24
    if kind == "8 bits":
        # a row's step when it has its own scale, the tensor's when it does not
        rows = np.abs(expected).max(axis=tuple(range(1, expected.ndim)), keepdims=True)
        own = (error / (0.51 * rows / 127 + rounding)).max()
        return float(own if own <= 1 else (error / (0.51 * np.abs(expected).max() / 127 + rounding)).max())
    if kind == "palette":
        entries = np.unique(stored)
        places = np.clip(np.searchsorted(entries, expected), 1, max(1, len(entries) - 1))
        nearest = np.minimum(np.abs(expected - entries[places - 1]), np.abs(expected - entries[places % len(entries)]))
        return float((error / (nearest + 2 * rounding)).max())
    correlation = float(np.corrcoef(stored.reshape(-1), expected.reshape(-1))[0, 1])
    return (1 - correlation) / (1 - LEAST_CORRELATION)
