"""The prepared splits as text: one JSON object a line for people to read, and read here without holding the text."""

import json
import mmap
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from pipeline.data.reading import Row
    from pipeline.data.splits import Dataset
    from pipeline.tasks import Task

SPLITS = ("train", "dev", "test")
SPACE = "space.json"  # what the task's answers are made of
UNLABELLED = -100  # the target of a text that has none, as torch marks it


@dataclass(frozen=True)
class Examples:
    """One prepared split in file order: ids, texts, targets as the task numbers them, and what rows are grouped by."""

    ids: Sequence[str]
    texts: Sequence[tuple[str, ...]]
    numbers: tuple[Any, ...]
    groups: tuple[str, ...] = ()  # of the task; empty when it has none
    slices: tuple[str, ...] = ()  # of the data; empty when no row has one

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> "Examples":
        """Only these rows, in this order."""
        picked = list(indices)
        return replace(
            self,
            ids=tuple(self.ids[i] for i in picked),
            texts=tuple(self.texts[i] for i in picked),
            numbers=tuple(self.numbers[i] for i in picked),
            groups=tuple(self.groups[i] for i in picked) if self.groups else (),
            slices=tuple(self.slices[i] for i in picked) if self.slices else (),
        )


class Column(Sequence[Any]):
    """One value of every line of a JSON-lines file, read when it is asked for: a line takes 8 bytes of memory."""

    def __init__(self, content: bytes | mmap.mmap, starts: Sequence[int], key: str) -> None:
        self._content, self._starts, self._key = content, starts, key

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        value = json.loads(self._content[self._starts[row] : self._starts[row + 1]])[self._key]
        return tuple(value) if isinstance(value, list) else value


class Texts(Sequence[str]):
    """All the text of some rows, read when it is asked for."""

    def __init__(self, rows: Sequence[tuple[str, ...]], picked: Sequence[int]) -> None:
        self._rows, self._picked = rows, picked

    def __len__(self) -> int:
        return len(self._picked)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return "\n".join(self._rows[self._picked[index]])


def write_prepared(dataset: "Dataset", folder: Path) -> None:
    """Writes `<split>.jsonl` and `space.json`."""
    for split, rows in dataset.splits.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(_prepared(row, dataset.task), ensure_ascii=True) + "\n" for row in rows)
    (folder / SPACE).write_text(dataset.task.space.model_dump_json(indent=1) + "\n", "utf-8")


def _prepared(row: "Row", task: "Task") -> dict[str, Any]:
    record = {"id": row.id, "texts": row.texts, "target": row.target, "number": task.number(row.target, task.space)}
    further = {"group": task.group(row.target), "slice": row.slice or None}
    return {**record, **{name: value for name, value in further.items() if value is not None}}


def read_prepared(folder: Path, split: str) -> Examples:
    """One split of the prepared data. The caller verifies the folder's card first."""
    starts, numbers = array("q", [0]), []
    named: dict[str, list[str]] = {"group": [], "slice": []}
    with (folder / f"{split}.jsonl").open("rb") as file:
        for line in file:
            record = json.loads(line)
            starts.append(starts[-1] + len(line))
            numbers.append(record["number"])
            for key, names in named.items():
                names.append(sys.intern(record.get(key, "")))  # one object for each, however many rows are in it
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if numbers else b""
    return Examples(
        ids=Column(content, starts, "id"),
        texts=Column(content, starts, "texts"),
        numbers=tuple(numbers),
        groups=tuple(named["group"]) if any(named["group"]) else (),
        slices=tuple(named["slice"]) if any(named["slice"]) else (),
    )
