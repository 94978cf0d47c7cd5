"""Regression on logits: the student's scores follow the teacher's, however sure the teacher is."""

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LossParams
from pipeline.signals.class_divergences import classes_misfit
from pipeline.signals.reader import Signals

KIND = "logit"
NEEDS = ("logits",)


class Params(LossParams):
    """Settings of logit_mse: none of its own."""


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """`logit_mse` of the two models' logits."""
    return logit_mse(student.logits, teacher.logits)


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """Both must know the same classes."""
    return classes_misfit(student, teacher)


def logit_mse(student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Squared difference of the logits, averaged over classes and batch.

    Unlike logit_kl it sees a constant added to all classes. On centred logits it is twice the limit of logit_kl at high
    temperature.

    Source: regression on logits as in Ba, Caruana 2014 (from general knowledge, the paper not read). The mean over
    classes is ours, so that a weight carries over between data sets.
    """
    return (student.float() - teacher.detach().float()).square().mean()
