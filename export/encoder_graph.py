"""A classifier as the plain graph that phone formats want: one text, int32 ids and mask, every shape a function of L.

Hugging Face's own forward is not exported, for three reasons:

- It writes the mask with the smallest fp32, which becomes -inf in fp16; 0 x -inf is NaN, and every answer is NaN.
- RoBERTa's expanded token types lose the batch size of 1, and with it the fixed rank that the Neural Engine needs.
- Fused attention multiplies before it scales, so that fp16 scores may overflow on the way.

`EncoderGraph` calls the model's own layers between its own embedding sum and mask; `check_answers` compares the two.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedModel

from pipeline.base.errors import ExportError
from pipeline.families.architectures import encoder_of

# Finite in fp16 (largest 65,504), with room for a score beside it; e^-10000 is 0 in every format. The smallest fp16
# itself would not do: added to a negative score it overflows to the -inf that is to be avoided.
MASKED = -1.0e4
# fp32 rounding between two orders of the same sums, as a share of the largest logit
SAME = 1.0e-4

# RoBERTa's relatives number the tokens that are not padding, from the padding id on
COUNTED = {"roberta", "xlm-roberta", "camembert"}


class EncoderGraph(nn.Module):
    """Logits and probabilities of one text. The model is changed by nothing but use: pass one you do not need again."""

    model: Any
    encoder: Any
    positions: Tensor

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.family = model.config.model_type
        self.encoder = encoder_of(model)
        embeddings = self.encoder.embeddings
        positions = embeddings.position_embeddings.weight.detach()
        if hasattr(embeddings, "token_type_embeddings"):  # one text is all type 0
            positions = positions + embeddings.token_type_embeddings.weight.detach()[0]
        self.register_buffer("positions", positions.clone())

    def forward(
        self, input_ids: Int32[Tensor, "1 length"], attention_mask: Int32[Tensor, "1 length"]
    ) -> tuple[Float[Tensor, "1 classes"], Float[Tensor, "1 classes"]]:
        """(logits, probabilities)."""
        hidden = self._embed(input_ids)
        mask = (1.0 - attention_mask.to(torch.float32))[:, None, None, :] * MASKED  # (B, 1, 1, K)
        logits = self._classify(self._encode(hidden, mask))
        return logits, logits.softmax(-1)

    def _embed(self, ids: Tensor) -> Tensor:
        embeddings = self.encoder.embeddings
        hidden = embeddings.LayerNorm(embeddings.word_embeddings(ids) + self._positions_of(ids))
        if hasattr(self.encoder, "embeddings_project"):  # ELECTRA with a narrow embedding
            hidden = self.encoder.embeddings_project(hidden)
        return hidden

    def _positions_of(self, ids: Tensor) -> Tensor:
        if self.family not in COUNTED:
            return self.positions[: ids.shape[1]]
        padding = self.model.config.pad_token_id
        present = ids.ne(padding).int()
        return nn.functional.embedding(torch.cumsum(present, dim=1).int() * present + padding, self.positions)

    def _encode(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.family == "distilbert":
            layers = self.encoder.transformer
            return layers(hidden, attn_mask=mask, head_mask=[None] * len(layers.layer), return_dict=True)[0]
        return self.encoder.encoder(hidden, attention_mask=mask, return_dict=True)[0]

    def _classify(self, hidden: Tensor) -> Tensor:
        if self.family == "bert":
            return self.model.classifier(self.encoder.pooler(hidden))
        if self.family == "distilbert":
            return self.model.classifier(self.model.pre_classifier(hidden[:, 0]).relu())
        return self.model.classifier(hidden)


def check_answers(graph: EncoderGraph, length: int) -> None:
    """Raises ExportError when the graph does not answer as the model's own forward, on a text with padding."""
    config = graph.model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (1, length), generator=generator, dtype=torch.int32)
    mask = torch.ones_like(ids)
    mask[:, length // 2 + 1 :] = 0
    ids[mask == 0] = config.pad_token_id or 0
    with torch.no_grad():
        expected = graph.model(input_ids=ids.long(), attention_mask=mask.long()).logits
        found, _ = graph(ids, mask)
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= SAME * max(largest, 1.0):
        raise ExportError(
            f"the export graph of '{config.model_type}' answers {difference:.2g} off the model it is made from, "
            f"expected at most {SAME * max(largest, 1.0):.2g}; export/encoder_graph.py does not fit this "
            "version of transformers: install the one in requirements.lock"
        )


def export_graph(
    graph: nn.Module, longest: int, any_length: bool, attend: Callable[..., Tensor] | None = None
) -> ExportedProgram:
    """The graph as a program of aten operations, for one length, or for every length from 2 to `longest`.

    Args:
        graph: an EncoderGraph, or a module with the same inputs.
        longest: in tokens.
        any_length: false for a program of the longest length only.
        attend: what becomes of fused attention; None for `_attend`.
    """
    example = (torch.ones(1, longest, dtype=torch.int32), torch.ones(1, longest, dtype=torch.int32))
    free = {1: Dim("length", min=2, max=longest)} if any_length else None
    with torch.no_grad():
        program = torch.export.export(
            graph, example, dynamic_shapes={"input_ids": free, "attention_mask": free}, strict=False
        )
    return program.run_decompositions({torch.ops.aten.scaled_dot_product_attention.default: attend or _attend})


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention in plain operations, the query scaled first: a product of unscaled fp16 rows may overflow."""
    assert dropout_p == 0.0 and not is_causal and not enable_gqa
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-1, -2) + attn_mask  # (B, H, Q, K)
    context = scores.softmax(-1) @ value  # (B, H, Q, d)
    # Laid out in memory as by the fused operation, which DistilBERT's view of it needs; nothing of it is left in MIL.
    return context.transpose(1, 2).contiguous().transpose(1, 2)
