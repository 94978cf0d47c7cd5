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
- `pair_summed_weights(folder, artefact)` (optional): name -> 8-bit weights, a row for each output channel, of the
  products that its kernels for x86 without VNNI add in pairs of 16 bits. Without it there are no such kernels.
- `SETTINGS` (optional): how it opens an artefact, as text by name. A card repeats them and may change each.
- `variants(artefact)` (optional): title -> changed settings, which the check of settings times beside those that ship.
- `OF_THE_CPU` (optional): names of settings that the kind of CPU decides; that check times them and advises none.
- `library_files()` (optional): the files that an app adds to have this runtime, as built for this machine.
- `NOT_TIMED` (optional): why a time taken with it would say nothing; then none is taken.
- `BATCH` (optional): texts that it answers at once, each as if it were alone, whatever the artefact takes.
- `resident_bytes()` (optional): memory of the processes that hold models, where these are other processes.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np

from pipeline.base.errors import ModelError
from pipeline.base.plugins import nearest
from pipeline.base.records import Artefact, Record

Arrays = Mapping[str, np.ndarray]  # name -> (batch, length) of an input, (batch, ...) of an output


class Kernels(Record):
    """What a runtime executes, from its own optimised graph or profile."""

    # matrix products with weights that run on integers
    integer: int
    # those that run in float, by the name of their module, or of their node where that is not known, or '#' and a
    # number where nodes have no names
    float_weights: tuple[str, ...]
    quantize: int
    dequantize: int
    cast: int
    nodes: int


@runtime_checkable
class Session(Protocol):
    """A loaded artefact. Arrays go in and come out by the names that its card lists.

    A session that is far from what executes the model has `last_call_ns` besides: what that side's own clock says of
    the last call, without the way there and back.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Every output for a padded batch, float32; inputs are int64, and cast to what the artefact wants.

        Raises:
            ModelError: an input is missing, or longer than the artefact takes.
        """

    def close(self) -> None:
        """Frees what the runtime holds."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def settings_of(artefact: Artefact, known: Mapping[str, str]) -> dict[str, str]:
    """A runtime's own settings with what the artefact's card says of them.

    Raises:
        ModelError: the card names a setting that this runtime does not have.
    """
    for name in artefact.settings:
        if name not in known:
            raise ModelError(
                f"{artefact.file}: its card has the setting '{name}'{nearest(name, known)}; "
                "mend options.settings of its target and export it again"
            )
    return {**known, **artefact.settings}


def take(inputs: Arrays, names: Iterable[str], longest: int) -> dict[str, np.ndarray]:
    """The named inputs, none longer than the artefact takes.

    Raises:
        ModelError: one is missing, or has more tokens.
    """
    found = {}
    for name in names:
        if name not in inputs:
            raise ModelError(f"no input '{name}', found {', '.join(inputs) or 'none'}; give what the card lists")
        if inputs[name].shape[1] > longest:
            raise ModelError(f"an input of {inputs[name].shape[1]} tokens, expected at most {longest}; cut it")
        found[name] = inputs[name]
    return found


def check_names(path: Path, inputs: Collection[str], outputs: Collection[str], artefact: Artefact) -> None:
    """Raises ModelError unless a file has the inputs and outputs that its card says, in any order."""
    expected = tuple({fact.name for fact in facts} for facts in (artefact.inputs, artefact.outputs))
    if (set(inputs), set(outputs)) != expected:
        raise ModelError(
            f"{path}: found inputs {list(inputs)} and outputs {list(outputs)}, expected "
            f"{sorted(expected[0])} and {sorted(expected[1])} as in its card; export it again"
        )
