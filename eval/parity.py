"""Does an artefact answer as the model it was made from: names first, then shapes, then values.

After huggingface/optimum-onnx `validate_models_outputs`, with a difference in units of the reference's own spread: an
absolute one would let a model with small logits pass and one with large logits fail.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from eval.runtimes import Session
from pipeline.base.errors import NamesDifferError, ParityError, ShapesDifferError, ValuesDifferError
from pipeline.base.records import Parity

Batch = tuple[Int[np.ndarray, "batch length"], Int[np.ndarray, "batch length"]]


def check(candidate: Session, reference: Session, batches: Iterable[Batch], tolerance: float) -> Parity:
    """As `measure`, and raises ValuesDifferError when the worst difference is beyond the tolerance."""
    parity = measure(candidate, reference, batches, tolerance)
    if parity.worst_difference > tolerance:
        raise ValuesDifferError(
            f"logits differ by up to {parity.worst_difference:.3g} of the reference's spread, allowed are "
            f"{tolerance:g} ({parity.examples} examples, same label in {parity.same_label:.1%}); "
            "the conversion changed the model"
        )
    return parity


def measure(candidate: Session, reference: Session, batches: Iterable[Batch], tolerance: float) -> Parity:
    """How far the candidate's logits are from the reference's.

    Args:
        candidate: the artefact in its runtime.
        reference: the model it was made from.
        batches: ids and masks.
        tolerance: kept in the record, not judged here.

    Returns:
        Differences as shares of the spread (greatest minus least) of all the reference's logits.

    Raises:
        NamesDifferError: other inputs or outputs.
        ShapesDifferError: other shape of the logits.
        ValuesDifferError: NaN or infinity on either side, or a reference that answers everything alike.
        ParityError: no batches.
    """
    _compare_names(candidate, reference)
    found_parts, expected_parts = [], []
    for number, (ids, mask) in enumerate(batches):
        expected, found = reference.run(ids, mask), candidate.run(ids, mask)
        if found.shape != expected.shape:
            raise ShapesDifferError(
                f"batch {number} with inputs of shape {ids.shape}: found logits of shape {found.shape}, expected "
                f"{expected.shape}; check the labels and the dynamic axes of the export"
            )
        found_parts.append(found)
        expected_parts.append(expected)
    if not found_parts:
        raise ParityError("no examples to compare on; give at least one batch")
    return _compare_values(np.concatenate(found_parts), np.concatenate(expected_parts), tolerance)


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


def _compare_values(
    found: Float[np.ndarray, "examples classes"], expected: Float[np.ndarray, "examples classes"], tolerance: float
) -> Parity:
    for side, logits in (("reference", expected), ("artefact", found)):
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(bad):
            raise ValuesDifferError(
                f"the {side} answers {len(bad)} of {len(logits)} examples with NaN or infinity, first example "
                f"{bad[0]}: {logits[bad[0]].tolist()[:4]}; a constant may have overflowed in this precision"
            )
    spread = float(expected.max() - expected.min())
    if spread == 0:
        raise ValuesDifferError(
            "the reference answers every example and class with the same logit; there is nothing to compare"
        )
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64)) / spread
    return Parity(
        examples=len(found),
        tolerance=tolerance,
        worst_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        same_label=float((found.argmax(axis=1) == expected.argmax(axis=1)).mean()),
    )
