"""What a whole model answers to a split, and whether that is more than chance."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
)

from pipeline.base.errors import IntegrityError, TrainingError
from pipeline.base.files import output_folder
from pipeline.base.records import open_folder, seal
from pipeline.data.batches import batches_by_length, pad
from pipeline.data.prepared import EncodedSplit
from pipeline.data.token_rows import lengths_of

log = logging.getLogger(__name__)


def predict_logits(
    model: PreTrainedModel, ids: Sequence[Sequence[int]], pad_id: int, name: str, batch_size: int = 64
) -> Tensor:
    """Logits (rows, classes) of a model on encoded rows, float32, on the CPU, with a bar on a terminal.

    Raises:
        TrainingError: an answer is not finite.
    """
    from tqdm import tqdm

    model.eval()
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    nn.Module.to(model, device)
    logits = torch.empty(len(ids), model.config.num_labels)
    batches = batches_by_length(lengths_of(ids), batch_size)
    with torch.no_grad():
        for rows in tqdm(batches, desc=name, disable=None, leave=False):
            batch = pad([ids[i] for i in rows], pad_id)
            logits[rows] = model(**{key: value.to(device) for key, value in batch.items()}).logits.float().cpu()
    if not torch.isfinite(logits).all():
        row = int((~torch.isfinite(logits)).any(dim=1).nonzero()[0])
        raise TrainingError(f"{name}: the answer to row {row} is not finite; the weights are damaged or diverged")
    return logits


def correct_share(logits: Tensor, labels: Sequence[int]) -> float:
    """Share of rows whose largest logit is the label's; exact, so that it can be compared with another share."""
    return sum(int(a) == b for a, b in zip(logits.argmax(-1), labels, strict=True)) / len(labels)


def cached_teacher_logits(teacher: PreTrainedModel, split: EncodedSplit, work: Path, key: str) -> Tensor:
    """The teacher's logits on a split, computed once and kept on disk under `key`; a damaged file is made again."""
    from safetensors.torch import load_file, save_file

    folder = work / f"teacher_logits-{key[:16]}"
    try:
        open_folder(folder, "teacher_logits")
    except IntegrityError as error:
        if folder.exists():
            log.warning("%s; computing the teacher's logits again", error)
        ids, pad_id = split.for_teacher
        logits = predict_logits(teacher, ids, pad_id, "teacher's logits")
        with output_folder(folder, expected_bytes=4 * logits.numel()) as partial:
            save_file({"logits": logits}, partial / "logits.safetensors")
            seal(partial, "teacher_logits")
    return load_file(folder / "logits.safetensors")["logits"]


def check_not_collapsed(accuracy: float, labels: Sequence[int], name: str) -> None:
    """Raises TrainingError when a model is no better on dev than always answering the commonest class."""
    share = max(labels.count(label) for label in set(labels)) / len(labels)
    if not accuracy > share:
        raise TrainingError(
            f"{name} collapsed: dev accuracy {accuracy:.1%} is not above the majority class's {share:.1%}; "
            "train longer, raise or lower the learning rate, or check the labels"
        )
