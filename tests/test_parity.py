"""Names, then shapes, then values, each with its own error."""

import numpy as np
import pytest

from eval.parity import check, measure
from pipeline.base.errors import NamesDifferError, ParityError, ShapesDifferError, ValuesDifferError


class Table:
    """A session that answers row i of a table for the id i."""

    output_names = ("logits",)

    def __init__(self, table, input_names=("input_ids", "attention_mask")):
        self.table = np.asarray(table, dtype=np.float32)
        self.input_names = input_names

    def run(self, inputs):
        return {"logits": self.table[inputs["input_ids"][:, 0]]}


REFERENCE = [[0.0, 1.0], [4.0, -6.0], [2.0, 3.0]]
BATCHES = [{"input_ids": np.array([[0], [1]])}, {"input_ids": np.array([[2]])}]


def test_equal_models_do_not_differ():
    """Zero difference, every label the same."""
    parity = check(Table(REFERENCE), Table(REFERENCE), BATCHES, 0.0)
    assert (parity.worst_difference, parity.mean_difference, parity.same_label) == (0, 0, 1)
    assert parity.examples == 3


def test_differences_are_shares_of_the_references_spread():
    """Worked by hand: the spread is 10, one logit of six is off by 2 and turns a label."""
    changed = [[2.0, 1.0], *REFERENCE[1:]]
    parity = measure(Table(changed), Table(REFERENCE), BATCHES, 0.5)
    assert parity.worst_difference == pytest.approx(0.2)
    assert parity.mean_difference == pytest.approx(0.2 / 6)
    assert parity.same_label == pytest.approx(2 / 3)
    assert parity.tolerance == 0.5


def test_scaling_both_models_changes_nothing():
    """The figure has no unit."""
    changed = np.add(REFERENCE, [0.1, 0.0])
    small = measure(Table(changed), Table(REFERENCE), BATCHES, 1)
    large = measure(Table(changed * 1000), Table(np.asarray(REFERENCE) * 1000), BATCHES, 1)
    assert small.worst_difference == pytest.approx(large.worst_difference, rel=1e-5)


def test_a_difference_beyond_the_tolerance_is_an_error():
    """At the tolerance it passes, beyond it does not."""
    changed = [[2.0, 1.0], *REFERENCE[1:]]
    check(Table(changed), Table(REFERENCE), BATCHES, 0.2001)
    with pytest.raises(ValuesDifferError, match=r"by up to 0\.2 of the reference's spread, allowed are 0\.19"):
        check(Table(changed), Table(REFERENCE), BATCHES, 0.19)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["artefact", "reference"])
def test_numbers_that_are_not_finite_always_fail(number, side):
    """Whatever the tolerance, on either side, and the message says which."""
    broken = [REFERENCE[0], [4.0, number], REFERENCE[2]]
    candidate, reference = (broken, REFERENCE) if side == "artefact" else (REFERENCE, broken)
    with pytest.raises(
        ValuesDifferError, match=f"the {side} answers 1 of 3 examples with NaN or infinity in 'logits', first example 1"
    ):
        measure(Table(candidate), Table(reference), BATCHES, 1e9)


def test_other_names_are_found_first():
    """Even when shapes and values differ too."""
    with pytest.raises(
        NamesDifferError, match=r"inputs \['input_ids', 'token_type_ids'\], expected \['input_ids', 'att"
    ):
        measure(Table([[np.nan]] * 3, ("input_ids", "token_type_ids")), Table(REFERENCE), BATCHES, 1)
    candidate = Table(REFERENCE)
    candidate.output_names = ("output_0",)
    with pytest.raises(NamesDifferError, match="outputs"):
        measure(candidate, Table(REFERENCE), BATCHES, 1)


def test_the_order_of_inputs_is_free():
    """They are passed by name."""
    assert (
        measure(Table(REFERENCE, ("attention_mask", "input_ids")), Table(REFERENCE), BATCHES, 1).worst_difference == 0
    )


def test_other_shapes_are_found_before_values():
    """A NaN in logits of another shape is reported as another shape."""
    with pytest.raises(ShapesDifferError, match=r"found logits of shape \(2, 1\), expected \(2, 2\)"):
        measure(Table([[np.nan]] * 3), Table(REFERENCE), BATCHES, 1)


def test_nothing_to_compare_is_an_error():
    """Neither no examples nor a constant reference can pass."""
    with pytest.raises(ParityError, match="no examples"):
        measure(Table(REFERENCE), Table(REFERENCE), [], 1)
    with pytest.raises(ValuesDifferError, match="the same 'logits'"):
        measure(Table(REFERENCE), Table([[1.0, 1.0]] * 3), BATCHES, 1)
