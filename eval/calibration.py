"""Whether a model is as sure as it is right: what an app relies on that asks again below some confidence."""

from collections.abc import Sequence

import numpy as np

from eval.statistics import Values, share_interval, two_sided
from pipeline.base.records import Calibration

BINS = 15


def calibrate(confidences: Values, values: Values) -> Calibration:
    """How far confidence and share of right answers are from each other.

    Args:
        confidences: how sure the model is of each answer, 0 to 1.
        values: 1 for a right answer, 0 for a wrong one.

    Returns:
        The expected calibration error, the mean over rows of the distance between a bin's mean confidence and its share
        of right answers, and the mean confidence.

    Source: Guo et al., On calibration of modern neural networks (ICML 2017), with bins of equally many rows as in Nixon
    et al., Measuring calibration in deep learning (2019): of bins of equal width nearly all rows fall into the last.
    """
    sure, right = np.asarray(confidences, dtype=np.float64), np.asarray(values, dtype=np.float64)
    bins = np.array_split(np.argsort(sure, kind="stable"), min(BINS, len(sure)))
    error = sum(len(rows) * abs(sure[rows].mean() - right[rows].mean()) for rows in bins) / len(sure)
    return Calibration(error=float(error), confidence=float(sure.mean()))


def confidence_levels(confidences: Values, values: Values, levels: Sequence[float]) -> dict[float, float]:
    """For each share of right answers, the least confidence from which on answers are surely right that often.

    Surely: the lower end of the exact interval of that share is above the level, at 95 % one-sided. A level that no
    confidence reaches is left out.

    Args:
        confidences: how sure the model is of each answer, 0 to 1; of rows that it was not trained on.
        values: 1 for a right answer, 0 for a wrong one.
        levels: shares of right answers, each above 0 and below 1.
    """
    order = np.argsort(-np.asarray(confidences), kind="stable")
    sure, right = np.asarray(confidences, dtype=np.float64)[order], np.cumsum(np.asarray(values)[order] > 0)
    found = {}
    for level in levels:
        for i in range(len(sure) - 1, -1, -1):
            # answers of equal confidence are above a threshold together or not at all; an interval takes time, and one
            # around a share below the level is not above it
            if (i + 1 < len(sure) and sure[i + 1] == sure[i]) or right[i] < level * (i + 1):
                continue
            if share_interval(int(right[i]), i + 1, two_sided(0.95)).low >= level:
                found[level] = float(sure[i])
                break
    return found
