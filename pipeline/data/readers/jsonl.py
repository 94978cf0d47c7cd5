"""One JSON object a line."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.settings.data import FilesSource


def read(
    path: Path, source: FilesSource, check: Callable[[Sequence[Any], int], None], problems: list[str]
) -> Iterator[tuple[int, dict[Any, Any]]]:
    """The objects; blank lines are none."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                problems.append(f"{path}:{number}: not JSON, expected one object a line")
                continue
            if not isinstance(record, dict):
                problems.append(f"{path}:{number}: found {type(record).__name__}, expected a JSON object")
                continue
            check(list(record), number)
            yield number, record
