"""What every file of this room does to a text: compare it, clean it, turn it into token ids. Imports nothing heavy."""

import re
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_CELL_CHARACTERS = 100_000
_NOT_KEPT = re.compile(r"[^a-z0-9_]+")


def normalise(text: str) -> str:
    """Text for comparing: lower case, letters and digits only, single spaces. Other scripts are kept.

    Composed and decomposed accents are one; vowel signs of Indic scripts, which are marks, stay in their word.
    """
    if text.isascii():  # the same, ten times as fast: a million rows are compared several times
        return _NOT_KEPT.sub(" ", text.lower()).strip() or text.strip()
    text = unicodedata.normalize("NFC", text)
    kept = (c if c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M" else " " for c in text.lower())
    # A mark alone is what is left of an emoji.
    words = [word for word in "".join(kept).split() if any(c.isalnum() or c == "_" for c in word)]
    return " ".join(words) if words else text.strip()  # only emoji or punctuation: compare it as it is


def clean(text: str) -> str:
    """Text that every tokenizer takes: a lone surrogate becomes a question mark, NUL goes."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def name_of(value: Any) -> str:
    """A label or slice as a name; empty when there is none, which pandas writes as NaN."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # Parquet gives 1.0 where a column has gaps
    return sys.intern(clean(str(value)).strip())  # a million rows have few labels


def encode(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str] | Sequence[tuple[str, ...]], max_length: int
) -> list[list[int]]:
    """Token ids of each text, or pair of texts, with special tokens, cut to `max_length` (of a pair, the longer text).

    Never empty: special tokens remain.
    """
    if not texts:
        return []
    rows = [(text,) if isinstance(text, str) else text for text in texts]
    parts = [[clean(row[place]) for row in rows] for place in range(len(rows[0]))]
    return tokenizer(
        *parts,
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
