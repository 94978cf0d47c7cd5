"""A bundle's manifest: every file by its hash, what they were made from, and what a reader may hold against them.

A bundle comes from elsewhere, so reading one believes nothing: names that lead out of the folder, links, files that
nobody listed, archives that unpack to more than they say. The manifest is written last.
"""

import json
import lzma
import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.base.errors import IntegrityError
from pipeline.base.files import sha256_of
from pipeline.base.records import Artefact, Record, Status

KIND = "decant bundle 1"
MANIFEST, SIGNATURE, MODEL = "manifest.json", "model.sig", "model.json"
UNRELEASED = "0.0.0"
NOT_MADE = "not_made.json"  # beside bundles: platform -> why there is none
MIN_GOLDEN = 50  # golden vectors
# What a person reads in a terminal: no control characters, which could write lines of their own.
PLAIN = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
# Far above what a phone would load; an archive says how large its files are before they are unpacked.
MAX_RATIO = 100  # of what an archive unpacks to and its own size; JSON shrinks to a tenth
MAX_BYTES, MAX_FILES, MAX_MANIFEST_BYTES = 2 * 2**30, 10_000, 8 * 2**20
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say; dates would make two builds differ
UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, ValueError, OSError)
AGAIN = "get the bundle again from where it was released"


class BundleFile(BaseModel):
    """One file of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(Record):
    """What is in a bundle, and what it was made from."""

    kind: str = KIND
    platform: str = Field(pattern="^[a-z][a-z0-9_]*$")
    name: str = Field(pattern=PLAIN)
    # of a release
    version: str = Field(default=UNRELEASED, pattern=r"^[0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}$")
    # of the project that made it, as git says
    revision: str | None = Field(default=None, pattern=PLAIN)
    target: str = Field(pattern="^[a-z][a-z0-9_]*$")
    # of the whole, and of all budgets of the target, when the bundle was made
    verdict: Status
    target_verdict: Status
    # the artefact as its exporter described it, and where in the bundle it lies
    artefact: Artefact
    model: str
    # the folder that the code reads at run time, '' for the whole
    home: str = ""
    # as the artefact's card has it: name, options and space of the answers
    task: dict[str, Any]
    # name of what it was made from -> digest
    sources: dict[str, str]
    tools: dict[str, str | None]
    # tokenizer -> how it compares with the one of training
    tokenizers: dict[str, str] = Field(default={})
    files: dict[str, BundleFile]


def files_of(folder: Path) -> list[str]:
    """Names of all files within a folder, sorted, manifest and signature left out."""
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())
    return sorted(name for name in names if name not in (MANIFEST, SIGNATURE))


def write_manifest(folder: Path, **facts: Any) -> Manifest:
    """Lists every file of the folder and writes manifest.json."""
    files = {
        name: BundleFile(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name))
        for name in files_of(folder)
    }
    manifest = Manifest(files=files, **facts)
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n", "utf-8", newline="\n")
    return manifest


def write_zip(folder: Path, path: Path) -> None:
    """The folder as an archive: the same bytes for the same files and the same zlib, whatever the day or the umask."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), EPOCH)
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes(), compresslevel=9)


def unpack(path: Path, folder: Path) -> None:
    """The files of an archive, written below `folder`.

    Raises:
        IntegrityError: not an archive, or one that would write elsewhere, write links, or unpack to more than it says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_names(path, [entry.filename for entry in entries])
            size = sum(entry.file_size for entry in entries)
            if size > MAX_BYTES or size > MAX_RATIO * max(path.stat().st_size, 1):
                raise IntegrityError(f"{path}: {path.stat().st_size:,} bytes that unpack to {size:,}; {AGAIN}")
            for entry in entries:
                kind = stat.S_IFMT(entry.external_attr >> 16)
                if entry.is_dir() or kind not in (0, stat.S_IFREG):
                    raise IntegrityError(f"{path}: '{entry.filename}' is no plain file; {AGAIN}")
            for entry in entries:
                _unpack_one(archive, entry, path, folder / entry.filename)
    except UNREADABLE as error:
        raise IntegrityError(f"{path}: cannot be unpacked: {error}; {AGAIN}") from error


def _unpack_one(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(entry) as source, file.open("wb") as out:
        # counted, since what an entry says of its size is only what it says
        while block := source.read(2**20):
            written += len(block)
            if written > entry.file_size:
                raise IntegrityError(f"{path}: '{entry.filename}' unpacks to more than it says; {AGAIN}")
            out.write(block)


def read_manifest(folder: Path) -> Manifest:
    """A bundle's manifest, of which nothing is checked but its shape and the names in it.

    Raises:
        IntegrityError: there is none, it cannot be read, or a name leads out of the folder.
    """
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise IntegrityError(f"{path}: no such file, so this is no bundle; {AGAIN}")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise IntegrityError(f"{path}: longer than {MAX_MANIFEST_BYTES:,} bytes; {AGAIN}")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (ValidationError, RecursionError) as error:
        said = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        where = f"{'.'.join(map(str, said['loc']))!a}: {said['msg']}" if said else "nested too deeply"
        raise IntegrityError(f"{path}: not a manifest: {where}; {AGAIN}") from error
    if manifest.kind != KIND:
        raise IntegrityError(f"{path}: found kind {manifest.kind!r}, expected '{KIND}'; use the Decant that wrote it")
    _check_names(path, manifest.files)
    for name in (manifest.model, *([manifest.home] if manifest.home else [])):
        _check_names(path, [name])
    return manifest


def _check_names(path: Path, names: Iterable[str]) -> None:
    """Raises IntegrityError for names that lead out of their folder, or that two systems take for different files."""
    seen: dict[str, str] = {}
    for number, name in enumerate(names):
        if number >= MAX_FILES:
            raise IntegrityError(f"{path}: lists more than {MAX_FILES:,} files; {AGAIN}")
        parts = PurePosixPath(name).parts
        if (
            not parts
            or PurePosixPath(name).is_absolute()
            or {"..", "."} & set(name.split("/"))
            or "" in name.split("/")
            or any(ord(c) < 32 or c in '\\:*?"<>|\x7f' for c in name)
            or any(part.endswith((".", " ")) for part in parts)
            or unicodedata.normalize("NFC", name) != name
        ):
            raise IntegrityError(f"{path}: the name {name!r} cannot be that of a file of a bundle; {AGAIN}")
        # macOS and Windows take 'A' and 'a' for one file, and nothing is both a file and a folder
        folded = name.casefold()
        if folded in seen:
            raise IntegrityError(f"{path}: '{seen[folded]}' and '{name}' are one file on some systems; {AGAIN}")
        seen[folded] = name
    for name in seen.values():
        if inside := next((str(one) for one in PurePosixPath(name.casefold()).parents if str(one) in seen), None):
            raise IntegrityError(f"{path}: '{name}' lies in '{seen[inside]}', which is a file; {AGAIN}")


def check_kinds(folder: Path) -> None:
    """Raises IntegrityError for what is neither a plain file nor a folder with something in it."""
    for root, folders, names in os.walk(folder):
        here = Path(root)
        for name in (*folders, *names):
            if (here / name).is_symlink():
                raise IntegrityError(f"{here / name}: a link, expected files and folders alone; {AGAIN}")
        for name in names:
            if not stat.S_ISREG((here / name).stat().st_mode):
                raise IntegrityError(f"{here / name}: no plain file; {AGAIN}")
        if not folders and not names:
            raise IntegrityError(f"{here}: an empty folder, which no manifest lists; {AGAIN}")


def check_files(folder: Path, manifest: Manifest) -> None:
    """Holds every file of a folder against its manifest.

    Raises:
        IntegrityError: a link, a file that is missing, shorter, longer, changed or not listed, an empty folder.
    """
    check_kinds(folder)
    for name, fact in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise IntegrityError(f"{path}: missing, but listed in {MANIFEST}; {AGAIN}")
        found = path.stat().st_size
        if found != fact.bytes:
            raise IntegrityError(f"{path}: found {found:,} bytes, expected {fact.bytes:,}; {AGAIN}")
        if (digest := sha256_of(path)) != fact.sha256:
            raise IntegrityError(f"{path}: found SHA-256 {digest[:16]}…, expected {fact.sha256[:16]}…; {AGAIN}")
    if added := sorted(set(files_of(folder)) - manifest.files.keys()):
        raise IntegrityError(f"{folder / added[0]}: not listed in {MANIFEST}: somebody put it there; {AGAIN}")
    lies_in = PurePosixPath(manifest.model)
    if not any(name == manifest.model or lies_in in PurePosixPath(name).parents for name in manifest.files):
        raise IntegrityError(f"{folder / MANIFEST}: its model is '{manifest.model}', which is no file of it; {AGAIN}")
