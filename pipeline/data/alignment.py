"""Which tokens of two tokenizers belong together: one by one under other ids, or by the characters they stand for.

BERT's and MPNet's word pieces are cut alike and numbered otherwise: their tokens are compared one by one. BERT's and
RoBERTa's are cut otherwise: there the states of a text can be compared piece of text by piece of text.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pipeline.data.texts import clean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Alignment = Literal["tokens", "characters"]
TOKENS: Alignment = "tokens"
CHARACTERS: Alignment = "characters"
# Share of rows whose tokens must belong together one by one, for two tokenizers to count as cutting alike. A text with
# a special token written out, or a character that only one of the two knows, is cut otherwise by tokenizers that do.
ALIKE = 0.99
NOWHERE = -1  # the segment of a token that has no counterpart
ROLES = ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token")
PAIR_OFFSET = 10**8  # characters before those of a pair's second text, so that no span is of both


def token_map(student: "PreTrainedTokenizerBase", teacher: "PreTrainedTokenizerBase") -> list[int]:
    """Student's id -> the teacher's id of the same piece, or NOWHERE; special tokens belong together by their role."""
    theirs = teacher.get_vocab()
    roles = {getattr(student, role): getattr(teacher, role) for role in ROLES if getattr(student, role) is not None}
    found = [NOWHERE] * (max(student.get_vocab().values()) + 1)
    for piece, number in student.get_vocab().items():
        found[number] = theirs.get(roles.get(piece) or piece, NOWHERE)
    return found


def belongs(ids: Sequence[int], teacher_ids: Sequence[int], mapped: Sequence[int], token_at: int | None = None) -> bool:
    """Whether two rows are the same pieces, one by one.

    Args:
        ids: the student's.
        teacher_ids: the teacher's of the same text.
        mapped: of `token_map`.
        token_at: where a distillation token stands, which the teacher never has.
    """
    ours = ids if token_at is None else [*ids[:token_at], *ids[token_at + 1 :]]
    return len(ours) == len(teacher_ids) and all(mapped[a] == b for a, b in zip(ours, teacher_ids, strict=True))


Span = tuple[int, int]  # first character, and the one behind the last


def spans_of(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[tuple[str, ...]], max_length: int
) -> list[list[Span | None]]:
    """What each token stands for: a span of the text, or None for a special token; cut as `encode` cuts."""
    parts = [[clean(row[place]) for row in texts] for place in range(len(texts[0]))]
    found = tokenizer(*parts, truncation=True, max_length=max_length, return_offsets_mapping=True)
    return [
        [
            None if part is None else (start + part * PAIR_OFFSET, end + part * PAIR_OFFSET)
            for part, (start, end) in zip(found.sequence_ids(row), offsets, strict=True)
        ]
        for row, offsets in enumerate(found["offset_mapping"])
    ]


def segments(ours: Sequence[Span | None], theirs: Sequence[Span | None]) -> tuple[list[int], list[int]]:
    """The number of each token's segment, on both sides: the shortest pieces of text that both sides cut out.

    Special tokens belong together in their order, where both sides have as many. A piece of text that one side does
    not have, since it was cut off or says nothing to it, is no segment.
    """
    sides = (ours, theirs)
    found: tuple[list[int], list[int]] = ([NOWHERE] * len(ours), [NOWHERE] * len(theirs))
    groups = [*_special(sides), *_overlapping(sides)]
    number = 0
    for group in groups:
        if {side for side, _ in group} == {0, 1}:
            for side, place in group:
                found[side][place] = number
            number += 1
    return found


Places = list[tuple[int, int]]  # side, and number of the token


def _special(sides: tuple[Sequence[Span | None], ...]) -> list[Places]:
    special = [[place for place, span in enumerate(side) if span is None] for side in sides]
    if len(special[0]) != len(special[1]):
        return []
    return [[(0, ours), (1, theirs)] for ours, theirs in zip(*special, strict=True)]


def _overlapping(sides: tuple[Sequence[Span | None], ...]) -> Iterable[Places]:
    """Tokens whose spans overlap, directly or through others; a token without characters is left out."""
    tokens = sorted(
        (span, (side, place))
        for side, spans in enumerate(sides)
        for place, span in enumerate(spans)
        if span is not None and span[1] > span[0]
    )
    if not tokens:
        return
    group, reach = [tokens[0][1]], tokens[0][0][1]
    for (_, _), ((start, end), where) in pairwise(tokens):
        if start >= reach:
            yield group
            group = []
        group.append(where)
        reach = max(reach, end)
    yield group
