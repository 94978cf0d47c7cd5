"""Calibration: worked by hand, right where confidence is true, and seen where a model became surer than it is right."""

import numpy as np
import pytest

from eval.calibration import BINS, calibrate, confidence_levels
from pipeline.tasks import single_label


def test_it_is_what_it_is_by_hand() -> None:
    """Two rows are two bins: |0.6 - 0| and |0.9 - 1|."""
    found = calibrate(np.array([0.9, 0.6]), np.array([1.0, 0.0]))
    assert found.error == pytest.approx((0.6 + 0.1) / 2)
    assert found.confidence == pytest.approx(0.75)


def test_a_model_that_is_as_sure_as_right_has_next_to_none() -> None:
    """But for chance: 15 bins of 2,000 rows are off by half a point each."""
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1.0, 30_000)
    assert calibrate(sure, (rng.random(30_000) < sure).astype(float)).error < 0.015


def test_a_model_that_is_surer_than_right_is_seen() -> None:
    """By as much as it is: 0.95 sure and right in 80 %."""
    right = np.ones(1000)
    right[::5] = 0
    found = calibrate(np.full(1000, 0.95), right)
    assert found.error == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize("rows", [1, BINS - 1, BINS + 1])
def test_any_number_of_rows_will_do(rows: int) -> None:
    assert 0 <= calibrate(np.linspace(0.1, 0.9, rows), np.ones(rows)).error <= 1


def test_confidence_is_the_probability_of_the_answer() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]], dtype=np.float32))
    assert single_label.confidences({"logits": logits}) == pytest.approx([0.7, 0.5], abs=1e-6)
    assert single_label.confidences({"logits": 1000 * logits}) == pytest.approx([1.0, 1.0])


def test_a_level_is_the_least_confidence_from_which_answers_are_surely_right_so_often() -> None:
    """Of a model that is as sure as it is right, somewhat above the share itself; one that none reaches is left out."""
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1.0, 20_000)
    right = (rng.uniform(size=20_000) < sure).astype(float)
    found = confidence_levels(sure, right, (0.8, 0.9, 0.999))
    assert list(found) == [0.8, 0.9]
    for level, least in found.items():
        above = sure >= least
        assert level < right[above].mean() < level + 0.02


def test_a_level_does_not_cut_through_equal_confidences() -> None:
    """An app cannot tell them apart: all 200 of them, of which half are wrong, or none."""
    sure = np.repeat([0.9, 0.7], [300, 200])
    right = np.concatenate([np.ones(300), np.tile([1.0, 0.0], 100)])
    assert confidence_levels(sure, right, (0.95, 0.7)) == {0.95: 0.9, 0.7: 0.7}
