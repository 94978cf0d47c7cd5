"""Padding a batch to a length that the artefact takes, and taking it out of the answers."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int, Shaped

from pipeline.base.errors import ModelError
from pipeline.base.records import Artefact

MASK = "attention_mask"  # 1 on real tokens


def padded_length(length: int, artefact: Artefact) -> int:
    """The least length that the artefact takes for an input of this many tokens.

    Raises:
        ModelError: it takes none that is long enough.
    """
    allowed = artefact.lengths or (artefact.max_length,)
    if length > max(allowed):
        raise ModelError(
            f"{artefact.file}: found an input of {length} tokens, expected at most {max(allowed)}; "
            "lower data.max_length, or export again"
        )
    return length if artefact.lengths is None else min(one for one in allowed if one >= length)


def pad(
    sequences: Sequence[Sequence[int]], pad_id: int, artefact: Artefact
) -> dict[str, Int[np.ndarray, "batch length"]]:
    """`input_ids` and `attention_mask`, int64, padded on the right no further than the artefact demands."""
    L = padded_length(max(len(sequence) for sequence in sequences), artefact)
    ids = np.full((len(sequences), L), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), L), dtype=np.int64)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = sequence
        mask[i, : len(sequence)] = 1
    return {"input_ids": ids, MASK: mask}


def pad_further(
    inputs: Mapping[str, Int[np.ndarray, "batch length"]], names: Iterable[str], artefact: Artefact
) -> dict[str, Int[np.ndarray, "batch longer"]]:
    """The named inputs with zeros up to the least length that the artefact takes; a mask of 0 says nobody looks there.

    Raises:
        ModelError: it takes none that is long enough.
    """
    given = {name: inputs[name] for name in names}
    length = max(values.shape[1] for values in given.values())
    missing = ((0, 0), (0, padded_length(length, artefact) - length))
    return {name: np.pad(values, missing) for name, values in given.items()}


def cut(
    outputs: Mapping[str, Shaped[np.ndarray, "batch ..."]], length: int, artefact: Artefact
) -> dict[str, Shaped[np.ndarray, "batch ..."]]:
    """The outputs without what stands, in those with a value a token, behind that many tokens."""
    return {name: values[:, :length] if name in artefact.token_outputs else values for name, values in outputs.items()}
