"""Accuracy on each slice of the test split by itself: a mean over all rows hides a slice that is answered badly."""

from collections import Counter
from collections.abc import Sequence

from eval.statistics import share_interval
from pipeline.base.records import Interval


def accuracy_by_slice(slices: Sequence[str], labels: Sequence[int], predictions: Sequence[int]) -> dict[str, Interval]:
    """Slice -> share of its rows answered rightly, with the two-sided 95 % Clopper-Pearson interval.

    Args:
        slices: the slice of each row, empty for a row of none; an empty sequence for data without slices.
        labels: the true class of each row, in the same order.
        predictions: the class answered for each row.

    Returns:
        Slices in sorted order; empty when there are none. Rows of no slice count nowhere.

    Raises:
        ValueError: there are slices, and labels or predictions of another number of rows.
    """
    if not slices:
        return {}
    rows, right = Counter[str](), Counter[str]()
    for name, label, prediction in zip(slices, labels, predictions, strict=True):
        rows[name] += 1
        right[name] += label == prediction
    return {name: share_interval(right[name], rows[name]) for name in sorted(rows) if name}
