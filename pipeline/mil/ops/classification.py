"""The end of a classifier."""

from collections.abc import Sequence

from torch import Tensor

from pipeline.mil.ops import operation


@operation("iOS15/classify")
def classify(probabilities: Tensor, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Number of the most probable class, of which Core ML gives the label, and the probability of every class."""
    rows = probabilities.reshape(-1)
    return rows.argmax(), rows
