"""Core ML itself, on a Mac: what runs `.mlpackage` on phones. Elsewhere it says why not.

It answers one text a call, so a batch is a loop. Core ML chooses among CPU, GPU and Neural Engine itself; on the CPU it
has no setting for the number of threads.
"""

import platform
import sys
import warnings
from importlib import metadata, util
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int

from eval.padding import padded_length
from pipeline.errors import ModelError, UnusableRuntimeError
from pipeline.records import Artefact

FORMATS = ("coreml",)
STAND_IN = None


def why_unusable() -> str | None:
    """The reason why it cannot run here, or None."""
    if sys.platform != "darwin":
        return f"Core ML runs on macOS only; this is {platform.system()} {platform.machine()}"
    return None if util.find_spec("coremltools") else "the package 'coremltools' is not installed"


def version() -> str:
    """The system that Core ML is a part of, and the package that calls it."""
    system = f"macOS {platform.mac_ver()[0]}, " if sys.platform == "darwin" else ""
    return f"{system}coremltools {metadata.version('coremltools')}"


def open_session(folder: Path, artefact: Artefact, threads: int) -> "CoreMlSession":
    """A session on the artefact's package.

    Args:
        folder: where the package is.
        artefact: what its card says.
        threads: ignored; Core ML has no such setting.

    Raises:
        UnusableRuntimeError: this machine cannot run Core ML, or its system is older than the package asks for.
        ModelError: the package is not what its card says.
    """
    reason = why_unusable()
    if reason is not None:
        raise UnusableRuntimeError(reason)
    return CoreMlSession(folder / artefact.file, artefact)


class CoreMlSession:
    """A loaded package. `load_ms` includes the compilation that Core ML does on the first load."""

    def __init__(self, path: Path, artefact: Artefact) -> None:
        started = perf_counter()
        self._model: Any = _load(path)
        self.load_ms = 1e3 * (perf_counter() - started)
        description = self._model.get_spec().description
        self.input_names = tuple(value.name for value in description.input)
        outputs = tuple(value.name for value in description.output)
        expected = tuple({fact.name for fact in facts} for facts in (artefact.inputs, artefact.outputs))
        if (set(self.input_names), set(outputs)) != expected:
            raise ModelError(
                f"{path}: found inputs {list(self.input_names)} and outputs {list(outputs)}, expected "
                f"{sorted(expected[0])} and {sorted(expected[1])} as in its card; export it again"
            )
        # Label and probabilities follow from the logits; other formats have none to compare with.
        self.output_names = ("logits",)
        self._artefact = artefact

    def run(
        self, ids: Int[np.ndarray, "batch length"], mask: Int[np.ndarray, "batch length"]
    ) -> Float[np.ndarray, "batch classes"]:
        """Logits of a padded batch, float32.

        Padding goes up to the shortest length that the package takes; what stands there is masked.

        Raises:
            ModelError: longer than every length of the package.
        """
        missing = ((0, 0), (0, padded_length(ids.shape[1], self._artefact) - ids.shape[1]))
        given = {
            "input_ids": np.pad(ids.astype(np.int32), missing),
            "attention_mask": np.pad(mask.astype(np.int32), missing),
        }
        rows = [
            self._model.predict({name: values[i : i + 1] for name, values in given.items()})["logits"]
            for i in range(len(ids))
        ]
        return np.concatenate([np.asarray(row, dtype=np.float32).reshape(1, -1) for row in rows])

    def close(self) -> None:
        """Frees the model."""
        self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _load(path: Path) -> Any:
    """The package as a model that can predict; when Core ML refuses it, coremltools only warns."""
    import coremltools

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "You will not be able to run predict", RuntimeWarning)
        try:
            return coremltools.models.MLModel(str(path))
        except RuntimeWarning as warning:
            raise UnusableRuntimeError(
                f"{path.name}: Core ML of macOS {platform.mac_ver()[0]} cannot load it: "
                f"{str(warning).splitlines()[-1]}; "
                "if the system is older than options.deployment_target, update it or lower that"
            ) from warning
