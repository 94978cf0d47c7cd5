"""A metric on each slice of the test split by itself: a mean over all rows hides a slice that is answered badly."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from eval.statistics import Samples, mean_interval
from pipeline.base.records import Interval

LEAST_ROWS = 20  # of a slice that is judged: with fewer, half of them right is anything from 20 to 80 %


def large(slices: Sequence[str]) -> list[str]:
    """The slice of each row, empty for a row of one that is too small to be judged."""
    counts = Counter(slices)
    return [name if counts[name] >= LEAST_ROWS else "" for name in slices]


def mean_by_slice(slices: Sequence[str], values: Samples, confidence: float = 0.95) -> dict[str, Interval]:
    """Slice -> mean value of its rows, with the two-sided interval.

    Args:
        slices: the slice of each row, empty for a row of none; an empty sequence for data without slices.
        values: the metric on each row, in the same order.
        confidence: of each interval by itself.

    Returns:
        Slices in sorted order; empty when there are none. Rows of no slice count nowhere.

    Raises:
        ValueError: there are slices, and values of another number of rows.
    """
    if not slices:
        return {}
    names, found = np.asarray(slices), np.asarray(values, dtype=np.float64)
    if len(names) != len(found):
        raise ValueError(f"found values of {len(found)} rows, expected {len(names)}")
    return {name: mean_interval(found[names == name], confidence) for name in sorted(set(slices)) if name}
