"""Decoupled soft targets: how sure of the right class, and what is learned from the wrong ones, weighted apart."""

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LossParams
from pipeline.losses.cross_entropy import UNLABELLED
from pipeline.signals.class_divergences import class_kl, classes_misfit, softened_log_probs
from pipeline.signals.divergences import MASKED_SCORE
from pipeline.signals.reader import Signals

KIND = "logit"
NEEDS = ("logits", "targets")


class Params(LossParams):
    """Settings of dkd."""

    temperature: float = Field(default=2.0, gt=0, description="Softens both sides; > 0, usual values 1 to 4.")
    alpha: float = Field(
        default=1.0, ge=0, description="Factor on the divergence of the right class against all others; >= 0."
    )
    beta: float = Field(default=2.0, ge=0, description="Factor on the divergence among the wrong classes; >= 0.")

    @model_validator(mode="after")
    def _something_is_learned(self) -> "Params":
        if self.alpha == self.beta == 0:
            raise ValueError("alpha and beta are both 0, so nothing would be learned; set at least one above 0")
        return self


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """`dkd` of the two models' logits."""
    assert student.targets is not None  # the reader raises when a needed label is missing
    return dkd(student.logits, teacher.logits, student.targets, params.temperature, params.alpha, params.beta)


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """Both must know the same classes, more than two where the wrong ones are compared."""
    if params.beta > 0 and student.choices == teacher.choices == 2:
        return (
            f"beta is {params.beta}, but with two classes there is a single wrong one, so the divergence among the "
            "wrong classes is always 0; set beta to 0, or use logit_kl"
        )
    return classes_misfit(student, teacher)


def dkd(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    targets: Int[Tensor, " batch"],
    temperature: float,
    alpha: float,
    beta: float,
) -> Float[Tensor, ""]:
    """alpha TCKD + beta NCKD: two parts of logit_kl, which weighs the second by the teacher's doubt in the label.

    TCKD compares (p, 1 - p), p being the probability of the label; NCKD compares what is left when the label is struck
    out and the other classes are brought to sum 1. KL(teacher || student) = TCKD + (1 - p of the teacher) NCKD.

    Args:
        student: logits before softmax.
        teacher: logits before softmax; no gradient flows into them.
        targets: the right class; `UNLABELLED` marks an example that adds 0.
        temperature: > 0; higher spreads probability over more classes.
        alpha: factor on TCKD.
        beta: factor on NCKD, which is 0 for two classes.

    Returns:
        Nats per example, averaged over the batch as in cross_entropy, times temperature squared; 0 when the two agree,
        and when no example is labelled.

    Raises:
        ValueError: temperature is not positive.

    Source: Zhao et al. 2022, checked in its code. That code takes logarithms of probabilities, infinite or NaN for a
    student that is sure, and strikes the label out by lowering its logit by 1000; here both stay in log-probabilities.
    The linear warm-up of the whole term that it trains with is left out. The settings it publishes are for images
    and, like ours, not verified for text.
    """
    log_student, log_teacher = softened_log_probs(student, teacher, temperature)
    is_labelled = targets != UNLABELLED
    is_target = torch.arange(student.shape[-1], device=targets.device) == targets[:, None]  # (B, C)
    target_kl = class_kl(_target_or_not(log_teacher, is_target), _target_or_not(log_student, is_target))
    rest_kl = class_kl(_without_target(log_teacher, is_target), _without_target(log_student, is_target))
    per_example = torch.where(is_labelled, alpha * target_kl + beta * rest_kl, 0.0)
    return per_example.mean() * temperature**2


def _target_or_not(log_probs: Tensor, is_target: Tensor) -> Tensor:
    """Log-probabilities of the target and of everything else."""
    sides = [log_probs.masked_fill(hidden, MASKED_SCORE).logsumexp(-1) for hidden in (~is_target, is_target)]
    return torch.stack(sides, -1)  # (B, 2)


def _without_target(log_probs: Tensor, is_target: Tensor) -> Tensor:
    """Log-probabilities among the other classes; the target keeps a place, with probability 0."""
    return log_probs.masked_fill(is_target, MASKED_SCORE).log_softmax(-1)
