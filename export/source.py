"""What exporters have in common: the model that they read, and what the card says of its answers."""

from pathlib import Path

from transformers import PreTrainedModel

from pipeline.base.errors import ExportError
from pipeline.base.records import TensorFact
from pipeline.families import DeploymentGraph, positions_of
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


def output_facts(graph: DeploymentGraph, batch: int | str) -> tuple[TensorFact, ...]:
    """The outputs of an artefact in order: named axes are free."""
    shape = {
        "sequence": (batch, graph.config.num_labels),
        "token": (batch, "length", graph.config.num_labels),
        "span": (batch, "length"),
    }[graph.head_kind]
    return tuple(TensorFact(name=name, dtype="float32", shape=shape) for name in graph.output_names)
