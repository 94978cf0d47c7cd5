"""One change of a training text: words masked, swapped, mixed with words of another text, or alone without the others.

Each function gives a text, which may be the one it was given; which words change is drawn from the random numbers it is
handed.
"""

from collections.abc import Sequence
from random import Random

from transformers import PreTrainedTokenizerBase

from pipeline.augment.words import Slots, Span, substitute
from pipeline.data.texts import encode


def mask_text(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What to write so that `encode` gives the mask token; None where no text does."""
    mask = tokenizer.mask_token
    if mask is None:
        return None
    # A tokenizer may be set to read special tokens in text as plain text.
    return mask if encode(tokenizer, [f"a {mask} b"], 512)[0].count(tokenizer.mask_token_id) == 1 else None


def mask_words(text: str, spans: Sequence[Span], mask: str | None, probability: float, random: Random) -> str:
    """Each word becomes the mask token, or is dropped where there is none; one word at least stays."""
    chosen = [span for span in spans if random.random() < probability]
    if chosen and len(chosen) == len(spans):
        del chosen[random.randrange(len(chosen))]
    changed = substitute(text, [(start, end, mask or "") for start, end in chosen])
    return changed if mask is not None or not chosen else " ".join(changed.split())


def mix_spans(
    i: int,
    texts: Sequence[str],
    spans: Sequence[Sequence[Span]],
    others: Sequence[int],
    probability: float,
    random: Random,
) -> str:
    """Some words in a row of one text become as many words in a row of another; one word at least stays.

    A text of one word gets one word of the other before or after it.
    """
    words = spans[i]
    if not words or len(others) < 2:
        return texts[i]
    other = i
    while other == i:
        other = random.choice(others)
    drawn = sum(random.random() < probability for _ in words)
    count = min(max(drawn, 1), len(words) - 1)
    first = random.randrange(len(words) - count + 1)
    taken = min(max(count, 1), len(spans[other]))
    from_word = random.randrange(len(spans[other]) - taken + 1)
    piece = texts[other][spans[other][from_word][0] : spans[other][from_word + taken - 1][1]]
    if count == 0:
        return f"{piece} {texts[i]}" if random.random() < 0.5 else f"{texts[i]} {piece}"
    return substitute(texts[i], [(words[first][0], words[first + count - 1][1], piece)])


def crop(text: str, spans: Sequence[Span], random: Random) -> str:
    """A row of words of the text and what stands between them; every number of words below its own equally likely."""
    if len(spans) < 2:
        return text
    count = random.randrange(1, len(spans))
    first = random.randrange(len(spans) - count + 1)
    return text[spans[first][0] : spans[first + count - 1][1]]


def swap_words(text: str, slots: Slots, probability: float, random: Random) -> str:
    """Each word with a slot becomes one of its choices, all equally likely."""
    return substitute(
        text, [(start, end, random.choice(choices)) for start, end, choices in slots if random.random() < probability]
    )
