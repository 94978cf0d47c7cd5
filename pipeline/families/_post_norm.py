"""What the families have in common whose layers normalise behind each sum, as BERT does: names of parts, and the rest.

x = norm(x + attention(x));  x = norm(x + ffn(x))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig

from pipeline.families._deployment import additive_mask
from pipeline.families._interface import SEPARATOR, Linear, Part, encoder_of, head_of, token_types

SIZES = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
}


@dataclass(frozen=True)
class Head:
    """The two layers of a head that answers a text, relative to the whole model."""

    dense: str
    activation: Callable[[Tensor], Tensor]
    out: str


def _nothing(config: PretrainedConfig, teacher: PretrainedConfig) -> None:
    """No size follows from another."""


def _none(config: PretrainedConfig) -> str | None:
    """No variant is refused."""


def bias_of(distances: Float[Tensor, "distances heads"], length: int) -> Float[Tensor, "1 heads length length"]:
    """The bias of each query and key from that of each distance, of which the farthest stand for all beyond."""
    reach = distances.shape[0] // 2
    places = torch.arange(length, dtype=torch.int32, device=distances.device)
    between = (places[None, :] - places[:, None]).clamp(-reach, reach) + reach
    return nn.functional.embedding(between, distances).permute(2, 0, 1)[None]


@dataclass(frozen=True)
class PostNorm:
    """A family by the names of its parts."""

    classifier: Head
    stack: str = "encoder.layer"  # relative to the encoder
    modules: Mapping[Part, str] = field(  # relative to a layer
        default_factory=lambda: {
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "attention_output": "attention.output.dense",
            "ffn_in": "intermediate.dense",
            "ffn_out": "output.dense",
        }
    )
    attention_norm: str = "attention.output.LayerNorm"
    ffn_norm: str = "output.LayerNorm"
    activation: str = "intermediate.intermediate_act_fn"
    sizes: Mapping[str, str] = field(default_factory=lambda: SIZES)
    dropouts: Sequence[str] = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    words: str = "embeddings.word_embeddings"
    # positions are the numbers of the tokens that are not padding, from behind the padding id on
    is_counted: bool = False
    # what brings narrow embeddings to the hidden size, relative to the encoder; a model may have none
    projection: str | None = None
    # the stack is one layer, which is called as often as the configuration has layers
    is_shared: bool = False
    # (model, longest) -> the bias of the scores for each distance, (2 reach + 1, H); layers share it
    distances: Callable[[Any, int], Tensor] | None = None
    head_tables: Sequence[str] = ()  # relative to the encoder; a column a head
    adapt: Callable[[PretrainedConfig, PretrainedConfig], None] = _nothing
    refused: Callable[[PretrainedConfig], str | None] = _none
    turns_pairs: bool = False

    def refusal(self, config: PretrainedConfig) -> str | None:
        kind = getattr(config, "position_embedding_type", "absolute")
        if kind != "absolute":
            return f"its positions are '{kind}', which enter the scores behind the keys"
        return self.refused(config)

    def prepare(self, config: PretrainedConfig) -> None:
        """Its layers are always called so."""

    def positions(self, config: PretrainedConfig) -> int:
        return config.max_position_embeddings - self._first_position(config)

    def _first_position(self, config: PretrainedConfig) -> int:
        return (config.pad_token_id or 0) + 1 if self.is_counted else 0

    def layers(self, model: Any) -> list[nn.Module]:
        found = list(encoder_of(model).get_submodule(self.stack).children())
        return found * getattr(model.config, self.sizes["layers"]) if self.is_shared else found

    # --- signals

    def module_of(self, part: Part) -> str:
        return self.modules[part]

    def split(
        self, model: Any, layer: int, part: Part, projected: Float[Tensor, "batch length width"]
    ) -> Float[Tensor, "batch heads length head_width"]:
        heads = getattr(model.config, self.sizes["heads"])
        return projected.unflatten(-1, (heads, -1)).transpose(1, 2)

    def score_bias(self, model: Any, layer: int, length: int) -> Tensor | None:
        return None if self.distances is None else bias_of(self.distances(model, length), length)

    # --- students

    def own_embedding(self, config: PretrainedConfig) -> str | None:
        return "has a factorised embedding of its own" if self.projection is not None else None

    def linear(self, model: Any, layer: int, part: Part) -> Linear | None:
        if part not in self.modules:
            return None
        module = self.layers(model)[layer].get_submodule(self.modules[part])
        assert isinstance(module, nn.Linear)
        return module.weight, module.bias

    def norms(self, model: Any, layer: int | None) -> list[nn.LayerNorm | None]:
        if layer is None:
            return [encoder_of(model).embeddings.LayerNorm]
        return [attrgetter(name)(self.layers(model)[layer]) for name in (self.attention_norm, self.ffn_norm)]

    def absorb(self, model: Any, layer: int, scale: Tensor) -> None:
        raise AssertionError("no layer lacks a norm")

    def tables(self, model: Any) -> list[nn.Embedding]:
        embeddings = encoder_of(model).embeddings
        names = ("position_embeddings", "token_type_embeddings")
        return [getattr(embeddings, name) for name in names if hasattr(embeddings, name)]

    def tables_of_heads(self, model: Any) -> list[nn.Embedding]:
        return [encoder_of(model).get_submodule(name) for name in self.head_tables]

    def narrow(self, model: Any) -> nn.Linear | None:
        encoder = encoder_of(model)
        names = dict(encoder.named_modules())
        found = names.get(self.projection) if self.projection is not None else None
        return cast(nn.Linear | None, found)  # in a graph, an exporter may have put another module in its place

    def head(self, model: Any) -> tuple[nn.Linear | None, nn.LayerNorm | None, nn.Linear]:
        kind = head_of(model.config)
        if kind != "sequence":
            return None, None, model.qa_outputs if kind == "span" else model.classifier
        return model.get_submodule(self.classifier.dense), None, model.get_submodule(self.classifier.out)

    # --- deployment

    def buffers(self, model: Any, longest: int) -> Mapping[str, tuple[Tensor, Sequence[str]]]:
        """Row 0 of the token types is added to every position once and for all; the second text differs from it."""
        tables = self.tables(model)
        names = {module: name for name, module in model.named_modules()}
        rows = self._first_position(model.config) + longest
        positions = tables[0].weight.detach()[:rows] + sum(table.weight.detach()[0] for table in tables[1:])
        found: dict[str, tuple[Tensor, Sequence[str]]] = {
            "positions": (positions.clone(), [f"{names[table]}.weight" for table in tables])
        }
        if getattr(model.config, SEPARATOR, None) is not None and len(tables) > 1:
            types = tables[1].weight.detach()
            found["second"] = (types[1] - types[0], ())
        if self.distances is not None:
            found["distances"] = self.distances(model, longest).detach(), ()
        return found

    def reads_first(self, config: PretrainedConfig) -> bool:
        return True

    def embed(self, graph: Any, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        """What enters the first layer."""
        encoder = encoder_of(graph)
        words = encoder.get_submodule(self.words)(ids)
        words = words + self._position_rows(graph, ids)
        if hasattr(graph, "second"):
            words = words + token_types(ids, getattr(graph.config, SEPARATOR)).unsqueeze(-1) * graph.second
        hidden = encoder.embeddings.LayerNorm(words)
        narrow = self.narrow(graph)
        return hidden if narrow is None else narrow(hidden)

    def _position_rows(self, graph: Any, ids: Tensor) -> Tensor:
        if not self.is_counted:
            return graph.positions[: ids.shape[1]]
        padding = graph.config.pad_token_id
        present = ids.ne(padding).int()
        return nn.functional.embedding(torch.cumsum(present, dim=1).int() * present + padding, graph.positions)

    def encode(self, graph: Any, ids: Int[Tensor, "batch length"], mask: Tensor, first: bool) -> Tensor:
        hidden, added = self.embed(graph, ids), self.added(graph, mask)
        last = len(self.layers(graph)) - 1
        for number in range(last + 1):
            hidden = self._run_layer(graph, number, hidden, added, first and number == last)
        return hidden

    def added(self, graph: Any, mask: Int[Tensor, "batch length"]) -> Tensor:
        """What is added to the scores: (B, 1 or H, 1 or Q, K)."""
        added = additive_mask(mask)
        return added if self.distances is None else added + bias_of(graph.distances, mask.shape[1])

    def _run_layer(self, graph: Any, number: int, hidden: Tensor, added: Tensor, first: bool) -> Tensor:
        layer = self.layers(graph)[number]

        def run(part: Part, states: Tensor) -> Tensor:
            return layer.get_submodule(self.modules[part])(states)

        def heads(part: Part, states: Tensor) -> Tensor:
            return self.split(graph, number, part, run(part, states))

        asked = hidden[:, :1] if first else hidden
        if first and self.distances is not None:
            added = added[:, :, :1]
        context = graph.attend(heads("query", asked), heads("key", hidden), heads("value", hidden), added)
        written = run("attention_output", context.transpose(1, 2).flatten(2))
        hidden = layer.get_submodule(self.attention_norm)(asked + written)
        inner = attrgetter(self.activation)(layer)(run("ffn_in", hidden))
        return layer.get_submodule(self.ffn_norm)(hidden + run("ffn_out", inner))

    def answer(self, graph: Any, hidden: Float[Tensor, "batch read width"], mask: Tensor) -> Tensor:
        dense, _, out = self.head(graph)
        if dense is None:
            return out(hidden)
        return out(self.classifier.activation(dense(hidden[:, 0])))
