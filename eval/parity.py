"""Does an artefact answer as the model it was made from: names first, then shapes, then values.

After huggingface/optimum-onnx `validate_models_outputs`, with a difference in units of the reference's own spread: an
absolute one would let a model with small logits pass and one with large logits fail.
"""

from collections.abc import Collection, Iterable

import numpy as np

from eval.padding import MASK
from eval.runtimes import Arrays, Session
from pipeline.base.errors import NamesDifferError, ParityError, ShapesDifferError, ValuesDifferError
from pipeline.base.records import Parity


def check(
    candidate: Session,
    reference: Session,
    batches: Iterable[Arrays],
    tolerance: float,
    token_outputs: Collection[str] = (),
) -> Parity:
    """As `measure`, and raises ValuesDifferError when the worst difference is beyond the tolerance."""
    parity = measure(candidate, reference, batches, tolerance, token_outputs)
    if parity.worst_difference > tolerance:
        raise ValuesDifferError(
            f"outputs differ by up to {parity.worst_difference:.3g} of the reference's spread, allowed are "
            f"{tolerance:g} ({parity.examples} examples, same choice in {parity.same_label:.1%}); "
            "the conversion changed the model"
        )
    return parity


def measure(
    candidate: Session,
    reference: Session,
    batches: Iterable[Arrays],
    tolerance: float,
    token_outputs: Collection[str] = (),
) -> Parity:
    """How far the candidate's outputs are from the reference's.

    Args:
        candidate: the artefact in its runtime.
        reference: the model it was made from.
        batches: inputs by name.
        tolerance: kept in the record, not judged here.
        token_outputs: those with a value for each token, compared where the batch's mask says that one is.

    Returns:
        Differences as shares of the spread (greatest minus least) of each output of the reference; the worst output's.

    Raises:
        NamesDifferError: other inputs or outputs.
        ShapesDifferError: other shape of an output.
        ValuesDifferError: NaN or infinity on either side, or a reference that answers everything alike.
        ParityError: no batches.
    """
    _compare_names(candidate, reference)
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in reference.output_names}
    for number, inputs in enumerate(batches):
        expected, found = reference.run(inputs), candidate.run(inputs)
        for name in pairs:
            if found[name].shape != expected[name].shape:
                shapes = ", ".join(f"{key} {values.shape}" for key, values in inputs.items())
                raise ShapesDifferError(
                    f"batch {number} with inputs {shapes}: found {name} of shape {found[name].shape}, expected "
                    f"{expected[name].shape}; check the labels and the dynamic axes of the export"
                )
            # rows by themselves: where an output has a value a token, they differ in length
            rows = list(zip(found[name], expected[name], strict=True))
            if name in token_outputs:
                tokens = inputs[MASK].sum(axis=1)
                rows = [(one[:n], other[:n]) for (one, other), n in zip(rows, tokens, strict=True)]
            pairs[name] += rows
    if not any(pairs.values()):
        raise ParityError("no examples to compare on; give at least one batch")
    by_output = [_compare_values(name, rows, tolerance) for name, rows in pairs.items()]
    return max(by_output, key=lambda parity: parity.worst_difference)


def _compare_names(candidate: Session, reference: Session) -> None:
    for kind, found, expected in (
        ("inputs", candidate.input_names, reference.input_names),
        ("outputs", candidate.output_names, reference.output_names),
    ):
        # Their order is free: values go in and come out by name.
        if sorted(found) != sorted(expected):
            raise NamesDifferError(
                f"found the {kind} {list(found)}, expected {list(expected)}; name them in the export"
            )


def _compare_values(name: str, rows: list[tuple[np.ndarray, np.ndarray]], tolerance: float) -> Parity:
    """One output of all examples, as pairs (found, expected) of arrays (..., choices)."""
    for side, place in (("reference", 1), ("artefact", 0)):
        bad = [number for number, pair in enumerate(rows) if not np.isfinite(pair[place]).all()]
        if bad:
            raise ValuesDifferError(
                f"the {side} answers {len(bad)} of {len(rows)} examples with NaN or infinity in '{name}', first "
                f"example {bad[0]}: {rows[bad[0]][place].ravel().tolist()[:4]}; a constant may have overflowed in "
                "this precision"
            )
    spread = float(max(expected.max() for _, expected in rows) - min(expected.min() for _, expected in rows))
    if spread == 0:
        raise ValuesDifferError(
            f"the reference answers every example with the same '{name}'; there is nothing to compare"
        )
    difference = np.concatenate([np.abs(a.astype(np.float64) - b.astype(np.float64)).ravel() for a, b in rows]) / spread
    same = np.concatenate([np.ravel(found.argmax(-1) == expected.argmax(-1)) for found, expected in rows])
    return Parity(
        examples=len(rows),
        tolerance=tolerance,
        worst_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        same_label=float(same.mean()),
    )
