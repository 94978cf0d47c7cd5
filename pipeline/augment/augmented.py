"""Training rows with further text behind them, tokenized as they are."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from pipeline.augment.augmentation import cached_augmentation
from pipeline.base.errors import SettingsError
from pipeline.base.workspace import Workspace
from pipeline.data.alignment import CHARACTERS, belongs, token_map
from pipeline.data.examples import SPLITS, UNLABELLED, read_prepared
from pipeline.data.prepared import TOKEN_POSITION, EncodedSplit, alignment_of, open_data, segments_of
from pipeline.data.texts import encode
from pipeline.models.vocabulary import load_tokenizer
from pipeline.settings.params import Params

log = logging.getLogger(__name__)


def with_augmented(params: Params, workspace: Workspace, train: EncodedSplit, caches: Path) -> EncodedSplit:
    """The training rows, and behind them the text that the settings ask for, whose label is only the teacher's to say.

    A text is left out when a trimmed vocabulary splits it otherwise than the teacher's: the two models would then not
    see the same tokens. Variants are made of rows with a label.
    """
    settings = params.distill.augment
    if not settings.methods:
        return train
    rows = {split: read_prepared(workspace.data, split).texts for split in SPLITS}
    if any(len(row) > 1 for row in rows["train"][:1]):
        raise SettingsError(
            "distill.augment.methods: further text is made of one text, but rows are pairs; set it to []"
        )
    teacher_tokenizer = load_tokenizer(workspace.data / "teacher_tokenizer")
    held_out = [text for split in ("dev", "test") for (text,) in rows[split]]
    made = cached_augmentation(
        [text for (text,) in rows["train"]], settings, teacher_tokenizer, params.seed, held_out, caches
    )
    further = _encoded([item.text for item in made], train, workspace.data, params.data.max_length, teacher_tokenizer)
    kept = list(range(len(made)))
    if further.teacher_ids is not None and alignment_of(open_data(workspace).facts["encoding"]) != CHARACTERS:
        kept = _alike(further, further.teacher_ids, load_tokenizer(workspace.data / "tokenizer"), teacher_tokenizer)
    log.info("augmented text: %d, %d left out, beside %d training rows", len(kept), len(made) - len(kept), len(train))
    names = [f"{item.method}-{number}" for number, item in enumerate(made)]
    return train.plus(replace(further, names=names).take(kept))


def _encoded(
    texts: Sequence[str], train: EncodedSplit, data: Path, length: int, teacher: PreTrainedTokenizerBase
) -> EncodedSplit:
    """Texts as the models read them, in the columns that the training rows have."""
    rows = [(text,) for text in texts]
    beside = length - train.has_token
    ids, teacher_ids, segments = encode(teacher, texts, beside), None, None
    if train.teacher_ids is not None:
        student = load_tokenizer(data / "tokenizer")
        rows = [(text,) for text in _with_mask_of(student, teacher, texts)]
        ids, teacher_ids = encode(student, rows, length), ids
        if train.segments is not None:
            found = list(segments_of(rows, student, [(text,) for text in texts], teacher, length, train.has_token))
            ours, theirs = ([row for batch in found for row in batch[side]] for side in (0, 1))
            segments = ours, theirs
    second_ids = None
    if train.second_ids is not None:
        second = load_tokenizer(data / "second_tokenizer")
        second_ids = encode(second, _with_mask_of(second, teacher, texts), length)
    return replace(
        train,
        names=[],
        ids=ids,
        targets=[UNLABELLED] * len(texts),
        teacher_ids=teacher_ids,
        teacher_outputs=None,
        second_ids=second_ids,
        segments=segments,
    )


def _with_mask_of(
    tokenizer: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[str]:
    """Texts that were masked for the teacher, as another model writes its mask, which is a token and no text."""
    if teacher.mask_token is None or tokenizer.mask_token is None:
        return list(texts)
    return [text.replace(teacher.mask_token, tokenizer.mask_token) for text in texts]


def _alike(
    rows: EncodedSplit,
    teacher_ids: Sequence[list[int]],
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
) -> list[int]:
    """Rows that both models read as the same tokens."""
    mapped, token_at = token_map(student, teacher), TOKEN_POSITION if rows.has_token else None
    pairs = zip(rows.ids, teacher_ids, strict=True)
    return [i for i, (ours, theirs) in enumerate(pairs) if belongs(ours, theirs, mapped, token_at)]
