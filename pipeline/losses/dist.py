"""Correlation in place of equality: the student ranks classes, and examples within a class, as the teacher does."""

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LossParams
from pipeline.signals.class_divergences import classes_misfit, softened_log_probs
from pipeline.signals.reader import Signals

KIND = "logit"
NEEDS = ("logits",)
IS_BATCH_STATISTIC = True

# Length of a centred row of probabilities below which it is float32 rounding, and its direction chance. The authors'
# code adds 1e-8 to the product of two lengths, which also takes the correlation to 0, but lets the gradient reach 1e8.
FLAT = 1e-6


class Params(LossParams):
    """Settings of dist."""

    temperature: float = Field(default=1.0, gt=0, description="Softens both sides; > 0, 1 = as they are.")
    inter_weight: float = Field(
        default=1.0, ge=0, description="Factor on the correlation over the classes of each example; >= 0."
    )
    intra_weight: float = Field(
        default=1.0, ge=0, description="Factor on the correlation over the batch's examples for each class; >= 0."
    )

    @model_validator(mode="after")
    def _something_is_learned(self) -> "Params":
        if self.inter_weight == self.intra_weight == 0:
            raise ValueError(
                "inter_weight and intra_weight are both 0, so nothing would be learned; set at least one above 0"
            )
        return self


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """`dist` of the two models' logits."""
    return dist(student.logits, teacher.logits, params.temperature, params.inter_weight, params.intra_weight)


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """Both must know the same classes, more than two where each example's are correlated."""
    if params.inter_weight > 0 and student.choices == teacher.choices == 2:
        return (
            f"inter_weight is {params.inter_weight}, but two probabilities correlate at 1 or -1 whatever they are, so "
            "nothing would be learned from them; set inter_weight to 0, or use logit_kl"
        )
    return classes_misfit(student, teacher)


def dist(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    temperature: float,
    inter_weight: float,
    intra_weight: float,
) -> Float[Tensor, ""]:
    """Missing correlation of the class probabilities: over classes for each example, over examples for each class.

    Args:
        student: logits before softmax.
        teacher: logits before softmax; no gradient flows into them.
        temperature: > 0; higher spreads probability over more classes.
        inter_weight: factor on the mean over examples; that part is constant for two classes.
        intra_weight: factor on the mean over classes. It compares the examples of the batch with each other, so it
            depends on which ones meet, and it is 0, with no gradient, for fewer than three: two always correlate at
            1 or -1.

    Returns:
        Each part is 0 for full correlation, 1 for none, 2 for the opposite; weighted, summed, and times temperature
        squared. 0 when the two agree.

    Raises:
        ValueError: temperature is not positive.

    Source: Huang et al. 2022; the correlations as in its released code, the temperature and its square from
    re-implementations. That factor is kept, but a correlation does not shrink as temperature grows, so here it makes
    the term larger and not merely comparable. What does not vary is treated as `pearson_distance` says, unlike there.
    """
    log_student, log_teacher = softened_log_probs(student, teacher, temperature)
    ours, theirs = log_student.exp(), log_teacher.exp()
    total = inter_weight * pearson_distance(ours, theirs).mean()
    if len(ours) >= 3:
        total = total + intra_weight * pearson_distance(ours.T, theirs.T).mean()
    return total * temperature**2


def pearson_distance(
    student: Float[Tensor, "rows columns"], teacher: Float[Tensor, "rows columns"]
) -> Float[Tensor, " rows"]:
    """1 - Pearson correlation of each row; exactly 0 for equal rows, and never negative.

    A row that does not vary correlates with nothing: 1 when that is so on one side, 0 when on both; no gradient.
    """
    (ours, ours_vary), (theirs, theirs_vary) = _unit_rows(student), _unit_rows(teacher)
    distance = (ours - theirs).square().sum(-1) / 2  # 1 - cosine, since both have length 1
    return torch.where(ours_vary & theirs_vary, distance, (ours_vary ^ theirs_vary).float())


def _unit_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Each row centred and of length 1, and whether it varies at all; one that does not stays as short as it is."""
    centered = values - values.mean(-1, keepdim=True)
    squares = centered.square().sum(-1, keepdim=True)
    varies = squares > FLAT**2
    # the root of 0 has an infinite slope, which torch.where would turn into NaN
    return centered / torch.where(varies, squares, 1.0).sqrt(), varies.squeeze(-1)
