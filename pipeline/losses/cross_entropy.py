"""Hard targets: the ordinary loss of what is right, which needs no teacher."""

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from pipeline.losses import LossParams
from pipeline.signals.reader import Signals
from pipeline.tasks import UNLABELLED

KIND = "logit"
NEEDS = ("logits", "targets")
READS_TEACHER = False
IS_CROSS_ENTROPY = True


class Params(LossParams):
    """Settings of cross_entropy."""

    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the target spread evenly over all classes; 0 to below 1."
    )


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """`cross_entropy` of the student's logits; the teacher is not looked at."""
    assert student.targets is not None  # the reader raises when a needed label is missing
    return cross_entropy(student.logits, student.targets, params.label_smoothing)


def cross_entropy(
    logits: Float[Tensor, "batch classes"], targets: Int[Tensor, " batch"], label_smoothing: float
) -> Float[Tensor, ""]:
    """Nats by which the targets surprise the student, averaged over the examples of the batch.

    Examples whose label is `UNLABELLED` add 0 and count: divided by the labelled ones only, a label would weigh the
    more the fewer it meets. `Distiller` makes up for them with the labelled share of all training rows.

    Source: torch's label smoothing, which gives the true class 1 - smoothing + smoothing / classes.
    """
    total = functional.cross_entropy(
        logits.float(), targets.long(), ignore_index=UNLABELLED, reduction="sum", label_smoothing=label_smoothing
    )
    return total / max(len(targets), 1)
