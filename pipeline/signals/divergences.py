"""Comparing attention-like distributions under padding: the arithmetic that several losses share.

One rule throughout. Padded keys leave before the softmax, padded query rows leave the sum and the count, each example
is divided by what was really summed, and the mean is over the examples that have a valid token at all.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Far below any real score, yet finite: -inf would make a fully padded row NaN, in the value or in the gradient.
MASKED_SCORE = -1e9


def masked_log_probs(
    scores: Float[Tensor, "batch heads length length"], mask: Bool[Tensor, "batch length"]
) -> Float[Tensor, "batch heads length length"]:
    """Log-probabilities over valid keys, float32; a padded key gets probability exactly 0 beside a valid one."""
    return torch.where(mask[:, None, None, :], scores.float(), MASKED_SCORE).log_softmax(-1)


def masked_probs(
    scores: Float[Tensor, "batch heads length length"], mask: Bool[Tensor, "batch length"]
) -> Float[Tensor, "batch heads length length"]:
    """The probabilities of `masked_log_probs`, for what is linear in them; a logarithm of these would meet zeros."""
    return torch.where(mask[:, None, None, :], scores.float(), MASKED_SCORE).softmax(-1)


def row_kl(
    student: Float[Tensor, "batch heads length length"],
    teacher: Float[Tensor, "batch heads length length"],
    mask: Bool[Tensor, "batch length"],
    keys: Bool[Tensor, "batch length"] | None = None,
) -> Float[Tensor, ""]:
    """Divergence of the student's rows from the teacher's, KL(teacher || student), both given as scores.

    Args:
        student: scores before the softmax.
        teacher: the same; no gradient flows into them.
        mask: True for a real token.
        keys: True for the keys that rows are spread over, of the real tokens; all of them if absent. A row that is left
            without any counts as 0.

    Returns:
        Nats per head and valid query, averaged for each example, then over examples; 0 when the two agree.
    """
    keys = mask if keys is None else mask & keys
    return log_row_kl(masked_log_probs(student, keys), masked_log_probs(teacher.detach(), keys), mask, keys)


def log_row_kl(
    log_student: Float[Tensor, "batch heads length length"],
    log_teacher: Float[Tensor, "batch heads length length"],
    mask: Bool[Tensor, "batch length"],
    keys: Bool[Tensor, "batch length"],
) -> Float[Tensor, ""]:
    """`row_kl` of log-probabilities, which must be finite; a gradient that the teacher's side has is kept.

    Source: the per-example normalisation 1/(heads * tokens) is MiniLM's. The product is masked after it is formed;
    relying on 0 * x = 0 would give NaN for an infinite x.
    """
    terms = log_teacher.exp() * (log_teacher - log_student)
    per_row = torch.where(keys[:, None, None, :], terms, 0.0).sum(-1)  # (B, H, Q)
    per_example = torch.where(mask[:, None, :], per_row, 0.0).sum((1, 2))  # (B,)
    heads, tokens = log_student.shape[1], mask.sum(1)
    return mean_over_examples(per_example / (heads * tokens.clamp(min=1)), mask)


def mean_over_examples(per_example: Float[Tensor, " batch"], mask: Bool[Tensor, "batch length"]) -> Float[Tensor, ""]:
    """Mean over the examples that have a valid token; 0 when none has."""
    has_token = mask.any(1)
    return torch.where(has_token, per_example, 0.0).sum() / has_token.sum().clamp(min=1)
