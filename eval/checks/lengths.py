"""The shape contract: right answers at every length and batch size that the card declares, a clear error beyond."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from eval.checks import Subject, difference, failed, passed
from eval.padding import MASK, padded_length
from eval.runtimes import Session
from pipeline.base.errors import ModelError
from pipeline.base.records import Artefact, Check

TITLE = "lengths and batches"
BATCHES = (1, 3)
CHOICE = 16  # texts of each length, of which those of a batch are chosen
# Share of the spread from which two answers cannot be taken for each other: 2.5 times the most that int8 was seen off.
APART = 0.2
ENDS = 4  # other last tokens that are tried
FOLLOWED = 0.5  # of how far the student's answer moves; what does not read its last token moves by nothing
# Share of the spread, over the numbers of those answers together: in a long text one token moves less than 8 bits do.
LEAST_MOVED = 0.2


def applies(subject: Subject) -> bool:
    """Always."""
    return True


def check(subject: Subject) -> Check:
    """Runs the artefact at each length of the contract and compares with PyTorch, then beyond the longest."""
    artefact = subject.artefact
    lengths, batches = list(_lengths(artefact)), [size for size in BATCHES if size == 1 or artefact.fixed_batch is None]
    with subject.open() as candidate, subject.open_student() as student:
        rows, expected = {}, {}
        for L in lengths:
            texts = [subject.of_length(L, which) for which in range(CHOICE)]
            answers = subject.flat(student.run(_plain(texts)), L)
            # A file may answer the first text to everybody, so those of a batch have answers that lie far apart.
            chosen = _far_apart(answers, max(batches))
            rows[L], expected[L] = [texts[i] for i in chosen], answers[chosen]
        # One spread for all: the logits of a single row may lie close together.
        spread = float(max(row.max() for row in expected.values()) - min(row.min() for row in expected.values()))
        worst = 0.0
        for L, answers in expected.items():
            for size in batches:
                where = f"{L} tokens, batch of {size}"
                try:
                    found = subject.flat(candidate.run(subject.padded(rows[L][:size])), L)
                except ModelError as error:
                    return failed(TITLE, f"{where}: refused, though the card declares it: {error}; export it again")
                off = difference(found, answers[:size], spread)
                worst = max(worst, off)
                if not off <= subject.tolerance:
                    return failed(
                        TITLE,
                        f"{where}: answers {off:.2g} of the spread away from the student, expected at most "
                        f"{subject.tolerance:g}; the file does not take the lengths that its card says",
                    )
                if (other := _answered_as_another(found, answers[:size], APART * spread)) is not None:
                    return failed(TITLE, f"{where}: row {other[0]} is answered as row {other[1]} should be")
            followed = _follows_the_end(candidate, student, subject, rows[L][0], LEAST_MOVED * spread)
            if followed < FOLLOWED:
                return failed(
                    TITLE,
                    f"{L} tokens: other last tokens move the answer {followed:.0%} as far as the student's: the file, "
                    "or what pads for it, ends one token early; export it again",
                )
        if problem := _beyond(candidate, subject):
            return failed(TITLE, problem)
    shares = [padded_length(len(row), artefact) / len(row) for row in subject.sequences]
    facts = {"lengths": lengths, "batches": batches, "worst_difference": worst, "padding": float(np.mean(shares)) - 1}
    cost = f"; padding to its lengths adds {facts['padding']:.0%} to the tokens of dev" if artefact.lengths else ""
    return passed(TITLE, f"right at {', '.join(map(str, lengths))} tokens and refused beyond{cost}", **facts)


def _lengths(artefact: Artefact) -> Iterator[int]:
    """1, each declared length with its neighbours, and the longest."""
    edges = {1, 2, artefact.max_length}
    for length in artefact.lengths or (16,):
        edges |= {length - 1, length, length + 1}
    yield from sorted(length for length in edges if 1 <= length <= artefact.max_length)


def _far_apart(answers: Float[np.ndarray, "rows values"], count: int) -> list[int]:
    """Row 0, and each time the row that is furthest from the nearest one so far."""
    chosen = [0]
    while len(chosen) < count:
        distances = np.abs(answers[:, None] - answers[chosen]).max(axis=2).min(axis=1)
        chosen.append(int(distances.argmax()))
    return chosen


def _follows_the_end(candidate: Session, student: Session, subject: Subject, row: list[int], least: float) -> float:
    """How far answers move with the last token, as a share of how far the student's do, in the same direction.

    A text ends with a separator, on which so little depends that 8 bits hide whether it is read at all; so other tokens
    stand there, those that move the student's answer furthest. What 8 bits are off by alike falls out. 1 where those
    move it by less than `least`, so that nothing can be told.
    """
    known = sorted({token for other in subject.sequences for token in other} - {row[-1]})
    tokens = known[:: max(1, len(known) // CHOICE)]
    rows = [row, *([*row[:-1], token] for token in tokens)]
    expected = subject.flat(student.run(_plain(rows)), len(row)).astype(np.float64)
    furthest = 1 + np.argsort(-np.abs(expected[1:] - expected[0]).max(axis=1), kind="stable")[:ENDS]
    moved = expected[furthest] - expected[0]
    if np.linalg.norm(moved) < least:
        return 1.0
    base, *found = (subject.flat(candidate.run(subject.padded([rows[i]])), len(row))[0] for i in (0, *furthest))
    return float(((np.stack(found) - base) * moved).sum() / (moved**2).sum())


def _answered_as_another(
    found: Float[np.ndarray, "rows values"], expected: Float[np.ndarray, "rows values"], apart: float
) -> tuple[int, int] | None:
    """(row, the row whose answer it is nearer to than to its own), of rows that are so far apart; else None."""
    distances = np.abs(found[:, None] - expected).max(axis=2)
    between = np.abs(expected[:, None] - expected).max(axis=2)
    for row, other in zip(*np.nonzero((between >= apart) & (distances < distances.diagonal()[:, None])), strict=True):
        return int(row), int(other)
    return None


def _plain(sequences: list[list[int]]) -> dict[str, np.ndarray]:
    ids = np.asarray(sequences, dtype=np.int64)
    return {"input_ids": ids, MASK: np.ones_like(ids)}


def _beyond(candidate: Session, subject: Subject) -> str | None:
    """What is wrong with the answer to an input that is one token too long; None when it is refused."""
    L = subject.artefact.max_length + 1
    try:
        candidate.run(_plain([subject.of_length(L)]))
    except ModelError:
        return None
    return f"{L} tokens: answered, expected an error, since the card says at most {subject.artefact.max_length}"
