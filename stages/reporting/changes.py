"""What became of single answers on the way: confusions that came or went, and texts whose answer flipped."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from eval.ledger import Hop
from stages.reporting.evidence import Evidence

SHOWN_CONFUSIONS = 12
SHOWN_FLIPS = 8  # of each direction and hop


@dataclass(frozen=True)
class Confusion:
    """How often one class was taken for another by two models."""

    actual: str
    answered: str
    before: int
    after: int

    @property
    def change(self) -> int:
        return self.after - self.before


@dataclass(frozen=True)
class Flip:
    """A test row that was answered rightly by one of two models."""

    text: str
    actual: str
    before: str
    after: str
    is_worse: bool


def confusion_changes(
    labels: Sequence[int], before: Sequence[int], after: Sequence[int], names: Sequence[str]
) -> list[Confusion]:
    """Pairs of classes that are confused more or less often than before, the largest change first."""
    old, new = (Counter((a, b) for a, b in zip(labels, answers, strict=True) if a != b) for answers in (before, after))
    changed = [pair for pair in old | new if old[pair] != new[pair]]
    changed.sort(key=lambda pair: (-abs(new[pair] - old[pair]), pair))
    return [
        Confusion(class_name(a, names), class_name(b, names), old[a, b], new[a, b])
        for a, b in changed[:SHOWN_CONFUSIONS]
    ]


def flipped(evidence: Evidence, hop: Hop) -> list[Flip]:
    """The first rows that a hop turned wrong, then the first that it turned right; empty without the texts."""
    answers = {one.name: one.score.predictions for one in evidence.targets}
    for name, trained in (("teacher", evidence.teacher), ("student", evidence.student)):
        if trained is not None:
            answers[name] = trained.predictions
    names, rows = evidence.rows.names, evidence.rows
    if len(rows.texts) != hop.examples:
        return []
    return [
        Flip(
            rows.texts[row],
            class_name(rows.labels[row], names),
            class_name(answers[hop.before][row], names),
            class_name(answers[hop.after][row], names),
            is_worse,
        )
        for is_worse, chosen in ((True, hop.worse_rows), (False, hop.better_rows))
        for row in chosen[:SHOWN_FLIPS]
    ]


def class_name(number: int, names: Sequence[str]) -> str:
    """The name of a class, or its number where the names could not be read."""
    return names[number] if 0 <= number < len(names) else f"class {number}"
