"""Reading a data set, splitting it, finding leaks, and encoding text.

Every problem with a row is collected and reported with its file and line; no row is dropped without being counted.
"""

import csv
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.base.errors import DataError, first_line
from pipeline.data.inputs import files_source, split_files
from pipeline.settings.params import DataSettings, FilesSource, HubSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "dev", "test")
MAX_CELL_CHARACTERS = 100_000
MAX_PROBLEMS_SHOWN = 12


@dataclass(frozen=True)
class Row:
    """One example; `where` is 'file:line' for messages, and `slice` is empty for a row of no slice."""

    id: str
    text: str
    label: str
    where: str
    slice: str = ""


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
    splits = _read_hub(settings.hub) if settings.source == "hub" else _read_files(files_source(settings, root))
    splits, dropped_empty = _handle_empty(splits, settings.empty_text)
    _check_rows(splits)
    labels = tuple(sorted({row.label for row in splits["train"]}, key=_label_order))
    splits, leaked = _remove_leaks(splits)
    if "dev" not in splits:
        splits["train"], splits["dev"] = _cut_dev(splits["train"], settings.dev_fraction, seed)
    near = near_duplicates(splits, settings.near_duplicates.similarity)
    share = near["test_rows"] / len(splits["test"])
    if share > settings.near_duplicates.max_share:
        examples = "; ".join(f"'{a}' ~ '{b}'" for a, b in near["examples"][:3])
        raise DataError(
            f"{near['test_rows']} of {len(splits['test'])} test rows ({share:.1%}) have a near duplicate in train "
            f"or dev (similarity >= {settings.near_duplicates.similarity}), at most "
            f"{settings.near_duplicates.max_share:.1%} allowed, for example {examples}; "
            "remove them, or raise data.near_duplicates.max_share knowingly"
        )
    findings = {
        "rows": {name: len(splits[name]) for name in SPLITS},
        "classes": len(labels),
        "smallest_class": {name: _smallest_class(splits[name], labels) for name in SPLITS},
        "empty_rows_dropped": dropped_empty,
        "rows_also_in_test_removed": leaked,
        "near_duplicates": {
            **near,
            "similarity": settings.near_duplicates.similarity,
            "share_of_test": round(share, 5),
        },
    }
    return Dataset({name: splits[name] for name in SPLITS}, labels, findings)


def _label_order(label: str) -> tuple[int, int, str]:
    """Numbers in numeric order, before names in alphabetic order. Text decides between '1' and '01'."""
    return (0, int(label), label) if re.fullmatch(r"[0-9]{1,18}", label) else (1, 0, label)


# --- reading -----------------------------------------------------------------------------------------------------


def _read_files(source: FilesSource) -> dict[str, list[Row]]:
    problems: list[str] = []
    splits = {}
    for split, path in split_files(source).items():
        before = len(problems)
        splits[split] = list(_read_file(split, path, source, problems))
        if not splits[split] and len(problems) == before:
            problems.append(f"{path}: no rows; expected at least one example")
    _raise_if(problems)
    return splits


def _read_file(split: str, path: Path, source: FilesSource, problems: list[str]) -> Iterator[Row]:
    """Rows of one file; what is wrong with it goes into `problems`."""
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        problems.append(f"{path}: unknown ending '{path.suffix}', expected one of {', '.join(readers)}")
        return
    if not path.is_file():
        problems.append(f"{path}: no such file; check data.files in params.yaml")
        return
    try:
        for line, record in readers[path.suffix](path, source, problems):
            row = _make_row(f"{path}:{line}", f"{split}-{line}", record, source, problems)
            if row is not None:
                yield row
    except UnicodeDecodeError:
        problems.append(f"{path}:{_line_not_utf8(path)}: a byte that is not UTF-8; save the file as UTF-8")
    except DataError as error:
        problems.append(str(error))


def _line_not_utf8(path: Path) -> int | str:
    """The first line with a byte that is not UTF-8: the decoder itself knows only the place in its buffer."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return "?"


def _make_row(
    where: str, number: str, record: dict[Any, Any], source: FilesSource | HubSource, problems: list[str]
) -> Row | None:
    """One row, or None with a problem. `number` becomes its id where the data has none."""
    text, label = record.get(source.text), record.get(source.label)
    wrong = next((value for value in (text, label) if isinstance(value, list | dict)), None)
    if wrong is not None:
        problems.append(f"{where}: found a {type(wrong).__name__} as text or label, expected text")
        return None
    label = _name(label)
    if label == "":
        problems.append(f"{where}: no label in column '{source.label}'")
        return None
    text = "" if text is None else str(text)
    if len(text) > MAX_CELL_CHARACTERS:
        problems.append(f"{where}: a text of {len(text):,} characters, expected at most {MAX_CELL_CHARACTERS:,}")
        return None
    if "\0" in text + label:
        problems.append(f"{where}: the text or label holds a NUL character; remove it")
        return None
    id_column = getattr(source, "id", None)  # data sets on the hub have none
    if id_column is not None:
        if record.get(id_column) in (None, ""):
            problems.append(f"{where}: no id in column '{id_column}'")
            return None
        number = str(record[id_column])
    slice_column = getattr(source, "slice", None)  # nor slices
    return Row(number, text, label, where, _name(record.get(slice_column)) if slice_column is not None else "")


def _name(value: Any) -> str:
    """A label or slice as a name; empty when there is none, which pandas writes as NaN."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # Parquet gives 1.0 where a column has gaps
    return clean(str(value)).strip()


def _read_csv(path: Path, source: FilesSource, problems: list[str]) -> Iterator[tuple[int, dict[Any, Any]]]:
    delimiter = "\t" if path.suffix == ".tsv" else ","
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if source.quoting else csv.QUOTE_NONE
    csv.field_size_limit(20 * MAX_CELL_CHARACTERS)
    # utf-8-sig takes a byte order mark away; newline="" leaves line ends inside quotes to the csv module.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        try:
            columns: Sequence[Any] | None = None
            for cells in reader:
                if not cells:
                    continue
                if columns is None:
                    columns = cells if source.header else list(range(len(cells)))
                    _check_columns(path, columns, source)
                    if source.header:
                        continue
                if len(cells) != len(columns):
                    problems.append(
                        f"{path}:{reader.line_num}: {len(cells)} cells, expected {len(columns)} "
                        "(an unquoted delimiter in the text, or data.files.quoting is wrong?)"
                    )
                    continue
                yield reader.line_num, dict(zip(columns, cells, strict=True))
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not valid {path.suffix[1:].upper()}: {error}") from error


def _read_jsonl(path: Path, source: FilesSource, problems: list[str]) -> Iterator[tuple[int, dict[Any, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except UnicodeDecodeError:
                raise
            except (ValueError, RecursionError):
                problems.append(f"{path}:{number}: not JSON, expected one object a line")
                continue
            if not isinstance(record, dict):
                problems.append(f"{path}:{number}: found {type(record).__name__}, expected a JSON object")
                continue
            _check_columns(path, list(record), source, number)
            yield number, record


def _read_parquet(path: Path, source: FilesSource, problems: list[str]) -> Iterator[tuple[int, dict[Any, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {first_line(error)}") from error
    _check_columns(path, table.column_names, source)
    yield from enumerate(table.to_pylist(), start=1)


def _check_columns(path: Path, columns: Sequence[Any], source: FilesSource, line: int = 1) -> None:
    settings = {"text": source.text, "label": source.label, "id": source.id, "slice": source.slice}
    wanted = [column for column in settings.values() if column is not None]
    missing = {key: column for key, column in settings.items() if column is not None and column not in columns}
    if missing:
        raise DataError(
            f"{path}:{line}: no column {', '.join(repr(c) for c in missing.values())}; found columns "
            f"{', '.join(repr(c) for c in columns)}; set {' and '.join(f'data.files.{key}' for key in missing)} "
            "(numbers from 0 and header: false when the first row is data)"
        )
    twice = [column for column in wanted if list(columns).count(column) > 1]
    if twice:
        raise DataError(f"{path}:{line}: more than one column {', '.join(repr(c) for c in twice)}; rename the others")


def _read_hub(source: HubSource) -> dict[str, list[Row]]:
    import datasets

    names = {"train": source.train, "dev": source.dev, "test": source.test}
    splits: dict[str, list[Row]] = {}
    problems: list[str] = []
    for split, name in names.items():
        if name is None:
            continue
        try:
            table = datasets.load_dataset(source.dataset, source.config, split=name, revision=source.revision)
        except Exception as error:  # datasets raises many classes, from OSError to its own
            raise DataError(
                f"cannot load split '{name}' of data set '{source.dataset}' from the hub: "
                f"{first_line(error)}; check the id, the network, or give files with --files"
            ) from error
        missing = [column for column in (source.text, source.label) if column not in table.column_names]
        if missing:
            raise DataError(f"{source.dataset}: no column {missing}; found {table.column_names}; set data.hub")
        feature = table.features[source.label]
        classes = feature.names if isinstance(feature, datasets.ClassLabel) else None
        splits[split] = []
        for i, record in enumerate(table):
            number = record[source.label]
            if classes is not None:  # -1 is the hub's mark for a hidden label
                record = {**record, source.label: classes[number] if number is not None and number >= 0 else None}
            row = _make_row(f"{source.dataset} {name}[{i}]", f"{split}-{i}", record, source, problems)
            splits[split] += [row] if row is not None else []
        if not len(table):
            problems.append(f"{source.dataset}: split '{name}' has no rows; expected at least one example")
    _raise_if(problems)
    return splits


# --- checking ----------------------------------------------------------------------------------------------------


def _raise_if(problems: list[str]) -> None:
    if problems:
        shown = problems[:MAX_PROBLEMS_SHOWN]
        more = [f"... and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise DataError("\n".join([*shown, *more]))


def _handle_empty(splits: dict[str, list[Row]], policy: str) -> tuple[dict[str, list[Row]], int]:
    empty = [row for rows in splits.values() for row in rows if not row.text.strip()]
    if empty and policy == "refuse":
        _raise_if(
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
    _raise_if(problems)


def normalise(text: str) -> str:
    """Text for comparing: lower case, letters and digits only, single spaces. Other scripts are kept.

    Composed and decomposed accents are one; vowel signs of Indic scripts, which are marks, stay in their word.
    """
    text = unicodedata.normalize("NFC", text)
    kept = (c if c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M" else " " for c in text.lower())
    # A mark alone is what is left of an emoji.
    words = [word for word in "".join(kept).split() if any(c.isalnum() or c == "_" for c in word)]
    return " ".join(words) if words else text.strip()  # only emoji or punctuation: compare it as it is


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

    first = {normalise(row.text): row for row in reversed(rows)}
    texts = list(first)
    labels = [first[text].label for text in texts]
    stratify: list[str] | None = labels
    if min(Counter(labels).values()) < 2 or round(fraction * len(texts)) < len(set(labels)):
        stratify = None  # too few rows to give each class one in dev
    if len(texts) < 2:
        raise DataError("train has one text only, so no dev split can be cut off it; give a dev split or more rows")
    _, dev_texts = train_test_split(texts, test_size=fraction, random_state=seed, stratify=stratify)
    in_dev = set(dev_texts)
    train = [row for row in rows if normalise(row.text) not in in_dev]
    lost = {row.label for row in rows} - {row.label for row in train}
    if lost:
        raise DataError(f"cutting dev off train left no row of {_quoted(lost)}; give a dev split or more rows")
    return train, [row for row in rows if normalise(row.text) in in_dev]


def _smallest_class(rows: Iterable[Row], labels: Sequence[str]) -> int:
    counts = Counter(row.label for row in rows)
    return min(counts.get(label, 0) for label in labels)


def near_duplicates(splits: dict[str, list[Row]], similarity: float) -> dict[str, Any]:
    """Test rows that are almost a row of train or dev: cosine of character 4-gram counts of the normalised text."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import normalize

    known = [row.text for split in ("train", "dev") for row in splits.get(split, [])]
    test = [row.text for row in splits["test"]]
    vectorizer = CountVectorizer(analyzer="char_wb", ngram_range=(4, 4), preprocessor=normalise, dtype=np.float64)
    matrix = normalize(vectorizer.fit_transform([*known, *test]))
    known_matrix, test_matrix = matrix[: len(known)], matrix[len(known) :]
    examples: list[tuple[str, str]] = []
    highest: list[float] = []
    count = 0
    for start in range(0, len(test), 512):  # blocks bound the memory of the product
        block = (test_matrix[start : start + 512] @ known_matrix.T).toarray()
        best = block.argmax(axis=1)
        values = block[np.arange(len(best)), best]
        highest.extend(values.tolist())
        hits = np.flatnonzero(values >= similarity)
        count += len(hits)
        examples += [(test[start + i], known[best[i]]) for i in hits[: max(0, 5 - len(examples))]]
    return {"test_rows": count, "examples": examples, "median_similarity": round(float(np.median(highest)), 4)}


# --- prepared data -----------------------------------------------------------------------------------------------


def write_prepared(dataset: Dataset, folder: Path) -> None:
    """Writes `<split>.jsonl` and `labels.json`."""
    for split, rows in dataset.splits.items():
        lines = (json.dumps(_prepared(row), ensure_ascii=True) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text("".join(lines), "utf-8", newline="\n")
    (folder / "labels.json").write_text(json.dumps(dataset.labels, indent=1) + "\n", "utf-8")


def _prepared(row: Row) -> dict[str, str]:
    record = {"id": row.id, "text": row.text, "label": row.label}
    return {**record, "slice": row.slice} if row.slice else record


@dataclass(frozen=True)
class Examples:
    """One prepared split in file order: ids, texts, class numbers, and slices, empty when no row has one."""

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    slices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> "Examples":
        """Only these rows, in this order."""
        picked = list(indices)
        return replace(
            self,
            ids=tuple(self.ids[i] for i in picked),
            texts=tuple(self.texts[i] for i in picked),
            labels=tuple(self.labels[i] for i in picked),
            slices=tuple(self.slices[i] for i in picked) if self.slices else (),
        )


def read_prepared(folder: Path, split: str) -> Examples:
    """One split of the prepared data. The caller verifies the folder's card first."""
    names = tuple(json.loads((folder / "labels.json").read_text("utf-8")))
    number = {name: i for i, name in enumerate(names)}
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    slices = tuple(record.get("slice", "") for record in records)
    return Examples(
        ids=tuple(record["id"] for record in records),
        texts=tuple(record["text"] for record in records),
        labels=tuple(number[record["label"]] for record in records),
        names=names,
        slices=slices if any(slices) else (),
    )


# --- encoding ----------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Text that every tokenizer takes: a lone surrogate becomes a question mark, NUL goes."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each text with special tokens, cut to `max_length`. Never empty: special tokens remain."""
    if not texts:
        return []
    return tokenizer([clean(text) for text in texts], truncation=True, max_length=max_length)["input_ids"]
