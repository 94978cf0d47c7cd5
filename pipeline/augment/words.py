"""The words of a text, and which words of the training text are used alike.

The neighbours stand in for the pre-trained word vectors of TinyBERT's augmentation: no vectors are at hand, and vectors
made of the training text alone cannot hold anything of dev or test. They are rough below some thousand texts.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.utils.extmath import randomized_svd

WINDOW = 2  # words on each side: a small window finds words that can stand in for each other, a wide one a topic
LEAST_COUNT = 2  # a word seen once has the neighbours of one sentence
SMOOTHING = 0.75  # Levy, Goldberg, Dagan 2015: contexts to this power, or rare ones would decide
DIMENSIONS = 50  # on Banking77 the nearest words of 50 read as well as those of 100
BLOCK = 512  # rows of the similarity matrix at a time, which bounds its memory

Span = tuple[int, int]  # where a word starts and ends
Slots = list[tuple[int, int, list[str]]]  # the same, and what may stand in its place


def find_words(text: str) -> list[Span]:
    """Start and end of each word: what stands between spaces, without the punctuation around it.

    Accents and vowel signs stay in their word. Where a script writes no spaces, the whole run is one word.
    """
    spans = []
    for match in re.finditer(r"\S+", text):
        start, end = match.span()
        while start < end and not text[start].isalnum():
            start += 1
        while start < end and not (text[end - 1].isalnum() or unicodedata.category(text[end - 1])[0] == "M"):
            end -= 1
        if start < end:
            spans.append((start, end))
    return spans


def substitute(text: str, changes: Sequence[tuple[int, int, str]]) -> str:
    """The text with each span (start, end) replaced; spans ascend and do not overlap."""
    parts, position = [], 0
    for start, end, new in changes:
        parts += [text[position:start], new]
        position = end
    return "".join([*parts, text[position:]])


def key_of(word: str) -> str:
    """The form under which a word is counted: lower case, accents composed."""
    return unicodedata.normalize("NFC", word).lower()


def is_replaceable(word: str) -> bool:
    """Whether a word is made of letters alone and is no stop word of scikit-learn's list, which is English.

    So contractions ("don't") stay, as in TinyBERT, whose words are cut at the apostrophe. In another language function
    words are replaced like any other. The list holds words with content too ('call', 'find', 'bill'), which then stay.
    """
    letters = all(c.isalpha() or unicodedata.category(c)[0] == "M" for c in word)
    return letters and key_of(word) not in ENGLISH_STOP_WORDS


def match_case(word: str, like: str) -> str:
    """The word with a capital first letter where `like` has one."""
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def neighbours(texts: Sequence[str], most: int) -> dict[str, list[str]]:
    """For each replaceable word of the texts by its key, the `most` nearest others, nearest first.

    Nearness is the cosine of word vectors: positive pointwise mutual information of a word with the words up to
    `WINDOW` places to its left and, apart from those, to its right, reduced by truncated singular value decomposition
    to U * sqrt(S). Words seen less than `LEAST_COUNT` times have none and are none. A neighbour is written as it is
    most often in the texts.

    Source: Levy, Goldberg, Dagan 2015, sections 2 and 3; theirs does not part left from right.
    """
    sentences = [[text[start:end] for start, end in find_words(text)] for text in texts]
    written: dict[str, Counter[str]] = {}
    for word in (word for sentence in sentences for word in sentence):
        written.setdefault(key_of(word), Counter())[word] += 1
    words = sorted(key for key, forms in written.items() if forms.total() >= LEAST_COUNT)
    candidates = np.array([i for i, word in enumerate(words) if is_replaceable(word)], dtype=int)
    if len(candidates) < 2:
        return {}
    vectors = _word_vectors([[key_of(word) for word in sentence] for sentence in sentences], words)[candidates]
    # The commonest form; the alphabet decides between equals, or the order of rows would.
    forms = [min(written[words[i]].items(), key=lambda form: (-form[1], form[0]))[0] for i in candidates]
    out = {}
    for start in range(0, len(candidates), BLOCK):
        # Rounded, so that the last digits, which depend on the machine, decide no order; equals stay in the alphabet's.
        block = np.round(vectors[start : start + BLOCK] @ vectors.T, 6)
        for row, similarities in enumerate(block, start):
            similarities[row] = 0  # a word is no neighbour of its own
            nearest = np.argsort(-similarities, kind="stable")[:most]
            out[words[candidates[row]]] = [forms[i] for i in nearest if similarities[i] > 0]
    return out


def _word_vectors(sentences: Sequence[Sequence[str]], words: Sequence[str]) -> np.ndarray:
    """One row of length 1 for each of the words."""
    number = {word: i for i, word in enumerate(words)}
    # Contexts that are no word of the list. Where a word stands in a short command says much of it.
    rare, start, end = range(len(words), len(words) + 3)
    contexts = len(words) + 3
    counts: Counter[tuple[int, int]] = Counter()
    for sentence in sentences:
        numbers = [start, *(number.get(word, rare) for word in sentence), end]
        for i, left in enumerate(numbers):
            for distance, right in enumerate(numbers[i + 1 : i + 1 + WINDOW], 1):
                weight = WINDOW + 1 - distance  # whole numbers, whose sum no order can change
                if left < len(words):
                    counts[left, contexts + right] += weight
                if right < len(words):
                    counts[right, left] += weight
    rows, columns = np.array(list(counts)).T
    weights = np.array(list(counts.values()), dtype=float)
    word_weights = np.bincount(rows, weights, len(words))
    context_weights = np.bincount(columns, weights, 2 * contexts) ** SMOOTHING
    expected = word_weights[rows] * context_weights[columns] / context_weights.sum()
    information = np.maximum(np.log(weights / expected), 0)
    matrix = scipy.sparse.csr_matrix((information, (rows, columns)), shape=(len(words), 2 * contexts))
    U, S, _ = randomized_svd(matrix, min(DIMENSIONS, len(words)), random_state=0)
    vectors = U * np.sqrt(S)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
