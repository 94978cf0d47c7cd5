"""What only a person knows of the model: it goes on the model card of every bundle."""

from pydantic import Field

from pipeline.settings.base import Settings


class CardSettings(Settings):
    """The part of the model card that no record holds."""

    name: str = Field(default="text-classifier", min_length=1, description="What people call the model.")
    license: str = Field(default="other", description="SPDX id of the licence that the model ships under.")
    data_license: str = Field(default="other", description="SPDX id of the licence of the training data.")
    languages: tuple[str, ...] = Field(default=("en",), description="Languages of the data, as ISO 639 codes.")
    use: str = Field(default="", description="What the model is meant for, in a sentence or two.")
    limits: str = Field(default="", description="What it must not be used for, and where it is known to fail.")
