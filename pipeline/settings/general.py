"""The section `general`."""

from typing import Any

from pydantic import Field

from pipeline.settings.base import Fraction, Name, Settings
from pipeline.settings.student import InitSettings
from pipeline.settings.training import TrainingSettings


class GeneralSettings(Settings):
    """Distillation on general text before any task: how a student comes about that `student.init.from: general` names.

    The teacher is the body of `teacher.model` as it is, before it learns a task.
    """

    texts: tuple[Name, ...] = Field(
        default=(), description="Text files in UTF-8, one text a line, relative to the current folder."
    )
    max_length: int = Field(default=64, ge=4, le=4096, description="Tokens; longer texts are cut.")
    held_out: Fraction = Field(
        default=0.01, description="Share of the texts on which the losses are told while training; at least one text."
    )
    init: InitSettings = Field(
        default=InitSettings(), description="Where the first weights come from: teacher, random, or any model."
    )
    training: TrainingSettings = Field(default=TrainingSettings(learning_rate=6.0e-4), description="One run.")
    cache_gb: float = Field(
        default=4.0,
        ge=0,
        description="Most gigabytes (10^9) of the teacher's signals to keep on disk, so that each is computed once in "
        "several epochs; 0: none.",
    )
    losses: dict[Name, dict[str, Any]] = Field(
        default={"minilm_v2": {"relation_heads": 12}},
        description="Loss name (a file of pipeline/losses that looks inside the encoder) -> its settings.",
        min_length=1,
    )
