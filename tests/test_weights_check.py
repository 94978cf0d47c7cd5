"""The bound of 8-bit weights: no package that coremltools can write breaks it, and a mistake does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_coreml_reference import checked, shallow_model
from test_to_coreml import export, save

from eval.checks import weights
from pipeline.base.records import Status
from pipeline.mil.quiet import import_coremltools

ROWS, COLUMNS = 64, 256
BY_ROW = weights.Storage("8 bits", by_row=True)
OVERALL = weights.Storage("8 bits", by_row=False)
Weights = np.ndarray


def compress(weight: Weights, by_row: bool = True) -> tuple[Weights, Weights]:
    """(codes, scales) as coremltools finds them, of weights that the fp16 pass has cast."""
    import_coremltools()
    from coremltools.optimize._utils import compute_qparams

    half, sizes = weight.astype(np.float16), [1 if by_row else 0, 0]
    with np.errstate(all="ignore"):  # it divides by a scale of 0
        codes, scales, _ = compute_qparams(half, 8, True, "LINEAR_SYMMETRIC", np.int8, sizes)
    return codes.astype(np.float32), scales.astype(np.float32)


def decompress(codes: Weights, scales: Weights) -> Weights:
    """What the file means, in fp16."""
    return (scales * codes).astype(np.float16).astype(np.float64)


def past_half_steps(seed: int, size: float = 0.04, shape: tuple[int, int] = (ROWS, COLUMNS)) -> Weights:
    """Weights near half a step of their row, at 64 steps and more where fp16 cannot tell: those that move furthest."""
    rng = np.random.default_rng(seed)
    largest = (rng.uniform(1, 2, (shape[0], 1)) * size).astype(np.float16).astype(np.float64)
    tries = (shape[0], 40 * shape[1])
    steps = rng.integers(64, 72, tries) + 0.5 + rng.uniform(-0.1, 0.1, tries)
    weight = (steps * largest / 127 * rng.choice([-1, 1], tries)).astype(np.float32).astype(np.float64)
    weight[:, :1] = largest
    moved = np.abs(decompress(*compress(weight)) - weight)
    moved[:, 0] = np.inf  # the largest weight stays, or the steps would be others
    return np.take_along_axis(weight, np.argsort(-moved, axis=1)[:, : shape[1]], axis=1)


def normal(seed: int, size: float = 0.04) -> Weights:
    return np.random.default_rng(seed).normal(size=(ROWS, COLUMNS)).astype(np.float32).astype(np.float64) * size


@pytest.mark.parametrize("by_row", [True, False])
@pytest.mark.parametrize("make", [normal, past_half_steps])
@pytest.mark.parametrize("size", [30.0, 0.1, 1e-3, 1e-4, 1e-5, 1e-6])
def test_what_coremltools_makes_is_within_the_bound(
    make: Callable[[int, float], Weights], size: float, by_row: bool
) -> None:
    """Rows so small that their scale is subnormal in fp16, or nothing, too."""
    worst = 0.0
    for seed in range(3):
        weight = make(seed, size)
        stored = decompress(*compress(weight, by_row))
        worst = max(worst, weights._distance(stored, weight, BY_ROW if by_row else OVERALL))
    assert worst <= 1


def test_the_bound_is_reached() -> None:
    """Or it would be a tolerance."""
    worst = [weights._distance(decompress(*compress(w)), w, BY_ROW) for w in map(past_half_steps, range(3))]
    assert 0.98 < max(worst) <= 1


def test_weights_past_half_a_step_are_no_mistake(tmp_path: Path) -> None:
    """A package whose every weight is where rounding is worst. By chance a trained student has one: 1 in 300,000."""
    model = shallow_model("bert")
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            if parameter.dim() == 2:
                shape = (parameter.shape[0], parameter.shape[1])
                parameter.copy_(torch.from_numpy(past_half_steps(seed, shape=shape)))
    source = save(model, tmp_path / "student")
    artefact = export(source, tmp_path / "out", "int8")
    check = checked(weights, (tmp_path / "out", artefact), source)
    assert check.status is Status.PASS, check.reason
    assert check.facts["kinds"]["8 bits"] > 5


# --- mistakes ----------------------------------------------------------------------------------------------------


def swap(codes: Weights, scales: Weights) -> tuple[Weights, Weights]:
    """Two entries of one row that are two steps apart, where the bound is widest."""
    row = next(row for row in range(len(codes)) if {118, 120} <= set(codes[row]))
    first, second = (codes[row] == 118).argmax(), (codes[row] == 120).argmax()
    codes = codes.copy()
    codes[row, [first, second]] = codes[row, [second, first]]
    return codes, scales


def transpose(codes: Weights, scales: Weights) -> tuple[Weights, Weights]:
    return codes.T, scales


def exchange_scales(codes: Weights, scales: Weights) -> tuple[Weights, Weights]:
    """The two rows whose scales are nearest but a hundredth."""
    order = scales[:, 0].argsort()
    ratios = scales[order[1:], 0] / scales[order[:-1], 0]
    at = int(np.where(ratios > 1.01, ratios, np.inf).argmin())
    scales = scales.copy()
    scales[order[[at, at + 1]]] = scales[order[[at + 1, at]]]
    return codes, scales


@pytest.mark.parametrize("mistake", [swap, transpose, exchange_scales])
def test_a_mistake_is_caught(mistake: Callable[[Weights, Weights], tuple[Weights, Weights]]) -> None:
    """In a square matrix of an ordinary spread, whose right codes pass."""
    rng = np.random.default_rng(3)
    weight = rng.uniform(-0.1, 0.1, (256, 256)) * rng.uniform(0.5, 1, (256, 1))
    codes, scales = compress(weight)
    assert weights._distance(decompress(codes, scales), weight, BY_ROW) <= 1
    assert weights._distance(decompress(*mistake(codes, scales)), weight, BY_ROW) > 1
