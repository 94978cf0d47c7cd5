"""A byte-level BPE tokenizer as a table that a hundred lines of any language can follow: RoBERTa's, GPT-2's.

A text is cut into words by what each character is: letters, numbers, spaces, or anything else. Which is which differs
from one version of Unicode to another, so the table has the classes as the training tokenizer has them, found by asking
it. The bytes of a word in UTF-8 are then merged in pairs, all pairs of the lowest rank first, from left to right: the
same as one after another, since a learned merge has a higher rank than those that made its parts.

    word of a text   's 't 're 've 'm 'll 'd, else a blank (U+0020 alone) if one is there and all of one class that
                     follow; of spaces all but the last where something else follows, whose blank that may be
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from tokenizers import Tokenizer, pre_tokenizers

from pipeline.base.errors import ExportError
from pipeline.base.records import Record
from pipeline.formats.word_pieces import LAST, SURROGATES, Ranges, ranges_of, special_ends, vocabulary_of

KIND = "byte pairs 1"
FILE = "byte_pairs.json"
BLOCK = 1024
# A class of characters -> one of it, and one of another.
EXAMPLES = {"letters": ("a", "!"), "numbers": ("1", "!"), "others": ("!", "a")}


class Special(Record):
    """A token that stands in a text as it is."""

    id: int
    # whether it takes the spaces before it, and behind it
    takes_left: bool
    takes_right: bool


class Rules(Record):
    """All that a port needs to know; numbers are code points and token ids."""

    kind: str = KIND
    # a token's place is its id; an id that no token has is an empty text
    vocabulary: tuple[str, ...]
    # of each byte, the character that stands for it in tokens
    bytes: tuple[str, ...] = Field(min_length=256, max_length=256)
    # two tokens with a blank between, the lowest rank first
    merges: tuple[str, ...]
    # found before anything else, the longest first
    special: dict[str, Special]
    before: tuple[int, ...]
    after: tuple[int, ...]
    max_length: int = Field(gt=2)
    pad_id: int
    # whether a text that does not begin with a blank gets one
    blank_first: bool
    letters: Ranges
    numbers: Ranges
    others: Ranges


def read(tokenizer: Tokenizer, max_length: int, pad_id: int) -> Rules:
    """The table of a tokenizer.

    Raises:
        ExportError: it does something that ports cannot do; the message says what.
    """
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    _refuse_others(state)
    before, after = special_ends(tokenizer)
    alphabet = _alphabet()
    missing = [one for one in alphabet if one not in model["vocab"]]
    if missing:
        raise ExportError(f"tokenizer.json: has no token for {len(missing)} of 256 bytes, which no port for apps does")
    made = set(alphabet)
    for left, right in model["merges"]:
        if not {left, right} <= made or left + right not in model["vocab"]:
            raise ExportError(
                f"tokenizer.json: merges '{left}' and '{right}' before they are made, or into no token, which no port "
                "for apps does"
            )
        made.add(left + right)
    return Rules(
        vocabulary=vocabulary_of(state),
        bytes=alphabet,
        merges=tuple(" ".join(pair) for pair in model["merges"]),
        special={
            token["content"]: Special(id=token["id"], takes_left=token["lstrip"], takes_right=token["rstrip"])
            for token in state["added_tokens"]
        },
        before=before,
        after=after,
        max_length=max_length,
        pad_id=pad_id,
        blank_first=state["pre_tokenizer"]["add_prefix_space"],
        **_classes(),
    )


def _refuse_others(state: Mapping[str, Any]) -> None:
    """Raises ExportError for what is not byte-level BPE as GPT-2 and RoBERTa have it."""
    model, splits = state["model"], state["pre_tokenizer"] or {}
    plain = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    odd = [name for name in plain if model.get(name)]
    if state["normalizer"] is not None:
        odd.append(f"a normalizer {state['normalizer']['type']}")
    if splits.get("type") != "ByteLevel" or not splits["use_regex"]:
        odd.append(f"a pre_tokenizer {splits.get('type')}")
    odd += [f"a token '{token['content']}' of whole words" for token in state["added_tokens"] if token["single_word"]]
    if odd:
        raise ExportError(f"tokenizer.json: has {', '.join(odd)}, which no port for apps does")


def _alphabet() -> tuple[str, ...]:
    """The character that stands for each byte: itself where it is printable Latin-1, else one from U+0100 on.

    Source: `bytes_to_unicode` of GPT-2 (Radford et al. 2019), as ByteLevel has it; held against that here.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    found = tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))
    assert set(found) == set(pre_tokenizers.ByteLevel.alphabet()), "GPT-2's"
    return found


@functools.cache  # it takes seconds, and is the same for every tokenizer of this version of the library
def _classes() -> dict[str, Ranges]:
    """Code points of each class; what is of none is a space."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    codes = [*range(SURROGATES.start), *range(SURROGATES.stop, LAST + 1)]
    found: dict[str, list[int]] = {name: [] for name in EXAMPLES}
    for start in range(0, len(codes), BLOCK):
        block = codes[start : start + BLOCK]
        for name, (one, other) in EXAMPLES.items():
            words = splitter.pre_tokenize_str("".join(f"{one}{chr(code)}{other}" for code in block))
            begins = {place for _, (place, _) in words}
            # in one word with one of its class, unless a word begins at it
            found[name] += [code for place, code in enumerate(block) if 3 * place + 1 not in begins]
    return {name: ranges_of(sorted(members)) for name, members in found.items()}
