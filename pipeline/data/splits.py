"""Rows -> three splits without leaks: what is empty, twice or in two splits is refused, or taken out and counted."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import DataError
from pipeline.data.duplicates import near_duplicates
from pipeline.data.examples import SPLITS
from pipeline.data.reading import Row, raise_if, read_rows
from pipeline.data.texts import normalise
from pipeline.settings.params import DataSettings


@dataclass(frozen=True)
class Dataset:
    """Three splits, the label names in class order, and what was found on the way."""

    splits: dict[str, list[Row]]
    labels: tuple[str, ...]
    findings: dict[str, Any]


def load_dataset(settings: DataSettings, root: Path, seed: int) -> Dataset:
    """The data set that the settings describe, checked.

    Rows of train and dev whose text is also in test are taken out and counted. A dev split is cut off train, stratified
    by label with the seed, when none is given.

    Raises:
        DataError: with every problem found: unreadable file, missing column, empty text, duplicate id, unknown label in
            dev or test, a class with too few rows, or too many near duplicates between splits.
    """
    splits, dropped_empty = _handle_empty(read_rows(settings, root), settings.empty_text)
    _check_rows(splits)
    labels = tuple(sorted({row.label for row in splits["train"]}, key=_label_order))
    splits, leaked = _remove_leaks(splits)
    if "dev" not in splits:
        splits["train"], splits["dev"] = _cut_dev(splits["train"], settings.dev_fraction, seed)
    findings = {
        "rows": {name: len(splits[name]) for name in SPLITS},
        "classes": len(labels),
        "smallest_class": {name: _smallest_class(splits[name], labels) for name in SPLITS},
        "empty_rows_dropped": dropped_empty,
        "rows_also_in_test_removed": leaked,
        "near_duplicates": _find_near_duplicates(splits, settings),
    }
    return Dataset({name: splits[name] for name in SPLITS}, labels, findings)


def _label_order(label: str) -> tuple[int, int, str]:
    """Numbers in numeric order, before names in alphabetic order. Text decides between '1' and '01'."""
    return (0, int(label), label) if re.fullmatch(r"[0-9]{1,18}", label) else (1, 0, label)


def _handle_empty(splits: dict[str, list[Row]], policy: str) -> tuple[dict[str, list[Row]], int]:
    empty = [row for rows in splits.values() for row in rows if not row.text.strip()]
    if empty and policy == "refuse":
        raise_if(
            [
                f"{row.where}: empty text; fill it in, or set data.empty_text to drop (it will be counted)"
                for row in empty
            ]
        )
    kept = {name: [row for row in rows if row.text.strip()] for name, rows in splits.items()}
    return kept, len(empty)


def _check_rows(splits: dict[str, list[Row]]) -> None:
    problems = [f"{split} has no row with a text; expected at least one" for split in splits if not splits[split]]
    seen: dict[str, Row] = {}
    for row in (row for rows in splits.values() for row in rows):
        if row.id in seen:
            problems.append(f"{row.where}: id '{row.id}' is also at {seen[row.id].where}; ids must differ")
        seen.setdefault(row.id, row)
    counts = Counter(row.label for row in splits["train"])
    if len(counts) < 2 and splits["train"]:
        problems.append(f"train has {len(counts)} class(es), expected at least 2; check the label column")
    for label, count in sorted(counts.items()):
        if count < 2:
            problems.append(f"class '{label}' has 1 row in train, expected at least 2; add rows or remove the class")
    for split in ("dev", "test"):
        for row in splits.get(split, []):
            if row.label not in counts:
                problems.append(f"{row.where}: label '{row.label}' is not in train; a model cannot learn it")
    raise_if(problems)


def _remove_leaks(splits: dict[str, list[Row]]) -> tuple[dict[str, list[Row]], dict[str, int]]:
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
    lost = {row.label for row in splits["train"]} - {row.label for row in out["train"]}
    if lost:
        raise DataError(
            f"every row of train with label {_quoted(lost)} is also in dev or test; give other splits, or more rows"
        )
    return out, removed


def _quoted(labels: Iterable[str]) -> str:
    return ", ".join(f"'{label}'" for label in sorted(labels))


def _cut_dev(rows: list[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Stratified by label; rows with the same text stay on the same side, so that dev is unseen."""
    from sklearn.model_selection import train_test_split

    number: dict[str, int] = {}
    text_of = np.array([number.setdefault(normalise(row.text), len(number)) for row in rows])  # row -> number of text
    _, first = np.unique(text_of, return_index=True)
    # Numbers in the order of the names: an array of names would take a long name's room for each row.
    order = {label: i for i, label in enumerate(sorted({row.label for row in rows}))}
    labels = np.array([order[rows[i].label] for i in first])
    stratify: np.ndarray | None = labels
    counts = np.bincount(labels)
    if counts[counts > 0].min() < 2 or round(fraction * len(labels)) < np.count_nonzero(counts):
        stratify = None  # too few rows to give each class one in dev
    if len(labels) < 2:
        raise DataError("train has one text only, so no dev split can be cut off it; give a dev split or more rows")
    _, dev_texts = train_test_split(np.arange(len(labels)), test_size=fraction, random_state=seed, stratify=stratify)
    in_dev = np.isin(text_of, dev_texts)
    train = [row for row, is_dev in zip(rows, in_dev, strict=True) if not is_dev]
    lost = {row.label for row in rows} - {row.label for row in train}
    if lost:
        raise DataError(f"cutting dev off train left no row of {_quoted(lost)}; give a dev split or more rows")
    return train, [row for row, is_dev in zip(rows, in_dev, strict=True) if is_dev]


def _smallest_class(rows: Iterable[Row], labels: Sequence[str]) -> int:
    counts = Counter(row.label for row in rows)
    return min(counts.get(label, 0) for label in labels)


def _find_near_duplicates(splits: dict[str, list[Row]], settings: DataSettings) -> dict[str, Any]:
    """Rows of test that are almost rows of train or dev, and rows of dev that are almost rows of train.

    Raises:
        DataError: too many of test. Dev decides no figure that is reported, so those of dev are only counted.
    """
    texts = {name: [row.text for row in splits[name]] for name in SPLITS}
    similarity, most = settings.near_duplicates.similarity, settings.near_duplicates.max_share
    count, examples = near_duplicates(texts["test"], [*texts["train"], *texts["dev"]], similarity)
    share = count / len(texts["test"])
    if share > most:
        shown = "; ".join(f"'{a}' ~ '{b}'" for a, b in examples[:3])
        raise DataError(
            f"{count} of {len(texts['test'])} test rows ({share:.1%}) have a near duplicate in train "
            f"or dev (similarity >= {similarity}), at most {most:.1%} allowed, for example {shown}; "
            "remove them, or raise data.near_duplicates.max_share knowingly"
        )
    dev_count, dev_examples = near_duplicates(texts["dev"], texts["train"], similarity)
    return {
        "test_rows": count,
        "examples": examples,
        "dev_rows": dev_count,
        "dev_examples": dev_examples,
        "similarity": similarity,
        "share_of_test": round(share, 5),
        "share_of_dev": round(dev_count / len(texts["dev"]), 5),
    }
