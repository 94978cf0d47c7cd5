"""Text without labels: from files, read line by line, and rows of train that were left without their label."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from pipeline.base.errors import DataError
from pipeline.data.reading import Row
from pipeline.data.seen import digest_of
from pipeline.data.texts import MAX_CELL_CHARACTERS, clean

if TYPE_CHECKING:
    from pipeline.tasks import Task

log = logging.getLogger(__name__)
SPLIT = "unlabelled"
REST = "rest of train"  # where a text comes from that stands in no file of text, in its name


def read_texts(path: Path, setting: str) -> Iterator[str]:
    """The texts of a file, one a line, empty lines left out.

    Raises:
        DataError: no such file, a byte that is not UTF-8, a text that is too long, or nothing in it.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; check {setting}")
    is_empty = True
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                # Decoded by line, so that the message can name it; utf-8-sig takes a byte order mark away.
                text = clean(line.decode("utf-8-sig" if number == 1 else "utf-8")).strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number}: a byte that is not UTF-8; save the file as UTF-8") from error
            if len(text) > MAX_CELL_CHARACTERS:
                raise DataError(
                    f"{path}:{number}: a text of {len(text):,} characters, expected at most {MAX_CELL_CHARACTERS:,}"
                )
            if text:
                is_empty = False
                yield text
    if is_empty:
        raise DataError(f"{path}: no text in it; expected one a line ({setting})")


def keep_few(rows: list[Row], task: "Task", count: int, seed: int) -> tuple[list[Row], list[Row]]:
    """The rows that keep their label, `count` of each class or all that it has, and the rest; both in file order.

    Those of 10 are among those of 50: each class is shuffled by the seed and its name alone.

    Raises:
        DataError: the rows of this task belong to no class.
    """
    by_group: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        group = task.group(row.target)
        if group is None:
            raise DataError(
                f"data.labels_per_class is {count}, but rows of the task '{task.name}' belong to no class; set it to "
                "null"
            )
        by_group.setdefault(group, []).append(number)
    kept: set[int] = set()
    for group, numbers in by_group.items():
        Random(f"{seed} {group}").shuffle(numbers)
        kept.update(numbers[:count])
    few = [row for number, row in enumerate(rows) if number in kept]
    return few, [row for number, row in enumerate(rows) if number not in kept]


def new_texts(
    files: Iterable[Path], rest: Iterable[str], known: Iterable[str], held_out: Iterable[str], setting: str
) -> Iterator[tuple[str, str]]:
    """(name, text) of each text that is new: no training text, none of dev or test, and none that came before.

    Args:
        files: text files, in order.
        rest: training texts without their label; they come first.
        known: the training texts.
        held_out: every text of dev and test; read for this comparison only.
        setting: where the files are named, for messages.
    """
    banned = {digest_of(text) for text in held_out}
    seen = banned | {digest_of(text) for text in known}

    def of(source: str, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
        total, given, leaked = 0, 0, 0
        for text in texts:
            total += 1
            digest = digest_of(text)
            leaked += digest in banned
            if digest not in seen:
                seen.add(digest)
                given += 1
                yield f"{source}-{total}", text
        if total:
            log.info(
                "text without labels: %s gave %d texts of %d; %d are in dev or test and were left out, %d were there "
                "already",
                source,
                given,
                total,
                leaked,
                total - given - leaked,
            )

    yield from of(REST, rest)
    for number, file in enumerate(files, start=1):
        yield from of(f"{number}:{file.name}", read_texts(file, setting))
