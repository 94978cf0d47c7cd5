"""One label of several for a text, or for a pair of texts: intents, sentiment, topics, entailment."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from pipeline.base.errors import IntegrityError
from pipeline.base.records import LINEAR, MAJORITY, Metric
from pipeline.data.texts import name_of
from pipeline.settings.base import Settings
from pipeline.tasks import Floor, Head, Space, Texts, one_unit_a_row

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline
    from torch import Tensor

TITLE = "one label of several"
METRIC = Metric(name="accuracy", title="accuracy", unit="%", scale=100.0, is_greater_better=True)
TEXTS, TARGETS = ("text",), ("label",)
TARGET_LOSS = "cross_entropy"
CLIENT, HUB_NAME = "label", "text-classification"
ONE_IN_TWENTY = 1.645  # standard deviations that chance exceeds in one of twenty cases


class Params(Settings):
    """`task.options` of single_label: there is nothing to say."""


# --- data --------------------------------------------------------------------------------------------------------


def read(values: Mapping[str, Any], params: Params) -> str:
    """The name of the label."""
    label = values["label"]
    if isinstance(label, list | dict):
        raise ValueError(f"found a {type(label).__name__} as label, expected text")  # noqa: TRY004 - a user's mistake
    name = name_of(label)
    if name == "":
        raise ValueError("no label")
    return name


def learn_space(targets: Sequence[str]) -> Space:
    """The labels of the training rows: numbers in numeric order, before names in alphabetic order."""
    return Space(names=tuple(sorted(set(targets), key=_order)))


def _order(label: str) -> tuple[int, int, str]:
    # Text decides between '1' and '01'.
    return (0, int(label), label) if re.fullmatch(r"[0-9]{1,18}", label) else (1, 0, label)


def find_problems(targets: Mapping[str, Sequence[tuple[str, str]]]) -> list[str]:
    """Too few labels, one row of a label, or a label that train does not have."""
    counts = Counter(label for _, label in targets["train"])
    found = []
    if len(counts) < 2 and targets["train"]:
        found.append(f"train has {len(counts)} class(es), expected at least 2; check the label column")
    found += [
        f"class '{label}' has 1 row in train, expected at least 2; add rows or remove the class"
        for label, count in sorted(counts.items())
        if count < 2
    ]
    return found + [
        f"{place}: label '{label}' is not in train; a model cannot learn it"
        for split, rows in targets.items()
        if split != "train"
        for place, label in rows
        if label not in counts
    ]


def facts(targets: Mapping[str, Sequence[str]], space: Space) -> dict[str, Any]:
    """How many labels there are, and how many rows the rarest has in each split."""
    counts = {split: Counter(rows) for split, rows in targets.items()}
    smallest = {split: min(counted.get(name, 0) for name in space.names) for split, counted in counts.items()}
    return {"classes": len(space.names), "smallest_class": smallest}


def describe(space: Space) -> str:
    """How many labels there are."""
    return f"{len(space.names)} classes"


def number(target: str, space: Space) -> int:
    """The place of a label among the names."""
    return _places(space)[target]


def group(target: str) -> str | None:
    """The label itself."""
    return target


_known: dict[tuple[str, ...], dict[str, int]] = {}


def _places(space: Space) -> dict[str, int]:
    """Made once for each space: it is asked for every row."""
    if space.names not in _known:
        _known[space.names] = {name: place for place, name in enumerate(space.names)}
    return _known[space.names]


# --- the model ---------------------------------------------------------------------------------------------------


def head(space: Space) -> Head:
    """A logit for each label, read at the first token."""
    return Head("sequence", len(space.names), len(space.names), space.names, "single_label_classification")


def collate(numbers: Sequence[int], length: int) -> "Tensor":
    """(batch,)."""
    import torch

    return torch.tensor(numbers, dtype=torch.long)


units = one_unit_a_row


# --- answers -----------------------------------------------------------------------------------------------------


def answers(outputs: Mapping[str, Float[np.ndarray, "rows classes"]], space: Space) -> list[int]:
    """The place of each row's largest logit; of two that are level, the first."""
    return outputs["logits"].argmax(axis=-1).tolist()


def explain(outputs: Mapping[str, Float[np.ndarray, " classes"]], space: Space) -> list[tuple[str, float]]:
    """(label, probability) by falling probability."""
    logits = outputs["logits"].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    return [(space.names[i], float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")]


def confidences(outputs: Mapping[str, Float[np.ndarray, "rows classes"]]) -> Float[np.ndarray, " rows"]:
    """The probability of each answer, by softmax."""
    logits = outputs["logits"].astype(np.float64)
    return 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)


def show(answer: int, space: Space) -> str:
    """The label's name."""
    return space.names[answer]


def values(answers: Sequence[int], numbers: Sequence[int]) -> Float[np.ndarray, " rows"]:
    """1 for a right answer, 0 for a wrong one.

    Raises:
        IntegrityError: not as many answers as targets.
    """
    if len(answers) != len(numbers):
        raise IntegrityError(
            f"found answers to {len(answers)} rows, expected {len(numbers)}; run `dvc repro` to make them again"
        )
    return (np.asarray(answers) == np.asarray(numbers)).astype(np.float64)


def further(answers: Sequence[int], numbers: Sequence[int]) -> dict[str, float]:
    """The mean of F1 over the labels that occur in targets or answers; a label never met counts for nothing."""
    from sklearn.metrics import f1_score

    return {"macro_f1": float(f1_score(numbers, answers, average="macro", zero_division=0))}


def why_blind(answers: Sequence[int], numbers: Sequence[int]) -> str | None:
    """Why these answers have no more to do with the labels than chance allows, or None.

    Chance is the same answers given to the rows in any other order: then as many are right as the shares of answers and
    labels make likely. So a model that finds the rare label is let through though always answering the commonest would
    be right more often, and one that always gives the same answer is not.

    Source: mean and variance of the matches under permutation, which is Cohen's kappa at 0 (Hoeffding 1951).
    """
    given, real = np.asarray(answers), np.asarray(numbers)
    kinds, rows = int(max(given.max(), real.max())) + 1, len(real)
    right = int((given == real).sum())
    counts = [np.bincount(one, minlength=kinds) for one in (given, real)]
    by_chance = float(counts[0] @ counts[1]) / rows
    # Whether label and answer agree, for every pair of them, without the means of row and column.
    centred = np.eye(kinds) - counts[0][:, None] / rows - counts[1] / rows + by_chance / rows
    spread = math.sqrt(float(counts[1] @ np.square(centred) @ counts[0]) / max(rows - 1, 1))
    if right - by_chance > ONE_IN_TWENTY * spread > 0:
        return None
    return (
        f"{right} of {rows} dev rows are right, and its answers in any other order would have {by_chance:.0f} ± "
        f"{spread:.0f}"
    )


# --- what a student must beat ------------------------------------------------------------------------------------


def fit_floors(texts: Texts, numbers: Sequence[int], space: Space, seed: int) -> list[Floor]:
    """The commonest label of train, and TF-IDF with a linear classifier."""
    commonest = int(np.bincount(np.asarray(numbers), minlength=len(space.names)).argmax())
    model = fit_linear(texts, numbers, seed)
    return [
        Floor(MAJORITY, 1, lambda rows: [commonest] * len(rows), is_timed=False),
        Floor(LINEAR, shipped_bytes(model), lambda rows: model.predict(_joined(rows)).tolist()),
    ]


def fit_linear(texts: Texts, numbers: Sequence[int], seed: int) -> "Pipeline":
    """TF-IDF of word 1- and 2-grams and of character 2- to 5-grams, with a linear support vector classifier, C 0.5."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC

    features = make_union(
        # the default pattern drops single letters and emoji, and fails on a text of nothing else
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]"),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5)),
    )
    return make_pipeline(features, LinearSVC(C=0.5, random_state=seed)).fit(_joined(texts), numbers)


def shipped_bytes(model: "Pipeline") -> int:
    """What the classifier would weigh in an app: each term as UTF-8 with one byte to end it, and float32 numbers.

    The numbers are one IDF weight a term, one coefficient a term and class, and one intercept a class, uncompressed.
    """
    union, classifier = model.steps[0][1], model.steps[1][1]
    terms = [term for _, vectorizer in union.transformer_list for term in vectorizer.vocabulary_]
    text_bytes = sum(len(term.encode()) + 1 for term in terms)
    return text_bytes + 4 * (len(terms) + classifier.coef_.size + classifier.intercept_.size)


def _joined(texts: Texts) -> list[str]:
    return ["\n".join(row) for row in texts]
