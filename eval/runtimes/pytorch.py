"""PyTorch: the reference that every other runtime is compared with. Its artefact is a model folder."""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from eval.runtimes import Arrays
from pipeline.base.machine import version_of
from pipeline.base.records import Artefact
from pipeline.families import output_names
from pipeline.models.checkpoints import load_classifier

FORMATS = ("pytorch",)
STAND_IN = None


def why_unusable() -> str | None:
    """None: training needs PyTorch, so it is always here."""
    return None


def version() -> str:
    """Its version."""
    return str(version_of("torch"))


def open_session(folder: Path, artefact: Artefact | None, threads: int) -> "PytorchSession":
    """A session on a folder written by `pipeline.models.checkpoints.save_classifier`; `artefact` is not needed.

    Raises:
        ModelError: the folder is not safe to load, damaged, or holds NaN.
    """
    return PytorchSession(folder, threads)


class PytorchSession:
    """A loaded model. The number of threads belongs to the process and is put back by `close`."""

    input_names: tuple[str, ...] = ("input_ids", "attention_mask")

    def __init__(self, folder: Path, threads: int) -> None:
        self._model = load_classifier(folder)
        self.output_names = output_names(self._model.config)
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs for a padded batch, float32."""
        with torch.inference_mode():
            output = self._model(**{name: torch.from_numpy(inputs[name]) for name in self.input_names})
        return {name: output[name].float().numpy() for name in self.output_names}

    def close(self) -> None:
        """Puts the number of threads back."""
        torch.set_num_threads(self._threads_before)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
