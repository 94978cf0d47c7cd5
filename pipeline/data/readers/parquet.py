"""Columns, as data frames are kept."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.base.errors import DataError, first_line
from pipeline.settings.data import FilesSource

BATCH = 10_000  # rows that are Python objects at once


def read(
    path: Path, source: FilesSource, check: Callable[[Sequence[Any], int], None], problems: list[str]
) -> Iterator[tuple[int, dict[Any, Any]]]:
    """The rows, numbered from 1."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            check(file.schema_arrow.names, 1)
            for batch in file.iter_batches(BATCH):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {first_line(error)}") from error
