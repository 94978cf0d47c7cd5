"""What a whole model answers to a split, and whether that is more than chance."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.base.errors import IntegrityError, TrainingError
from pipeline.base.files import output_folder
from pipeline.base.records import open_folder, seal
from pipeline.data.batches import batches_by_length, pad
from pipeline.data.prepared import EncodedSplit
from pipeline.data.token_rows import lengths_of
from pipeline.losses.cross_entropy import UNLABELLED
from pipeline.training import processes

log = logging.getLogger(__name__)
ONE_IN_TWENTY = 1.645  # standard deviations that chance exceeds in one of twenty cases


def predict_logits(
    model: PreTrainedModel, ids: Sequence[Sequence[int]], pad_id: int, name: str, batch_size: int = 64
) -> Tensor:
    """Logits (rows, classes) of a model on encoded rows, float32, on the CPU, with a bar on a terminal.

    Raises:
        TrainingError: an answer is not finite.
    """
    from tqdm import tqdm

    model.eval()
    device = processes.device()
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


def labelled_share(split: EncodedSplit) -> float:
    """Share of a split's rows that have a label."""
    return sum(label != UNLABELLED for label in split.labels) / len(split)


def dev_accuracy(model: PreTrainedModel, dev: EncodedSplit) -> float:
    """Share of dev that a model answers rightly."""
    return correct_share(predict_logits(model, dev.ids, dev.pad_id, "dev"), dev.labels)


def check_not_collapsed(logits: Tensor, labels: Sequence[int], name: str) -> None:
    """Raises TrainingError when the answers on dev have no more to do with the labels than chance allows.

    Chance is the same answers given to the rows in any other order: then as many are right as the shares of answers and
    labels make likely, whatever accuracy that is. So a model that finds the rare class is let through though always
    answering the commonest would be right more often, and one that always gives the same answer is not.

    Source: mean and variance of the matches under permutation, which is Cohen's kappa at 0 (Hoeffding 1951).
    """
    answers, truth = logits.argmax(-1), torch.tensor(labels)
    classes = max(logits.shape[-1], int(truth.max()) + 1)
    given, real = torch.bincount(answers, minlength=classes).double(), torch.bincount(truth, minlength=classes).double()
    rows, right = len(labels), int((answers == truth).sum())
    by_chance = float(given @ real) / rows
    # Whether label and answer agree, for every pair of classes, without the means of row and column.
    centred = torch.eye(classes, dtype=torch.float64) - given[:, None] / rows - real / rows + by_chance / rows
    spread = math.sqrt(float(real @ centred.square() @ given) / max(rows - 1, 1))
    if not right - by_chance > ONE_IN_TWENTY * spread or spread == 0:
        raise TrainingError(
            f"{name} collapsed: {right} of {rows} dev rows are right, and its answers in any other order would have "
            f"{by_chance:.0f} ± {spread:.0f}; train longer, raise or lower the learning rate, or check the labels"
        )
