"""Importing coremltools in peace."""

import logging
import sys
import warnings
from types import ModuleType


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
