"""Models that cost nothing to train."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from eval.floors import fit_linear, measure_floors, shipped_bytes
from eval.scores import MACRO_F1

TRAIN = ["wake me at six", "alarm for seven", "wake me up", "will it rain", "is it sunny", "rain today", "snow soon 🙂"]
TRAIN_LABELS = [0, 0, 0, 1, 1, 1, 1]
TEST = ["wake me at seven", "rain or sunny today", "🙂", "alarm"]
TEST_LABELS = [0, 1, 1, 0]


def measure(**changes):
    """The floors of a toy task of two intents."""
    values = {"classes": 2, "seed": 0, "timed": False}
    return measure_floors(TRAIN, TRAIN_LABELS, TEST, TEST_LABELS, **{**values, **changes})


def test_majority_answers_with_the_commonest_class_of_train():
    """Class 1 is half of test."""
    majority = measure().floors[0]
    assert (majority.name, majority.predictions, majority.primary.value) == ("majority", (1, 1, 1, 1), 0.5)
    assert majority.values == (0, 1, 1, 0)
    assert majority.further[MACRO_F1] == pytest.approx(f1_score(TEST_LABELS, [1] * 4, average="macro"))


def test_linear_floor_learns_a_task_of_keywords():
    """A text of one emoji only is answered, not an error."""
    linear = measure().floors[1]
    assert (linear.name, linear.predictions) == ("linear", (0, 1, 1, 0))


def test_floors_carry_the_truth_they_were_scored_with():
    """Verdicts need no data set."""
    floors = measure(classes=3)
    assert (floors.examples, floors.labels, floors.classes) == (4, tuple(TEST_LABELS), 3)


def test_same_inputs_give_the_same_record_when_untimed():
    """Latency is left out, all else repeats."""
    assert measure() == measure()
    assert measure().floors[1].latency_ms is None


def test_latency_is_measured_on_request():
    """One text a call."""
    assert measure(timed=True).floors[1].latency_ms > 0


@pytest.mark.parametrize("classes", [2, 3])
def test_shipped_bytes_counts_terms_and_float32_numbers(classes):
    """Counted here apart; two classes need one row of coefficients."""
    labels = [i % classes for i in range(len(TRAIN))]
    model = fit_linear(TRAIN, labels, seed=0)
    vectorizers = [vectorizer for _, vectorizer in model[0].transformer_list]
    terms = np.concatenate([vectorizer.get_feature_names_out() for vectorizer in vectorizers])
    rows = 1 if classes == 2 else classes
    written = b"".join(str(term).encode() + b"\0" for term in terms)
    numbers = np.zeros(len(terms) + rows * len(terms) + rows, dtype=np.float32)
    assert shipped_bytes(model) == len(written) + numbers.nbytes
