"""Models that cost nothing to train."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from eval.floors import measure_floors
from pipeline import tasks
from pipeline.base.records import Metric
from pipeline.data.examples import Examples
from pipeline.tasks import Space

NAMES = ("alarm", "weather")
TRAIN = ["wake me at six", "alarm for seven", "wake me up", "will it rain", "is it sunny", "rain today", "snow soon 🙂"]
TRAIN_LABELS = [0, 0, 0, 1, 1, 1, 1]
TEST = ["wake me at seven", "rain or sunny today", "🙂", "alarm"]
TEST_LABELS = [0, 1, 1, 0]


def examples(texts, numbers, names=NAMES):
    """Rows of one text each."""
    rows = tuple((text,) for text in texts)
    return Examples(tuple(texts), rows, tuple(numbers), groups=tuple(names[number] for number in numbers))


def measure(**changes):
    """The floors of a toy task of two intents."""
    task = tasks.load("single_label", {}, Space(names=NAMES))
    train, test = examples(TRAIN, TRAIN_LABELS), examples(TEST, TEST_LABELS)
    return measure_floors(**{"task": task, "train": train, "test": test, "seed": 0, "timed": False, **changes})


def test_majority_answers_with_the_commonest_class_of_train():
    """Class 1 is half of test."""
    majority = measure().floors[0]
    assert (majority.name, majority.answers, majority.primary.value) == ("majority", (1, 1, 1, 1), 0.5)
    assert majority.values == (0, 1, 1, 0)
    assert majority.further["macro_f1"] == pytest.approx(f1_score(TEST_LABELS, [1] * 4, average="macro"))


def test_linear_floor_learns_a_task_of_keywords():
    """A text of one emoji only is answered, not an error."""
    linear = measure().floors[1]
    assert (linear.name, linear.answers) == ("linear", (0, 1, 1, 0))


def test_floors_carry_what_their_rows_are_grouped_by():
    """Verdicts need no data set: a class that only train has is known all the same."""
    names = (*NAMES, "music")
    train = examples([*TRAIN, "play a song"], [*TRAIN_LABELS, 2], names)
    floors = measure(task=tasks.load("single_label", {}, Space(names=names)), train=train)
    assert (floors.examples, floors.metric.name) == (4, "accuracy")
    assert floors.groups == ("alarm", "weather", "weather", "alarm")
    assert floors.known_groups == ("alarm", "music", "weather")


def test_a_task_without_groups_has_none_to_know():
    """Planted toy: how warm it is, answered by the mean of train, and worth how far that is off."""
    warmth = SimpleNamespace(
        METRIC=Metric(name="mean_error", title="mean error", unit="degrees", scale=1.0, is_greater_better=False),
        fit_floors=lambda texts, numbers, space, seed: [
            tasks.Floor("mean", 8, lambda rows: [float(np.mean(numbers))] * len(rows))
        ],
        values=lambda answers, numbers: np.abs(np.subtract(answers, numbers)),
        further=lambda answers, numbers: {},
    )
    train, test = (Examples(("a", "b"), (("a",), ("b",)), numbers) for numbers in ((10.0, 20.0), (15.0, 19.0)))
    floors = measure(task=tasks.Task("warmth", warmth, None), train=train, test=test)
    assert (floors.metric, floors.groups, floors.known_groups) == (warmth.METRIC, (), ())
    assert (floors.floors[0].answers, floors.floors[0].values) == ((15.0, 15.0), (0.0, 4.0))
    assert floors.floors[0].primary.value == 2.0


def test_same_inputs_give_the_same_record_when_untimed():
    """Latency is left out, all else repeats."""
    assert measure() == measure()
    assert measure().floors[1].latency_ms is None


def test_latency_is_measured_on_request():
    """One text a call."""
    assert measure(timed=True).floors[1].latency_ms > 0
