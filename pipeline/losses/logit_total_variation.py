"""Probability that stands on the wrong class: half the absolute difference of the class probabilities."""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LossParams
from pipeline.signals.class_divergences import classes_misfit, softened_log_probs
from pipeline.signals.reader import Signals

KIND = "logit"
NEEDS = ("logits",)


class Params(LossParams):
    """Settings of logit_total_variation."""

    temperature: float = Field(default=1.0, gt=0, description="Softens both sides; > 0, 1 = as they are.")


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """`logit_total_variation` of the two models' logits."""
    return logit_total_variation(student.logits, teacher.logits, params.temperature)


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """Both must know the same classes."""
    return classes_misfit(student, teacher)


def logit_total_variation(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """How much probability the student would have to move to another class to agree with the teacher, both softened.

    The gradient does not shrink as the two come close: it depends on the signs of the differences, not on their size,
    so a constant learning rate circles around the optimum; a rate that falls to 0 reaches it. Where two probabilities
    are equal there is no derivative and torch's subgradient, 0, is taken. And the gradient does vanish for a student
    that is sure and wrong, which logit_kl pulls hardest.

    Args:
        student: logits before softmax.
        teacher: logits before softmax; no gradient flows into them.
        temperature: > 0; higher spreads probability over more classes.

    Returns:
        A share of probability, 0 to 1, averaged over the batch, times temperature; 0 when the two agree.

    Raises:
        ValueError: temperature is not positive.

    Source: the definition. The factor is ours: temperature and not its square keeps gradients comparable, since this
    distance is of first order in the difference where the divergences are of second.
    """
    log_student, log_teacher = softened_log_probs(student, teacher, temperature)
    return 0.5 * (log_teacher.exp() - log_student.exp()).abs().sum(-1).mean() * temperature
