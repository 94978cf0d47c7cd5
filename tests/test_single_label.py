"""The task single_label: rows, spaces, units, answers and what they are worth, and floors."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from pipeline import tasks
from pipeline.tasks import UNLABELLED, Space, single_label

SPACE = Space(names=("no", "yes", "maybe"))
NUMBERS = [0, 1, 2, 0, 1, 2, 0, 0]
ANSWERS = [0, 1, 1, 0, 2, 2, 1, 0]


def test_a_label_is_read_as_a_name():
    """Spaces go, Parquet's 1.0 is '1', and what is no label is a problem with words."""
    read = [single_label.read({"label": value}, None) for value in (" yes ", 1, 1.0, "1.0", "a\0b")]
    assert read == ["yes", "1", "1", "1.0", "ab"]
    for nothing in (None, "", "  ", float("nan")):
        with pytest.raises(ValueError, match="no label"):
            single_label.read({"label": nothing}, None)
    with pytest.raises(ValueError, match="found a list as label, expected text"):
        single_label.read({"label": ["a"]}, None)


def test_labels_are_numbered_in_the_order_that_people_expect():
    """Numbers by value, then names; '01' is not '1'."""
    space = single_label.learn_space(["b", "10", "9", "a", "01", "1", "b"])
    assert space.names == ("01", "1", "9", "10", "a", "b")
    assert [single_label.number(name, space) for name in space.names] == [0, 1, 2, 3, 4, 5]


def test_what_cannot_be_learned_is_said_with_its_place():
    """One class, one row of a class, and a label that train has not."""
    train = [("train.csv:2", "a"), ("train.csv:3", "a"), ("train.csv:4", "b")]
    found = single_label.find_problems({"train": train, "test": [("test.csv:2", "c")]})
    assert found == [
        "class 'b' has 1 row in train, expected at least 2; add rows or remove the class",
        "test.csv:2: label 'c' is not in train; a model cannot learn it",
    ]
    assert "expected at least 2; check the label column" in single_label.find_problems({"train": train[:2]})[0]


def test_a_unit_is_a_text():
    """Logits and targets as they are, text without a label among them."""
    logits, targets = torch.randn(4, 3), single_label.collate([0, 2, UNLABELLED, 1], 8)
    units = single_label.units({"logits": logits}, targets, torch.ones(4, 5, dtype=torch.bool))
    assert units.logits is logits and units.targets.tolist() == [0, 2, -100, 1]
    assert units.targets.dtype == torch.int64


def test_values_and_further_figures_agree_with_scikit_learn():
    """Their mean is the accuracy."""
    values = single_label.values(ANSWERS, NUMBERS)
    assert set(values.tolist()) == {0.0, 1.0}
    assert values.mean() == accuracy_score(NUMBERS, ANSWERS)
    assert single_label.further(ANSWERS, NUMBERS)["macro_f1"] == f1_score(NUMBERS, ANSWERS, average="macro")


def test_answers_and_probabilities_follow_from_the_logits():
    """The first of two that are level; probabilities add up to one, however large the logits."""
    outputs = {"logits": np.array([[1.0, 3.0, 3.0], [300.0, -30.0, 0.0]], dtype=np.float32)}
    assert single_label.answers(outputs, SPACE) == [1, 0]
    assert [single_label.show(answer, SPACE) for answer in (1, 0)] == ["yes", "no"]
    ranked = single_label.explain({"logits": outputs["logits"][1]}, SPACE)
    assert [name for name, _ in ranked] == ["no", "maybe", "yes"]
    assert sum(p for _, p in ranked) == pytest.approx(1)


def test_floors_are_learned_from_train_alone():
    """The commonest label, and a linear model that tells two words apart; a pair is one text for it."""
    rows = [("turn it on", "lamp"), ("turn it off", "lamp")] * 10 + [("on and on", "music")] * 5
    texts, numbers = [(text, other) for text, other in rows], [0, 1] * 10 + [0] * 5
    majority, linear = single_label.fit_floors(texts, numbers, Space(names=("on", "off")), seed=0)
    assert majority.answer(texts[:3]) == [0, 0, 0] and not majority.is_timed
    assert linear.answer([("please turn it off", "lamp"), ("now on", "lamp")]) == [1, 0]
    assert linear.size_bytes > 100


def test_a_task_is_its_file_with_settings_and_space():
    """Whatever the file has, and nothing else."""
    task = tasks.load("single_label", {}, SPACE)
    assert task.METRIC.name == "accuracy" and task.head.outputs == 3 and task.head.names == SPACE.names
    with pytest.raises(AttributeError):
        _ = task.nothing


def test_macro_f1_is_defined_when_a_class_is_missing():
    """A class that no row has and no answer names does not count; one that is only answered counts as zero."""

    def macro_f1(numbers, answers):
        return single_label.further(answers, numbers)["macro_f1"]

    assert macro_f1([0, 0, 2], [0, 0, 2]) == 1.0
    assert macro_f1([0, 0, 2], [0, 1, 2]) == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert macro_f1([1, 1], [1, 1]) == 1.0


TEXTS = ["wake me at six", "alarm for seven", "wake me up", "will it rain", "is it sunny", "rain today", "snow soon 🙂"]


@pytest.mark.parametrize("classes", [2, 3])
def test_shipped_bytes_counts_terms_and_float32_numbers(classes):
    """Counted here apart; two classes need one row of coefficients."""
    labels = [i % classes for i in range(len(TEXTS))]
    model = single_label.fit_linear([(text,) for text in TEXTS], labels, seed=0)
    vectorizers = [vectorizer for _, vectorizer in model[0].transformer_list]
    terms = np.concatenate([vectorizer.get_feature_names_out() for vectorizer in vectorizers])
    rows = 1 if classes == 2 else classes
    written = b"".join(str(term).encode() + b"\0" for term in terms)
    numbers = np.zeros(len(terms) + rows * len(terms) + rows, dtype=np.float32)
    assert single_label.shipped_bytes(model) == len(written) + numbers.nbytes
