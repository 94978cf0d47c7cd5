"""Soft targets met in the middle: teacher and student are both compared with a mixture of the two."""

import math

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LossParams
from pipeline.signals.class_divergences import class_kl, classes_misfit, softened_log_probs
from pipeline.signals.reader import Signals

KIND = "logit"
NEEDS = ("logits",)


class Params(LossParams):
    """Settings of logit_jsd."""

    temperature: float = Field(default=2.0, gt=0, description="Softens both sides; > 0, usual values 1 to 8.")
    beta: float = Field(
        default=0.5, gt=0, lt=1, description="The teacher's share of the mixture; between 0 and 1, both excluded."
    )


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """`logit_jsd` of the two models' logits."""
    return logit_jsd(student.logits, teacher.logits, params.temperature, params.beta)


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """Both must know the same classes."""
    return classes_misfit(student, teacher)


def logit_jsd(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], temperature: float, beta: float
) -> Float[Tensor, ""]:
    """Jensen-Shannon divergence of the class probabilities, both softened.

    It is beta KL(teacher || m) + (1 - beta) KL(student || m), where m = beta teacher + (1 - beta) student.

    Args:
        student: logits before softmax.
        teacher: logits before softmax; no gradient flows into them.
        temperature: > 0; higher spreads probability over more classes.
        beta: between 0 and 1. Near 0 the loss is beta times logit_kl, near 1 it is (1 - beta) times
            logit_reverse_kl, so a small or a large beta wants a larger weight.

    Returns:
        Nats per example, averaged over the batch, times temperature squared; 0 when the two agree, but for rounding,
        which the factor enlarges. Without the factor at most the entropy of (beta, 1 - beta): ln 2 at one half.

    Raises:
        ValueError: temperature is not positive, or beta is not between 0 and 1.

    Source: the generalised divergence of GKD (Agarwal et al. 2024), from later re-implementations, the paper not read;
    the temperature factor is that of logit_kl. A widely copied early implementation of GKD (checked in a public copy)
    mixes log-probabilities, not probabilities, and exchanges beta and 1 - beta in the mixture. What it returns is no
    Jensen-Shannon divergence and has no upper bound, so a weight taken from it does not carry over.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta is {beta}; it must be between 0 and 1")
    log_student, log_teacher = softened_log_probs(student, teacher, temperature)
    log_mixture = torch.logaddexp(log_teacher + math.log(beta), log_student + math.log1p(-beta))
    per_example = beta * class_kl(log_teacher, log_mixture) + (1 - beta) * class_kl(log_student, log_mixture)
    return per_example.mean() * temperature**2
