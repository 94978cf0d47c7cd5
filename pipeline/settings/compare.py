"""The section `compare`: which changes against a base are regressions, and how hard `decant compare` looks."""

from typing import Self

from pydantic import Field, model_validator

from pipeline.settings.base import Settings


class Zone(Settings):
    """What may be lost and what must be seen; between the two either answer is right."""

    tolerated: float = Field(ge=0, description="A loss that is surely greater than this is a regression.")
    seen: float = Field(gt=0, description="Passes only when the loss is surely smaller than this.")

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.seen <= self.tolerated:
            raise ValueError(f"seen is {self.seen:g}, expected more than tolerated ({self.tolerated:g})")
        return self


class CompareSettings(Settings):
    """How a change is judged against its base."""

    time: Zone = Field(
        default=Zone(tolerated=0.02, seen=0.05), description="Of the time of a call, as shares: 0.05 is 5 % slower."
    )
    score: Zone = Field(
        default=Zone(tolerated=0.2, seen=1.5),
        description="Of the task's metric on test, in the unit of its differences: points for accuracy.",
    )
    slices: float | None = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Chance of calling any slice of the test rows worse that is not, for all slices together; null: "
        "slices are not judged.",
    )
    size: float | None = Field(
        default=0.02, ge=0, description="Share by which the file may be larger; null: its size is only told."
    )
    instructions: float | None = Field(
        default=None,
        ge=0,
        description="Share by which the instructions of a call may grow, counted under an emulator; null: only told.",
    )
    processes: int = Field(default=5, ge=3, le=100, description="Fresh processes in a round; each runs both twice.")
    pairs: int = Field(default=40, ge=1, le=10_000, description="Timed pairs of calls in each process.")
    max_rounds: int = Field(default=12, ge=1, le=100, description="Rounds at most, while the time is undecided.")
    seconds: float = Field(default=300.0, gt=0, description="No round begins after so many seconds, for each target.")
