"""The section `measure`."""

from pydantic import Field

from pipeline.settings.base import Count, Settings


class MeasureSettings(Settings):
    """How latency is measured."""

    processes: int = Field(
        default=5, ge=1, le=100, description="Fresh processes; the order of the two models alternates."
    )
    pairs: int = Field(
        default=40,
        ge=1,
        le=10_000,
        description="Timed pairs of calls in each process (A B B' A': each file has two sessions).",
    )
    max_rounds: int = Field(
        default=3, ge=1, le=20, description="Times the processes may be repeated while a budget is undecided."
    )
    warmup: int = Field(
        default=5, ge=0, description="First calls of each process, kept in the record, marked, not judged."
    )
    threads: int = Field(default=1, ge=1, le=256, description="Threads of the runtime.")
    lengths: tuple[Count, ...] = Field(
        default=(16, 32, 64), description="Fixed token lengths, timed beside the data's own."
    )
