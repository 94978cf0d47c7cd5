"""The encoder as Apple published it for the Neural Engine: (B, C, 1, S), 1x1 convolutions, every head by itself.

After "Deploying Transformers on the Apple Neural Engine" (Apple, 2022): the last axis is the sequence, which the engine
keeps contiguous and aligned; linear layers become 1x1 convolutions; each head is a tensor of its own, and the keys are
the only thing that is transposed. The weights are the model's own, so the answers are those of the plain layout. What
it gains can only be timed on a device.
"""

import math
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.base.errors import ExportError
from pipeline.families import DeploymentGraph, family_of, layers_of, shape_of
from pipeline.families._post_norm import PostNorm

# in place of the dots in a module's name, which names of submodules cannot have
SEPARATOR = "__"
CONVOLUTIONS = "convolutions"


class ChannelsFirstGraph(DeploymentGraph):
    """The same answers, computed channels first between the embeddings and the head."""

    family: PostNorm
    convolutions: nn.ModuleDict

    def __init__(self, model: PreTrainedModel, longest: int | None) -> None:
        super().__init__(model, longest)
        shape = shape_of(model.config)
        self.per_head = shape.hidden // shape.heads
        names = {module: name for name, module in model.named_modules()}
        self.names: list[dict[str, str]] = []
        convolutions = {}
        for layer in layers_of(model):
            found: dict[str, str] = {}
            for part, path in self.family.modules.items():
                module = layer.get_submodule(path)
                found[part] = names[module].replace(".", SEPARATOR)
                convolutions[found[part]] = _as_convolution(module)
            self.names.append(found)
        self.convolutions = nn.ModuleDict(convolutions)

    def forward(self, input_ids: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"]) -> Any:
        hidden = self.family.embed(self, input_ids).transpose(1, 2).unsqueeze(2)  # (B, C, 1, S)
        added = self.family.added(self, attention_mask).permute(0, 3, 1, 2)  # (B, K, 1 or H, 1 or Q)
        layers = self.family.layers(self)
        for number, (names, layer) in enumerate(zip(self.names, layers, strict=True)):
            asked = hidden
            if self.first and number == len(layers) - 1:
                asked = hidden[..., :1]
                if added.shape[3] > 1:  # of one column, coremltools cannot convert the whole as a slice
                    added = added[..., :1]
            attended = asked + self._attend(asked, hidden, added, names)
            hidden = _normalize(attended, attrgetter(self.family.attention_norm)(layer))
            inner = attrgetter(self.family.activation)(layer)(self.convolutions[names["ffn_in"]](hidden))
            written = hidden + self.convolutions[names["ffn_out"]](inner)
            hidden = _normalize(written, attrgetter(self.family.ffn_norm)(layer))
        return self.answer(hidden.squeeze(2).transpose(1, 2), attention_mask)

    def _attend(self, asked: Tensor, hidden: Tensor, added: Tensor, names: dict[str, str]) -> Tensor:
        query = self.convolutions[names["query"]](asked)
        key, value = (self.convolutions[names[part]](hidden) for part in ("key", "value"))
        queries = query.split(self.per_head, dim=1)  # each (B, d, 1, Q)
        # Scaled before the product, so that fp16 scores do not overflow on the way, and once turned: right behind the
        # convolution, coremltools would fold the factor into its weights.
        keys = (key.transpose(1, 3) / math.sqrt(self.per_head)).split(self.per_head, dim=3)  # each (B, K, 1, d)
        values = value.split(self.per_head, dim=1)  # each (B, d, 1, K)
        each = added.split(1, dim=2) if added.shape[2] > 1 else [added] * len(queries)
        contexts = []
        for q, k, v, bias in zip(queries, keys, values, each, strict=True):
            weights = (torch.einsum("bkhc,bchq->bkhq", k, q) + bias).softmax(dim=1)  # (B, K, 1, Q)
            contexts.append(torch.einsum("bchk,bkhq->bchq", v, weights))
        return self.convolutions[names["attention_output"]](torch.cat(contexts, dim=1))


def channels_first_graph(model: PreTrainedModel, longest: int | None = None) -> ChannelsFirstGraph:
    """The graph of a model in eval mode.

    Raises:
        ExportError: a family whose layers are of another kind.
    """
    if not isinstance(family_of(model.config), PostNorm):
        raise ExportError(
            f"options.layout is channels_first, which a model of type '{model.config.model_type}' cannot have: its "
            "layers normalise before attention; set it to plain"
        )
    return ChannelsFirstGraph(model, longest).eval()


def _as_convolution(linear: Any) -> nn.Conv2d:
    """A 1x1 convolution with a linear layer's weights."""
    rows, columns = linear.weight.shape
    made = nn.Conv2d(columns, rows, 1, bias=linear.bias is not None)
    made.weight.data = linear.weight.detach()[:, :, None, None]
    if made.bias is not None:
        made.bias.data = linear.bias.detach()
    return made


def _normalize(hidden: Float[Tensor, "B C 1 S"], norm: nn.LayerNorm) -> Float[Tensor, "B C 1 S"]:
    """LayerNorm over the channels."""
    centred = hidden - hidden.mean(dim=1, keepdim=True)
    scale = torch.rsqrt((centred * centred).mean(dim=1, keepdim=True) + norm.eps)
    return centred * scale * norm.weight[:, None, None] + norm.bias[:, None, None]
