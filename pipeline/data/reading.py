"""Files and the hub -> rows. Every problem is collected and reported with its file and line; no row is lost unseen."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base import plugins
from pipeline.base.errors import DataError, first_line
from pipeline.base.plugins import nearest
from pipeline.data.inputs import files_source, split_files
from pipeline.data.texts import MAX_CELL_CHARACTERS, name_of
from pipeline.settings.data import DataSettings, FilesSource, HubSource

if TYPE_CHECKING:
    from pipeline.tasks import Task

MAX_PROBLEMS_SHOWN = 12
PAIR = "pair"  # the second text, of tasks that take one


@dataclass(frozen=True, slots=True)
class Row:
    """One example; `where` is 'file:line' for messages, and `slice` is empty for a row of no slice."""

    id: str
    texts: tuple[str, ...]
    target: Any
    where: str
    slice: str = ""

    @property
    def text(self) -> str:
        """What two rows are compared by: all the text that a row has."""
        return "\n".join(self.texts)


def read_rows(settings: DataSettings, task: "Task", root: Path) -> dict[str, list[Row]]:
    """Split name -> its rows as they stand in the source; 'dev' only where the source has one.

    Raises:
        DataError: with every problem found: unreadable file, missing column, a row that cannot be one.
    """
    if settings.source == "hub":
        return _read_hub(settings.hub, task)
    return _read_files(files_source(settings, root), task)


def raise_if(problems: list[str]) -> None:
    """Raises one DataError with the first problems and how many more there are."""
    if problems:
        shown = problems[:MAX_PROBLEMS_SHOWN]
        more = [f"... and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise DataError("\n".join([*shown, *more]))


# --- a record and its row ----------------------------------------------------------------------------------------


def make_row(
    where: str,
    number: str,
    record: dict[Any, Any],
    task: "Task",
    named: Mapping[str, str | int],
    source: FilesSource | HubSource,
    problems: list[str],
) -> Row | None:
    """One row, or None with a problem.

    Args:
        where: for messages.
        number: its id, where the data has none.
        record: column -> value.
        task: what is to be learned.
        named: of `columns_of`.
        source: which columns hold ids and slices.
        problems: what is wrong goes here.
    """
    try:
        texts = tuple(_text(record.get(column)) for name, column in named.items() if name not in task.TARGETS)
    except ValueError as error:
        problems.append(f"{where}: {error}")
        return None
    try:
        target = task.read({name: record.get(named[name]) for name in task.TARGETS}, task.params)
    except ValueError as error:
        problems.append(f"{where}: {error} in column {', '.join(repr(named[name]) for name in task.TARGETS)}")
        return None
    id_column = getattr(source, "id", None)  # data sets on the hub have none
    if id_column is not None:
        if record.get(id_column) in (None, ""):
            problems.append(f"{where}: no id in column '{id_column}'")
            return None
        number = str(record[id_column])
    slice_column = getattr(source, "slice", None)  # nor slices
    return Row(number, texts, target, where, name_of(record.get(slice_column)) if slice_column is not None else "")


def columns_of(task: "Task", source: FilesSource | HubSource) -> dict[str, str | int]:
    """What the task calls a column -> the column, its texts first.

    Raises:
        DataError: the settings name one that the task has not.
    """
    known = (*task.TEXTS, *([PAIR] if len(task.TEXTS) == 1 else []), *task.TARGETS)
    for name in source.columns:
        if name not in known:
            raise DataError(f"data: columns names '{name}', which the task '{task.name}' has not{nearest(name, known)}")
    return {name: source.columns.get(name, name) for name in known if name != PAIR or name in source.columns}


def _text(value: Any) -> str:
    if isinstance(value, list | dict):
        raise ValueError(f"found a {type(value).__name__} as text, expected text")  # noqa: TRY004 - a user's mistake
    text = "" if value is None else str(value)
    if len(text) > MAX_CELL_CHARACTERS:
        raise ValueError(f"a text of {len(text):,} characters, expected at most {MAX_CELL_CHARACTERS:,}")
    if "\0" in text:
        raise ValueError("the text holds a NUL character; remove it")
    return text


def _check_columns(
    path: Path, named: Mapping[str, str | int], source: FilesSource, columns: Sequence[Any], line: int
) -> None:
    settings: dict[str, str | int | None] = {f"data.files.columns.{name}": column for name, column in named.items()}
    settings |= {"data.files.id": source.id, "data.files.slice": source.slice}
    wanted = [column for column in settings.values() if column is not None]
    missing = {key: column for key, column in settings.items() if column is not None and column not in columns}
    if missing:
        raise DataError(
            f"{path}:{line}: no column {', '.join(repr(c) for c in missing.values())}; found columns "
            f"{', '.join(repr(c) for c in columns)}; set {' and '.join(missing)} "
            "(numbers from 0 and header: false when the first row is data)"
        )
    twice = [column for column in wanted if list(columns).count(column) > 1]
    if twice:
        raise DataError(f"{path}:{line}: more than one column {', '.join(repr(c) for c in twice)}; rename the others")


# --- files -------------------------------------------------------------------------------------------------------


def _read_files(source: FilesSource, task: "Task") -> dict[str, list[Row]]:
    problems: list[str] = []
    splits = {}
    for split, path in split_files(source).items():
        before = len(problems)
        splits[split] = list(_read_file(split, path, task, source, problems))
        if not splits[split] and len(problems) == before:
            problems.append(f"{path}: no rows; expected at least one example")
    raise_if(problems)
    return splits


def _read_file(split: str, path: Path, task: "Task", source: FilesSource, problems: list[str]) -> Iterator[Row]:
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
        named = columns_of(task, source)
        check = partial(_check_columns, path, named, source)
        for line, record in plugins.load("reader", ending).read(path, source, check, problems):
            row = make_row(f"{path}:{line}", f"{split}-{line}", record, task, named, source, problems)
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


def _read_hub(source: HubSource, task: "Task") -> dict[str, list[Row]]:
    import datasets

    names = {"train": source.train, "dev": source.dev, "test": source.test}
    named = columns_of(task, source)
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
        missing = [column for column in named.values() if column not in table.column_names]
        if missing:
            raise DataError(f"{source.dataset}: no column {missing}; found {table.column_names}; set data.hub.columns")
        classes = {
            column: feature.names
            for column, feature in table.features.items()
            if isinstance(feature, datasets.ClassLabel)
        }
        splits[split] = []
        for i, record in enumerate(table):
            for column, labels in classes.items():  # -1 is the hub's mark for a hidden label
                number = record[column]
                record[column] = labels[number] if number is not None and number >= 0 else None
            row = make_row(f"{source.dataset} {name}[{i}]", f"{split}-{i}", record, task, named, source, problems)
            splits[split] += [row] if row is not None else []
        if not len(table):
            problems.append(f"{source.dataset}: split '{name}' has no rows; expected at least one example")
    raise_if(problems)
    return splits
