"""Where each encoder family keeps its parts: one table, so that nothing else knows a module name.

MiniLM checkpoints are BERT. Families whose positions enter the attention scores after the projections (rotary, T5 or
DeBERTa style) are left out on purpose: scores recomputed from query and key would be wrong for them.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from pipeline.base.errors import ModelError
from pipeline.base.plugins import nearest


@dataclass(frozen=True)
class Family:
    """Names of the parts, relative to the encoder, to its embeddings, or to one of its layers."""

    layers: str  # relative to the encoder
    query: str  # this and what follows: relative to one layer
    key: str
    value: str
    attention_output: str
    attention_norm: str
    ffn_in: str
    ffn_out: str
    ffn_norm: str
    # names of the sizes in the configuration
    hidden_size: str = "hidden_size"
    num_layers: str = "num_hidden_layers"
    num_heads: str = "num_attention_heads"
    ffn_size: str = "intermediate_size"


_BERT = Family(
    layers="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    ffn_norm="output.LayerNorm",
)
_DISTILBERT = Family(
    layers="transformer.layer",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    attention_norm="sa_layer_norm",
    ffn_in="ffn.lin1",
    ffn_out="ffn.lin2",
    ffn_norm="output_layer_norm",
    hidden_size="dim",
    num_layers="n_layers",
    num_heads="n_heads",
    ffn_size="hidden_dim",
)
FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": _DISTILBERT,
}


# In a student's configuration: whether its tokenizer sets a distillation token. The graph knows nothing of it.
DISTILLATION_TOKEN = "decant_distillation_token"


def family_of(config: PretrainedConfig) -> Family:
    """The names for this configuration's family.

    Raises:
        ModelError: a family that is not in the table.
    """
    if config.model_type not in FAMILIES:
        raise ModelError(
            f"the model is of type '{config.model_type}', which Decant cannot read signals from"
            f"{nearest(config.model_type, FAMILIES)}"
        )
    return FAMILIES[config.model_type]


@dataclass(frozen=True)
class Shape:
    """What a loss must know of a model before training: how many layers, how wide, how many heads and classes."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    labels: int
    distillation_token: bool = False  # a second special token, right behind the class token, with a head of its own


def shape_of(config: PretrainedConfig) -> Shape:
    """The shape that a configuration describes."""
    family = family_of(config)
    return Shape(
        layers=getattr(config, family.num_layers),
        hidden=getattr(config, family.hidden_size),
        heads=getattr(config, family.num_heads),
        ffn=getattr(config, family.ffn_size),
        labels=config.num_labels,
        distillation_token=getattr(config, DISTILLATION_TOKEN, False),
    )


def encoder_of(model: PreTrainedModel) -> Any:
    """The encoder inside a classifier: what `layers` and `embeddings` are relative to. Families share no type."""
    return getattr(model, model.base_model_prefix)


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The encoder's layers, first to last."""
    return list(encoder_of(model).get_submodule(family_of(model.config).layers).children())
