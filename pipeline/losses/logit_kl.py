"""Soft targets: the student's class probabilities follow the teacher's."""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LossParams
from pipeline.signals.class_divergences import class_kl, classes_misfit, softened_log_probs
from pipeline.signals.reader import Signals

KIND = "logit"
NEEDS = ("logits",)

# Under the root, against a division by 0. A deviation of 1, as logits have, changes by half a millionth, and logits
# that are all the same get a gradient below a thousand times the usual; the authors' 1e-7 on the deviation gives 1e7.
VARIANCE_FLOOR = 1e-6


class Params(LossParams):
    """Settings of logit_kl."""

    temperature: float = Field(default=2.0, gt=0, description="Softens both sides; > 0, usual values 1 to 8.")
    standardize: bool = Field(
        default=False,
        description="Bring each example's logits to mean 0 and deviation 1 first, so that only their pattern counts.",
    )


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """`logit_kl` of the two models' logits."""
    return logit_kl(student.logits, teacher.logits, params.temperature, params.standardize)


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """Both must know the same classes, more than two where logits are standardised."""
    if params.standardize and student.choices == teacher.choices == 2:
        return (
            "standardize is true, but with two classes it turns the logits of every example into +-0.7071, however "
            "sure the model is; set it to false"
        )
    return classes_misfit(student, teacher)


def logit_kl(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    temperature: float,
    standardize: bool = False,
) -> Float[Tensor, ""]:
    """Divergence of the student's class probabilities from the teacher's, KL(teacher || student), both softened.

    Args:
        student: logits before softmax.
        teacher: logits before softmax; no gradient flows into them.
        temperature: > 0; higher spreads probability over more classes.
        standardize: bring each example's logits to mean 0 and deviation 1 before the softmax. For three or more
            classes: with two, every example looks the same afterwards.

    Returns:
        Nats per example, averaged over the batch, times temperature squared; 0 when the two agree.

    Raises:
        ValueError: temperature is not positive.

    Source: Hinton, Vinyals, Dean 2015, section 2. The squared factor keeps gradients comparable across temperatures.
    TinyBERT's released loss divides by the number of classes, keeps the teacher's entropy and has no square, so a
    weight or learning rate taken from it does not carry over. Standardisation: Sun et al. 2024, checked in its code,
    which adds 1e-7 to the deviation where we add `VARIANCE_FLOOR` to the variance.
    """
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    log_student, log_teacher = softened_log_probs(student, teacher, temperature)
    return class_kl(log_teacher, log_student).mean() * temperature**2


def standardized(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """Each example's logits, float32, at mean 0 and deviation 1 (counted with classes - 1, as in the authors' code)."""
    logits = logits.float()
    centered = logits - logits.mean(-1, keepdim=True)
    variance = centered.square().sum(-1, keepdim=True) / (logits.shape[-1] - 1)
    return centered / (variance + VARIANCE_FLOOR).sqrt()
