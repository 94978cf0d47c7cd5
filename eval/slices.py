"""A metric on each slice of the test split by itself: a mean over all rows hides a slice that is answered badly."""

from collections.abc import Sequence

import numpy as np

from eval.statistics import Samples, mean_interval
from pipeline.base.records import Interval


def mean_by_slice(slices: Sequence[str], values: Samples) -> dict[str, Interval]:
    """Slice -> mean value of its rows, with the two-sided 95 % interval.

    Args:
        slices: the slice of each row, empty for a row of none; an empty sequence for data without slices.
        values: the metric on each row, in the same order.

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
    return {name: mean_interval(found[names == name]) for name in sorted(set(slices)) if name}
