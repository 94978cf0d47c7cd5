"""The reference evaluator of onnx: slow, written for clarity, and nobody's product, so a second opinion on a file."""

from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from eval.runtimes import Arrays
from pipeline.base.records import Artefact
from pipeline.formats.onnx_files import check_onnx_file

FORMATS = ("onnx",)
STAND_IN = "the reference evaluator of onnx, not a runtime that ships"
DTYPES = {"int64": np.int64, "int32": np.int32}


def why_unusable() -> str | None:
    """None: exporting needs onnx, so it is always here."""
    return None


def version() -> str:
    """Its version."""
    return metadata.version("onnx")


def open_session(folder: Path, artefact: Artefact, threads: int) -> "ReferenceSession":
    """A session on the artefact's file, once that file has been checked; `threads` is NumPy's own business.

    Raises:
        ModelError: the file is damaged or hostile.
    """
    return ReferenceSession(folder / artefact.file, artefact)


class ReferenceSession:
    """A loaded file."""

    def __init__(self, path: Path, artefact: Artefact) -> None:
        from onnx.reference import ReferenceEvaluator

        self._evaluator = ReferenceEvaluator(check_onnx_file(path))
        self.input_names = tuple(self._evaluator.input_names)
        self.output_names = tuple(self._evaluator.output_names)
        self._dtypes = {fact.name: DTYPES[fact.dtype] for fact in artefact.inputs}

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs for a padded batch, float32."""
        feeds = {name: inputs[name].astype(self._dtypes[name], copy=False) for name in self.input_names}
        found = self._evaluator.run(self.output_names, feeds)
        return {name: np.asarray(one) for name, one in zip(self.output_names, found, strict=True)}

    def close(self) -> None:
        """Nothing to free."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
