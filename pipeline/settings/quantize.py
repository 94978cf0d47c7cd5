"""The section `quantize`."""

from typing import Literal

from pydantic import Field

from pipeline.settings.base import Settings


class Calibration(Settings):
    """Activation ranges for static quantization."""

    examples: int = Field(default=256, ge=1, description="Training rows to calibrate on.")
    method: Literal["minmax", "entropy", "percentile"] = Field(
        default="percentile", description="How a range is chosen from what was seen."
    )
    percentile: float = Field(
        default=99.99, gt=50, le=100, description="Share of values kept, when method is percentile."
    )


class QuantizeSettings(Settings):
    """The quantization plan."""

    per_channel: bool = Field(default=True, description="One weight scale for each output channel, not one for all.")
    embeddings: bool = Field(default=True, description="Whether embedding tables become 8-bit as well.")
    calibration: Calibration = Field(default=Calibration(), description="Used where ranges of activations are fixed.")
    allowed_drop: float = Field(
        default=0.5,
        ge=0,
        le=100,
        description="What int8 may lose to fp32 on dev before modules are excluded, in the unit of the task's metric "
        "(points of 100 for accuracy).",
    )
    max_exclusions: int = Field(default=6, ge=0, description="Most modules that may stay in fp32.")
