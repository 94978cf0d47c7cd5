"""The sections `training`, of the teacher and of the student."""

from typing import Literal

from pydantic import Field

from pipeline.settings.base import Fraction, Settings


class TrainingSettings(Settings):
    """One training run with AdamW, warm-up, then linear decay."""

    epochs: float = Field(default=6.0, gt=0, le=1000, description="Passes over the training split.")
    steps: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Optimizer steps in place of epochs, where few rows have labels and many have none; null: epochs.",
    )
    learning_rate: float = Field(default=1.0e-4, gt=0, lt=1, description="Peak rate of AdamW.")
    batch_size: int = Field(default=32, ge=1, description="Examples a step; length-grouped.")
    warmup_fraction: Fraction = Field(default=0.1, description="Share of the steps over which the rate rises.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's decay; biases and LayerNorm excluded.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this norm.")
    patience: int = Field(
        default=0, ge=0, description="Evaluations without a better dev score before stopping; 0: never."
    )
    evaluations_per_epoch: int = Field(default=1, ge=1, le=20, description="Dev evaluations and checkpoints an epoch.")
    evaluations: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Dev evaluations in all; null: per epoch, at most 20 where `steps` is set.",
    )
    micro_batches: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="Parts of a batch that each process computes one after the other, to need less memory; the step is "
        "that of the whole batch.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="What the model is computed in while it trains; losses and weights stay fp32. auto: bf16 on a GPU "
        "that has it, else fp32; fp16: NVIDIA GPUs only.",
    )
