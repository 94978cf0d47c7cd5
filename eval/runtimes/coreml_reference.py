"""The reference interpreter: executes the saved `.mlpackage` on any machine, as its specification and weights say.

It is no device, and no Core ML: what it computes follows the MIL documentation, with fp16 rounded after each operation
(`pipeline/mil/interpreter.py` says what is assumed). It finds the wrong class, the NaN and the overflow that are in the
file; what a phone adds to that, and how long it takes, only a phone can say.
"""

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Float

from eval.padding import cut, pad_further
from eval.runtimes import Arrays, Kernels, check_names
from pipeline.base.errors import ModelError
from pipeline.base.records import Artefact

if TYPE_CHECKING:
    from pipeline.mil.package import Package

FORMATS = ("coreml",)
STAND_IN = "reference interpreter, not a device"
EIGHT_BIT = ("constexpr_blockwise_shift_scale", "constexpr_affine_dequantize")
NOT_TIMED = "the reference interpreter's time says nothing of a phone's; runtime 'coreml' measures it on a Mac"
# Probabilities in fp16 differ by up to 2^-11 of themselves, and logits by more where they are rounded.
PROBABILITY = 0.01
# Texts answered at once, though the package takes one a call: each is answered as if it were alone.
BATCH = 32


def why_unusable() -> str | None:
    """None: exporting needs coremltools, so it is always here."""
    return None


def version() -> str:
    """Whose definitions it follows, and what computes."""
    return f"MIL of coremltools {metadata.version('coremltools')} in torch {metadata.version('torch')}"


def open_session(folder: Path, artefact: Artefact, threads: int) -> "CoreMlReferenceSession":
    """A session on the artefact's package.

    Args:
        folder: where the package is; `labels.json` beside it is compared with the labels inside.
        artefact: what its card says.
        threads: of PyTorch, which belong to the whole process.

    Raises:
        ModelError: the package is not what its card says, or cannot be executed.
    """
    import torch

    torch.set_num_threads(threads)
    return CoreMlReferenceSession(folder / artefact.file, artefact)


class CoreMlReferenceSession:
    """A package with its weights decompressed."""

    def __init__(self, path: Path, artefact: Artefact) -> None:
        from pipeline.mil.interpreter import Interpreter
        from pipeline.mil.package import read_package

        self.package = read_package(path)
        self.input_names = tuple(self.package.inputs)
        check_names(path, self.input_names, self.package.outputs, artefact)
        self.output_names = artefact.number_outputs
        # a classifier gives label and probabilities as well, which follow from its logits
        self._is_classifier = len(self.output_names) < len(artefact.outputs)
        if self._is_classifier:
            check_labels(path, self.package.labels, artefact)
        check_inputs(self.package, artefact)
        self.interpreter = Interpreter(self.package)
        self._artefact = artefact

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs for a padded batch, float32.

        Padding goes up to the shortest length that the package takes; what stands there is masked.

        Raises:
            ModelError: longer than every length of the package, an operation that cannot be executed, or a label or
                probabilities that do not belong to the logits.
        """
        from pipeline.mil.interpreter import output_of

        outputs = self.interpreter.run(self.inputs(inputs))
        found = {name: output_of(outputs, name, self.package.path) for name in self.output_names}
        if self._is_classifier:
            self._check_label(found["logits"], *(outputs.get(name) for name in self.package.predicted))
        return cut(found, inputs[self.input_names[0]].shape[1], self._artefact)

    def _check_label(self, logits: Float[np.ndarray, "batch classes"], label: Any, probabilities: Any) -> None:
        """What an app reads has to follow from the logits, which are what everything else here looks at."""
        if label is None or probabilities is None:
            raise ModelError(
                f"{self.package.path}: its description names {list(self.package.predicted)} for label and "
                "probabilities, which the program does not give; export it again"
            )
        if not np.isfinite(logits).all():  # parity and the check of ranges say so
            return
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        expected = powers / powers.sum(axis=1, keepdims=True)
        found = probabilities.reshape(len(logits), -1).to(float).numpy()
        # of two that are level, either may be named
        named = expected[np.arange(len(logits)), label.numpy()]
        if np.abs(found - expected).max() > PROBABILITY or (expected.max(axis=1) - named).max() > PROBABILITY:
            raise ModelError(
                f"{self.package.path}: label and probabilities do not follow from the logits: found "
                f"{np.round(found[0, :3], 3).tolist()}, expected {np.round(expected[0, :3], 3).tolist()}: an app would "
                "name the wrong class; export it again"
            )

    def inputs(self, inputs: Arrays) -> dict:
        """What the program takes: each text by itself, a batch of one, at one of the package's lengths."""
        import torch

        given = pad_further(inputs, self.input_names, self._artefact)
        return {name: torch.from_numpy(values.astype(np.int64))[:, None] for name, values in given.items()}

    def close(self) -> None:
        """Nothing to free."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_labels(path: Path, found: tuple[str, ...] | None, artefact: Artefact) -> None:
    """Raises ModelError unless the labels inside are as many as the logits, and those that lie beside the package."""
    if found is None:
        raise ModelError(f"{path}: has no class labels, expected a classifier; export it again")
    expected = None
    beside = path.parent / "labels.json"
    if beside.is_file():
        try:
            expected = list(json.loads(beside.read_text("utf-8")))
        except (ValueError, TypeError) as error:
            raise ModelError(f"{beside}: no list of labels: {error}; export it again") from error
    classes = next((fact.shape[-1] for fact in artefact.outputs if fact.name == "logits"), None)
    if classes != len(found):
        raise ModelError(f"{path}: found {len(found)} labels for {classes} logits; export it again")
    if expected is not None and len(expected) != len(found):
        raise ModelError(f"{path}: found {len(found)} labels, {len(expected)} in labels.json; export it again")
    if expected is not None and list(found) != expected:
        place = next(i for i, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
        raise ModelError(
            f"{path}: label {place} is '{found[place]}', expected '{expected[place]}' as in labels.json: an app would "
            "name the wrong class; export it again"
        )


def check_inputs(package: "Package", artefact: Artefact) -> None:
    """Raises ModelError unless the description accepts what the card says: it is what a phone refuses inputs by."""
    lengths = set(artefact.lengths or (artefact.max_length,))
    for fact in artefact.inputs:
        described = package.described.get(fact.name)
        if described is None or described.dtype != fact.dtype or set(described.lengths) != lengths:
            found = "nothing" if described is None else f"{described.dtype} of {_shown(described.lengths)} tokens"
            raise ModelError(
                f"{package.path}: input '{fact.name}': the description accepts {found}, expected {fact.dtype} of "
                f"{_shown(sorted(lengths))} tokens as in its card; export it again"
            )


def _shown(lengths: Sequence[int]) -> str:
    """A list of lengths, or its ends when it is long."""
    return ", ".join(map(str, lengths)) if len(lengths) < 6 else f"{min(lengths)} to {max(lengths)}"


def count_kernels(folder: Path, artefact: Artefact) -> Kernels:
    """Matrix products by the weights they read: 8-bit ones are 'integer', for w8a8 only with an 8-bit input.

    What a device makes of them is its own affair.
    """
    from pipeline.mil.package import read_package

    package = read_package(folder / artefact.file)
    names = folder / "weights.json"
    modules = json.loads(names.read_text("utf-8"))["constants"] if names.is_file() else {}
    made_by = {name: op for op in package.operations for name, _ in op.outputs}
    kinds = [op.kind for op in package.operations]
    integer, floats = 0, []
    for op in package.operations:
        if op.kind not in {"linear", "conv"}:
            continue
        (weight,), (x,) = op.inputs["weight"], op.inputs["x"]
        stored = made_by[weight].kind if isinstance(weight, str) else "const"
        narrow = isinstance(x, str) and x in made_by and made_by[x].kind == "dequantize"
        if stored in EIGHT_BIT and (narrow or artefact.precision != "w8a8"):
            integer += 1
        else:
            floats.append(modules[weight][0].rpartition(".")[0] if weight in modules else op.outputs[0][0])
    return Kernels(
        integer=integer,
        float_weights=tuple(floats),
        quantize=kinds.count("quantize"),
        dequantize=kinds.count("dequantize"),
        cast=kinds.count("cast"),
        nodes=sum(not kind.startswith("const") for kind in kinds),
    )
