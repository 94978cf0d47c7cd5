"""Training rows with further text behind them, tokenized as they are."""

import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.augment.augmentation import cached_augmentation
from pipeline.base.errors import SettingsError
from pipeline.base.workspace import Workspace
from pipeline.data.examples import SPLITS, read_prepared
from pipeline.data.prepared import EncodedSplit, open_data
from pipeline.data.texts import encode
from pipeline.data.token_rows import TokenRows
from pipeline.models.vocabulary import load_tokenizer
from pipeline.settings.params import Params
from pipeline.signals.reader import TOKEN_POSITION
from pipeline.tasks import UNLABELLED

log = logging.getLogger(__name__)


def with_augmented(params: Params, workspace: Workspace, train: EncodedSplit, caches: Path) -> EncodedSplit:
    """The training rows, and behind them the text that the settings ask for, whose label is only the teacher's to say.

    A text is left out when a trimmed vocabulary splits it otherwise than the teacher's: the two models would then not
    see the same tokens.
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
    texts, length = [item.text for item in made], params.data.max_length
    teacher_ids = encode(teacher_tokenizer, texts, length - train.has_token)
    ids = teacher_ids
    if train.teacher_ids is not None:
        ids = encode(load_tokenizer(workspace.data / "tokenizer"), texts, length)
    keep = open_data(workspace).facts["keep_tokens"]
    kept = [i for i in range(len(made)) if _same_tokens(ids[i], teacher_ids[i], keep, train.has_token)]
    log.info("augmented text: %d, %d left out, beside %d training rows", len(kept), len(made) - len(kept), len(train))
    theirs = train.teacher_ids
    return EncodedSplit(
        names=(*train.names, *(f"{made[i].method}-{i}" for i in kept)),
        ids=TokenRows.of(train.ids).plus([ids[i] for i in kept]),
        targets=(*train.targets, *(UNLABELLED for _ in kept)),
        pad_id=train.pad_id,
        teacher_ids=None if theirs is None else TokenRows.of(theirs).plus([teacher_ids[i] for i in kept]),
        teacher_pad_id=train.teacher_pad_id,
        has_token=train.has_token,
        delimiter_ids=train.delimiter_ids,
    )


def _same_tokens(ids: list[int], teacher_ids: list[int], keep: Sequence[int] | None, has_token: bool) -> bool:
    """Whether the student reads the teacher's tokens, its own distillation token aside."""
    ids = ids[:TOKEN_POSITION] + ids[TOKEN_POSITION + 1 :] if has_token else ids
    return teacher_ids == (ids if keep is None else [keep[i] for i in ids])
