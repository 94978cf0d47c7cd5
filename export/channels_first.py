"""The encoder as Apple published it for the Neural Engine: (B, C, 1, S), 1x1 convolutions, every head by itself.

After "Deploying Transformers on the Apple Neural Engine" (Apple, 2022): the last axis is the sequence, which the engine
keeps contiguous and aligned; linear layers become 1x1 convolutions; each head is a tensor of its own, and the keys are
the only thing that is transposed. The weights are the model's own, so the answers are those of the plain layout. What
it gains can only be timed on a device.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from export.encoder_graph import MASKED, EncoderGraph
from pipeline.families.architectures import family_of, layers_of, shape_of

# in place of the dots in a module's name, which names of submodules cannot have
SEPARATOR = "__"


class ChannelsFirstGraph(EncoderGraph):
    """Logits and probabilities of one text, computed channels first between the embeddings and the classifier."""

    norms: Any

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        parts = family_of(model.config)
        shape = shape_of(model.config)
        self.per_head = shape.hidden // shape.heads
        names = {module: name for name, module in model.named_modules()}
        self.act = ACT2FN[getattr(model.config, "hidden_act", None) or model.config.activation]
        self.names: list[dict[str, str]] = []
        norms = []
        linear = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
        convolutions = {}
        for layer in layers_of(model):
            found = {}
            for part in linear:
                module = layer.get_submodule(getattr(parts, part))
                found[part] = names[module].replace(".", SEPARATOR)
                convolutions[found[part]] = _as_convolution(module)
            self.names.append(found)
            norms.append(nn.ModuleList(layer.get_submodule(name) for name in (parts.attention_norm, parts.ffn_norm)))
        self.norms = nn.ModuleList(norms)
        self.convolutions = nn.ModuleDict(convolutions)

    def forward(
        self, input_ids: Int32[Tensor, "1 length"], attention_mask: Int32[Tensor, "1 length"]
    ) -> tuple[Float[Tensor, "1 classes"], Float[Tensor, "1 classes"]]:
        """(logits, probabilities)."""
        hidden = self._embed(input_ids).transpose(1, 2).unsqueeze(2)  # (B, C, 1, S)
        mask = (1.0 - attention_mask.to(torch.float32))[:, :, None, None] * MASKED  # (B, K, 1, 1)
        for names, (after_attention, after_ffn) in zip(self.names, self.norms, strict=True):
            hidden = _normalize(hidden + self._attend(hidden, mask, names), after_attention)
            inner = self.act(self.convolutions[names["ffn_in"]](hidden))
            hidden = _normalize(hidden + self.convolutions[names["ffn_out"]](inner), after_ffn)
        logits = self._classify(hidden.squeeze(2).transpose(1, 2))
        return logits, logits.softmax(-1)

    def _attend(self, hidden: Tensor, mask: Tensor, names: dict[str, str]) -> Tensor:
        query, key, value = (self.convolutions[names[part]](hidden) for part in ("query", "key", "value"))
        queries = query.split(self.per_head, dim=1)  # each (B, d, 1, Q)
        # Scaled before the product, so that fp16 scores do not overflow on the way, and once turned: right behind the
        # convolution, coremltools would fold the factor into its weights.
        keys = (key.transpose(1, 3) / math.sqrt(self.per_head)).split(self.per_head, dim=3)  # each (B, K, 1, d)
        values = value.split(self.per_head, dim=1)  # each (B, d, 1, K)
        contexts = []
        for q, k, v in zip(queries, keys, values, strict=True):
            weights = (torch.einsum("bkhc,bchq->bkhq", k, q) + mask).softmax(dim=1)  # (B, K, 1, Q)
            contexts.append(torch.einsum("bchk,bkhq->bchq", v, weights))
        return self.convolutions[names["attention_output"]](torch.cat(contexts, dim=1))


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
