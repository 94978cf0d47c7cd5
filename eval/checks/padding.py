"""What stands in the padding must not move an answer: an app may leave anything there."""

from collections.abc import Sequence

import numpy as np

from eval.checks import Subject, difference, failed, passed
from eval.padding import MASK
from pipeline.base.records import Check

TITLE = "padding"
ROWS = 8
EXTRA = 20  # positions of padding, or half of what the file takes: a leak grows with their number
# Mean over rows, as a share of the spread. Ranges taken at run time are taken over the padding too, which moves int8
# answers a little: 0.004 on a 2-layer student, where a graph without its mask moves them by 0.33.
LIMITS = {"fp32": 1.0e-5, "fp16": 1.0e-2, "int8": 0.04}


def applies(subject: Subject) -> bool:
    """Always."""
    return True


def check(subject: Subject) -> Check:
    """Answers to the same rows with padding ids and with random ids in the masked positions."""
    longest = subject.artefact.max_length
    room = max(1, longest - EXTRA, longest // 2)  # of long texts the rest is cut off, or there would be no padding
    rows = sorted((_cut(row, room) for row in subject.sequences), key=len)
    middle = rows[len(rows) // 4 : len(rows) // 4 + ROWS]
    limit = LIMITS.get(subject.artefact.precision, LIMITS["fp16"])
    rng = np.random.default_rng(subject.seed)
    known = sorted({token for row in rows for token in row})
    clean, garbled = [], []
    with subject.open() as candidate:
        for row in middle:
            L = min(len(row) + EXTRA, longest)
            inputs = subject.padded([row + [subject.pad_id] * (L - len(row))])
            mask = inputs[MASK]
            mask[0, len(row) :] = 0
            clean.append(subject.flat(candidate.run(inputs), len(row)))
            ids = inputs["input_ids"].copy()
            ids[mask == 0] = rng.choice(known, size=int((mask == 0).sum()))
            garbled.append(subject.flat(candidate.run({**inputs, "input_ids": ids}), len(row)))
    spread = float(max(map(np.max, clean)) - min(map(np.min, clean)))
    moved = float(np.mean([difference(one, other, spread) for one, other in zip(garbled, clean, strict=True)]))
    if not moved <= limit:
        return failed(
            TITLE,
            f"random ids in the padding move answers by {moved:.2g} of the spread on average, expected at most "
            f"{limit:g}: the mask does not reach every layer; look at how the export writes it",
            moved=moved,
        )
    return passed(TITLE, f"random ids in the padding move answers by {moved:.1g} of the spread on average", moved=moved)


def _cut(row: Sequence[int], length: int) -> list[int]:
    """The row with its last token, a separator, at the end."""
    return list(row) if len(row) <= length else [*row[: length - 1], row[-1]]
