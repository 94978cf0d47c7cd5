"""Whether a model is as sure as it is right: what an app relies on that asks again below some confidence."""

import numpy as np

from eval.statistics import Values
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
