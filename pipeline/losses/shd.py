"""Squeezing-Heads Distillation: teacher heads are merged, two by two, until there are as many as the student has.

The merged maps are the target of plain attention transfer; nothing is learned for it and the student stays as it is.
"""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LayerLossParams
from pipeline.models.layer_maps import layer_misfit, layer_pairs
from pipeline.signals.divergences import log_row_kl, masked_log_probs, masked_probs
from pipeline.signals.reader import Signals, attention_scores, taken

KIND = "signal"
NEEDS = ("attention", "values", "output_weights")
# Of the contract: of these it looks at the teacher's alone.
TEACHER_ONLY = ("values", "output_weights")

# Squared length below which two heads are taken to do the same; then any share is as good, and half is even-handed.
SAME = 1e-12


class Params(LayerLossParams):
    """Settings of shd."""


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """Mean over the mapped layers of the student's divergence from the teacher's squeezed heads.

    Returns:
        Nats per student head and query, averaged for each example, then over the batch; attention_kl's value when both
        have as many heads.

    Source: ICLR 2025 submission 1443, later arXiv 2502.07436. No code was found and the formula is not verified against
    a source: see `merge_share`. The paper always adds a loss on logits.
    """
    pairs = layer_pairs(params.map, len(student.queries), len(teacher.queries))
    per_pair = []
    for s, t in pairs:
        ours = masked_log_probs(attention_scores(student, s), student.mask)
        with torch.no_grad():
            theirs = squeeze(
                masked_probs(attention_scores(teacher, t), student.mask),
                taken(teacher.values, t - 1),
                taken(teacher.output_weights, t - 1),
                student.mask,
                ours.shape[1],
            )
            # an entry that underflowed to 0 counts for nothing, and the smallest number's logarithm is finite
            log_theirs = theirs.clamp(min=torch.finfo(theirs.dtype).tiny).log()
        per_pair.append(log_row_kl(ours, log_theirs, student.mask, student.mask))
    return torch.stack(per_pair).mean()


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """The map must fit, and heads can only become fewer."""
    if student.heads > teacher.heads:
        return (
            f"the student has {student.heads} attention heads and the teacher only {teacher.heads}, which cannot be "
            "merged into more; use a loss that compares any: minilm_v2, a2d or attention_mean_kl"
        )
    return layer_misfit(params.map, student.layers, teacher.layers)


def head_counts(heads: int, target: int) -> list[int]:
    """How many heads there are at the start and after each round, down to the target: 25, 13, 12.

    Source: the published pseudo-code merges all neighbours in every round, which overshoots wherever the target is not
    on its way (16, 8, 4 for 6). Here a round merges no more pairs than are still too many.
    """
    counts = [heads]
    while counts[-1] > target:
        counts.append(counts[-1] - min(counts[-1] // 2, counts[-1] - target))
    return counts


def squeeze(
    maps: Float[Tensor, "batch heads length length"],
    values: Float[Tensor, "batch heads length head_width"],
    output_weight: Float[Tensor, "width width"],
    mask: Bool[Tensor, "batch length"],
    target: int,
) -> Float[Tensor, "batch target length length"]:
    """Attention maps of `target` heads in place of the given ones.

    Args:
        maps: probabilities; rows add up to 1 and padded keys have 0.
        values: what each head attends to.
        output_weight: of nn.Linear; its columns belong to the heads in turn.
        mask: True for a real token.
        target: at most as many as there are.

    Returns:
        Probabilities again. In a round the first heads are merged two by two, into their places in order, and the rest
        moves up behind them.

    Cost: a round multiplies maps by values once and values by a square matrix of two heads' width, so about as much as
    the layer's own attention; it holds one copy of the maps and of the values. What a head adds to the layer's output
    is as wide as the model, and is never formed.
    """
    # A merged head keeps the values and slices of all heads inside it, side by side; its contribution is their product.
    values = values.float()
    slices = output_weight.float().unflatten(1, (maps.shape[1], -1)).permute(1, 2, 0)  # (H, d, D)
    counts = head_counts(maps.shape[1], target)
    for before, after in pairwise(counts):
        end = 2 * (before - after)
        first, second = slice(0, end, 2), slice(1, end, 2)
        paired_values = torch.cat((values[:, first], values[:, second]), -1)  # (B, P, L, 2w)
        paired_slices = torch.cat((slices[first], slices[second]), 1)  # (P, 2w, D)
        share = merge_share(maps[:, first], maps[:, second], paired_values, paired_slices, mask)[..., None, None]
        merged = share * maps[:, first] + (1 - share) * maps[:, second]
        maps = torch.cat((merged, maps[:, end:]), 1)
        # Heads that wait get zeros, so that all stay equally wide and the next round is one product again.
        width = values.shape[-1]
        values = torch.cat((paired_values, nn.functional.pad(values[:, end:], (0, width))), 1)
        slices = torch.cat((paired_slices, nn.functional.pad(slices[end:], (0, 0, 0, width))), 0)
    return maps


def merge_share(
    first: Float[Tensor, "batch pairs length length"],
    second: Float[Tensor, "batch pairs length length"],
    values: Float[Tensor, "batch pairs length both_widths"],
    slices: Float[Tensor, "pairs both_widths width"],
    mask: Bool[Tensor, "batch length"],
    clamp: bool = True,
) -> Float[Tensor, "batch pairs"]:
    """The first head's share in the merged one, from 0 to 1, for each example and pair.

    Args:
        first: the attention map of each pair's first head.
        second: and of its second.
        values: their values side by side, the first head's before the second's.
        slices: the rows of the transposed output projection that belong to these values.
        mask: True for a real token.
        clamp: keep the share between 0 and 1, without which the merged rows need not be probabilities.

    Source: reconstructed from a summary and the authors' rebuttal; not verified against a source. The merged head,
    which carries both value streams, shall do what the two did: minimise |A_p X_p + A_q X_q - A (X_p + X_q)|^2 over a
    in A = a A_p + (1 - a) A_q. With D = A_p - A_q, U = D X_p and W = D (X_p + X_q) that is a = <U, W> / <W, W>, over
    the valid queries.
    """
    difference = torch.where(mask[:, None, :, None], first - second, 0.0)
    # autocast would turn even float32 factors into half precision
    with torch.autocast(values.device.type, enabled=False):
        moved = difference @ values  # (B, P, L, 2w)
        # <D V S, D V S> by way of S S', which is as small as the heads are, not as wide as the model
        through = moved @ (slices @ slices.transpose(-1, -2))
    products = (moved * through).sum(2)  # (B, P, 2w)
    of_first, of_both = products[..., : values.shape[-1] // 2].sum(-1), products.sum(-1)
    share = torch.where(of_both < SAME, 0.5, of_first / of_both.clamp(min=SAME))
    return share.clamp(0, 1) if clamp else share
