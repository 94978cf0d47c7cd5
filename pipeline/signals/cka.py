"""Linear CKA, how alike two sets of features are whatever their width and rotation, and the layer map it prefers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.base.errors import SettingsError
from pipeline.models.layer_maps import Pairs

# Share of a matrix's length, and of its kernel's, that centring must leave. Below it rows do not differ: float32 rounds
# each number to about 1e-7 of its size, so what is left would be rounding error, and its similarity to anything chance.
CONSTANT = 1e-6
FEWEST = 4  # rows that can be told apart without bias


class _Features(NamedTuple):
    """What one side of a CKA needs: computed once for each layer of a matrix."""

    rows: Float[Tensor, "rows width"]  # columns centred, then the whole matrix at length 1, so that nothing overflows
    squares: Float[Tensor, " rows"]  # squared length of each row
    norm: Float[Tensor, ""]  # root of the dependence on itself
    varies: Bool[Tensor, ""]


def linear_cka(x: Float[Tensor, "rows width"], y: Float[Tensor, "rows other_width"]) -> Float[Tensor, ""]:
    """Centred kernel alignment of two sets of features of the same rows, with linear kernels, in float32.

    Args:
        x: one row for each token or example.
        y: the same rows, of any width.

    Returns:
        1 when one is the other up to rotation, reflection, one factor and a shift of each column; about 0 when they are
        unrelated, however few the rows; -1 at least. Features whose rows do not differ (and any with fewer than four
        rows) are alike (1) to others whose do not, unlike (0) to those that do, and get no gradient.

    Source: Kornblith et al. 2019 with the unbiased estimator of the dependence (Song et al. 2012, as in Nguyen et al.
    2021), which leaves out how alike each row is to itself. With the plain one unrelated features of no more rows than
    columns come out near 1, and 320 rows of 192 and 384 columns at 0.45. What does not vary is our reading.
    """
    return _alignment(_features(x), _features(y))


def cka_matrix(
    student_hidden: Sequence[Float[Tensor, "*tokens student_width"]],
    teacher_hidden: Sequence[Float[Tensor, "*tokens teacher_width"]],
    mask: Bool[Tensor, "*tokens"] | None = None,
) -> list[list[float]]:
    """Linear CKA of each student layer (a row) with each teacher layer (a column), without gradient.

    Args:
        student_hidden: the states of layer 1, 2, ..., without the embedding output, which belongs to no map.
        teacher_hidden: the same.
        mask: True for a real token; all are if absent.
    """
    with torch.no_grad():
        ours, theirs = (
            [_features(states.flatten(0, -2) if mask is None else states[mask]) for states in hidden]
            for hidden in (student_hidden, teacher_hidden)
        )
        return [[float(_alignment(one, other)) for other in theirs] for one in ours]


def best_monotone_map(matrix: Sequence[Sequence[float]]) -> Pairs:
    """The layer map with the largest sum of entries in which later student layers learn from later teacher layers.

    Args:
        matrix: how well each student layer (a row) goes with each teacher layer, such as `cka_matrix` gives.

    Returns:
        A pair for each student layer, counted from 1, no teacher layer twice. Between maps that are equally good, the
        one whose last layers are lower.

    Raises:
        SettingsError: more student layers than teacher layers.

    Source: dynamic programming, ours; it compares M * N sums, where M of N teacher layers can be chosen in very many
    ways.
    """
    student_layers, teacher_layers = len(matrix), len(matrix[0])
    if student_layers > teacher_layers:
        raise SettingsError(
            f"map: each student layer needs a teacher layer of its own, but the student has {student_layers} layers "
            f"and the teacher {teacher_layers}; use 'last_only' or write the pairs"
        )
    # best[s][t]: the largest sum for the first s student layers with the first t teacher layers
    best = [[0.0] * (teacher_layers + 1)]
    for row in matrix:
        sums = [-math.inf]
        for t, entry in enumerate(row):
            sums.append(max(sums[t], best[-1][t] + entry))
        best.append(sums)
    pairs, t = [], teacher_layers
    for s in range(student_layers, 0, -1):
        while best[s][t - 1] == best[s][t]:  # as good without teacher layer t
            t -= 1
        pairs.append((s, t))
        t -= 1
    return tuple(reversed(pairs))


def _features(rows: Tensor) -> _Features:
    # autocast would turn even float32 factors into half precision
    with torch.autocast(rows.device.type, enabled=False):
        rows = rows.float()
        centered = rows - rows.mean(0)
        length = centered.square().sum()
        varies = (length > CONSTANT**2 * rows.square().sum()) & (len(rows) >= FEWEST)
        # the root of 0 has an infinite slope, which torch.where would turn into NaN
        unit = centered / torch.where(varies, length, 1.0).sqrt()
        squares = unit.square().sum(1)
        own = _dependence(unit, squares, unit, squares)
        # Rows that are all equally far from each other: nothing is left of their kernel.
        varies = varies & (own > CONSTANT * (unit.T @ unit).square().sum())
        return _Features(unit, squares, torch.where(varies, own, 1.0).sqrt(), varies)


def _dependence(x: Tensor, x_squares: Tensor, y: Tensor, y_squares: Tensor) -> Float[Tensor, ""]:
    """The unbiased estimate of the dependence of two sets of centred rows, times a factor of the number of rows.

    With K and L the kernels without their diagonals, sum(K L) + sum(K) sum(L) / ((n-1)(n-2)) - 2/(n-2) sum of (K L);
    for centred rows a row of K adds up to minus its diagonal entry, so that no kernel is ever formed.
    """
    n = max(len(x), FEWEST)  # what fewer rows give is not looked at
    together = (y.T @ x).square().sum() - n / (n - 2) * (x_squares @ y_squares)
    return together + x_squares.sum() * y_squares.sum() / ((n - 1) * (n - 2))


def _alignment(x: _Features, y: _Features) -> Float[Tensor, ""]:
    with torch.autocast(x.rows.device.type, enabled=False):
        alignment = _dependence(x.rows, x.squares, y.rows, y.squares) / (x.norm * y.norm)
    return torch.where(x.varies & y.varies, alignment, (x.varies == y.varies).float())
