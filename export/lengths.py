"""Which token lengths an artefact takes, for formats that fix their shapes when they are written."""

from collections.abc import Sequence

from pipeline.base.errors import SettingsError


def check_ascending(lengths: Sequence[int]) -> None:
    """Raises ValueError, for a validator, when the lengths are not a list of usable ones in order."""
    if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 2:
        raise ValueError(f"lengths {list(lengths)} must be ascending, each once, none below 2")


def choose_lengths(wanted: Sequence[int] | None, max_length: int) -> tuple[int, ...]:
    """Every length that the artefact accepts, ascending.

    Args:
        wanted: options.lengths, ascending; None: 16, 32, 64, ... below max_length, and max_length.
        max_length: data.max_length.

    Raises:
        SettingsError: the last length is not max_length.
    """
    if wanted is None:
        powers = (2**power for power in range(4, 13))
        return (*(length for length in powers if length < max_length), max_length)
    if wanted[-1] > max_length:
        raise SettingsError(
            f"options.lengths goes up to {wanted[-1]}, but data.max_length is {max_length}: such inputs are never "
            "made; lower the length or raise data.max_length"
        )
    if wanted[-1] < max_length:
        raise SettingsError(
            f"options.lengths ends at {wanted[-1]}, but data.max_length is {max_length}: longer texts could not be "
            f"answered; add {max_length} or lower data.max_length"
        )
    return tuple(wanted)
