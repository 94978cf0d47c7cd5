"""Writing so that nothing half-written is ever read, and reading so that nothing damaged is ever used.

Write beside, fsync, rename, fsync the folder. A folder appears under its name all at once, its card inside.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import EnvironmentFault

CARD_NAME = "card.json"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file by `text`, or leaves it as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    require_space(path.parent, len(text.encode()))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise translate_os_error(error, path) from error


@contextmanager
def output_folder(path: Path, expected_bytes: int = 0) -> Iterator[Path]:
    """A folder to write into, which takes the name `path` only when the block ends well.

    Left-overs of a killed run under the same name are removed first. On any error `path` stays as it was.

    Args:
        path: the final name.
        expected_bytes: refuse at once when the disk has less room than this.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        require_space(path.parent, expected_bytes)
        partial.mkdir()
        yield partial
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                _sync(file)
        _swap(partial, path)
    except OSError as error:
        raise translate_os_error(error, path) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raises EnvironmentFault when the disk that holds `folder` has less free than needed."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise EnvironmentFault(
            f"{folder}: the disk has {free:,} bytes free, {needed_bytes:,} are needed; free some space and run again"
        )


def translate_os_error(error: OSError, path: Path) -> EnvironmentFault:
    """An operating system's error as one message that names the path and what to do."""
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(path.parent).free
        return EnvironmentFault(
            f"{path}: the disk is full ({free:,} bytes free); free some space and run again. "
            "What was there before is unchanged."
        )
    if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
        return EnvironmentFault(f"{path}: cannot be written ({error.strerror}); check the folder's permissions")
    return EnvironmentFault(f"{path}: {error.strerror or error}")


def _swap(partial: Path, path: Path) -> None:
    """Gives `partial` the name `path`. An older folder of that name is moved aside first and removed last."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old.partial")
    if path.exists():
        path.rename(old)
    partial.rename(path)
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
