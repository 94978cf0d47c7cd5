"""Choosing an activation range from what was seen, in memory that does not grow with what was seen."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.base.errors import DataError, ModelError

BINS = 4096  # 32 KiB a module; divisible by 4, so that doubling the range merges whole pairs
LEVELS = 255  # steps of an 8-bit activation
ENTROPY_STEP = 16  # bins between two candidates: 128 candidates, each a pass over 4096 numbers

Range = tuple[float, float]


class Histogram:
    """Counts of values over [-limit, limit]. The limit doubles when a value lies outside; values are never kept."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: Int[Tensor, " bins"] = torch.zeros(BINS, dtype=torch.long)
        self.limit = 0.0
        self.low = float("inf")
        self.high = float("-inf")

    def add(self, values: Float[Tensor, "..."]) -> None:
        """Counts every value.

        Raises:
            ModelError: a value is NaN or infinite.
        """
        if values.numel() == 0:
            return
        low, high = values.min().item(), values.max().item()
        if not np.isfinite(low) or not np.isfinite(high):
            raise ModelError(f"the input of '{self.name}' holds NaN or infinity; the model cannot be calibrated")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(-low, high))
        if self.limit == 0:
            self.counts[BINS // 2] += values.numel()
            return
        bins = ((values.flatten().double() + self.limit) * (BINS / (2 * self.limit))).long().clamp_(0, BINS - 1)
        self.counts += torch.bincount(bins, minlength=BINS)

    def _widen(self, reach: float) -> None:
        if reach <= self.limit:
            return
        if self.limit == 0:
            zeros = int(self.counts.sum())
            self.limit = reach
            self.counts = torch.zeros(BINS, dtype=torch.long)
            self.counts[BINS // 2] = zeros
        while self.limit < reach:
            merged = self.counts.view(-1, 2).sum(dim=1)
            self.counts = torch.zeros(BINS, dtype=torch.long)
            self.counts[BINS // 4 : 3 * BINS // 4] = merged
            self.limit *= 2

    def range(self, method: Literal["minmax", "entropy", "percentile"], percentile: float) -> Range:
        """Least and greatest value that an 8-bit activation should hold; values beyond are clipped.

        Args:
            method: minmax keeps all; percentile keeps that share, cutting both tails alike; entropy cuts where the
                8-bit distribution is closest to the seen one.
            percentile: in percent, used by the method of that name.

        Raises:
            DataError: nothing was added.
        """
        if self.high < self.low:
            raise DataError(f"calibration saw no input of '{self.name}'; give calibration examples (training rows)")
        if method == "minmax" or self.limit == 0:
            return self.low, self.high
        if method == "percentile":
            return self._percentile_range(percentile)
        return self._entropy_range()

    def _percentile_range(self, percentile: float) -> Range:
        shares = self.counts.double().cumsum(0) / self.counts.sum()
        tail = (1 - percentile / 100) / 2
        first = int(torch.searchsorted(shares, tail, right=True))
        last = int(torch.searchsorted(shares, 1 - tail))
        return max(self.low, self._edge(first)), min(self.high, self._edge(min(last, BINS - 1) + 1))

    def _entropy_range(self) -> Range:
        counts = self.counts.numpy().astype(np.float64)
        best, chosen = np.inf, (self.low, self.high)
        for half in range(BINS // 2, LEVELS // 2, -ENTROPY_STEP):
            threshold = self.limit * half / (BINS // 2)
            low, high = max(self.low, -threshold), min(self.high, threshold)
            first, last = self._bin(low), self._bin(high)
            if last - first < LEVELS or low > high:
                continue
            divergence = _clipping_divergence(counts, first, last + 1)
            if divergence < best:
                best, chosen = divergence, (low, high)
        return chosen

    def _edge(self, number: int) -> float:
        return -self.limit + number * 2 * self.limit / BINS

    def _bin(self, value: float) -> int:
        return min(int((value + self.limit) * BINS / (2 * self.limit)), BINS - 1)


def _clipping_divergence(counts: Float[np.ndarray, " bins"], first: int, end: int) -> float:
    """Nats lost when counts[first:end] go through 8 bits and what lies outside is clipped to the edges.

    Source: Migacz 2017 (TensorRT, 8-bit inference), with an asymmetric range where the values are one-sided.
    """
    inside = counts[first:end]
    seen = inside.copy()
    seen[0] += counts[:first].sum()
    seen[-1] += counts[end:].sum()
    level = np.arange(len(inside)) * LEVELS // len(inside)
    occupied = inside > 0
    per_level = np.bincount(level, inside, LEVELS) / np.maximum(np.bincount(level, occupied, LEVELS), 1)
    kept = np.where(occupied, per_level[level], 0)
    p = seen / seen.sum()
    # Clipped values may land in an empty edge bin; one thousandth of a count keeps the logarithm finite there.
    q = (kept + 1e-3 * (seen > 0)) / (kept + 1e-3 * (seen > 0)).sum()
    held = p > 0
    return float((p[held] * np.log(p[held] / q[held])).sum())
