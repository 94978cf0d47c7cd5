"""The shape contract: right answers at every length and batch size that the card declares, a clear error beyond."""

from collections.abc import Iterator

import numpy as np

from eval.checks import Subject, difference, failed, passed
from eval.padding import MASK, padded_length
from eval.runtimes import Session
from pipeline.base.errors import ModelError
from pipeline.base.records import Artefact, Check

TITLE = "lengths and batches"
BATCHES = (1, 3)


def applies(subject: Subject) -> bool:
    """Always."""
    return True


def check(subject: Subject) -> Check:
    """Runs the artefact at each length of the contract and compares with PyTorch, then beyond the longest."""
    artefact = subject.artefact
    lengths, batches = list(_lengths(artefact)), [size for size in BATCHES if size == 1 or artefact.fixed_batch is None]
    with subject.open() as candidate, subject.open_student() as student:
        expected = {L: subject.flat(student.run(_plain([subject.of_length(L)])), L) for L in lengths}
        # One spread for all: the logits of a single row may lie close together.
        spread = float(max(row.max() for row in expected.values()) - min(row.min() for row in expected.values()))
        worst = 0.0
        for L, answer in expected.items():
            for size in batches:
                where = f"{L} tokens, batch of {size}"
                try:
                    found = subject.flat(candidate.run(subject.padded([subject.of_length(L)] * size)), L)
                except ModelError as error:
                    return failed(TITLE, f"{where}: refused, though the card declares it: {error}; export it again")
                off = difference(found, np.repeat(answer, size, axis=0), spread)
                worst = max(worst, off)
                if not off <= subject.tolerance:
                    return failed(
                        TITLE,
                        f"{where}: answers {off:.2g} of the spread away from the student, expected at most "
                        f"{subject.tolerance:g}; the file does not take the lengths that its card says",
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
