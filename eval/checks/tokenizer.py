"""The tokenizer that ships must give the ids that the model was trained on, on text that nobody would think of."""

import random
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from eval.checks import Subject, failed, passed
from pipeline.base.records import Check
from pipeline.data.texts import clean, encode
from pipeline.models.vocabulary import load_tokenizer

TITLE = "tokenizer"
RANDOM_TEXTS = 300
SHOWN = 3
# Code points: Latin, Greek to Arabic, Indic, symbols, CJK, Hangul, presentation forms, emoji, control characters.
BLOCKS = (
    (0x20, 0x7F),
    (0xA0, 0x250),
    (0x370, 0x600),
    (0x900, 0xE00),
    (0x2000, 0x2C00),
    (0x3040, 0xA000),
    (0xAC00, 0xD7A4),
    (0xF900, 0x10000),
    (0x1F300, 0x1FB00),
    (0x0, 0x20),
)
# One kind of trouble a line.
HARD = (
    "",
    " \t\n ",
    "naïve café, Übergröße, ångström, Ça va?",
    "e\u0301 against \u00e9: combining and composed",
    "今天天气怎么样", "東京タワー 행복하세요",
    "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया",
    "👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 ok",
    "zero\u200bwidth\u200cjoin\u200der\ufeff",
    "right\u202eto\u202cleft",
    "control\x00\x01\x1f\x7fcharacters",
    "non\u00a0breaking\u2003spaces\u3000here",
    "ﬁne ﬀ Ⅷ ² ½ ™",
    "İstanbul ıspanak ß ẞ",
    "a" * 300,
    "supercalifragilisticexpialidocious" * 4,
    "don't -- can't... #hashtag @user http://x.y/z?q=1&r=2 50% $9.99",
    "[CLS] [SEP] [MASK] [PAD] [UNK] <s> </s>",
    "\U0001f9ff\U00020000\ue000\ufffd",
    "ℌ𝔢𝔩𝔩𝔬 ｆｕｌｌ ｗｉｄｔｈ",
    "A\u0300\u0301\u0302\u0303\u0304 z̷̡a̵l̶g̸o̷",
)  # fmt: skip


def applies(subject: Subject) -> bool:
    """Where a tokenizer ships with the artefact: always."""
    return True


def check(subject: Subject) -> Check:
    """Compares the shipped tokenizer with the one that training text was encoded with."""
    parts = len(subject.texts[0])
    longest = subject.artefact.max_length
    too_long = " ".join(map(str, range(longest + 1)))  # or nobody would see that the end is not cut, or cut elsewhere
    odd = [*HARD, too_long, *random_texts(subject.seed, RANDOM_TEXTS)]
    texts = [*((text,) * parts for text in odd), *subject.texts]
    ours = encode(load_tokenizer(subject.tokenizer), texts, longest)
    shipped = {"tokenizer.json": _shipped_ids(subject.folder / "tokenizer.json", texts)}
    for file, theirs in shipped.items():
        wrong = [i for i, (one, other) in enumerate(zip(theirs, ours, strict=True)) if one != other]
        if wrong:
            # a text of the data by its place: a report may be public where the data are not
            names = [f"{odd[i][:40]!r}" if i < len(odd) else f"dev row {i - len(odd)}" for i in wrong[:SHOWN]]
            shown = "; ".join(
                f"{name}: {_where_they_part(theirs[i], ours[i])}" for name, i in zip(names, wrong, strict=False)
            )
            return failed(
                TITLE,
                f"{file} differs from the tokenizer that the student was trained with on {len(wrong)} of {len(texts)} "
                f"texts: {shown}; export it again from the student's own folder",
                different=len(wrong),
                texts=len(texts),
            )
    hard = f"{len(HARD) + 1} of them hard"
    return passed(TITLE, f"the same ids on {len(texts)} texts, {hard}, {RANDOM_TEXTS} random Unicode")


def _where_they_part(theirs: list[int], ours: list[int]) -> str:
    """Both around the first id that differs; a text may be cut at another place than the other."""
    pairs = enumerate(zip(theirs, ours, strict=False))
    first = next((i for i, (one, other) in pairs if one != other), min(len(theirs), len(ours)))
    part = slice(max(0, first - 2), first + 6)
    return f"{theirs[part]} for {ours[part]} from id {part.start} on, {len(theirs)} ids for {len(ours)}"


def random_texts(seed: int, count: int) -> Iterator[str]:
    """Words of characters from all of Unicode that is assigned, surrogates left out."""
    rng = random.Random(seed)
    for _ in range(count):
        length = rng.randint(1, 40)
        picked = (chr(rng.randrange(*rng.choice(BLOCKS))) for _ in range(length))
        yield "".join(rng.choice((c, c, c, " ")) for c in picked if unicodedata.category(c) not in ("Cs", "Cn"))


def _shipped_ids(file: Path, texts: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """What an app gets that reads the file with the tokenizers library, as `decant predict` does."""
    tokenizer = Tokenizer.from_file(str(file))
    return [tokenizer.encode(*map(clean, text)).ids for text in texts]
