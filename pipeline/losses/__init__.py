"""One distillation loss a file; the file's name is the loss's name in params.yaml.

A loss file has:

- `KIND`: "logit" (reads logits and labels only) or "signal" (reads what happens inside the encoder). The two-phase
  schedule trains the signal losses first; the logits-only control keeps the logit losses.
- `NEEDS`: the signals it reads, of `pipeline.signals.reader.SIGNALS`.
- `ALIGNED_BY` (optional): what must belong together in the two models' texts. "tokens": each token, the default of
  "signal" losses; "characters": pieces of text will do, whose states are averaged where the two tokenizers cut
  otherwise; "rows": nothing inside a text, the default of "logit" losses. Of `pipeline.training.needs.aligned_by`.
- `Params`: a frozen model of its settings, derived from `LossParams` or `LayerLossParams`; every setting has a default.
- `loss(student, teacher, params, module)`: two `Signals` to a float32 scalar: padding-safe, no gradient to the teacher.
  A mean over the rows of the batch, so that a batch may be computed in parts; a row without a label counts and adds 0.
- `misfit(student, teacher, params)` (optional): why two `Shape`s cannot be compared by this loss, or None.
- `layers(student, teacher, params)` (optional): the student's and the teacher's layers it looks at, two sets counted
  from 1, 0 for the embedding output; without it those of its `map`, or all. What no loss looks at is not computed.
- `auxiliary(student, teacher, params)` (optional): a module that the loss learns with, or None when these two shapes
  need none; trained beside the student, never exported, handed to `loss` as `module`.
- `learned(module)` (optional): what the auxiliary module learned, as plain values for the student's card.
- `LEARNING_RATE_FACTOR` (optional): how many times as fast the auxiliary module learns, without weight decay.
- `READS_TEACHER` (optional, default True): False when the loss does not look at the teacher at all. Such losses alone
  are trained on the training rows alone: further text has no label, and only the teacher could say what it means.
- `TEACHER_ONLY` (optional): signals among NEEDS that it reads of the teacher alone.
- `LEARNS_ALIGNMENT` (optional, default False): True when the loss is 0 only once its module has found which head or
  layer belongs to which.
- `IS_BLIND_TO_HEAD_ORDER` (optional, default False): True when the order of one model's heads does not matter.
- `IS_BATCH_STATISTIC` (optional, default False): True when the loss compares the examples of a batch with each other,
  so that a batch's loss is not the mean of its examples' losses. It is shown the rows of all processes that train.
- `IS_CROSS_ENTROPY` (optional, default False): True when the loss keeps the target's own entropy, so that it is not 0
  for a student that equals its teacher.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class LossParams(BaseModel):
    """What every loss has."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    weight: float = Field(default=1.0, gt=0, description="Factor on this term in the sum of losses; > 0.")
    decay: Literal["constant", "linear"] = Field(
        default="constant", description="linear: the weight falls to 0 over the phase; constant: it stays."
    )


# A YAML list is no tuple, which a strict model would refuse; what stands inside the list stays strict.
_Pair = Annotated[tuple[int, int], Field(strict=False)]
LayerMap = Literal["uniform", "first", "last", "last_only", "cka"] | Annotated[tuple[_Pair, ...], Field(strict=False)]


class LayerLossParams(LossParams):
    """What a loss has that compares layers."""

    map: LayerMap = Field(
        default="uniform",
        description="Which teacher layer each student layer learns from: uniform, first, last, last_only, cka (the "
        "most alike before training), or pairs [student layer, teacher layer] counted from 1.",
    )
