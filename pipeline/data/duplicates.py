"""Rows that are almost rows of another split: an exact search that never compares all pairs.

Two texts are as similar as the cosine of the counts of their character 4-grams, as `char_wb` of scikit-learn cuts them
out of the normalised text. Put the grams in any fixed order; if the rarest come first, few texts share them. When the
first gram that two texts have in common is the k-th of one of them, their cosine is at most the length of that text's
unit vector from k on. So each text is looked up by its first grams only, as long as what follows is as long as the
similarity asked for, and texts that meet in none of those are not similar enough (prefix filtering: Bayardo, Ma,
Srikant 2007, "Scaling up all pairs similarity search"; their order is by the largest weight). Texts that do meet are
compared in full. Nothing is missed, as MinHash would, so the count is what comparing all pairs gives.

The texts that are looked up are held, some at a time; those they are compared with pass by in blocks.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pipeline.data.texts import normalise

EXAMPLES = 5
HELD_CHARACTERS = 10_000_000  # of texts that are looked up in one go: about 600 MB
BLOCK_CHARACTERS = 2_000_000  # of texts they are compared with at once: about 200 MB
PAIRS_AT_ONCE = 4_000_000  # that meet, and wait for the short test
GRAMS_AT_ONCE = 4_000_000  # of pairs that are compared in full
# Texts are looked up by a few more grams than must be, until this share of the similarity is left: most pairs that meet
# by chance share fewer of them than it takes, and need not be compared in full.
FIRST = 0.9
SLACK = 1e-9  # far above the rounding of float64, far below any two cosines that differ
SPACE = 32
# Odd numbers drawn once. Four code points times these, summed modulo 2^64, tell grams apart: among a million different
# grams two are taken for one with a chance of 3 in 100 million.
MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64)
PLACE_BITS = 40  # of a gram's place in the order; the row's number stands above them

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def near_duplicates(texts: Sequence[str], known: Sequence[str], similarity: float) -> tuple[int, list[tuple[str, str]]]:
    """How many texts are at least so similar to one of `known`, and the first five with the known text nearest to each.

    Args:
        texts: what is looked up, such as the test split.
        known: what it may be almost equal to; the first of several that are as near is taken.
        similarity: cosine of 4-gram counts, above 0.
    """
    keys = [normalise(text) for text in texts]
    nearest: dict[str, int] = {}
    for _, held in _blocks(dict.fromkeys(keys), HELD_CHARACTERS):  # the same text is looked up once
        search = _Search(held, similarity)
        for first, block in _blocks(map(normalise, known), BLOCK_CHARACTERS):
            search.compare(first, block)
        nearest |= {key: number for key, number in zip(held, search.nearest.tolist(), strict=True) if number >= 0}
    found = [i for i, key in enumerate(keys) if key in nearest]
    return len(found), [(texts[i], known[nearest[keys[i]]]) for i in found[:EXAMPLES]]


def _blocks(keys: Iterable[str], characters: int) -> Iterator[tuple[int, list[str]]]:
    """Some texts at a time, with the number of the first."""
    first, block, size = 0, list[str](), 0
    for key in keys:
        block.append(key)
        size += len(key) + 1
        if size >= characters:
            yield first, block
            first, block, size = first + len(block), [], 0
    if block:
        yield first, block


@dataclass(frozen=True)
class Grams:
    """Counts of 4-grams: row, place in the order of grams, and count of each; ascending by row, then by place."""

    rows: Ints
    places: Ints
    counts: Ints

    def pick(self, chosen: NDArray[np.bool_]) -> "Grams":
        """Only these grams."""
        return Grams(self.rows[chosen], self.places[chosen], self.counts[chosen])

    def squares(self, rows: int) -> Ints:
        """The square of each row's length."""
        return np.bincount(self.rows, self.counts**2, minlength=rows).astype(np.int64)

    def bounds(self, rows: int) -> tuple[Floats, Floats]:
        """The sum and the largest of each row's counts: a product of two rows is at most the one times the other."""
        starts, _ = _runs(self.rows)
        largest = np.zeros(rows)
        if len(self.rows):
            largest[self.rows[starts]] = np.maximum.reduceat(self.counts, starts)
        return np.bincount(self.rows, self.counts, minlength=rows).astype(np.float64), largest

    def matrix(self, rows: int, columns: int) -> csr_array:
        """The counts, a column for each gram."""
        starts = np.concatenate([[0], np.cumsum(np.bincount(self.rows, minlength=rows))])
        return csr_array((self.counts.astype(np.float64), self.places, starts), shape=(rows, columns))


class _Search:
    """Texts, found by their first grams."""

    def __init__(self, keys: Sequence[str], similarity: float) -> None:
        self._similarity = similarity
        self._order = _Order(keys)
        held = self._order.grams(keys)
        self._rows = held.matrix(len(keys), self._order.size)
        self._squares, (self._sums, self._largest) = held.squares(len(keys)), held.bounds(len(keys))
        first, self._rest = self._first(held, self._squares)
        self._posted = first.matrix(len(keys), self._order.size).T.tocsr()  # gram -> the texts it finds
        self._best = np.full(len(keys), -1.0)
        self.nearest = np.full(len(keys), -1, np.int64)  # number of the known text nearest to each, -1 for none
        self._is_done = np.zeros(len(keys), bool)

    def compare(self, first: int, block: list[str]) -> None:
        """Looks up known texts, numbered from `first`."""
        grams = self._order.grams(block)
        squares = grams.squares(len(block))
        # What no text here has stands before everything else in the order, and is part of no product.
        shared = grams.pick(grams.places < self._order.size)
        rows, (sums, largest) = shared.matrix(len(block), self._order.size), shared.bounds(len(block))
        begun, rest = self._first(shared, squares)
        for ours, theirs, product in self._meetings(begun.matrix(len(block), self._order.size)):
            whole = np.sqrt(self._squares[ours].astype(np.float64) * squares[theirs])
            # Behind the first grams of either, what they share is at most the length of that one's rest.
            most = product + whole * np.maximum(self._rest[ours], rest[theirs])
            most = np.minimum(most, self._largest[ours] * sums[theirs])
            most = np.minimum(most, self._sums[ours] * largest[theirs])
            likely = (most >= (self._similarity - SLACK) * whole) & ~self._is_done[ours]
            self._compare_pairs(rows, first, ours[likely], theirs[likely], whole[likely])

    def _first(self, grams: Grams, squares: Ints) -> tuple[Grams, Floats]:
        """The grams that each row is looked up by, and the length of what is behind them as a share of the row's."""
        whole = grams.squares(len(squares))
        before = np.cumsum(grams.counts**2) - grams.counts**2 - (np.cumsum(whole) - whole)[grams.rows]
        limit = max(FIRST * self._similarity - SLACK, 0) ** 2
        first = grams.pick(whole[grams.rows] - before >= limit * squares[grams.rows])
        return first, np.sqrt((whole - first.squares(len(squares))) / np.maximum(squares, 1))

    def _meetings(self, begun: csr_array) -> Iterator[tuple[Ints, Ints, Floats]]:
        """Pairs of a text here and a known text that share one of their first grams, and the product of those."""
        meetings = np.diff(self._posted.indptr)[begun.indices]
        so_far = np.concatenate([[0], np.cumsum(meetings)])[begun.indptr[1:]]
        for start, end in zip(*_runs(so_far // PAIRS_AT_ONCE), strict=True):
            found = (begun[start:end] @ self._posted).tocoo()
            yield found.col, found.row + start, found.data

    def _compare_pairs(self, rows: csr_array, first: int, ours: Ints, theirs: Ints, whole: Floats) -> None:
        size = np.cumsum(np.diff(self._rows.indptr)[ours] + np.diff(rows.indptr)[theirs])
        for start, end in zip(*_runs(size // GRAMS_AT_ONCE), strict=True):
            mine, other = ours[start:end], theirs[start:end]
            cosines = self._rows[mine].multiply(rows[other]).sum(axis=1) / whole[start:end]
            hits = np.flatnonzero(cosines >= self._similarity)
            for hit in hits[np.lexsort((other[hits], -cosines[hits]))]:  # the nearest first, then the first known
                if cosines[hit] > self._best[mine[hit]]:
                    self._best[mine[hit]], self.nearest[mine[hit]] = cosines[hit], first + other[hit]
            # The nearest is shown of the first few only; that the others have one is enough.
            found = np.flatnonzero(self._best >= 0)
            self._is_done[found] = True
            self._is_done[found[:EXAMPLES]] = False


class _Order:
    """The order of the grams of some texts, the rarest first; other grams get places behind theirs."""

    def __init__(self, keys: Sequence[str]) -> None:
        parts = [np.unique(_cut(block)[1], return_counts=True) for _, block in _blocks(keys, BLOCK_CHARACTERS)]
        codes, part = np.unique(np.concatenate([codes for codes, _ in parts]), return_inverse=True)
        count = np.bincount(part, np.concatenate([counts for _, counts in parts]))
        self.size = len(codes)
        self._codes, self._place = codes, np.empty(self.size, np.int64)
        self._place[np.argsort(count, kind="stable")] = np.arange(self.size)

    def grams(self, keys: Sequence[str]) -> Grams:
        """The counts of each text's grams."""
        rows, codes = _cut(keys)
        by_code = np.argsort(codes)
        rows, codes = rows[by_code], codes[by_code]
        found = np.minimum(np.searchsorted(self._codes, codes), self.size - 1)
        starts, ends = _runs(codes)
        other = np.repeat(np.arange(len(starts)), ends - starts)
        places = np.where(self._codes[found] == codes, self._place[found], self.size + other)
        packed = np.sort((rows << PLACE_BITS) | places)  # many times as fast as sorting by two keys
        starts, ends = _runs(packed)
        packed = packed[starts]
        return Grams(packed >> PLACE_BITS, packed & ((1 << PLACE_BITS) - 1), ends - starts)


def _runs(values: NDArray[np.integer]) -> tuple[Ints, Ints]:
    """Start and end of each run of equal values."""
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    return np.concatenate([[0], edges]), np.concatenate([edges, [len(values)]])


def _cut(keys: Sequence[str]) -> tuple[Ints, NDArray[np.uint64]]:
    """Row and code of every 4-gram within a word, a space at either end of the word; one letter alone is one gram."""
    padded = [f" {' '.join(key.split())} " for key in keys]
    row = np.repeat(np.arange(len(keys)), [len(text) for text in padded])
    text = "".join(padded) + 3 * " "
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    is_space = points == SPACE
    length = len(row)
    is_inside = ~is_space[1 : length + 1]
    is_gram = is_inside & ~is_space[2 : length + 2]
    is_letter = is_inside & is_space[:length] & is_space[2 : length + 2]
    starts = np.flatnonzero(is_gram | is_letter)
    letters = points[starts[:, None] + np.arange(4)].astype(np.uint64)  # (grams, 4)
    letters[is_letter[starts], 3] = 0  # the next word's first
    return row[starts], letters @ MIX
