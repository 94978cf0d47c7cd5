"""Soft targets the other way round: the student keeps off what the teacher holds unlikely."""

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
    """Settings of logit_reverse_kl."""

    temperature: float = Field(default=2.0, gt=0, description="Softens both sides; > 0, usual values 1 to 8.")


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """`logit_reverse_kl` of the two models' logits."""
    return logit_reverse_kl(student.logits, teacher.logits, params.temperature)


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """Both must know the same classes."""
    return classes_misfit(student, teacher)


def logit_reverse_kl(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """Divergence of the teacher's class probabilities from the student's, KL(student || teacher), both softened.

    logit_kl punishes a student that misses one of the teacher's likely classes; this one punishes a student that
    finds likely what the teacher does not, and lets it settle on one class of several.

    Args:
        student: logits before softmax.
        teacher: logits before softmax; no gradient flows into them.
        temperature: > 0; higher spreads probability over more classes.

    Returns:
        Nats per example, averaged over the batch, times temperature squared; 0 when the two agree.

    Raises:
        ValueError: temperature is not positive.

    Source: the definition, with the factor of logit_kl, whose limit at high temperature it shares. MiniLLM made this
    direction known for text generation, by policy gradient on the student's own samples (not verified); with few
    classes the exact sum is at hand.
    """
    log_student, log_teacher = softened_log_probs(student, teacher, temperature)
    return class_kl(log_student, log_teacher).mean() * temperature**2
