"""Distillation token: a second special token copies the teacher's answer, while the class token learns the labels.

The labels' part is the loss cross_entropy. Of the encoder this sees the token's last state, so in the two-phase
schedule it belongs to the first phase, with the other signal losses, though its target is the teacher's answer.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from pipeline.families import Shape
from pipeline.losses import LossParams
from pipeline.signals.class_divergences import class_kl, classes_misfit, softened_log_probs
from pipeline.signals.divergences import mean_over_examples
from pipeline.signals.reader import Signals

KIND = "signal"
NEEDS = ("token", "logits")
ALIGNED_BY = "rows"
TEACHER_ONLY = ("logits",)


class Params(LossParams):
    """Settings of distillation_token."""

    form: Literal["soft", "hard"] = Field(
        default="soft", description="What the token's head learns: soft, the teacher's probabilities; hard, its choice."
    )
    temperature: float = Field(
        default=2.0, gt=0, description="Softens both sides of the soft form; > 0, usual values 1 to 8."
    )


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """`distillation_token` of what the head says about the token's last state."""
    assert student.token is not None and module is not None  # `misfit` and `auxiliary` see to both
    # autocast would compute the head in half precision
    with torch.autocast(student.token.device.type, enabled=False):
        answers = module(student.token.float())
    return distillation_token(answers, teacher.logits, student.mask, params.form, params.temperature)


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """The student must have the token, and both must know the same classes."""
    if not student.distillation_token:
        return "the student has no distillation token, which this loss trains; set student.distillation_token to true"
    return classes_misfit(student, teacher)


def auxiliary(student: Shape, teacher: Shape, params: Params) -> nn.Linear:
    """The token's head. It is not exported: the student answers with the class token's head alone, unlike DeiT."""
    return nn.Linear(student.hidden, teacher.choices)


def distillation_token(
    answers: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    mask: Bool[Tensor, "batch length"],
    form: str,
    temperature: float,
) -> Float[Tensor, ""]:
    """How far the answers of the token's head are from the teacher's, averaged over the examples that have a token.

    Args:
        answers: the head's logits before softmax.
        teacher: logits before softmax; no gradient flows into them.
        mask: True for a real token.
        form: "soft": KL(teacher || head), both softened, times temperature squared; "hard": nats by which the teacher's
            most likely class surprises the head, not 0 even for a head that equals the teacher.
        temperature: > 0; of the soft form.

    Raises:
        ValueError: temperature is not positive.

    Source: DeiT (Touvron et al. 2021) from general knowledge, not checked in its code, whose later versions divide the
    divergence by the number of classes as well. It weighs half labels and half hard form, or 0.9 labels and 0.1 soft
    form at temperature 3, which is what the two weights in params.yaml are for. The speaker-verification network of
    arXiv 2111.03842 trains such a token too; its exact loss is not known to us.
    """
    if form == "hard":
        per_example = functional.cross_entropy(answers.float(), teacher.argmax(-1), reduction="none")
    else:
        log_answers, log_teacher = softened_log_probs(answers, teacher, temperature)
        per_example = class_kl(log_teacher, log_answers) * temperature**2
    return mean_over_examples(per_example, mask)
