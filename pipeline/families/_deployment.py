"""A model as the plain graph that every format is exported from: what an answer needs, and no more.

Hugging Face's own forward is not exported, for four reasons:

- It writes the mask with the smallest fp32, which becomes -inf in fp16; 0 x -inf is NaN, and every answer is NaN.
- RoBERTa's expanded token types lose a batch size of 1, and with it the fixed rank that the Neural Engine needs.
- Fused attention multiplies before it scales, so that fp16 scores may overflow on the way.
- The last layer is computed at every position, where a classifier of texts reads the first alone.

The graph calls the model's own linear layers and normalizations, in its family's order; `check_answers` compares the
two.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.base.errors import ExportError
from pipeline.families._interface import family_of, head_of, output_names

# Finite in fp16 (largest 65,504), with room for a score beside it; e^-10000 is 0 in every format. The smallest fp16
# itself would not do: added to a negative score it overflows to the -inf that is to be avoided.
MASKED = -1.0e4
# fp32 rounding between two orders of the same sums, as a share of the largest logit
SAME = 1.0e-4


def attend(
    query: Float[Tensor, "batch heads queries size"],
    key: Float[Tensor, "batch heads keys size"],
    value: Float[Tensor, "batch heads keys size"],
    mask: Float[Tensor, "#batch #heads #queries keys"],
) -> Float[Tensor, "batch heads queries size"]:
    """Attention in plain operations, the query scaled first: a product of unscaled fp16 rows may overflow."""
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-1, -2) + mask  # (B, H, Q, K)
    return scores.softmax(-1) @ value


def additive_mask(mask: Int[Tensor, "batch length"]) -> Float[Tensor, "batch 1 1 length"]:
    """What is added to the scores: 0 for a token, MASKED for padding."""
    return (1.0 - mask.to(torch.float32))[:, None, None, :] * MASKED


class DeploymentGraph(nn.Module):
    """What a model answers to texts of any number and length: `logits`, or `start_logits` and `end_logits` of a span.

    The shape of each is (B, C) for a head that answers a text, (B, L, C) for one that answers each token, and (B, L)
    for a span. Its modules are the model's own, under the same names: `bert.encoder.layer.0.attention.self.query` in
    both. Dropout is left out. Inputs are int32 or int64.
    """

    # an exporter whose kernels want other products may put its own in place
    attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

    def __init__(self, model: PreTrainedModel, longest: int | None) -> None:
        super().__init__()
        self.config = model.config
        self.base_model_prefix = model.base_model_prefix
        self.family = family_of(model.config)
        self.head_kind = head_of(model.config)
        self.output_names = output_names(model.config)  # in the order in which several come out
        # whether the last layer is computed at the first position only
        self.first = self.head_kind == "sequence" and self.family.reads_first(model.config)
        self.attend = attend
        for name, module in model.named_children():
            self.add_module(name, module)
        # buffer -> the weights that it is the sum of: row 0 of all but the first
        self.sources: dict[str, tuple[str, ...]] = {}
        most = self.family.positions(model.config)
        for name, (table, sources) in self.family.buffers(model, min(longest or most, most)).items():
            self.register_buffer(name, table, persistent=False)
            self.sources[name] = tuple(sources)

    def forward(self, input_ids: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"]) -> Any:
        return self.answer(self.family.encode(self, input_ids, attention_mask, self.first), attention_mask)

    def answer(self, hidden: Float[Tensor, "batch read width"], mask: Int[Tensor, "batch length"]) -> Any:
        """One output, or a tuple of them, from the last layer's states."""
        found = self.family.answer(self, hidden, mask)
        return (found[..., 0], found[..., 1]) if self.head_kind == "span" else found


def deployment_graph(model: PreTrainedModel, longest: int | None = None) -> DeploymentGraph:
    """The graph of a model in eval mode.

    Args:
        model: shares its modules with the graph, and is not changed.
        longest: most tokens that will come, to which tables of positions are cut; None: as many as the model takes.
    """
    return DeploymentGraph(model, longest).eval()


def check_answers(model: PreTrainedModel, graph: DeploymentGraph, length: int) -> None:
    """Raises ExportError unless the graph answers as the model's own forward: one text, and several with padding.

    What it answers at padding is nobody's.
    """
    config = model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (3, length), generator=generator, dtype=torch.int32)
    mask = (torch.arange(length) < torch.tensor([[length // 2 + 1], [length], [1]])).int()
    ids[mask == 0] = config.pad_token_id or 0
    for rows in (slice(0, 1), slice(0, 3)):
        with torch.no_grad():
            answers = model(input_ids=ids[rows].long(), attention_mask=mask[rows].long())
            outputs = graph(ids[rows], mask[rows])
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for name, found in zip(graph.output_names, outputs, strict=True):
            expected = answers[name]
            if graph.head_kind != "sequence":
                found, expected = found[mask[rows] == 1], expected[mask[rows] == 1]
            difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
            if not difference <= SAME * max(largest, 1.0):
                raise ExportError(
                    f"the deployment graph of '{config.model_type}' answers '{name}' {difference:.2g} off the model it "
                    f"is made from, expected at most {SAME * max(largest, 1.0):.2g}; pipeline/families does not fit "
                    "this version of transformers: install the one in requirements.lock"
                )
