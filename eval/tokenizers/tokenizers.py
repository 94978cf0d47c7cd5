"""The tokenizers library on tokenizer.json as a bundle has it: Python's, and the one under DJL on Android."""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from tokenizers import Tokenizer

from pipeline.data.texts import clean

TITLE = "the tokenizers library, on the file that ships"


def why_unusable() -> str | None:
    """None: it is one of Decant's own dependencies."""
    return None


def version() -> str:
    """Its version."""
    return metadata.version("tokenizers")


def encode(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """What an app gets that reads the file."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [found.ids for found in tokenizer.encode_batch([clean(text) for text in texts])]
