"""Does the file hold the student's weights: each constant decompressed and compared with the weight it is made of.

Answers alone would let a small mistake pass as the price of compression: two swapped entries of a palette, or a
transposed square matrix in a layer that matters little. Which weights there must be is asked of the student, not of the
exporter: those that a gradient of its answer reaches. Each kind of compression has its own bound:

- fp32 and fp16: a rounding.
- 8 bits: half a step, where a step is the largest weight over 127, of its row or of all as the scales are; and the
  roundings to fp16 on the way there and back.
- palettes: every weight has the nearest entry of its palette, and the palette is nearly the best there is.
- pruned: besides, what was dropped is smaller than what was kept.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from eval.checks import Subject, failed, passed
from eval.runtimes import coreml_reference
from pipeline.base.records import Check
from pipeline.mil.interpreter import Interpreter
from pipeline.mil.package import Constant, Operation
from pipeline.mil.palettes import make_palette

TITLE = "weights"
FORMATS = ("coreml",)
NAMES = "weights.json"  # written by export/to_coreml.py
# Times the squared error of the best palette. coremltools' own k-means, for groups of channels, came to 1.7.
WORSE = 2.5
FLOATS = ("fp16", "fp32")


@dataclass(frozen=True)
class Storage:
    """How a constant is stored, as its operations say."""

    kind: str
    # whether each row has a scale of its own
    by_row: bool = False
    # palettes as (blocks..., entries), and which weights are stored at all
    palettes: Float[np.ndarray, "*blocks entries"] | None = None
    mask: Bool[np.ndarray, "*shape"] | None = None


def applies(subject: Subject) -> bool:
    """For a Core ML package, though it does not say which weight is where: that fails."""
    return subject.artefact.format in FORMATS


def check(subject: Subject) -> Check:
    """Every constant that has a name in the student, and that every weight that answers depend on is in the file."""
    student = _student(subject.student)
    file = subject.folder / NAMES
    names = json.loads(file.read_text("utf-8")) if file.is_file() else {"constants": {}}
    worst, kinds = 0.0, []
    with coreml_reference.open_session(subject.folder, subject.artefact, subject.threads) as session:
        made_by = {name: op for op in session.package.operations for name, _ in op.outputs}
        for constant, parts in names["constants"].items():
            if constant not in made_by or any(part not in student for part in parts):
                return failed(
                    TITLE, f"{parts[0]} as '{constant}' is not in the file, or not in the student; export it again"
                )
            stored = session.interpreter.constant(constant).numpy().astype(np.float64)
            expected = _expected([student[part] for part in parts], stored)
            if stored.size != expected.size:
                return failed(
                    TITLE,
                    f"{parts[0]}: {stored.shape} in the file, {expected.shape} in the student; export it again",
                )
            storage = _storage(made_by[constant], made_by, session.interpreter)
            kinds.append(storage.kind)
            off = _distance(stored, expected.reshape(stored.shape), storage)
            worst = max(worst, off)
            if not off <= 1:
                return failed(
                    TITLE,
                    f"{parts[0]}: the values in the file ({storage.kind}) are up to {off:.3g} times as far from the "
                    "student's as this compression can put them: entries swapped, a matrix transposed, or another "
                    "model's; export it again",
                    constant=constant,
                )
        named = {part for parts in names["constants"].values() for part in parts}
        missing = _missing({name: student[name] for name in _read_weights(subject) - named}, session)
    if missing:
        return failed(TITLE, f"the file does not have {', '.join(missing[:3])}; export it again", missing=missing)
    counted = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    said = ", ".join(f"{count} {kind}" for kind, count in counted.items())
    return passed(TITLE, f"{len(kinds)} tensors are the student's ({said})", worst=worst, kinds=counted)


def _student(folder: Path) -> dict[str, Float[np.ndarray, "*shape"]]:
    from safetensors.numpy import load_file

    return {k: v.astype(np.float64) for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def _read_weights(subject: Subject) -> set[str]:
    """Names of the student's weights that an answer is computed from: those that a gradient reaches."""
    import torch

    from pipeline.families import output_names
    from pipeline.models.checkpoints import load_classifier

    model = load_classifier(subject.student)
    ids = torch.tensor([subject.of_length(subject.artefact.max_length)])
    outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    torch.stack([outputs[name].sum() for name in output_names(model.config)]).sum().backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def _missing(unnamed: Mapping[str, np.ndarray], session: coreml_reference.CoreMlReferenceSession) -> list[str]:
    """Those of the weights without a name in the file that no constant holds; equal vectors are stored once."""
    stored: dict[int, list[np.ndarray]] = {}
    for op in session.package.operations if unnamed else ():
        if op.kind.startswith("const") and op.outputs[0][1].dtype in FLOATS:
            values = session.interpreter.constant(op.outputs[0][0]).numpy().astype(np.float64).ravel()
            stored.setdefault(values.size, []).append(values)
    return sorted(
        name
        for name, weight in unnamed.items()
        if not any((np.abs(v - weight.ravel()) <= _rounding(weight.ravel())).all() for v in stored.get(weight.size, ()))
    )


def _expected(parts: list[np.ndarray], stored: np.ndarray) -> np.ndarray:
    """The first part with row 0 of the others; its first rows where the file has one length only."""
    whole = parts[0] + sum(part[0] for part in parts[1:])
    if whole.ndim == 2 and stored.size < whole.size and stored.shape[-1] == whole.shape[-1]:
        return whole[: stored.size // whole.shape[-1]]
    return whole


# --- how it is stored --------------------------------------------------------------------------------------------


def _storage(op: Operation, made_by: dict[str, Operation], interpreter: Interpreter) -> Storage:
    if op.kind in coreml_reference.EIGHT_BIT:
        return Storage("8 bits", by_row=_array(op, "scale", interpreter).size > 1)
    if op.kind == "constexpr_lut_to_dense":
        return Storage("palette", palettes=_palettes(op, interpreter))
    if op.kind == "constexpr_sparse_to_dense":
        values = op.inputs["nonzero_data"][0]
        packed = made_by.get(values) if isinstance(values, str) else None
        found = _palettes(packed, interpreter) if packed is not None and "lut" in packed.inputs else None
        return Storage("pruned", palettes=found, mask=interpreter.constant(op.outputs[0][0]).numpy() != 0)
    return Storage(op.outputs[0][1].dtype)


def _palettes(op: Operation, interpreter: Interpreter) -> np.ndarray:
    """One before iOS 18; then (blocks..., entries, 1)."""
    lut = _array(op, "lut", interpreter)
    return lut if lut.ndim == 1 else lut[..., 0]


def _array(op: Operation, parameter: str, interpreter: Interpreter) -> np.ndarray:
    given = op.inputs[parameter][0] if parameter in op.inputs else op.attributes[parameter]
    if isinstance(given, Constant):
        return np.asarray(given.value, dtype=np.float64)
    return interpreter.constant(given).numpy().astype(np.float64)


# --- how far it may be off ---------------------------------------------------------------------------------------


def _distance(stored: np.ndarray, expected: np.ndarray, storage: Storage) -> float:
    """The largest error over what is allowed."""
    error = np.abs(stored - expected)
    if storage.kind in {"fp16", "fp32"}:
        digits = 2.0**-11 if storage.kind == "fp16" else 2.0**-23
        return float((error / (digits * np.abs(expected) + 2.0**-24)).max())
    if storage.kind == "8 bits":
        return float((error / _eight_bits(expected, storage.by_row)).max())
    if storage.kind == "pruned" and storage.palettes is None:
        return max(
            _pruning(expected, storage.mask), float((error[storage.mask] / _rounding(expected)[storage.mask]).max())
        )
    assert storage.palettes is not None, "the two kinds that are left have palettes"
    mask = np.ones(expected.shape, bool) if storage.mask is None else storage.mask
    worst = _pruning(expected, storage.mask)
    for where, palette in _blocks(expected.shape, storage.palettes):
        kept = mask[where]
        worst = max(worst, _palette(stored[where][kept], expected[where][kept], palette))
    return worst


def _eight_bits(expected: Float[np.ndarray, "*shape"], by_row: bool) -> Float[np.ndarray, "*shape"]:
    """How far each weight w can be from what 8 bits make of it: coremltools divides and multiplies in fp16.

    It computes h = fp16(w), s = fp16(max |h| / 127), code = round(fp16(h / s)) within 127, and the file means
    fp16(code s). Everything is from the student, so that a wrong scale in the file is no excuse. Half a step alone is
    too little where |h| / s is 32 or more: there fp16 has steps of 1/32 and 1/16, and 72.529 becomes 72.5, then 72.

    Source: coremltools 9.0, `optimize/_utils.py`, `quantize_weight_by_dtype`.
    """
    size = np.abs(expected)
    reach = size.max(axis=tuple(range(1, size.ndim)) if by_row else None, keepdims=True)
    # |h - w|: a rounding to fp16; before it perhaps one to fp32, of the sum of two parts
    weight = _half_spacing(size) + 2.0**-24 * size
    # |s - max |h| / 127|: a rounding to fp16, of a quotient whose dividend was rounded as the weights are
    largest = reach + _half_spacing(reach) + 2.0**-24 * reach
    scale = _half_spacing(largest / 127)
    step = largest / 127 + scale
    # |h / s|; what is past 127.5 is cut off, and so it is where s may be nothing
    least = np.maximum((reach - _half_spacing(reach)) / 127 - scale, 2.0**-149)
    quotient = np.minimum((size + weight) / least, 127.5)
    # |code s - h|: half a step and the rounding of the quotient, in steps; or, where 127 steps fall short of
    # max |h|, by what s was rounded down, 127 times (more than half a step only where s is subnormal)
    code = np.maximum((0.5 + _half_spacing(quotient)) * step, 127 * scale)
    # |fp16(code s) - code s|: a rounding to fp16
    product = _half_spacing(size + weight + code)
    return weight + code + product


def _half_spacing(size: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The most by which rounding to fp16 moves a number >= 0: half of 2^-10 of the power of two below it.

    Numbers under 2^-14 are subnormal: their spacing is 2^-24.
    """
    _, exponent = np.frexp(np.maximum(size, 2.0**-14))  # size = [0.5, 1) times 2^exponent
    return np.ldexp(1.0, exponent - 12)


def _rounding(expected: np.ndarray) -> np.ndarray:
    """To fp16, twice."""
    return 2.0**-10 * np.abs(expected) + 2.0**-24


def _blocks(shape: tuple[int, ...], palettes: np.ndarray) -> list[tuple[tuple[slice, ...], np.ndarray]]:
    """Which part of the tensor reads which palette."""
    counts = palettes.shape[:-1] or (1,) * len(shape)
    found = []
    for place in np.ndindex(counts):
        steps = [size // count for size, count in zip(shape, counts, strict=True)]
        where = tuple(slice(i * step, (i + 1) * step) for i, step in zip(place, steps, strict=True))
        found.append((where, palettes[place] if palettes.ndim > 1 else palettes))
    return found


def _palette(stored: np.ndarray, expected: np.ndarray, palette: np.ndarray) -> float:
    """Over what is allowed: the distance to the nearest entry, and the squared error of the best palette."""
    if not stored.size:
        return 0.0
    entries = np.unique(palette)
    places = np.searchsorted(entries, expected)
    left, right = entries[np.maximum(places - 1, 0)], entries[np.minimum(places, len(entries) - 1)]
    nearest = np.minimum(np.abs(expected - left), np.abs(expected - right))
    error = np.abs(stored - expected)
    further = float((error / (nearest + 2 * _rounding(expected))).max())
    best, chosen = make_palette(expected.astype(np.float16), int(math.log2(len(palette))))
    # a hundredth of the weights' size is free: with hardly more weights than entries the best is nearly exact
    allowed = WORSE * ((best[chosen] - expected) ** 2).mean() + (0.01**2) * (expected**2).mean() + 2.0**-48
    return max(further, float((error**2).mean() / allowed))


def _pruning(expected: np.ndarray, mask: np.ndarray | None) -> float:
    """The largest weight that was dropped over the least that was kept; 0 when none was."""
    if mask is None or mask.all() or not mask.any():
        return 0.0
    return float(np.abs(expected[~mask]).max() / (np.abs(expected[mask]).min() * (1 + 2.0**-9) + 2.0**-23))
