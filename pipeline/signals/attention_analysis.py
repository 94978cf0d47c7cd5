"""How far a student's attention is from its teacher's: a figure to read beside scores, before and after training."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.data.batches import Collator, batches_by_length
from pipeline.data.prepared import EncodedSplit, spread_rows
from pipeline.families import shape_of
from pipeline.models.layer_maps import layer_pairs
from pipeline.signals.divergences import masked_log_probs
from pipeline.signals.reader import SignalReader, attention_scores

SMOOTHING = 1e-3  # share of each row that is spread evenly, as the reference code does, so that no key has chance 0
ROWS = 256


def attention_distance(student: PreTrainedModel, teacher: PreTrainedModel, split: EncodedSplit) -> float:
    """How far each student head is from the nearest head of the teacher layer that a uniform map gives it.

    Args:
        student: put into eval mode.
        teacher: the same.
        split: some of its rows are read, spread over all. With a trimmed vocabulary only training rows are sure to be
            the same tokens for both models.

    Returns:
        Jensen-Shannon divergence in nats, averaged over texts and their tokens, then over the student's heads: 0 when
        each head has a twin, at most ln 2. The nearest head is the one with the least average, so that order and
        number of heads do not matter.
    """
    small, large = shape_of(student.config), shape_of(teacher.config)
    # A student deeper than its teacher has no uniform map; its last layer then stands for it.
    pairs = layer_pairs("uniform" if small.layers <= large.layers else "last_only", small.layers, large.layers)
    sums = [torch.zeros(small.heads, large.heads, dtype=torch.float64) for _ in pairs]
    collate, rows, examples = Collator(split), spread_rows(len(split), ROWS), 0
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    for model in (student, teacher):
        nn.Module.to(model, device)
    with (
        SignalReader(student, {"attention": {s for s, _ in pairs}}, frozen=True) as ours,
        SignalReader(teacher, {"attention": {t for _, t in pairs}}, frozen=True) as theirs,
    ):
        for numbers in batches_by_length([len(split.ids[i]) for i in rows], 32):
            batch = {name: tensor.to(device) for name, tensor in collate([rows[i] for i in numbers]).items()}
            mine = ours.read({name: batch[name] for name in ("input_ids", "attention_mask")})
            teacher_ids = batch.get("teacher_input_ids", batch["input_ids"])
            other = theirs.read({"input_ids": teacher_ids, "attention_mask": mine.mask.long()})
            for total, (s, t) in zip(sums, pairs, strict=True):
                per_example = head_divergences(
                    masked_log_probs(attention_scores(mine, s), mine.mask).exp(),
                    masked_log_probs(attention_scores(other, t), mine.mask).exp(),
                    mine.mask,
                )
                total += per_example.sum(0).double().cpu()
            examples += len(numbers)
    return math.fsum(float(total.min(dim=1).values.mean()) for total in sums) / examples / len(sums)


def head_divergences(
    ours: Float[Tensor, "batch heads length length"],
    theirs: Float[Tensor, "batch other_heads length length"],
    mask: Bool[Tensor, "batch length"],
) -> Float[Tensor, "batch heads other_heads"]:
    """Jensen-Shannon divergence of each pair of heads, in nats, averaged over each example's valid rows.

    Args:
        ours: attention probabilities; padded keys have none.
        theirs: the same, of any number of heads.
        mask: True for a real token.

    Source: Clark et al. 2019, checked in their code, which sums over rows; the mean is ours, so that length does not
    matter. The smoothing is theirs.
    """
    tokens = mask.sum(1).clamp(min=1)
    smooth_ours, smooth_theirs = _smoothed(ours, mask, tokens), _smoothed(theirs, mask, tokens)
    per_head = []
    for head in smooth_ours.unbind(1):  # one student head at a time: all pairs at once need heads times the memory
        per_row = jensen_shannon(head[:, None], smooth_theirs)  # (B, H_T, Q)
        per_head.append(torch.where(mask[:, None, :], per_row, 0.0).sum(-1) / tokens[:, None])
    return torch.stack(per_head, dim=1)


def jensen_shannon(p: Float[Tensor, "*shape keys"], q: Float[Tensor, "*other keys"]) -> Tensor:
    """Half the divergence of p from their mean plus half that of q, in nats, over the last axis; at most ln 2."""
    middle = (p + q) / 2
    return (torch.xlogy(p, p / middle.clamp(min=1e-30)) + torch.xlogy(q, q / middle.clamp(min=1e-30))).sum(-1) / 2


def _smoothed(maps: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
    even = mask[:, None, None, :] / tokens[:, None, None, None]
    return (1 - SMOOTHING) * maps + SMOOTHING * even
