"""What became of single answers on the way: confusions that came or went, and texts whose answer flipped."""

from collections import Counter
from dataclasses import dataclass

from eval.ledger import Hop
from stages.reporting.evidence import Evidence

SHOWN_CONFUSIONS = 12
SHOWN_FLIPS = 8  # of each direction and hop


@dataclass(frozen=True)
class Confusion:
    """How often rows of one group were answered as another, by two models."""

    actual: str
    answered: str
    before: int
    after: int

    @property
    def change(self) -> int:
        return self.after - self.before


@dataclass(frozen=True)
class Flip:
    """A test row that was answered rightly by one of two models: its text, or its id where texts stay private."""

    text: str
    actual: str
    before: str
    after: str
    is_worse: bool


def confusion_changes(evidence: Evidence) -> list[Confusion]:
    """Pairs of groups that are confused more or less often by what ships than by the teacher, largest change first.

    Empty where the task has no groups, or somebody's answers could not be read.
    """
    groups = evidence.rows.groups
    if evidence.teacher is None or evidence.shipped is None or not groups:
        return []
    old, new = (
        Counter(pair for pair in zip(groups, map(evidence.show, answers), strict=True) if pair[0] != pair[1])
        for answers in (evidence.teacher.answers, evidence.shipped.score.answers)
    )
    changed = [pair for pair in old | new if old[pair] != new[pair]]
    changed.sort(key=lambda pair: (-abs(new[pair] - old[pair]), pair))
    return [Confusion(*pair, old[pair], new[pair]) for pair in changed[:SHOWN_CONFUSIONS]]


def flipped(evidence: Evidence, hop: Hop) -> list[Flip]:
    """The first rows that a hop turned wrong, then the first that it turned right; empty without the texts."""
    answers = {one.name: one.score.answers for one in evidence.targets}
    for name, trained in (("teacher", evidence.teacher), ("student", evidence.student)):
        if trained is not None:
            answers[name] = trained.answers
    rows, show = evidence.rows, evidence.show
    if len(rows.texts) != hop.examples:
        return []
    return [
        Flip(
            " | ".join(rows.texts[row]) if evidence.publishes_texts else str(rows.ids[row]),
            show(rows.numbers[row]),
            show(answers[hop.before][row]),
            show(answers[hop.after][row]),
            is_worse,
        )
        for is_worse, chosen in ((True, hop.worse_rows), (False, hop.better_rows))
        for row in chosen[:SHOWN_FLIPS]
    ]
