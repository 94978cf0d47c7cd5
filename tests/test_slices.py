"""A metric by slice: worked by hand, and the edges."""

import pytest

from eval.slices import mean_by_slice


def test_shares_and_intervals_are_those_worked_by_hand():
    """2 of 4 hard and 3 of 3 everyday; for n of n the lower end solves p^n = 0.025, here the cube root."""
    slices = ["hard", "everyday", "hard", "everyday", "hard", "everyday", "hard"]
    found = mean_by_slice(slices, [1, 1, 0, 1, 1, 1, 0])
    assert list(found) == ["everyday", "hard"]
    assert found["everyday"].value == found["everyday"].high == 1
    assert found["everyday"].low == pytest.approx(0.025 ** (1 / 3))
    assert found["everyday"].confidence == 0.95
    assert found["hard"].value == 0.5
    assert found["hard"].low == pytest.approx(1 - found["hard"].high)
    # 2 of 4, lower end: P(at least 2 of 4) = 6 p^2 - 8 p^3 + 3 p^4 = 0.025
    p = found["hard"].low
    assert 6 * p**2 - 8 * p**3 + 3 * p**4 == pytest.approx(0.025)


def test_rows_of_no_slice_count_nowhere():
    assert mean_by_slice(["", "a", ""], [0, 1, 1])["a"].value == 1
    assert mean_by_slice(["", ""], [0, 1]) == {}


def test_data_without_slices_has_none():
    assert mean_by_slice((), [0, 1]) == {}


def test_another_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="found values of 1 rows, expected 2"):
        mean_by_slice(["a", "a"], [0])
