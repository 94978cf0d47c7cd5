"""The section `targets`."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.settings.base import Name, Settings
from pipeline.settings.budgets import Budgets


class Target(Settings):
    """One row of deployment. Every key is spelled out in the file, since DVC follows each one by itself."""

    format: Name = Field(description="File format: a name of export/to_<format>.py.")
    precision: Literal["fp32", "fp16", "auto", "int8", "w8a8", "palette8", "palette6", "palette4", "mixed"] = Field(
        description="fp32, fp16, or int8 weights; the others are Core ML's (see the format)."
    )
    options: dict[str, Any] = Field(description="Settings of the exporter, such as {inputs: int32}.")
    runtime: Name = Field(description="What executes it: a name of eval/runtimes/.")
    device: Name = Field(description="Where it runs: a name of eval/devices/.")
    required: bool = Field(description="Whether the gate needs this target's budgets to pass.")
    budgets: Budgets = Field(description="Limits this target must keep.")
    optional_checks: tuple[Name, ...] = Field(
        default=(),
        description="Checks, names of eval/checks/, that may go unmade where this machine cannot make them, such as "
        "kernels without qemu-user; one that fails still fails. Any other that is not made decides nothing.",
    )

    @model_validator(mode="after")
    def _required_has_budgets(self) -> Self:
        if self.required and not self.budgets.model_dump(exclude_none=True):
            raise ValueError("required is true, but there are no budgets, so nothing could fail; set at least one")
        return self
