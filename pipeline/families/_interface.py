"""What a family file gives, and how it is found."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pipeline.base import plugins
from pipeline.base.errors import ModelError

# In a student's configuration: whether its tokenizer sets a distillation token. The graph knows nothing of it.
DISTILLATION_TOKEN = "decant_distillation_token"
# In a configuration: what stands on the encoder (`pipeline.tasks.Head`), and how many choices a unit of it has.
HEAD, CHOICES = "decant_head", "decant_choices"
# In the configuration of a model of pairs: the token that stands between the two texts.
SEPARATOR = "decant_separator"

# What a layer computes with. Some of them may be rows of one module; not every family has a gate.
Part = Literal["query", "key", "value", "attention_output", "ffn_in", "ffn_gate", "ffn_out"]
# weight and bias of a linear layer, as views of the model's own
Linear = tuple[Float[Tensor, "outputs inputs"], Float[Tensor, " outputs"] | None]


@dataclass(frozen=True)
class Shape:
    """What a loss must know of a model before training: how many layers, how wide, how many heads and classes."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    choices: int  # of each unit that is compared; 1 where outputs are numbers, not logits
    distillation_token: bool = False  # a second special token, right behind the class token, with a head of its own


class Family(Protocol):
    """The object `FAMILY` of a family file. Layers are counted from 0 here.

    A `model` has a head, and may be the deployment graph made from it, which has the same modules under the same names.
    """

    @property
    def sizes(self) -> Mapping[str, str]:
        """Size of `Shape` -> its name in the configuration."""

    @property
    def dropouts(self) -> Sequence[str]:
        """Names of the rates of dropout in the configuration."""

    @property
    def words(self) -> str:
        """The token table, relative to the encoder."""

    @property
    def turns_pairs(self) -> bool:
        """Whether positions turn pairs of a head's units, i and i + half, each at a speed of its own (rotary)."""

    def refusal(self, config: PretrainedConfig) -> str | None:
        """Why a model of this configuration cannot be read, or None."""

    def prepare(self, config: PretrainedConfig) -> None:
        """What must be set before a model is made, so that its layers are called one by one, on padded texts."""

    def positions(self, config: PretrainedConfig) -> int:
        """Most tokens that a model can take."""

    def layers(self, model: Any) -> list[nn.Module]:
        """First to last; one that is called several times stands there as often."""

    # --- signals

    def module_of(self, part: Part) -> str:
        """The module that computes a part, relative to its layer."""

    def split(
        self, model: Any, layer: int, part: Part, projected: Float[Tensor, "batch length width"]
    ) -> Float[Tensor, "batch heads length head_width"]:
        """Queries, keys or values of each head from what their module gave, positions applied."""

    def score_bias(self, model: Any, layer: int, length: int) -> Float[Tensor, "1 heads length length"] | None:
        """What is added to the scores besides the mask of the padding; one head of it may stand for all."""

    # --- students

    def adapt(self, config: PretrainedConfig, teacher: PretrainedConfig) -> None:
        """Makes the rest of a student's configuration fit the sizes it has by now, or raises ModelError."""

    def own_embedding(self, config: PretrainedConfig) -> str | None:
        """Why the token table cannot be factorised, or None."""

    def linear(self, model: Any, layer: int, part: Part) -> Linear | None:
        """A part of a layer; None if the family has none."""

    def norms(self, model: Any, layer: int | None) -> list[nn.LayerNorm | None]:
        """Of a layer, or of what is outside them, in a fixed order; None where a layer lacks what others have."""

    def absorb(self, model: Any, layer: int, scale: Float[Tensor, " width"]) -> None:
        """Multiplies into what reads the states of a layer the scale of the norm that it lacks."""

    def tables(self, model: Any) -> list[nn.Embedding]:
        """Those that are added to the token table."""

    def tables_of_heads(self, model: Any) -> list[nn.Embedding]:
        """Those with a column for each head, which all layers share."""

    def narrow(self, model: Any) -> nn.Linear | None:
        """What brings narrow embeddings to the hidden size."""

    def head(self, model: Any) -> tuple[nn.Linear | None, nn.LayerNorm | None, nn.Linear]:
        """The head's two layers, an elementwise function between them, and perhaps a norm behind that.

        The first is None where one layer is all, as in most heads that answer each token.
        """

    # --- deployment

    def buffers(self, model: Any, longest: int) -> Mapping[str, tuple[Tensor, Sequence[str]]]:
        """Name -> a table that the graph needs, and the names of the weights that it is the sum of."""

    def reads_first(self, config: PretrainedConfig) -> bool:
        """Whether a head that answers a text reads the first position only."""

    def encode(self, graph: Any, ids: Int[Tensor, "batch length"], mask: Tensor, first: bool) -> Tensor:
        """States of the last layer, of the first position only if asked: (B, 1 or L, D). The mask is as given."""

    def answer(self, graph: Any, hidden: Float[Tensor, "batch read width"], mask: Tensor) -> Tensor:
        """The head's outputs from states that `encode` gave: (B, C), or (B, L, C) of a head that answers each token."""


def family_of(config: PretrainedConfig) -> Family:
    """The family of this configuration.

    Raises:
        ModelError: one that no file is for, or a variant of it whose signals would be wrong.
    """
    family = _load(config.model_type)
    if (reason := family.refusal(config)) is not None:
        raise ModelError(f"the model is of type '{config.model_type}', but {reason}; use another model")
    return family


@functools.cache
def _load(model_type: str) -> Family:
    name, known = model_type.replace("-", "_"), plugins.names("family")
    if name not in known:
        raise ModelError(
            f"the model is of type '{model_type}', which Decant cannot read signals from"
            f"{plugins.nearest(name, known)}; a file pipeline/families/{name}.py would add it: where its layers, "
            "projections and sizes are, how a student's weights are copied, and its deployment graph (docs/families.md)"
        )
    return cast(Family, plugins.load("family", name).FAMILY)


def head_of(config: PretrainedConfig) -> str:
    """The kind of head that stands on a model's encoder: 'sequence', 'token' or 'span'."""
    return getattr(config, HEAD, "sequence")


def gives_one_label(config: PretrainedConfig) -> bool:
    """Whether a text gets one of the labels: an output is the score of one, and they exclude each other."""
    kind = config.problem_type or "single_label_classification"  # as transformers takes a model without a note
    return head_of(config) == "sequence" and config.num_labels > 1 and kind == "single_label_classification"


def output_names(config: PretrainedConfig) -> tuple[str, ...]:
    """What a model's answers are called, as transformers calls them."""
    return ("start_logits", "end_logits") if head_of(config) == "span" else ("logits",)


def shape_of(config: PretrainedConfig) -> Shape:
    """The shape that a configuration describes."""
    return Shape(
        **{size: getattr(config, name) for size, name in family_of(config).sizes.items()},
        choices=getattr(config, CHOICES, config.num_labels),
        distillation_token=getattr(config, DISTILLATION_TOKEN, False),
    )


def token_types(ids: Int[Tensor, "batch length"], separator: int) -> Int[Tensor, "batch length"]:
    """0 up to the first separator, 1 behind it: the text of a pair that a token belongs to, int32."""
    found = ids.eq(separator).int()
    return (torch.cumsum(found, dim=1).int() - found).clamp(max=1)


def positions_of(config: PretrainedConfig) -> int:
    """Most tokens a model can take."""
    return family_of(config).positions(config)


def encoder_of(model: Any) -> Any:
    """The encoder inside a classifier. Families share no type."""
    return getattr(model, model.base_model_prefix)


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The encoder's layers, first to last; one that is called several times stands there as often."""
    return family_of(model.config).layers(model)
