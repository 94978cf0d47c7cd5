"""Soft targets: the student's class probabilities follow the teacher's."""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from pipeline.architectures import Shape
from pipeline.losses import LossParams
from pipeline.signals import Signals

KIND = "logit"
NEEDS = ("logits",)


class Params(LossParams):
    """Settings of logit_kl."""

    temperature: float = Field(default=2.0, gt=0, description="Softens both sides; > 0, usual values 1 to 8.")


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """`logit_kl` of the two models' logits."""
    return logit_kl(student.logits, teacher.logits, params.temperature)


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """Both must know the same classes."""
    if student.labels != teacher.labels:
        return f"the student has {student.labels} classes and the teacher {teacher.labels}; they must be the same"
    return None


def logit_kl(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """Divergence of the student's class probabilities from the teacher's, KL(teacher || student), both softened.

    Args:
        student: logits before softmax.
        teacher: logits before softmax; no gradient flows into them.
        temperature: > 0; higher spreads probability over more classes.

    Returns:
        Nats per example, averaged over the batch, times temperature squared; 0 when the two agree.

    Raises:
        ValueError: temperature is not positive.

    Source: Hinton, Vinyals, Dean 2015, section 2. The squared factor keeps gradients comparable across temperatures.
    TinyBERT's released loss divides by the number of classes, keeps the teacher's entropy and has no square, so a
    weight or learning rate taken from it does not carry over.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    log_teacher = (teacher.detach().float() / temperature).log_softmax(-1)
    log_student = (student.float() / temperature).log_softmax(-1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1).mean() * temperature**2
