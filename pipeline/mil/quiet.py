"""Importing coremltools in peace, and no more of it than is needed."""

import logging
import sys
from importlib import util
from pathlib import Path
from types import ModuleType

_ALONE = "coremltools_proto"


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
    # It imports executorch wherever that is installed, for a dialect of programs that we do not convert: more seconds,
    # and another way through coremltools than on a machine without it.
    before = {"executorch": sys.modules["executorch"]} if "executorch" in sys.modules else {}
    sys.modules["executorch"] = None  # type: ignore[assignment]  # Python's way to say that there is none
    try:
        import coremltools
    finally:
        del sys.modules["executorch"]
        sys.modules.update(before)
    return coremltools


def import_specification() -> ModuleType:
    """The protobuf classes of Core ML's file format, all that reading a package needs: in a tenth of a second.

    Raises:
        ModuleNotFoundError: coremltools is not installed.
    """
    if "coremltools" in sys.modules:
        from coremltools import proto

        return proto
    if _ALONE in sys.modules:
        return sys.modules[_ALONE]
    found = util.find_spec("coremltools")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'coremltools'", name="coremltools")
    # The package under another name, since importing `coremltools.proto` by its own runs all of coremltools first.
    # Protobuf knows a file's classes by their content, so that a later import of the whole finds the same ones.
    folder = Path(found.origin).parent / "proto"
    spec = util.spec_from_file_location(_ALONE, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    module = sys.modules[_ALONE] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
