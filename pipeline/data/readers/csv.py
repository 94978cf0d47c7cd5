"""Cells between commas."""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.base.errors import DataError
from pipeline.data.texts import MAX_CELL_CHARACTERS
from pipeline.settings.data import FilesSource


def read(
    path: Path,
    source: FilesSource,
    check: Callable[[Sequence[Any], int], None],
    problems: list[str],
    delimiter: str = ",",
) -> Iterator[tuple[int, dict[Any, Any]]]:
    """Records by the names in the first row, or by the columns' numbers from 0."""
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
                    check(columns, 1)
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
