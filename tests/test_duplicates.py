"""Near duplicates: what the search finds is what comparing all pairs finds, in blocks of any size and any order."""

import random
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from pipeline.data import duplicates
from pipeline.data.duplicates import near_duplicates
from pipeline.data.texts import normalise

ODD = [
    "a",
    "ab",
    "a b c",
    "😀",
    "a\ud800b",
    "aaaa",
    "aaaaaaaa",
    "日本語 テキスト",
    "日本 語",
    "…",
    "abc abc",
    "A\u3000b",
]


def grams(text: str) -> Counter[str]:
    """Written out, as scikit-learn's `char_wb` describes itself."""
    found: Counter[str] = Counter()
    for word in normalise(text).split():
        padded = f" {word} "
        found.update(padded[i : i + 4] for i in range(max(1, len(padded) - 3)))
    return found


def all_pairs(texts: list[str], known: list[str]) -> np.ndarray:
    """Cosines, each rounded once: whole numbers until the last division."""
    ours, theirs = [grams(text) for text in texts], [grams(text) for text in known]

    def product(a: Counter[str], b: Counter[str]) -> int:
        return sum(count * b[gram] for gram, count in a.items())

    return np.array([[product(a, b) / (product(a, a) * product(b, b)) ** 0.5 for b in theirs] for a in ours])


def near_texts(seed: int, count: int, alphabet: str = "") -> list[str]:
    """Texts over few letters, or of few words: many pairs are alike, some equal, many exactly at a threshold."""
    rng = random.Random(seed)
    if alphabet:
        return ["".join(rng.choices(alphabet, k=rng.randint(1, 16))).strip() or "a" for _ in range(count)]
    words = ["play", "stop", "the", "music", "musics", "a", "in", "kitchen", "kitchens", "now", "please", "alarm"]
    return [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(count)]


@pytest.mark.parametrize("alphabet", ["", "ab ", "abcé日 "])
@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 0.95, 1.0])
def test_as_many_as_all_pairs_give_and_the_nearest_of_each(alphabet, similarity):
    """Exactly, at thresholds that many pairs meet exactly; a search by hashes would miss some."""
    for seed in range(6):
        texts, known = near_texts(seed, 40, alphabet) + ODD, near_texts(100 + seed, 50, alphabet) + ODD
        cosines = all_pairs(texts, known)
        hits = np.flatnonzero(cosines.max(axis=1) >= similarity)
        nearest = [(texts[i], known[int(cosines[i].argmax())]) for i in hits[: duplicates.EXAMPLES]]
        assert near_duplicates(texts, known, similarity) == (len(hits), nearest)


def test_the_grams_are_those_of_scikit_learn():
    """The figure in the report is by its `char_wb`, in every script and for words of one letter."""
    texts = near_texts(3, 60) + near_texts(4, 60, "abé日_1 ") + ODD
    counts = CountVectorizer(analyzer="char_wb", ngram_range=(4, 4), preprocessor=normalise).fit_transform(texts)
    rows, codes = duplicates._cut([normalise(text) for text in texts])
    for row in range(len(texts)):
        ours = Counter(codes[rows == row].tolist())
        assert sorted(ours.values()) == sorted(counts[row].data.tolist())
    assert len(set(codes.tolist())) == counts.shape[1]


@pytest.mark.parametrize(
    ("name", "size"),
    [("HELD_CHARACTERS", 150), ("BLOCK_CHARACTERS", 40), ("PAIRS_AT_ONCE", 7), ("GRAMS_AT_ONCE", 60), ("FIRST", 0.4)],
)
def test_the_size_of_the_blocks_changes_nothing(monkeypatch, name, size):
    """What bounds the memory decides no figure."""
    texts, known = near_texts(1, 60), near_texts(2, 80)
    whole = near_duplicates(texts, known, 0.8)
    assert whole[0] > 20
    monkeypatch.setattr(duplicates, name, size)
    assert near_duplicates(texts, known, 0.8) == whole


def test_the_order_of_rows_changes_no_count():
    """Of either side."""
    texts, known = near_texts(1, 60), near_texts(2, 80)
    whole = near_duplicates(texts, known, 0.8)[0]
    for seed in range(5):
        rng = random.Random(seed)
        assert near_duplicates(rng.sample(texts, 60), rng.sample(known, 80), 0.8)[0] == whole


def test_rows_of_one_text_all_count():
    """Looked up once, and shown and counted as often as they stand there."""
    found = near_duplicates(["Play the music!", "play the MUSIC", "x"], ["play the music"], 0.95)
    assert found == (2, [("Play the music!", "play the music"), ("play the MUSIC", "play the music")])


def test_planted_near_duplicates_are_all_found_among_many():
    """A letter more at the end, a word's case, one word moved: 20,000 sentences, and no other pair is near."""
    rng = random.Random(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(4_000)]
    known = [" ".join(rng.choices(words, k=12)) for _ in range(20_000)]
    texts = [" ".join(rng.choices(words, k=12)) for _ in range(1_000)]
    for place in range(0, 300, 3):
        first, *rest = known[60 * place].split()
        texts[place : place + 3] = [
            f"{known[60 * place + 1]}s",
            known[60 * place + 2].upper(),
            " ".join([*rest, first]),
        ]
    assert near_duplicates(texts, known, 0.95)[0] == 300
