"""Linear CKA, how alike two sets of features are whatever their width and rotation, and the layer map it prefers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.base.errors import SettingsError
from pipeline.models.layer_maps import Pairs

# Share of a matrix's length that centring must leave. Below it the columns are constant: float32 rounds each number to
# about 1e-7 of its size, so what is left would be rounding error, and its similarity to anything chance.
CONSTANT = 1e-6


class _Features(NamedTuple):
    """What one side of a CKA needs: computed once for each layer of a matrix."""

    rows: Float[Tensor, "rows width"]  # columns centred, then the whole matrix at length 1, so that nothing overflows
    gram_norm: Float[Tensor, ""]  # length of the matrix rows' * rows
    varies: Bool[Tensor, ""]


def linear_cka(x: Float[Tensor, "rows width"], y: Float[Tensor, "rows other_width"]) -> Float[Tensor, ""]:
    """Centred kernel alignment of two sets of features of the same rows, with linear kernels, in float32.

    Args:
        x: one row for each token or example.
        y: the same rows, of any width.

    Returns:
        1 when one is the other up to rotation, reflection, one factor and a shift of each column; 0 when no column of
        one correlates with any of the other. Biased upwards for few rows: with no more rows than columns it is near 1
        whatever the features are. Features that do not vary over the rows (fewer than two rows among them) are alike
        (1) to others that do not, unlike (0) to those that do, and get no gradient.

    Source: |Y'X|^2 / (|X'X| |Y'Y|) of Kornblith et al. 2019, Frobenius norms; what does not vary is our reading.
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
        mask: True for a real token; all are if absent. For a map to trust, several times more real tokens than the
            wider model is wide: fewer make every pair look alike.
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
        squares = centered.square().sum()
        varies = squares > CONSTANT**2 * rows.square().sum()
        # the root of 0 has an infinite slope, which torch.where would turn into NaN
        unit = centered / torch.where(varies, squares, 1.0).sqrt()
        gram = (unit.T @ unit).square().sum()
        return _Features(unit, torch.where(varies, gram, 1.0).sqrt(), varies)


def _alignment(x: _Features, y: _Features) -> Float[Tensor, ""]:
    with torch.autocast(x.rows.device.type, enabled=False):
        alignment = (y.rows.T @ x.rows).square().sum() / (x.gram_norm * y.gram_norm)
    return torch.where(x.varies & y.varies, alignment, (x.varies == y.varies).float())
