"""Models that cost nothing to train: what a student must beat before its size and latency are worth talking about."""

import time
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.svm import LinearSVC

from eval.scores import MACRO_F1, macro_f1
from eval.statistics import mean_interval, right
from pipeline.base.records import ACCURACY, LINEAR, MAJORITY, Floor, Floors

TIMED_CALLS = 100


def measure_floors(
    train_texts: Sequence[str],
    train_labels: Sequence[int],
    test_texts: Sequence[str],
    test_labels: Sequence[int],
    classes: int,
    seed: int,
    timed: bool = True,
) -> Floors:
    """The majority class, and TF-IDF with a linear classifier, trained on train and scored on test.

    Args:
        train_texts: dev is no part of it, since the floor chooses nothing.
        train_labels: class of each training text; at least two classes occur.
        test_texts: in the order of the test split.
        test_labels: class of each test text.
        classes: how many classes the task has.
        seed: of the linear classifier's solver.
        timed: False leaves the latency out, so that the same inputs give the same record.
    """
    most_common = int(np.bincount(np.asarray(train_labels), minlength=classes).argmax())
    majority = _floor(MAJORITY, test_labels, [most_common] * len(test_labels), size_bytes=1, latency_ms=None)
    model = fit_linear(train_texts, train_labels, seed)
    linear = _floor(
        LINEAR,
        test_labels,
        model.predict(test_texts).tolist(),
        size_bytes=shipped_bytes(model),
        latency_ms=_median_call_ms(model, test_texts) if timed else None,
    )
    return Floors(
        examples=len(test_labels),
        metric=ACCURACY,
        labels=tuple(test_labels),
        classes=classes,
        floors=(majority, linear),
    )


def fit_linear(texts: Sequence[str], labels: Sequence[int], seed: int) -> Pipeline:
    """TF-IDF of word 1- and 2-grams and of character 2- to 5-grams, with a linear support vector classifier, C 0.5."""
    features = make_union(
        # the default pattern drops single letters and emoji, and fails on a text of nothing else
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]"),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5)),
    )
    return make_pipeline(features, LinearSVC(C=0.5, random_state=seed)).fit(texts, labels)


def shipped_bytes(model: Pipeline) -> int:
    """What the classifier would weigh in an app: each term as UTF-8 with one byte to end it, and float32 numbers.

    The numbers are one IDF weight a term, one coefficient a term and class, and one intercept a class, uncompressed.
    """
    union, classifier = model.steps[0][1], model.steps[1][1]
    terms = [term for _, vectorizer in union.transformer_list for term in vectorizer.vocabulary_]
    text_bytes = sum(len(term.encode()) + 1 for term in terms)
    return text_bytes + 4 * (len(terms) + classifier.coef_.size + classifier.intercept_.size)


def _floor(
    name: str, labels: Sequence[int], predictions: list[int], *, size_bytes: int, latency_ms: float | None
) -> Floor:
    values = right(labels, predictions)
    return Floor(
        name=name,
        primary=mean_interval(values),
        further={MACRO_F1: macro_f1(labels, predictions)},
        size_bytes=size_bytes,
        latency_ms=latency_ms,
        predictions=tuple(predictions),
        values=tuple(values.tolist()),
    )


def _median_call_ms(model: Pipeline, texts: Sequence[str]) -> float:
    """One text a call, as an app would ask; the first, slower call is one of many and hardly moves a median."""
    samples_ns = []
    for text in texts[:TIMED_CALLS]:
        start = time.perf_counter_ns()
        model.predict([text])
        samples_ns.append(time.perf_counter_ns() - start)
    return float(np.median(samples_ns)) / 1e6
