"""What exporters begin with: the model."""

from pathlib import Path

from transformers import PreTrainedModel

from pipeline.base.errors import ExportError
from pipeline.families import positions_of
from pipeline.models.checkpoints import load_classifier


def load_model(source: Path, max_length: int) -> PreTrainedModel:
    """The model in a folder.

    Raises:
        ExportError: it has no positions for max_length tokens.
    """
    model = load_classifier(source)
    if max_length > positions_of(model.config):
        raise ExportError(
            f"max_length is {max_length}, but the model has positions for {positions_of(model.config)} tokens; lower it"
        )
    return model
