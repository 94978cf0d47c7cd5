"""Rows -> three splits without leaks: what is empty, twice or in two splits is refused, or taken out and counted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.base.errors import DataError
from pipeline.data.duplicates import near_duplicates
from pipeline.data.examples import SPLITS
from pipeline.data.reading import Row, raise_if, read_rows
from pipeline.data.texts import normalise
from pipeline.data.unlabelled import keep_few
from pipeline.settings.data import DataSettings

if TYPE_CHECKING:
    from pipeline.tasks import Task


@dataclass(frozen=True)
class Dataset:
    """Three splits, the task with the space of its answers, and what was found on the way."""

    splits: dict[str, list[Row]]
    task: "Task"
    findings: dict[str, Any]
    rest: list[Row] = field(default_factory=list)  # of train, which the settings leave without their label


def load_dataset(settings: DataSettings, task: "Task", root: Path, seed: int) -> Dataset:
    """The data set that the settings describe, checked.

    Rows of train and dev whose text is also in test are taken out and counted. A dev split is cut off train, stratified
    by what the task groups rows by with the seed, when none is given.

    Raises:
        DataError: with every problem found: unreadable file, missing column, empty text, duplicate id, what the task
            cannot learn from, or too many near duplicates between splits.
    """
    splits, dropped_empty = _handle_empty(read_rows(settings, task, root), settings.empty_text)
    _check_rows(splits, task)
    task = replace(task, space=task.learn_space([row.target for row in splits["train"]]))
    splits, leaked = _remove_leaks(splits, task)
    if "dev" not in splits:
        splits["train"], splits["dev"] = _cut_dev(splits["train"], task, settings.dev_fraction, seed)
    rest: list[Row] = []
    near = _find_near_duplicates(splits, settings)  # of the rest as well, whose text may be learned from
    if settings.labels_per_class is not None:
        splits["train"], rest = keep_few(splits["train"], task, settings.labels_per_class, seed)
    findings = {
        "rows": {name: len(splits[name]) for name in SPLITS},
        **task.facts({name: [row.target for row in splits[name]] for name in SPLITS}, task.space),
        "empty_rows_dropped": dropped_empty,
        "rows_also_in_test_removed": leaked,
        "rows_without_label": len(rest),
        "near_duplicates": near,
    }
    return Dataset({name: splits[name] for name in SPLITS}, task, findings, rest)


def _handle_empty(splits: dict[str, list[Row]], policy: str) -> tuple[dict[str, list[Row]], int]:
    empty = [row for rows in splits.values() for row in rows if not all(text.strip() for text in row.texts)]
    if empty and policy == "refuse":
        raise_if(
            [
                f"{row.where}: empty text; fill it in, or set data.empty_text to drop (it will be counted)"
                for row in empty
            ]
        )
    kept = {name: [row for row in rows if all(text.strip() for text in row.texts)] for name, rows in splits.items()}
    return kept, len(empty)


def _check_rows(splits: dict[str, list[Row]], task: "Task") -> None:
    problems = [f"{split} has no row with a text; expected at least one" for split in splits if not splits[split]]
    seen: dict[str, Row] = {}
    for row in (row for rows in splits.values() for row in rows):
        if row.id in seen:
            problems.append(f"{row.where}: id '{row.id}' is also at {seen[row.id].where}; ids must differ")
        seen.setdefault(row.id, row)
    problems += task.find_problems({name: [(row.where, row.target) for row in rows] for name, rows in splits.items()})
    raise_if(problems)


def _remove_leaks(splits: dict[str, list[Row]], task: "Task") -> tuple[dict[str, list[Row]], dict[str, int]]:
    """Takes rows out of train (and dev) whose text is in test (or dev): no test row may reach training."""
    test = {normalise(row.text) for row in splits["test"]}
    dev = {normalise(row.text) for row in splits.get("dev", [])} - test
    out, removed = dict(splits), {}
    for split, banned in (("train", test | dev), ("dev", test)):
        if split in splits:
            out[split] = [row for row in splits[split] if normalise(row.text) not in banned]
            removed[split] = len(splits[split]) - len(out[split])
    for split in removed:
        if not out[split]:
            raise DataError(f"every row of {split} is also in another split; give splits that differ")
    lost = _groups(splits["train"], task) - _groups(out["train"], task)
    if lost:
        raise DataError(
            f"every row of train with label {_quoted(lost)} is also in dev or test; give other splits, or more rows"
        )
    return out, removed


def _groups(rows: Iterable[Row], task: "Task") -> set[str]:
    return {group for row in rows if (group := task.group(row.target)) is not None}


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


def _cut_dev(rows: list[Row], task: "Task", fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Stratified by the task's groups; rows with the same text stay on the same side, so that dev is unseen."""
    from sklearn.model_selection import train_test_split

    number: dict[str, int] = {}
    text_of = np.array([number.setdefault(normalise(row.text), len(number)) for row in rows])  # row -> number of text
    _, first = np.unique(text_of, return_index=True)
    # Numbers in the order of the names: an array of names would take a long name's room for each row.
    order = {name: i for i, name in enumerate(sorted(_groups(rows, task)))}
    groups = np.array([order.get(task.group(rows[i].target), len(order)) for i in first])
    stratify: np.ndarray | None = groups
    counts = np.bincount(groups)
    if counts[counts > 0].min() < 2 or round(fraction * len(groups)) < np.count_nonzero(counts):
        stratify = None  # too few rows to give each group one in dev
    if len(groups) < 2:
        raise DataError("train has one text only, so no dev split can be cut off it; give a dev split or more rows")
    _, dev_texts = train_test_split(np.arange(len(groups)), test_size=fraction, random_state=seed, stratify=stratify)
    in_dev = np.isin(text_of, dev_texts)
    train = [row for row, is_dev in zip(rows, in_dev, strict=True) if not is_dev]
    lost = _groups(rows, task) - _groups(train, task)
    if lost:
        raise DataError(f"cutting dev off train left no row of {_quoted(lost)}; give a dev split or more rows")
    return train, [row for row, is_dev in zip(rows, in_dev, strict=True) if is_dev]


def _find_near_duplicates(splits: dict[str, list[Row]], settings: DataSettings) -> dict[str, Any]:
    """Rows of test that are almost rows of train or dev, and rows of dev that are almost rows of train.

    Raises:
        DataError: too many of test. Dev decides no figure that is reported, so those of dev are only counted.
    """
    texts = {name: [row.text for row in splits[name]] for name in SPLITS}
    similarity = settings.near_duplicates.similarity
    count, examples = count_near(texts["test"], [*texts["train"], *texts["dev"]], settings, "train or dev")
    dev_count, dev_examples = near_duplicates(texts["dev"], texts["train"], similarity)
    return {
        "test_rows": count,
        "examples": examples,
        "dev_rows": dev_count,
        "dev_examples": dev_examples,
        "similarity": similarity,
        "share_of_test": round(count / len(texts["test"]), 5),
        "share_of_dev": round(dev_count / len(texts["dev"]), 5),
    }


def count_near(
    test: Sequence[str], known: Sequence[str], settings: DataSettings, where: str
) -> tuple[int, list[tuple[str, str]]]:
    """How many texts of test are almost texts of `known`, which `where` names, with examples.

    Raises:
        DataError: too many.
    """
    similarity, most = settings.near_duplicates.similarity, settings.near_duplicates.max_share
    count, examples = near_duplicates(test, known, similarity)
    if count > most * len(test):
        shown = "; ".join(f"'{a}' ~ '{b}'" for a, b in examples[:3])
        raise DataError(
            f"{count} of {len(test)} test rows ({count / len(test):.1%}) have a near duplicate in {where} "
            f"(similarity >= {similarity}), at most {most:.1%} allowed, for example {shown}; "
            "remove them, or raise data.near_duplicates.max_share knowingly"
        )
    return count, examples
