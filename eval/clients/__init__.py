"""One platform's bundle a file, used here as an app would: its own code, from its own folder, on texts.

A client file has the name of its platform, and:

- `why_unusable()`: the reason why that code cannot run on this machine, or None.
- `NEEDS_RECORDED` (optional): True where the platform's runtime is not on this machine, so that what the target's
  runtime answered here stands in for it.
- `use(folder, texts)`, or `use(folder, texts, recorded)`: `Used`, what the bundle's code answers, self-test included.
  Raises ModelError when it cannot be used.
"""

from collections.abc import Sequence

from pipeline.base.records import Record


def limit_s(texts: int) -> float:
    """Seconds that using a bundle may take: a fifth of one a text is far above what a phone would."""
    return 300 + 0.2 * texts


# Token ids of a text, and the outputs for them.
Recorded = Sequence[tuple[Sequence[int], Sequence[float]]]


class Used(Record):
    """What a bundle's own code says of texts, and of itself."""

    # places of labels
    answers: tuple[int, ...]
    # of the self-test, in words
    failures: tuple[str, ...]
    # from the start until the first answer; of the median text after it
    cold_ms: float | None = None
    warm_ms: float | None = None
    # that are fetched or read before the first answer
    first_bytes: int | None = None
    # what ran it
    engine: str
