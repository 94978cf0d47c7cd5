"""Settings of the augmentation."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.settings.base import Name, Settings

SECTION = "distill.augment"  # where these settings stand in params.yaml, for messages
Method = Literal["mask", "replace", "span_mix", "crop", "masked_lm"]


class AugmentSettings(Settings):
    """Further training text for the student, made of training text alone and labelled by the teacher."""

    methods: tuple[Method, ...] = Field(
        default=(),
        description="How variants are made; empty: none are. mask: words become the tokenizer's mask. replace: words "
        "become training words used alike. span_mix: words become a span of another training text. masked_lm: words "
        "become what a masked language model puts there. crop: a span of the text by itself. English stop words stay "
        "with replace and masked_lm.",
    )
    copies: int = Field(
        default=4,
        ge=1,
        le=100,
        description="Variants of each training text by each method; fewer where a text has no more.",
    )
    probability: float = Field(
        default=0.4, gt=0, le=1, description="Probability of each word to be changed; above 0, at most 1."
    )
    candidates: int = Field(
        default=15, ge=1, le=1000, description="Words to choose a replacement from, for replace and masked_lm."
    )
    masked_lm: Name | None = Field(
        default=None,
        description="Masked language model with WordPiece tokens: a folder, a hub id, or pypi:PACKAGE/FOLDER.",
    )

    @model_validator(mode="after")
    def _methods_can_work(self) -> Self:
        problems = [
            f"methods names '{method}' {self.methods.count(method)} times, expected once; raise copies for more"
            for method in dict.fromkeys(self.methods)
            if self.methods.count(method) > 1
        ]
        if "masked_lm" in self.methods and self.masked_lm is None:
            problems.append("methods names 'masked_lm', but masked_lm is null; name a masked language model")
        if problems:
            raise ValueError("; ".join(problems))
        return self
