"""The section `data`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.settings.base import Fraction, Name, Settings


class FilesSource(Settings):
    """A data set in files of your own."""

    root: str | None = Field(default=None, description="Folder that the file names below are relative to.")
    train: Name = Field(default="train.csv", description="Training file: .csv, .tsv, .jsonl or .parquet.")
    dev: Name | None = Field(default=None, description="Development file; null cuts dev_fraction off train.")
    test: Name = Field(default="test.csv", description="Test file; never seen by any stage but the ones that score.")
    header: bool = Field(default=True, description="Whether the first row of CSV and TSV files names the columns.")
    columns: dict[Name, str | int] = Field(
        default={},
        description="What the task calls a column -> its name, or its number from 0 without header; what is not named "
        "is called as the task calls it. A column 'pair' makes rows pairs of texts.",
    )
    id: str | int | None = Field(default=None, description="Column with a unique id for each row, if there is one.")
    slice: str | int | None = Field(
        default=None,
        description="Column whose values name slices of the test split that the report shows by themselves.",
    )
    quoting: bool = Field(default=True, description="Whether '\"' quotes fields; false takes it literally.")


class HubSource(Settings):
    """A data set on the Hugging Face hub, read through `datasets`."""

    dataset: Name | None = Field(default=None, description="Data set id, such as 'PolyAI/banking77'.")
    config: Name | None = Field(default=None, description="Configuration of the data set, such as 'sst2' of 'glue'.")
    revision: Name | None = Field(default=None, description="Git revision; name one, or two runs may read other data.")
    train: Name = Field(default="train", description="Split to train on.")
    dev: Name | None = Field(default=None, description="Split for choices; null cuts dev_fraction off train.")
    test: Name = Field(default="test", description="Split for reporting.")
    columns: dict[Name, Name] = Field(
        default={}, description="What the task calls a column -> its name, where the two differ."
    )


class NearDuplicates(Settings):
    """How alike two texts in different splits may be."""

    similarity: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="Cosine of character 4-gram counts from which two texts are near duplicates.",
    )
    max_share: Fraction = Field(
        default=0.05, description="Largest share of test rows with a near duplicate in train or dev, 0 to 1."
    )


class Unlabelled(Settings):
    """Text without labels: the teacher answers it once, and the student learns from its answers."""

    files: tuple[Name, ...] = Field(
        default=(), description="Text files in UTF-8, one text a line, relative to the current folder."
    )
    rest_of_train: bool = Field(
        default=True, description="Rows that labels_per_class leaves without their label are such text, too."
    )


class DataSettings(Settings):
    """Where the examples come from."""

    source: Literal["bundled", "files", "hub"] = Field(
        default="bundled", description="bundled: data/assistant; files: your own; hub: the Hugging Face hub."
    )
    files: FilesSource = Field(default=FilesSource(), description="Used when source is files.")
    hub: HubSource = Field(default=HubSource(), description="Used when source is hub.")
    max_length: int = Field(default=64, ge=4, le=4096, description="Tokens; longer texts are cut and counted.")
    dev_fraction: float = Field(
        default=0.1,
        gt=0,
        lt=0.5,
        description="Share of train that becomes dev when there is none, stratified by label.",
    )
    labels_per_class: int | None = Field(
        default=None,
        ge=1,
        description="Rows of train that keep their label, of each class, drawn with the seed; those of 10 are among "
        "those of 50. Null: all. Dev and test stay whole.",
    )
    unlabelled: Unlabelled = Field(default=Unlabelled(), description="Text without labels.")
    empty_text: Literal["refuse", "drop"] = Field(default="refuse", description="What to do with rows without text.")
    near_duplicates: NearDuplicates = Field(default=NearDuplicates(), description="The leak check between splits.")

    @model_validator(mode="after")
    def _source_is_named(self) -> Self:
        if self.source == "files" and self.files.root is None:
            raise ValueError("source is 'files', but files.root is null; name the folder your files are in")
        if self.source == "hub" and self.hub.dataset is None:
            raise ValueError("source is 'hub', but hub.dataset is null; name a data set id")
        return self
