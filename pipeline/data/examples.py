"""The prepared splits as text: one JSON object a line for people to read, and read here without holding the text."""

import json
import mmap
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from pipeline.data.reading import Row
    from pipeline.data.splits import Dataset

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Examples:
    """One prepared split in file order: ids, texts, class numbers, and slices, empty when no row has one."""

    ids: Sequence[str]
    texts: Sequence[str]
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


class Column(Sequence[str]):
    """One value of every line of a JSON-lines file, read when it is asked for: a line takes 8 bytes of memory."""

    def __init__(self, content: bytes | mmap.mmap, starts: Sequence[int], key: str) -> None:
        self._content, self._starts, self._key = content, starts, key

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        return json.loads(self._content[self._starts[row] : self._starts[row + 1]])[self._key]


def write_prepared(dataset: "Dataset", folder: Path) -> None:
    """Writes `<split>.jsonl` and `labels.json`."""
    for split, rows in dataset.splits.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(_prepared(row), ensure_ascii=True) + "\n" for row in rows)
    (folder / "labels.json").write_text(json.dumps(dataset.labels, indent=1) + "\n", "utf-8")


def _prepared(row: "Row") -> dict[str, str]:
    record = {"id": row.id, "text": row.text, "label": row.label}
    return {**record, "slice": row.slice} if row.slice else record


def read_prepared(folder: Path, split: str) -> Examples:
    """One split of the prepared data. The caller verifies the folder's card first."""
    names = tuple(json.loads((folder / "labels.json").read_text("utf-8")))
    number = {name: i for i, name in enumerate(names)}
    starts, labels, slices = array("q", [0]), array("i"), []
    known: dict[str, str] = {}  # one object for each slice, however many rows are in it
    with (folder / f"{split}.jsonl").open("rb") as file:
        for line in file:
            record = json.loads(line)
            starts.append(starts[-1] + len(line))
            labels.append(number[record["label"]])
            slices.append(known.setdefault(record.get("slice", ""), record.get("slice", "")))
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if labels else b""
    return Examples(
        ids=Column(content, starts, "id"),
        texts=Column(content, starts, "text"),
        labels=tuple(labels),
        names=names,
        slices=tuple(slices) if any(slices) else (),
    )
