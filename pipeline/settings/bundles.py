"""Which folders for apps are made, and of which target."""

from typing import Any

from pydantic import Field

from pipeline.settings.base import Settings


class Bundle(Settings):
    """One platform's folder for an app."""

    target: str = Field(description="The target of params.yaml whose artefact ships.")
    options: dict[str, Any] = Field(
        default={}, description="What the platform's code offers, such as the name of a package."
    )
