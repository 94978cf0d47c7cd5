"""The section `task`."""

from typing import Any

from pydantic import Field

from pipeline.settings.base import Name, Settings


class TaskSettings(Settings):
    """What is learned."""

    name: Name = Field(default="single_label", description="A name of pipeline/tasks/.")
    options: dict[str, Any] = Field(default={}, description="The task's own settings.")
