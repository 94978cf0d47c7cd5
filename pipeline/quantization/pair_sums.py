"""8-bit products that come out the same on every processor: which pairs of weights could saturate.

x86 without VNNI multiplies unsigned activations with signed weights by `vpmaddubsw`, which adds the products of two
neighbours along K in 16 bits and clips the sum at -32768 and 32767. Whatever the activations are, it stays below that
where 255 * |w1 + w2| <= 32767 for neighbours of one sign, which is |w1 + w2| <= 128. Neighbours of unlike sign cannot
reach it: neither product is beyond 255 * 127. So the weights alone prove that a file answers alike with and without
VNNI, and on Arm, which has no such step.

NumPy only: a check reads weights from a file, and needs no torch.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, Int8, UInt8

# The largest sum of two neighbours: 255 * 128 = 32640 fits into 16 bits, 255 * 129 = 32895 does not.
PAIR_LIMIT = 128


def unsafe_pairs(weights: Int8[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows pairs"]:
    """Which pairs of neighbours (0 and 1, 2 and 3, ...) along each row, which is summed over, could saturate."""
    return np.abs(_pair_sums(weights)) > PAIR_LIMIT


def least_scale(weights: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, " rows"]:
    """The smallest scale of each row with which no pair of its 8-bit weights can saturate."""
    # a millionth more, since a quotient that is rounded up could pass the limit by one
    return np.abs(_pair_sums(weights)).max(axis=1, initial=0) / PAIR_LIMIT * (1 + 1e-6)


def saturating_product(
    activations: UInt8[np.ndarray, "batch columns"], weights: Int8[np.ndarray, "rows columns"]
) -> Int[np.ndarray, "batch rows"]:
    """Sums of products as x86 without VNNI has them: pairs in 16 bits, clipped; their sum in 32."""
    products = activations.astype(np.int64)[:, None, :] * weights.astype(np.int64)[None]  # (B, rows, columns)
    products = np.pad(products, ((0, 0), (0, 0), (0, products.shape[2] % 2)))
    return (products[..., ::2] + products[..., 1::2]).clip(-(2**15), 2**15 - 1).sum(axis=-1)


def _pair_sums(weights: np.ndarray) -> np.ndarray:
    wide = weights.astype(np.int16 if weights.dtype == np.int8 else weights.dtype)
    wide = np.pad(wide, ((0, 0), (0, wide.shape[1] % 2)))
    return wide[:, ::2] + wide[:, 1::2]
