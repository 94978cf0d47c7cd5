"""The reference interpreter: executes the saved `.mlpackage` on any machine, as its specification and weights say.

It is no device, and no Core ML: what it computes follows the MIL documentation, with fp16 rounded after each operation
(`pipeline/mil/interpreter.py` says what is assumed). It finds the wrong class, the NaN and the overflow that are in the
file; what a phone adds to that, and how long it takes, only a phone can say.
"""

import json
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from eval.padding import padded_length
from pipeline.errors import ModelError
from pipeline.records import Artefact

FORMATS = ("coreml",)
STAND_IN = "reference interpreter, not a device"
NOT_TIMED = "the reference interpreter's time says nothing of a phone's; runtime 'coreml' measures it on a Mac"
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

    output_names: tuple[str, ...] = ("logits",)

    def __init__(self, path: Path, artefact: Artefact) -> None:
        from pipeline.mil.interpreter import Interpreter
        from pipeline.mil.package import read_package

        self.package = read_package(path)
        self.input_names = tuple(self.package.inputs)
        expected = tuple({fact.name for fact in facts} for facts in (artefact.inputs, artefact.outputs))
        if (set(self.input_names), set(self.package.outputs)) != expected:
            raise ModelError(
                f"{path}: found inputs {list(self.input_names)} and outputs {list(self.package.outputs)}, expected "
                f"{sorted(expected[0])} and {sorted(expected[1])} as in its card; export it again"
            )
        check_labels(path, self.package.labels, artefact)
        self.interpreter = Interpreter(self.package)
        self._artefact = artefact

    def run(
        self, ids: Int[np.ndarray, "batch length"], mask: Int[np.ndarray, "batch length"]
    ) -> Float[np.ndarray, "batch classes"]:
        """Logits of a padded batch, float32.

        Padding goes up to the shortest length that the package takes; what stands there is masked.

        Raises:
            ModelError: longer than every length of the package, or an operation that cannot be executed.
        """
        from pipeline.mil.interpreter import logits_of

        return logits_of(self.interpreter.run(self.inputs(ids, mask)), self.package.path)

    def inputs(self, ids: Int[np.ndarray, "batch length"], mask: Int[np.ndarray, "batch length"]) -> dict:
        """What the program takes: each text by itself, a batch of one, at one of the package's lengths."""
        import torch

        missing = ((0, 0), (0, padded_length(ids.shape[1], self._artefact) - ids.shape[1]))
        given = {"input_ids": np.pad(ids, missing), "attention_mask": np.pad(mask, missing)}
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
    classes = next((fact.shape[-1] for fact in artefact.outputs if fact.name == "logits"), None)
    beside = path.parent / "labels.json"
    expected = json.loads(beside.read_text("utf-8")) if beside.is_file() else None
    if classes != len(found):
        raise ModelError(f"{path}: found {len(found)} labels for {classes} logits; export it again")
    if expected is not None and list(found) != expected:
        place = next(i for i, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
        raise ModelError(
            f"{path}: label {place} is '{found[place]}', expected '{expected[place]}' as in labels.json: an app would "
            "name the wrong class; export it again"
        )
