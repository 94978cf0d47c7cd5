"""Around a `.mlpackage` that was just written: what must hold of it, read back from disk. None of it needs macOS."""

import json
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline.base.errors import ExportError
from pipeline.base.files import sha256_of
from pipeline.mil.package import SYSTEMS, Argument, Operation, read_package

# Written by coremltools for another tool's debugger, and in no manifest.
LEFTOVER = "executorch_debug_handle_mapping.json"


@contextmanager
def quiet_conversion() -> Iterator[None]:
    """Drops the warnings of torch and coremltools that are about themselves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r"Function _TORCH_OPS_REGISTRY\.__contains__", DeprecationWarning)
        # it compares the ranges of two types by casting the wider one's limits
        warnings.filterwarnings(
            "ignore", "overflow encountered in cast", RuntimeWarning, r"coremltools\..*\.optimize_repeat_ops"
        )
        # A row of zeros, such as that of the padding token, has scale 0 and codes 0/0: any code times 0 is 0.
        zero_row = r"(invalid value|divide by zero) encountered in (divide|cast)"
        warnings.filterwarnings("ignore", zero_row, RuntimeWarning, r"coremltools\.optimize\._utils")
        # its folder for weights in the making
        warnings.filterwarnings("ignore", "Implicitly cleaning up <TemporaryDirectory", ResourceWarning)
        yield


def check_finite_constants(package: Path) -> None:
    """Reads a saved package back and looks at every floating constant in it, scales of 8-bit weights included.

    Raises:
        ExportError: one is NaN or infinite, as the mask of a Hugging Face model becomes in fp16.
    """
    bad = [
        name
        for name, kind, value in read_package(package).constants()
        if kind.dtype in {"fp16", "fp32"} and not np.isfinite(value).all()
    ]
    if bad:
        raise ExportError(
            f"{package}: {len(bad)} constants are not finite, such as '{bad[0]}': answers would be NaN; a number "
            "beyond 65,504 became infinite in fp16: look for it in the graph, or export fp32"
        )


def check_wide_ids(package: Path) -> None:
    """Reads a saved package back and follows the indices of every table with more than 32,767 rows to their input.

    coremltools casts indices to 16 bits where it sees that the table is short enough. This does not rely on that.

    Raises:
        ExportError: they pass through a 16-bit integer, in which large ids wrap around.
    """
    made_by = {name: op for op in read_package(package).operations for name, _ in op.outputs}
    for op in made_by.values():
        if op.kind != "gather" or not isinstance(op.inputs["x"][0], str):
            continue
        table = op.inputs["x"][0]
        kind = dict(made_by[table].outputs)[table] if table in made_by else None
        if kind is not None and kind.shape and (kind.shape[0] or 0) > 32_767:
            narrow = _narrow_ancestor(op.inputs["indices"], made_by)
            if narrow is not None:
                raise ExportError(
                    f"{package}: ids for the {kind.shape[0]:,} rows of '{table}' pass through the 16-bit "
                    f"'{narrow}', which holds up to 32,767; drop the pass common::add_int16_cast or trim the vocabulary"
                )


def check_system(package: Path, declared: str) -> None:
    """Raises ExportError when the package runs only on a later system than the one it was made for."""
    found = read_package(package)
    if found.version > next(version for version, system in SYSTEMS.items() if system == declared):
        raise ExportError(
            f"{package}: runs from {found.system} on, expected {declared} as in options.deployment_target; an "
            f"operation or a compression needs that: set deployment_target to {found.system}, or leave it out"
        )


def _narrow_ancestor(arguments: tuple[Argument, ...], made_by: Mapping[str, Operation]) -> str | None:
    """Name of a 16-bit integer on the way from the inputs to these."""
    waiting, seen = [name for name in arguments if isinstance(name, str)], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in made_by:
            continue
        seen.add(name)
        op = made_by[name]
        if dict(op.outputs)[name].dtype in {"int16", "uint16"}:
            return name
        waiting += op.reads
    return None


def rewrite_manifest(path: Path) -> None:
    """Identifiers made from what they name, in place of random ones."""
    file = path / "Manifest.json"
    manifest = json.loads(file.read_text("utf-8"))
    new = {}
    for old, item in manifest["itemInfoEntries"].items():
        root = path / "Data" / item["path"]
        files = sorted(f for f in root.rglob("*") if f.is_file()) if root.is_dir() else [root]
        content = ":".join([item["path"], *map(sha256_of, files)])
        new[old] = str(uuid.uuid5(uuid.NAMESPACE_URL, content))
    manifest["itemInfoEntries"] = {new[old]: item for old, item in manifest["itemInfoEntries"].items()}
    manifest["rootModelIdentifier"] = new[manifest["rootModelIdentifier"]]
    file.write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", "utf-8")
