"""The section `student`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.settings.base import Count, Name, Settings

TEACHER, RANDOM, GENERAL = "teacher", "random", "general"  # what `init.from` names that is no model


class InitSettings(Settings):
    """Where the student's first weights come from."""

    source: Name = Field(
        default="teacher",
        alias="from",
        description="teacher: its layers are copied (projected where the student is narrower); general: the student "
        "that the section general describes; random; or any other model to copy from: a folder, a hub id, or "
        "pypi:PACKAGE/FOLDER. The student is of the family of what it is copied from, and reads its tokens.",
    )
    revision: Name | None = Field(default=None, description="Git revision when from is a hub id.")
    layers: Literal["uniform", "first", "last"] | tuple[Count, ...] = Field(
        default="uniform", description="Layers to copy: uniform, first, last, or a list counted from 1."
    )

    @property
    def is_random(self) -> bool:
        """Whether nothing is copied."""
        return self.source == RANDOM


class StudentSettings(Settings):
    """The model that ships. Null means as in the model that it is copied from."""

    layers: int = Field(default=3, ge=1, description="Encoder layers.")
    hidden: int | None = Field(default=None, ge=4, description="Hidden size; divisible by heads.")
    heads: int | None = Field(default=None, ge=1, description="Attention heads.")
    ffn: int | None = Field(default=None, ge=4, description="Width of the feed-forward layer.")
    embedding: int | None = Field(
        default=None, ge=4, description="Width of the token embedding; below hidden it is factorised. Null: hidden."
    )
    vocabulary: Literal["full", "trimmed"] = Field(
        default="full", description="trimmed keeps the tokens that training text needs, and an open fallback."
    )
    distillation_token: bool = Field(
        default=False,
        description="A second special token behind the class token, trained on the teacher's answer; a text may then "
        "be one token shorter.",
    )
    dropout: float | None = Field(default=None, ge=0, lt=1, description="Dropout while the student trains.")
    init: InitSettings = Field(default=InitSettings(), description="Where the first weights come from.")

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> Self:
        if self.hidden is not None and self.heads is not None and self.hidden % self.heads:
            raise ValueError(
                f"hidden {self.hidden} is not divisible by heads {self.heads}; choose heads that divide it"
            )
        if self.hidden is not None and self.embedding is not None and self.embedding > self.hidden:
            raise ValueError(f"embedding {self.embedding} is wider than hidden {self.hidden}; it may only be narrower")
        return self
