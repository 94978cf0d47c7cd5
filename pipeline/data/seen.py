"""What a model has learned from, as digests beside it: enough to refuse it where a text of dev or test is among them.

They go along with what is made of the model: a student has its own training texts, those of its teachers and those of
the model it is copied from.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import DataError, IntegrityError
from pipeline.data.texts import normalise

FILE = "texts.npy"  # sorted
DIGEST_BYTES = 8  # of a text: among 10^8 texts two have the same in one collection of 3,700

Digests = NDArray[np.uint64]


def digest_of(text: str) -> bytes:
    """What tells a text from others, as `normalise` compares them."""
    return hashlib.blake2b(normalise(text).encode(), digest_size=DIGEST_BYTES).digest()


def digests_of(texts: Iterable[str], models: Iterable[Path] = ()) -> Digests:
    """Of texts and of what models have learned from, sorted, each once.

    Raises:
        IntegrityError: a model's digests are damaged.
    """
    return np.unique(np.concatenate([_numbers(texts), *map(read_digests, models)]))


def rows_of(texts: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """All the text of each row: of a pair neither text alone is what a model learns an answer to."""
    return map("\n".join, texts)


def write_digests(folder: Path, digests: Digests) -> None:
    """Keeps what tells whether a text is one of these, and nothing of the texts themselves; no file for none."""
    if len(digests):
        np.save(folder / FILE, digests, allow_pickle=False)


def read_digests(folder: Path) -> Digests:
    """Of what the model in a folder has learned from; none where nothing beside it tells.

    Raises:
        IntegrityError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return np.empty(0, np.uint64)
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise IntegrityError(f"{path}: damaged; make that model again, or fetch it again") from error
    if not isinstance(found, np.ndarray) or found.dtype != np.uint64 or found.ndim != 1:
        raise IntegrityError(f"{path}: no digests of texts; make that model again, or take the file away")
    return found


def check_unseen(known: Digests, rows: Mapping[str, Sequence[tuple[str, ...]]], setting: str) -> None:
    """Raises DataError where a row of dev or test, or a text of one, is among what is learned from.

    Args:
        known: what is learned from.
        rows: split -> the texts of its rows.
        setting: what names the text, or the model that learned from it.
    """
    if not len(known):
        return
    for split, some in rows.items():
        texts = [*rows_of(some), *(text for row in some if len(row) > 1 for text in row)]
        found = np.isin(_numbers(texts), known)
        if found.any():
            raise DataError(
                f"{setting}: {int(found.sum())} of {len(texts)} texts of {split} are learned from, such as "
                f"'{texts[int(found.argmax())][:80]}'; take them out of what is learned from, or name a model that has "
                "not seen them"
            )


def _numbers(texts: Iterable[str]) -> Digests:
    return np.fromiter((int.from_bytes(digest_of(text), "little") for text in texts), np.uint64)
