"""Writing so that nothing half-written is ever read, and reading so that nothing damaged is ever used.

Write beside, fsync, rename, fsync the folder. A folder appears under its name all at once, its card inside.
"""

import errno
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from pipeline.base.errors import EnvironmentFault

CARD_NAME = "card.json"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file by `text`, or leaves it as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _prepare_parent(path)
        require_space(path.parent, len(text.encode()))
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # a name too long cannot be unlinked either
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
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _prepare_parent(path)
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
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        free = shutil.disk_usage(path.parent).free
        return EnvironmentFault(
            f"{path}: the disk is full ({free:,} bytes free); free some space and run again. "
            "What was there before is unchanged."
        )
    # While writing, a file that is read may be the one at fault; only our own partial name means nothing to a reader.
    elsewhere = error.filename is not None and ".partial" not in str(error.filename)
    where = str(path)
    if elsewhere:
        where = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
    if error.errno in {errno.EACCES, errno.EROFS, errno.EPERM}:
        return EnvironmentFault(f"{where}: no permission ({error.strerror}); check the permissions of file and folder")
    return EnvironmentFault(f"{where}: {error.strerror or error}")


def _prepare_parent(path: Path) -> None:
    """Makes the folder, and clears up after a run that was killed while it wrote `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if leftover.suffixes[-2:] == [".old", ".partial"] and not path.exists():
            leftover.rename(path)  # killed between the two renames of `_swap`: the old folder is all there is
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        elif (pid := leftover.suffixes[-2][1:]).isdecimal() and not psutil.pid_exists(int(pid)):
            leftover.unlink(missing_ok=True)


def _swap(partial: Path, path: Path) -> None:
    """Gives `partial` the name `path`. An older folder of that name is moved aside first and removed last."""
    old = path.with_name(f".{path.name}.{os.getpid()}.old.partial")
    if path.exists():
        path.rename(old)
    try:
        partial.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
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
