"""Palettes: each weight of a tensor is one of 16, 64 or 256 values, so that 4, 6 or 8 bits say which."""

import numpy as np
from jaxtyping import Float, UInt8

from pipeline.mil.quiet import import_coremltools

BITS = (4, 6, 8)


def make_palette(
    weights: Float[np.ndarray, "*shape"], bits: int
) -> tuple[Float[np.ndarray, " entries"], UInt8[np.ndarray, " weights"]]:
    """The palette with the least squared error, and each weight's place in it.

    Exactly that: k-means of numbers on a line has an optimum that can be computed (Groenlund et al. 2017), which the
    kmeans1d inside coremltools does, here on the distinct values with their counts. Lloyd's algorithm from a good start
    was up to 16 times as far off where a tensor has outliers, as the outputs of feed-forward layers do.

    Args:
        weights: of any float type; fp16 has few distinct values, so it is fast.
        bits: 2^bits entries.

    Returns:
        Entries, ascending, of the weights' type; places, flat.
    """
    entries = 2**bits
    flat = weights.reshape(-1)
    distinct, counts = np.unique(flat, return_counts=True)
    if len(distinct) <= entries:
        palette = np.pad(distinct, (0, entries - len(distinct)), mode="edge")
    else:
        import_coremltools()
        from coremltools._deps import kmeans1d

        found = kmeans1d.cluster(distinct.astype(np.float64).tolist(), entries, weights=counts.astype(float).tolist())
        palette = np.sort(np.asarray(found.centroids)).astype(flat.dtype)
    edges = (palette[1:].astype(np.float64) + palette[:-1]) / 2
    return palette, np.searchsorted(edges, flat.astype(np.float64)).astype(np.uint8)


def through_palette(weights: Float[np.ndarray, "*shape"], bits: int) -> Float[np.ndarray, "*shape"]:
    """The weights as they come out of a palette of their own, via fp16 as a package stores it."""
    palette, places = make_palette(weights.astype(np.float16), bits)
    return palette[places].reshape(weights.shape).astype(weights.dtype)
