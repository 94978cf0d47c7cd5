"""Files and the hub -> rows. Every problem is collected and reported with its file and line; no row is lost unseen."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.base import plugins
from pipeline.base.errors import DataError, first_line
from pipeline.data.inputs import files_source, split_files
from pipeline.data.texts import MAX_CELL_CHARACTERS, clean
from pipeline.settings.params import DataSettings, FilesSource, HubSource

MAX_PROBLEMS_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Row:
    """One example; `where` is 'file:line' for messages, and `slice` is empty for a row of no slice."""

    id: str
    text: str
    label: str
    where: str
    slice: str = ""


def read_rows(settings: DataSettings, root: Path) -> dict[str, list[Row]]:
    """Split name -> its rows as they stand in the source; 'dev' only where the source has one.

    Raises:
        DataError: with every problem found: unreadable file, missing column, a row that cannot be one.
    """
    return _read_hub(settings.hub) if settings.source == "hub" else _read_files(files_source(settings, root))


def raise_if(problems: list[str]) -> None:
    """Raises one DataError with the first problems and how many more there are."""
    if problems:
        shown = problems[:MAX_PROBLEMS_SHOWN]
        more = [f"... and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise DataError("\n".join([*shown, *more]))


# --- a record and its row ----------------------------------------------------------------------------------------


def make_row(
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
    if "\0" in text or "\0" in label:
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
    return sys.intern(clean(str(value)).strip())  # a million rows have few labels


def _check_columns(path: Path, source: FilesSource, columns: Sequence[Any], line: int) -> None:
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


# --- files -------------------------------------------------------------------------------------------------------


def _read_files(source: FilesSource) -> dict[str, list[Row]]:
    problems: list[str] = []
    splits = {}
    for split, path in split_files(source).items():
        before = len(problems)
        splits[split] = list(_read_file(split, path, source, problems))
        if not splits[split] and len(problems) == before:
            problems.append(f"{path}: no rows; expected at least one example")
    raise_if(problems)
    return splits


def _read_file(split: str, path: Path, source: FilesSource, problems: list[str]) -> Iterator[Row]:
    """Rows of one file; what is wrong with it goes into `problems`."""
    known, ending = plugins.names("reader"), path.suffix.removeprefix(".")
    if ending not in known:
        endings = ", ".join(f".{name}" for name in known)
        problems.append(f"{path}: unknown ending '{path.suffix}', expected one of {endings}")
        return
    if not path.is_file():
        problems.append(f"{path}: no such file; check data.files in params.yaml")
        return
    try:
        check = partial(_check_columns, path, source)
        for line, record in plugins.load("reader", ending).read(path, source, check, problems):
            row = make_row(f"{path}:{line}", f"{split}-{line}", record, source, problems)
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


# --- the hub -----------------------------------------------------------------------------------------------------


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
            row = make_row(f"{source.dataset} {name}[{i}]", f"{split}-{i}", record, source, problems)
            splits[split] += [row] if row is not None else []
        if not len(table):
            problems.append(f"{source.dataset}: split '{name}' has no rows; expected at least one example")
    raise_if(problems)
    return splits
