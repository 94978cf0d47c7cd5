"""Around a `.mlpackage`: importing coremltools in peace, reading a saved package back, and what must hold of one.

None of it needs macOS. An ML program is read as coremltools' typed MIL, weights included.
"""

import json
import logging
import sys
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipeline.errors import ExportError
from pipeline.files import sha256_of

SPEC, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights"
# Written by coremltools for another tool's debugger, and in no manifest.
LEFTOVER = "executorch_debug_handle_mapping.json"


class _KnownNotes(logging.Filter):
    """Drops what coremltools says on every Linux machine with today's versions; anything else passes."""

    known = (
        "scikit-learn version",  # converters from scikit-learn are switched off, and none is used
        "Torch version",  # newer than tested; `check_answers` and the parity check test it here
        "Core ML embedding (gather) layer does not support any inputs besides",  # padding_idx, which only trains
    )

    def filter(self, record: logging.LogRecord) -> bool:
        on_mac = sys.platform == "darwin"  # there, a framework that fails to load matters
        known = self.known if on_mac else (*self.known, "Failed to load _ML")
        return not record.getMessage().startswith(known)


def import_coremltools() -> ModuleType:
    """coremltools, imported late: it takes seconds, and reading settings needs only `Params`."""
    logger = logging.getLogger("coremltools")
    if not any(isinstance(known, _KnownNotes) for known in logger.filters):
        logger.addFilter(_KnownNotes())
    with warnings.catch_warnings():
        # It imports executorch wherever that is installed; what that still uses of Python and torch is its business.
        warnings.simplefilter("ignore", DeprecationWarning)
        import coremltools

    return coremltools


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


def load_program(package: Path) -> Any:
    """The typed MIL program in a saved package, weights included; needs no macOS."""
    ct = import_coremltools()
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = ct.utils.load_spec(str(package))
    return load(spec, spec.specificationVersion, str(package / WEIGHTS))


def operations(package: Path) -> Iterator[Any]:
    """Every operation of the main function of a saved package, in order."""
    yield from load_program(package).functions["main"].operations


def check_finite_constants(package: Path) -> None:
    """Reads a saved package back and looks at every floating constant in it, scales of 8-bit weights included.

    Raises:
        ExportError: one is NaN or infinite, as the mask of a Hugging Face model becomes in fp16.
    """
    bad = []
    for op in operations(package):
        if op.op_type == "const" and _holds_non_finite(op.outputs[0].val):
            bad.append(op.name)
        if op.op_type.startswith("constexpr_"):
            bad += [f"{op.name}.{name}" for name, var in op.inputs.items() if _holds_non_finite(var.val)]
    if bad:
        raise ExportError(
            f"{package}: {len(bad)} constants are not finite, such as '{bad[0]}': answers would be NaN; a number "
            "beyond 65,504 became infinite in fp16: look for it in the graph, or export fp32"
        )


def _holds_non_finite(value: Any) -> bool:
    array = np.asarray(value)
    return np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all()


def check_wide_ids(package: Path) -> None:
    """Reads a saved package back and follows the indices of every table with more than 32,767 rows to their input.

    coremltools casts indices to 16 bits where it sees that the table is short enough. This does not rely on that.

    Raises:
        ExportError: they pass through a 16-bit integer, in which large ids wrap around.
    """
    for op in operations(package):
        if op.op_type == "gather" and isinstance(op.x.shape[op.axis.val], int) and op.x.shape[op.axis.val] > 32_767:
            narrow = _narrow_ancestor(op.indices)
            if narrow is not None:
                raise ExportError(
                    f"{package}: ids for the {op.x.shape[op.axis.val]:,} rows of '{op.x.name}' pass through the 16-bit "
                    f"'{narrow}', which holds up to 32,767; drop the pass common::add_int16_cast or trim the vocabulary"
                )


def _narrow_ancestor(var: Any) -> str | None:
    """Name of a 16-bit integer on the way from the inputs to this one."""
    from coremltools.converters.mil.mil import types

    waiting, seen = [var], set()
    while waiting:
        var = waiting.pop()
        if var in seen:
            continue
        seen.add(var)
        if var.dtype in {types.int16, types.uint16}:
            return var.name
        if var.op is not None:
            inputs = var.op.inputs.values()
            waiting += [each for value in inputs for each in (value if isinstance(value, list | tuple) else [value])]
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
