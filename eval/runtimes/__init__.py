"""One runtime a file: loads an artefact, or says why it cannot be used on this machine.

A runtime file has:

- `FORMATS`: the formats it executes.
- `STAND_IN`: None for the runtime itself, or what it is a stand-in for (an interpreter, an emulator).
- `why_unusable()`: the reason why it cannot run here, or None.
- `version()`: its version.
- `open_session(folder, artefact, threads)`: a `Session`.
- `prepare(folder, artefact)` and `open_prepared(folder, artefact, threads)` (optional, both): `open_session` in two
  steps, so that importing the library and checking the file are no part of the load time.
- `count_kernels(folder, artefact)` (optional): `Kernels`, what the runtime makes of the artefact.
"""

from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from pipeline.records import Record


class Kernels(Record):
    """What a runtime executes, from its own optimised graph or profile."""

    # matrix products with weights that run on integers
    integer: int
    # those that run in float, by the name of their module, or of their node where that is not known
    float_weights: tuple[str, ...]
    quantize: int
    dequantize: int
    cast: int
    nodes: int


@runtime_checkable
class Session(Protocol):
    """A loaded artefact. Inputs go in by name."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(
        self, ids: Int[np.ndarray, "batch length"], mask: Int[np.ndarray, "batch length"]
    ) -> Float[np.ndarray, "batch classes"]:
        """Logits of a padded batch, float32; ids and mask are int64 and cast to what the artefact wants."""

    def close(self) -> None:
        """Frees what the runtime holds."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
