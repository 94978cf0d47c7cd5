"""Tokens of two tokenizers that belong together: one by one under other ids, or by the characters they stand for."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_project import make_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.data.alignment import NOWHERE, belongs, segments, spans_of, token_map
from pipeline.data.texts import encode
from pipeline.signals.reader import Signals
from pipeline.signals.segments import by_segment

TEXTS = ["please wake me at unwakeed oclock", "play some album now", "kitchen lamp, today!", "", "☃ snow"]


def renumbered(shift: int = 7):
    """The same pieces under other ids, with other names for what stands around a text: as MPNet's beside BERT's."""
    state = make_tokenizer()
    names = {"[CLS]": "<s>", "[SEP]": "</s>", "[PAD]": "<pad>", "[MASK]": "<mask>"}
    pieces = sorted(state.get_vocab(), key=state.get_vocab().get)
    turned = [*pieces[shift:], *pieces[:shift]]
    numbers = {names.get(piece, piece): number for number, piece in enumerate(turned)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = state.backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = state.backend_tokenizer.pre_tokenizer
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", numbers["</s>"]), ("<s>", numbers["<s>"]))
    special = {"pad": "<pad>", "unk": "[UNK]", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in special.items()}
    )


def byte_pairs():
    """Cuts words otherwise, and counts the space before a word to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 5, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    names = dict(zip(("cls", "sep", "pad", "unk"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{f"{name}_token": t for name, t in names.items()})


def test_same_pieces_under_other_ids_belong_together():
    """Special tokens by what they are for, though each has another name."""
    student, teacher = make_tokenizer(), renumbered()
    mapped = token_map(student, teacher)
    assert mapped[student.cls_token_id] == teacher.cls_token_id and mapped[student.sep_token_id] == teacher.sep_token_id
    pairs = list(zip(encode(student, TEXTS, 32), encode(teacher, TEXTS, 32), strict=True))
    assert all(belongs(ours, theirs, mapped) for ours, theirs in pairs)
    assert any(ours != theirs for ours, theirs in pairs)


def test_a_token_more_or_another_piece_does_not_belong():
    """Planted: the last token gone, and one replaced."""
    student, teacher = make_tokenizer(), renumbered()
    mapped = token_map(student, teacher)
    [ours], [theirs] = encode(student, TEXTS[:1], 32), encode(teacher, TEXTS[:1], 32)
    assert not belongs(ours, theirs[:-1], mapped)
    assert not belongs(ours, [*theirs[:2], theirs[1], *theirs[3:]], mapped)
    assert belongs([ours[0], 99, *ours[1:]], theirs, mapped, token_at=1)


def test_segments_are_the_shortest_pieces_that_both_cut_out():
    """'unable' as un|able and as una|ble is one; 'to' alike on both sides is one by itself; specials pair up."""
    ours = [None, (0, 2), (2, 6), (7, 9), None]
    theirs = [None, (0, 3), (3, 6), (7, 9), None]
    assert segments(ours, theirs) == ([0, 2, 2, 3, 1], [0, 2, 2, 3, 1])


def test_what_only_one_side_has_is_no_segment():
    """A text that was cut earlier on one side, a token without characters, and special tokens of other numbers."""
    ours = [None, (0, 3), (4, 4), (4, 8), None]
    theirs = [None, (0, 3), None, None]
    assert segments(ours, theirs) == ([NOWHERE, 0, NOWHERE, NOWHERE, NOWHERE], [NOWHERE, 0, NOWHERE, NOWHERE])


@pytest.mark.parametrize("rows", [[(text,) for text in TEXTS], list(pairwise(TEXTS))])
def test_segments_of_real_tokenizers_hold_the_same_text(rows):
    """On both sides a segment's tokens cover the same characters, spaces aside; of pairs each text by itself."""
    student, teacher = make_tokenizer(), byte_pairs()
    for ours, theirs in zip(spans_of(student, rows, 64), spans_of(teacher, rows, 64), strict=True):
        a, b = segments(ours, theirs)
        assert max([*a, *b]) >= 1
        for number in range(max(a) + 1):
            spans = [
                [span for span, found in zip(side, numbers, strict=True) if found == number]
                for side, numbers in ((ours, a), (theirs, b))
            ]
            assert all(spans)
            if None not in spans[0]:
                starts, ends = ({f(x for x in some for x in [x[i]]) for some in spans} for i, f in ((0, min), (1, max)))
                assert len(ends) == 1 or max(ends) - min(ends) <= 1
                assert max(starts) - min(starts) <= 1  # the space before a word


spans = st.lists(st.integers(0, 12), min_size=2, max_size=8, unique=True).map(sorted)


@given(spans, spans)
def test_segments_are_numbered_without_gaps_and_never_overlap(a, b):
    """Whatever two sides cut out of a text."""
    ours, theirs = (list(pairwise(cuts)) for cuts in (a, b))
    first, second = segments(ours, theirs)
    used = set(first) - {NOWHERE}
    assert used == set(second) - {NOWHERE} == set(range(len(used)))
    for one, one_number in zip(ours, first, strict=True):
        for other, other_number in zip(theirs, second, strict=True):
            if one[0] < other[1] and other[0] < one[1]:
                assert one_number == other_number != NOWHERE


def test_states_of_a_segment_are_the_mean_of_its_tokens():
    """Worked by hand, padding and tokens of no segment left out."""
    hidden = torch.tensor([[[1.0], [3.0], [10.0], [99.0]], [[4.0], [8.0], [99.0], [99.0]]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    numbers = torch.tensor([[0, 0, 1, NOWHERE], [1, 0, 0, NOWHERE]])  # the third of row 2 is padding
    heads = hidden[:, None]
    signals = Signals(logits=torch.empty(2, 0), mask=mask, hidden=(None, hidden), queries=(heads,), keys=(None,))
    found = by_segment(signals, numbers, 3)
    assert found.hidden[0] is None
    assert found.hidden[1].squeeze(-1).tolist() == [[2.0, 10.0, 0.0], [8.0, 4.0, 0.0]]
    assert found.queries[0].shape == (2, 1, 3, 1) and found.queries[0][0, 0, 0] == 2.0
    assert found.mask.tolist() == [[True, True, False], [True, True, False]]
