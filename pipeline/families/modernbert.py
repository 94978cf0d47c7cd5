"""ModernBERT: rotary positions, local attention in most layers, norms before what they normalise, gated units.

    x = x + attention(norm(x));  x = x + ffn(norm(x))

The first layer has no norm before its attention: the embeddings end in one. In most layers a token attends to those
near it only, and its positions turn at other speeds. Which layers do follows from their number, so a student's layer
may be of another kind than the one it is copied from.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig

from pipeline.families import _deployment
from pipeline.families._deployment import additive_mask
from pipeline.families._interface import Linear, Part, encoder_of, head_of
from pipeline.families._post_norm import SIZES, bias_of

FUSED: dict[Part, int] = {"query": 0, "key": 1, "value": 2}  # rows of Wqkv
GATED: dict[Part, int] = {"ffn_in": 0, "ffn_gate": 1}  # rows of Wi
Turns = tuple[Float[Tensor, "length head_width"], Float[Tensor, "length head_width"]]  # cosines and sines


class ModernBert:
    """The family."""

    sizes: Mapping[str, str] = SIZES
    dropouts: Sequence[str] = ("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout")
    words = "embeddings.tok_embeddings"
    turns_pairs = True

    def refusal(self, config: PretrainedConfig) -> str | None:
        return "its rotary positions are scaled" if getattr(config, "rope_scaling", None) is not None else None

    def prepare(self, config: PretrainedConfig) -> None:
        """Flash attention would take the padding out of every state, and compiled layers call no hooks."""
        config._attn_implementation, config.reference_compile = "sdpa", False

    def positions(self, config: PretrainedConfig) -> int:
        return config.max_position_embeddings

    def layers(self, model: Any) -> list[nn.Module]:
        return list(encoder_of(model).layers)

    # --- signals

    def module_of(self, part: Part) -> str:
        if part in FUSED or part == "attention_output":
            return "attn.Wqkv" if part in FUSED else "attn.Wo"
        return "mlp.Wi" if part in GATED else "mlp.Wo"

    def split(
        self, model: Any, layer: int, part: Part, projected: Float[Tensor, "batch length width"]
    ) -> Float[Tensor, "batch heads length head_width"]:
        states = self._heads(model, part, projected)
        if part == "value":
            return states
        places = torch.arange(projected.shape[1], device=projected.device)
        return _turned(states, self._turns(model, layer, places))

    def _heads(self, model: Any, part: Part, projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (3, model.config.num_attention_heads, -1))[:, :, FUSED[part]].transpose(1, 2)

    def _turns(self, model: Any, layer: int, places: Int[Tensor, " length"]) -> Turns:
        module: Any = self.layers(model)[layer]
        cosines, sines = module.attn.rotary_emb(module.attn.Wqkv.weight, position_ids=places[None])
        return cosines[0], sines[0]

    def score_bias(self, model: Any, layer: int, length: int) -> Tensor | None:
        if not self._is_local(model.config, layer):
            return None
        window = _window(model.config, length)
        return bias_of(window.to(encoder_of(model).embeddings.tok_embeddings.weight.device), length)

    def _is_local(self, config: PretrainedConfig, layer: int) -> bool:
        return layer % config.global_attn_every_n_layers != 0

    # --- students

    def adapt(self, config: PretrainedConfig, teacher: PretrainedConfig) -> None:
        """No size follows from another."""

    def own_embedding(self, config: PretrainedConfig) -> str | None:
        return None

    def linear(self, model: Any, layer: int, part: Part) -> Linear | None:
        module: Any = self.layers(model)[layer].get_submodule(self.module_of(part))
        places = FUSED if part in FUSED else GATED
        if part not in places:
            return module.weight, module.bias
        rows = len(module.weight) // len(places)
        mine = slice(places[part] * rows, (places[part] + 1) * rows)
        return module.weight[mine], None if module.bias is None else module.bias[mine]

    def norms(self, model: Any, layer: int | None) -> list[nn.LayerNorm | None]:
        encoder = encoder_of(model)
        if layer is None:
            return [encoder.embeddings.norm, encoder.final_norm]
        before = encoder.layers[layer].attn_norm
        return [before if isinstance(before, nn.LayerNorm) else None, encoder.layers[layer].mlp_norm]

    def absorb(self, model: Any, layer: int, scale: Float[Tensor, " width"]) -> None:
        encoder_of(model).layers[layer].attn.Wqkv.weight.mul_(scale)

    def tables(self, model: Any) -> list[nn.Embedding]:
        return []

    def tables_of_heads(self, model: Any) -> list[nn.Embedding]:
        return []

    def narrow(self, model: Any) -> nn.Linear | None:
        return None

    def head(self, model: Any) -> tuple[nn.Linear, nn.LayerNorm | None, nn.Linear]:
        return model.head.dense, model.head.norm, model.classifier

    # --- deployment

    def buffers(self, model: Any, longest: int) -> Mapping[str, tuple[Tensor, Sequence[str]]]:
        """Cosines and sines of each kind of layer, and what a local one adds to the scores of each distance."""
        found: dict[str, tuple[Tensor, Sequence[str]]] = {}
        for layer in range(len(self.layers(model))):
            is_local = self._is_local(model.config, layer)
            for name, table in zip(_names(is_local), self._turns(model, layer, torch.arange(longest)), strict=True):
                found[name] = table.clone(), ()
            if is_local and longest - 1 > model.config.local_attention // 2:
                found["window"] = _window(model.config, longest), ()
        return found

    def reads_first(self, config: PretrainedConfig) -> bool:
        return config.classifier_pooling == "cls"

    def encode(self, graph: Any, ids: Int[Tensor, "batch length"], mask: Tensor, first: bool) -> Tensor:
        encoder, length = encoder_of(graph), ids.shape[1]
        hidden = encoder.embeddings.norm(encoder.embeddings.tok_embeddings(ids))
        everywhere = near = additive_mask(mask)
        if hasattr(graph, "window"):
            near = everywhere + bias_of(graph.window, length)
        for number, layer in enumerate(encoder.layers):
            is_local = self._is_local(graph.config, number)
            added, asked = near if is_local else everywhere, hidden
            cosines, sines = (graph.get_buffer(name)[:length] for name in _names(is_local))
            projected = layer.attn.Wqkv(layer.attn_norm(hidden))  # one product: queries of all, also where one is read
            query, key, value = (self._heads(graph, part, projected) for part in FUSED)
            turns = cosines, sines
            if first and number == len(encoder.layers) - 1:
                query, asked, turns = query[:, :, :1], hidden[:, :1], (cosines[:1], sines[:1])
                added = added[:, :, :1] if is_local else added
            context = graph.attend(_turned(query, turns), _turned(key, (cosines, sines)), value, added)
            hidden = asked + layer.attn.Wo(context.transpose(1, 2).flatten(2))
            inner, gate = layer.mlp.Wi(layer.mlp_norm(hidden)).chunk(2, dim=-1)
            hidden = hidden + layer.mlp.Wo(layer.mlp.act(inner) * gate)
        return encoder.final_norm(hidden)

    def answer(self, graph: Any, hidden: Float[Tensor, "batch read width"], mask: Tensor) -> Tensor:
        if head_of(graph.config) != "sequence":
            pooled = hidden
        elif self.reads_first(graph.config):
            pooled = hidden[:, 0]
        else:
            valid = mask.to(hidden.dtype)[:, :, None]
            pooled = (hidden * valid).sum(1) / valid.sum(1)
        return graph.classifier(graph.head(pooled))


def _names(is_local: bool) -> tuple[str, str]:
    kind = "local" if is_local else "global"
    return f"{kind}_cosines", f"{kind}_sines"


def _window(config: PretrainedConfig, length: int) -> Float[Tensor, "distances 1"]:
    """What a local layer adds to the score of each distance: nothing near, and so much far away that nothing is left.

    Its ends stand for all distances beyond.
    """
    near = config.local_attention // 2
    reach = min(length - 1, near + 1)
    distances = torch.arange(-reach, reach + 1).abs()
    return torch.where(distances > near, _deployment.MASKED, 0.0)[:, None]


def _turned(states: Float[Tensor, "batch heads length head_width"], turns: Turns) -> Tensor:
    cosines, sines = turns
    first, second = states.chunk(2, dim=-1)
    return states * cosines + torch.cat((-second, first), dim=-1) * sines


FAMILY = ModernBert()
