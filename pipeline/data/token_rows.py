"""Token ids of many rows, 4 bytes a token, kept in an Arrow file and read from it through a memory map.

As Python lists a million rows of 40 tokens take 10 GB; here they take 160 MB of disk, and of memory what is being read.
The file is an Arrow stream, which `datasets.Dataset.from_file` opens too.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

Part = tuple[NDArray[np.int32], NDArray[np.int32]]  # where each row starts, with the end; the ids of all rows
TAKEN = 1_000_000  # rows of a part that `take` makes: their ids can be counted in 31 bits


class TokenRows(Sequence[list[int]]):
    """Rows of token ids; a row is a list when it is asked for."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self._parts = list(parts)
        self._firsts = [0]
        for starts, _ in self._parts:
            self._firsts.append(self._firsts[-1] + len(starts) - 1)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "TokenRows":
        """Rows that are in memory, as they are when they are of this kind already."""
        if isinstance(rows, TokenRows):
            return rows
        starts = np.cumsum([0, *map(len, rows)], dtype=np.int32)
        return cls([(starts, np.fromiter((i for row in rows for i in row), np.int32, count=int(starts[-1])))])

    def __len__(self) -> int:
        return self._firsts[-1]

    @overload
    def __getitem__(self, index: int) -> list[int]: ...

    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...

    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        part = bisect_right(self._firsts, row) - 1
        starts, ids = self._parts[part]
        row -= self._firsts[part]
        return ids[starts[row] : starts[row + 1]].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        for starts, ids in self._parts:
            for start, end in pairwise(starts.tolist()):
                yield ids[start:end].tolist()

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens in each row."""
        return np.concatenate(
            [np.diff(starts).astype(np.int64) for starts, _ in self._parts] or [np.empty(0, np.int64)]
        )

    def plus(self, rows: Sequence[Sequence[int]]) -> "TokenRows":
        """These rows, and others behind them."""
        return TokenRows([*self._parts, *TokenRows.of(rows)._parts])

    def take(self, rows: Iterable[int]) -> "TokenRows":
        """Only these rows, in this order; their ids are copied, and no row becomes a list."""
        picked = np.fromiter(rows, np.int64)
        return TokenRows([self._taken(picked[at : at + TAKEN]) for at in range(0, len(picked), TAKEN)])

    def _taken(self, picked: NDArray[np.int64]) -> Part:
        ends = np.cumsum(self.lengths[picked])
        starts = np.concatenate([[0], ends])
        ids = np.empty(starts[-1], np.int32)
        of_part = np.searchsorted(self._firsts, picked, side="right") - 1
        for number, (theirs, their_ids) in enumerate(self._parts):
            ours = np.flatnonzero(of_part == number)
            lengths = self.lengths[picked[ours]]
            inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # place in its row
            ids[np.repeat(starts[ours], lengths) + inside] = their_ids[
                np.repeat(theirs[picked[ours] - self._firsts[number]], lengths) + inside
            ]
        return starts.astype(np.int32), ids

    def content(self) -> Iterator[bytes]:
        """The bytes that tell these rows from others, however they lie in parts."""
        yield self.lengths.tobytes()
        for starts, ids in self._parts:
            yield ids[starts[0] : starts[-1]].tobytes()


def lengths_of(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Tokens in each row, without a list of them."""
    return rows.lengths if isinstance(rows, TokenRows) else np.fromiter(map(len, rows), np.int64, count=len(rows))


def write_token_rows(path: Path, columns: Sequence[str], batches: Iterable[Mapping[str, list[list[int]]]]) -> None:
    """Writes rows as they come, each batch the same rows in every column."""
    import pyarrow

    schema = pyarrow.schema([(name, pyarrow.list_(pyarrow.int32())) for name in columns])
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
        for batch in batches:
            writer.write_batch(pyarrow.record_batch([pyarrow.array(batch[f.name], f.type) for f in schema], schema))


def read_token_rows(path: Path) -> dict[str, TokenRows]:
    """Column -> its rows, of which nothing is in memory until it is read."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as reader:
        table = reader.read_all()
    return {name: TokenRows(map(_part, table[name].chunks)) for name in table.column_names}


def _part(chunk: Any) -> Part:
    return chunk.offsets.to_numpy(), chunk.values.to_numpy()
