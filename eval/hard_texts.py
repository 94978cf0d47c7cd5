"""Texts that tokenizers disagree about: one kind of trouble a line, and as many random ones as asked for."""

import random
import unicodedata
from collections.abc import Iterator

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


def random_texts(seed: int, count: int) -> Iterator[str]:
    """Words of characters from all of Unicode that is assigned, surrogates left out."""
    rng = random.Random(seed)
    for _ in range(count):
        length = rng.randint(1, 40)
        picked = (chr(rng.randrange(*rng.choice(BLOCKS))) for _ in range(length))
        yield "".join(rng.choice((c, c, c, " ")) for c in picked if unicodedata.category(c) not in ("Cs", "Cn"))


def fuzz(seed: int, count: int) -> Iterator[str]:
    """Texts for ports of a tokenizer: words of assigned characters, heaps of marks, and any code points at all."""
    yield from random_texts(seed, count // 3)
    rng = random.Random(seed)
    codes = [code for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]
    marks = [code for code in codes if unicodedata.category(chr(code)).startswith("M")]
    for _ in range(count // 3):
        yield "".join(chr(rng.choice(marks)) if rng.random() < 0.8 else "a" for _ in range(rng.randint(1, 12)))
    for _ in range(count - 2 * (count // 3)):
        picked = (rng.choice(codes) if rng.random() < 0.5 else rng.randint(0x20, 0x3000) for _ in range(20))
        yield "".join(map(chr, list(picked)[: rng.randint(1, 20)]))
