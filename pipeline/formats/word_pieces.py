"""A WordPiece tokenizer as a table that a hundred lines of any language can follow, exactly as the tokenizer itself.

Languages differ in what they call a letter, an accent or lower case, and each brings another version of Unicode. So a
port asks nothing of its language: for each code point, the table has what the training tokenizer makes of it, found by
asking that tokenizer. What a port does is then: effects, one after another, split at spaces; the longest piece first.

    effect of a code point   ""      nothing is left of it
                             " "     it ends a word
                             " c "   it is a word by itself
                             any     other characters, spaces as above
                             itself  where the table says nothing

Marks that stay have a class, by which those next to each other are put in order, as canonical decomposition does.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field
from tokenizers import Tokenizer, normalizers

from pipeline.base.errors import ExportError
from pipeline.base.records import Record

KIND = "word pieces 1"
FILE = "word_pieces.json"
SURROGATES = range(0xD800, 0xE000)
SYLLABLES = range(0xAC00, 0xD7A4)
LAST = 0x10FFFF
BLOCK, STAR = 1024, "\u2605"
HIGHEST = "\u0345"  # of the highest class: any other mark goes before it

Ranges = tuple[int, ...]  # first, last, first, last, ...: both ends belong to it


class Rules(Record):
    """All that a port needs to know; numbers are code points and token ids."""

    kind: str = KIND
    # a token's place is its id; an id that no token has is an empty text
    vocabulary: tuple[str, ...]
    unknown: int
    # before a piece that goes on with a word
    prefix: str
    # characters; a longer word is unknown
    longest_word: int
    # tokens that stand in a text as they are, found before anything else, the longest first
    special: dict[str, int]
    before: tuple[int, ...]
    after: tuple[int, ...]
    max_length: int = Field(gt=2)
    pad_id: int
    nothing: Ranges
    space: Ranges
    word: Ranges
    # keys are code points as decimal numbers
    other: dict[str, str]
    # whether the 11,172 syllables of Hangul become their two or three letters, which is arithmetic and needs no table
    hangul: bool
    marks: dict[str, int]
    # nothing is left of them either, but marks do not pass them
    walls: Ranges


def read(tokenizer: Tokenizer, max_length: int, pad_id: int) -> Rules:
    """The table of a tokenizer.

    Raises:
        ExportError: it does something that ports cannot do; the message says what.
    """
    state = json.loads(tokenizer.to_str())
    _refuse_others(state)
    model = state["model"]
    before, after = special_ends(tokenizer)
    effects = _effects(tokenizer)
    strips = _strips_accents(state["normalizer"])
    hangul = all(effects[SYLLABLES.start + i] == _letters(i) for i in range(len(SYLLABLES)))
    classes = _classes(effects) if strips else {}
    told = {code: effect for code, effect in effects.items() if effect != chr(code)}
    return Rules(
        vocabulary=vocabulary_of(state),
        unknown=model["vocab"][model["unk_token"]],
        prefix=model["continuing_subword_prefix"],
        longest_word=model["max_input_chars_per_word"],
        special={token["content"]: token["id"] for token in state["added_tokens"]},
        before=before,
        after=after,
        max_length=max_length,
        pad_id=pad_id,
        nothing=ranges_of(code for code, effect in told.items() if effect == ""),
        space=ranges_of(code for code, effect in told.items() if effect == " "),
        word=ranges_of(code for code, effect in told.items() if effect == f" {chr(code)} "),
        other={
            str(code): effect
            for code, effect in told.items()
            if effect not in ("", " ", f" {chr(code)} ") and not (hangul and code in SYLLABLES)
        },
        hangul=hangul,
        marks={str(code): number for code, number in classes.items()},
        walls=ranges_of(code for code, effect in told.items() if strips and effect == "" and _is_wall(chr(code))),
    )


def _refuse_others(state: Mapping[str, Any]) -> None:
    """Raises ExportError for a tokenizer that is not BERT's own."""
    parts = {
        "normalizer": ((state["normalizer"] or {}).get("type"), "BertNormalizer"),
        "pre_tokenizer": ((state["pre_tokenizer"] or {}).get("type"), "BertPreTokenizer"),
    }
    for part, (found, expected) in parts.items():
        if found != expected:
            raise ExportError(
                f"tokenizer.json: its {part} is {found}, and ports for apps have {expected} alone; make "
                "bundles of a platform that needs no port, such as python"
            )
    for token in state["added_tokens"]:
        flags = [flag for flag in ("single_word", "lstrip", "rstrip", "normalized") if token[flag]]
        if flags:
            raise ExportError(
                f"tokenizer.json: token '{token['content']}' is marked {', '.join(flags)}, which no port for apps does"
            )


def special_ends(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids set before and behind every text."""
    found = tokenizer.encode("a")
    places = [place for place, number in enumerate(found.special_tokens_mask) if not number]
    before, after = tuple(found.ids[: places[0]]), tuple(found.ids[places[-1] + 1 :])
    assert [*before, *after] == tokenizer.encode("").ids, "special tokens stand at both ends"
    return before, after


def vocabulary_of(state: Mapping[str, Any]) -> tuple[str, ...]:
    """The tokens of a tokenizer's state, each at its id; added ones have names of their own in a table."""
    vocabulary = [""] * (max(state["model"]["vocab"].values(), default=0) + 1)
    for piece, number in state["model"]["vocab"].items():
        vocabulary[number] = piece
    return tuple(vocabulary)


def _strips_accents(normalizer: Mapping[str, Any]) -> bool:
    strips = normalizer["strip_accents"]
    return bool(normalizer["lowercase"] if strips is None else strips)


def _effects(tokenizer: Tokenizer) -> dict[int, str]:
    """What becomes of each code point."""
    codes = [*range(SURROGATES.start), *range(SURROGATES.stop, LAST + 1)]
    normalised: dict[int, str] = {}
    for start in range(0, len(codes), BLOCK):
        block = codes[start : start + BLOCK]
        # many at once: a call for each takes seconds. A star is no mark, so nothing moves past it.
        found = tokenizer.normalizer.normalize_str(STAR.join(map(chr, block))).split(STAR)
        if len(found) != len(block):
            found = [tokenizer.normalizer.normalize_str(chr(code)) for code in block]
        normalised.update(zip(block, found, strict=True))
    splits = _splits(tokenizer, list(set().union(*normalised.values())))
    effects = {code: "".join(map(splits.__getitem__, found)) for code, found in normalised.items()}
    return {code: re.sub(" +", " ", effect) if "  " in effect else effect for code, effect in effects.items()}


def _splits(tokenizer: Tokenizer, characters: Sequence[str]) -> dict[str, str]:
    """Normalised characters, with spaces where they end a word."""
    found = {}
    for start in range(0, len(characters), BLOCK):
        block = characters[start : start + BLOCK]
        # between two letters: one word where it is part of it, two where it is a space, three where it stands alone
        words = tokenizer.pre_tokenizer.pre_tokenize_str(" ".join(f"a{character}a" for character in block))
        counts = Counter(place // 4 for _, (place, _) in words)
        for place, character in enumerate(block):
            found[character] = (character, " ", f" {character} ")[counts[place] - 1]
    return found


def _letters(syllable: int) -> str:
    """The letters of a Hangul syllable, by its place among them (The Unicode Standard, section 3.12)."""
    rest, last = divmod(syllable, 28)
    first, middle = divmod(rest, 21)
    return chr(0x1100 + first) + chr(0x1161 + middle) + (chr(0x11A7 + last) if last else "")


def _classes(effects: Mapping[int, str]) -> dict[int, int]:
    """Code point -> class, of marks that stay, where the tokenizer's own version of Unicode knows them as marks."""
    decompose, found = normalizers.NFD(), {}
    kept = set().union(*effects.values())
    for character in sorted(filter(unicodedata.combining, kept)):
        code, number = ord(character), unicodedata.combining(character)
        if decompose.normalize_str(f"a{HIGHEST}{chr(code)}") != f"a{HIGHEST}{chr(code)}":
            found[code] = number
    return found


def _is_wall(character: str) -> bool:
    return unicodedata.category(character).startswith("M") and unicodedata.combining(character) == 0


def ranges_of(codes: Iterable[int]) -> Ranges:
    found: list[int] = []
    for code in codes:  # ascending
        if found and code == found[-1] + 1:
            found[-1] = code
        else:
            found += [code, code]
    return tuple(found)
