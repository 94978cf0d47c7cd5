"""What a student is copied from: its teacher, another model, or a student that was distilled on general text."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.base.records import Card
from pipeline.base.workspace import Workspace
from pipeline.data.batches import batches_by_length, pad
from pipeline.data.prepared import STUDENT, EncodedSplit, spread_rows
from pipeline.models.checkpoints import load_with_head
from pipeline.models.model_files import find_model
from pipeline.settings.params import Params
from pipeline.settings.student import StudentSettings
from pipeline.tasks import Head

PROBE_ROWS = 256  # texts on which a narrower student's directions are chosen


def origin_folder(params: Params, workspace: Workspace) -> Path | None:
    """The folder of the model that the student is copied from; None where that is the teacher, or none."""
    if params.is_general:
        return workspace.general
    return find_model(*params.origin, "student.init.from") if params.is_own_origin else None


def load_origin(params: Params, workspace: Workspace, data: Card, head: Head, seed: int) -> PreTrainedModel | None:
    """The model that the settings name, with a new head for the task; None where the teacher is to be copied.

    Args:
        params: the settings.
        workspace: where a general student lies.
        data: the card of the prepared data.
        head: what the task needs.
        seed: of the new head.
    """
    folder = origin_folder(params, workspace)
    if folder is None:
        return None
    keep = data.facts["keep_tokens"]
    separator = data.facts["encoding"]["separators"][STUDENT]
    if separator is not None and keep is not None:
        separator = keep[separator]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_with_head(folder, head, separator).eval()


def student_settings(params: Params) -> StudentSettings:
    """The student's, as `build_student` takes them: a general student has the layers that are wanted, all of them."""
    student = params.student
    if not params.is_general:
        return student
    return student.model_copy(update={"init": student.init.model_copy(update={"layers": "uniform"})})


def probe_of(
    texts: EncodedSplit, *, by_teacher: bool, keep: Sequence[int] | None = None, token_at: int | None = None
) -> list[dict[str, Tensor]]:
    """A few texts as the model reads them that a student is copied from, in batches.

    Args:
        texts: what is learned from.
        by_teacher: whether that model is the teacher.
        keep: its token of each of the student's tokens, None where they are the same.
        token_at: where the student has a distillation token.
    """
    rows = spread_rows(len(texts), PROBE_ROWS)
    if by_teacher:
        ids, pad_id = texts.for_teacher
        found = [ids[i] for i in rows]
    else:
        found = [_own(texts.ids[i], keep, token_at) for i in rows]
        pad_id = texts.pad_id if keep is None else keep[texts.pad_id]
    return [pad([found[i] for i in some], pad_id) for some in batches_by_length([len(row) for row in found], 64)]


def _own(ids: Iterable[int], keep: Sequence[int] | None, token_at: int | None) -> list[int]:
    text = [number for place, number in enumerate(ids) if place != token_at]
    return text if keep is None else [keep[number] for number in text]
