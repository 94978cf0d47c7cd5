"""The section `distill`."""

from typing import Any, Literal

from pydantic import Field

from pipeline.settings.augment import AugmentSettings
from pipeline.settings.base import Fraction, Name, Settings
from pipeline.settings.training import TrainingSettings


class Controls(Settings):
    """Students trained for comparison, with the same number of steps, unless patience ends one earlier."""

    no_teacher: int = Field(
        default=0, ge=0, le=20, description="Seeds of the same student on hard labels only; 0: none."
    )
    logits_only: int = Field(
        default=0,
        ge=0,
        le=20,
        description="Seeds of the same student on its logit losses only, logit_kl if it has none; 0: none.",
    )


class ClassToken(Settings):
    """Noise on the class token's embedding while the student trains; what ships is the plain token."""

    kind: Literal["plain", "sampled", "bayesian"] = Field(
        default="plain",
        description="plain: no noise; sampled: one of several trained vectors for each example; bayesian: trained "
        "Gaussian noise.",
    )
    samples: int = Field(default=8, ge=1, le=256, description="Vectors to draw from when kind is sampled; 1: no noise.")


class FromUnlabelled(Settings):
    """How text without labels is learned from: that of `data.unlabelled`, and variants of training text."""

    confidence: Fraction = Field(
        default=0.0,
        description="Text whose answer the teacher is less sure of is left out: its probability of that answer.",
    )
    share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of each batch that has no label; null: as the rows come, each once in a pass.",
    )


class DistillSettings(Settings):
    """How the student learns from the teacher."""

    training: TrainingSettings = Field(default=TrainingSettings(learning_rate=1.5e-4), description="The main phase.")
    phases: Literal["one", "two"] = Field(
        default="one",
        description="one: all losses together; two: signal losses first, then logit losses (at least one).",
    )
    signal_epochs: float = Field(default=3.0, gt=0, description="Epochs of the first phase when phases is two.")
    losses: dict[Name, dict[str, Any]] = Field(
        default={"logit_kl": {"weight": 1.0, "temperature": 2.0}, "attention_kl": {"weight": 1.0, "map": "uniform"}},
        description="Loss name (a file of pipeline/losses) -> its settings.",
        min_length=1,
    )
    class_token: ClassToken = Field(default=ClassToken(), description="Noise on the class token while training.")
    cache_gb: float = Field(
        default=4.0,
        ge=0,
        description="Most gigabytes (10^9) of the teacher's signals that one training may keep on disk, so that each "
        "is computed once; 0: only its logits are kept.",
    )
    augment: AugmentSettings = Field(
        default=AugmentSettings(), description="Further training text, labelled by the teacher."
    )
    unlabelled: FromUnlabelled = Field(default=FromUnlabelled(), description="How text without labels is learned from.")
    controls: Controls = Field(default=Controls(), description="Controls on request.")
    seeds: int = Field(
        default=1, ge=1, le=20, description="Students to train, with seeds seed, seed+1, ...; best dev ships."
    )
