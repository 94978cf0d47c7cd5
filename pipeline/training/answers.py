"""What a whole model answers to a split, and whether it learned anything."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.base.errors import IntegrityError, TrainingError
from pipeline.base.files import output_folder
from pipeline.base.records import open_folder, seal
from pipeline.data.batches import batches_by_length, pad
from pipeline.data.prepared import TEST_ANSWERS, TEST_OUTPUTS, EncodedSplit
from pipeline.data.token_rows import lengths_of
from pipeline.families import head_of
from pipeline.tasks import NO_CHOICE, UNLABELLED, Answer, Task
from pipeline.training import processes

log = logging.getLogger(__name__)
Outputs = dict[str, Tensor]  # name -> (rows, ...), float32, on the CPU


def predict(
    model: PreTrainedModel,
    ids: Sequence[Sequence[int]],
    pad_id: int,
    name: str,
    batch_size: int = 64,
    *,
    quiet: bool = False,
) -> Outputs:
    """Every output of a model on encoded rows, with a bar on a terminal.

    An output with a value a token is NO_CHOICE behind the tokens of a row.

    Raises:
        TrainingError: an answer is not finite.
    """
    from tqdm import tqdm

    model.eval()
    device = processes.device()
    nn.Module.to(model, device)
    lengths, answers_tokens = lengths_of(ids), head_of(model.config) != "sequence"
    found: Outputs = {}
    batches = batches_by_length(lengths, batch_size)  # the longest come first
    with torch.no_grad():
        for rows in tqdm(batches, desc=name, disable=True if quiet else None, leave=False):
            batch = pad([ids[i] for i in rows], pad_id)
            for key, values in model(**{k: v.to(device) for k, v in batch.items()}, return_dict=True).items():
                if key not in found:
                    found[key] = torch.full((len(ids), *values.shape[1:]), NO_CHOICE)
                for row, own in zip(rows, values.float().cpu(), strict=True):
                    if answers_tokens:
                        found[key][row, : lengths[row]] = own[: lengths[row]]
                    else:
                        found[key][row] = own
    for key, values in found.items():
        bad = (~torch.isfinite(values.flatten(1))).any(dim=1).nonzero()
        if len(bad):
            raise TrainingError(
                f"{name}: '{key}' of row {int(bad[0])} is not finite; the weights are damaged or diverged"
            )
    return found


def as_arrays(outputs: Outputs) -> dict[str, np.ndarray]:
    """The same as NumPy has them, for a task's `answers`."""
    return {name: values.numpy() for name, values in outputs.items()}


def answers_of(outputs: Outputs, task: Task) -> list[Answer]:
    """The answers that follow from outputs."""
    return task.answers(as_arrays(outputs), task.space)


def score_of(outputs: Outputs, targets: Sequence[Any], task: Task) -> float:
    """The task's metric on outputs; exact, so that it can be compared with another."""
    return float(np.mean(task.values(answers_of(outputs, task), targets)))


def cached_teacher_outputs(
    teacher: PreTrainedModel, ids: Sequence[Sequence[int]], pad_id: int, work: Path, key: str
) -> Outputs:
    """A teacher's outputs on encoded rows, computed once and kept on disk under `key`; a damaged file is made again."""
    from safetensors.torch import load_file, save_file

    folder = work / f"teacher_outputs-{key[:16]}"
    try:
        open_folder(folder, "teacher_outputs")
    except IntegrityError as error:
        if folder.exists():
            log.warning("%s; computing the teacher's outputs again", error)
        outputs = predict(teacher, ids, pad_id, "teacher's outputs")
        with output_folder(folder, expected_bytes=4 * sum(values.numel() for values in outputs.values())) as partial:
            save_file(outputs, partial / "outputs.safetensors")
            seal(partial, "teacher_outputs")
    return load_file(folder / "outputs.safetensors")


def write_answers(folder: Path, outputs: Outputs, task: Task) -> None:
    """What a trained model answers to test: outputs, with which every target is compared, and answers, for reports."""
    from safetensors.torch import save_file

    (folder / TEST_ANSWERS).write_text(json.dumps(answers_of(outputs, task)), "utf-8")
    save_file(outputs, folder / TEST_OUTPUTS)


def mixed(first: Outputs, second: Outputs, share: float) -> Outputs:
    """Two teachers' outputs in one: of logits, which is the geometric mean of what is probable, normalised.

    Args:
        first: of the teacher whose signals are read.
        second: of the other, with the same names and shapes.
        share: of the second in the mean, in (0, 1].
    """
    return {name: torch.lerp(values, second[name], share) for name, values in first.items()}


def rows_without(unlabelled_share: float, batch_size: int) -> int:
    """How many rows of a batch have no target: at least one, and not all."""
    return min(batch_size - 1, max(1, round(unlabelled_share * batch_size)))


def targeted_share(split: EncodedSplit, unlabelled_share: float | None = None, batch_size: int = 32) -> float:
    """Share of what is learned from that has a target.

    Args:
        split: the training rows.
        unlabelled_share: that of each batch which has none, where the settings say so.
        batch_size: of the settings.
    """
    targeted = sum(target != UNLABELLED for target in split.targets)
    if unlabelled_share is not None and 0 < targeted < len(split):
        return 1 - rows_without(unlabelled_share, batch_size) / batch_size
    return targeted / len(split)


def check_learned(outputs: Mapping[str, Tensor], targets: Sequence[Any], task: Task, name: str) -> None:
    """Raises TrainingError when a model's answers on dev show that it learned nothing."""
    reason = task.why_blind(answers_of(dict(outputs), task), targets)
    if reason is not None:
        raise TrainingError(
            f"{name} collapsed: {reason}; train longer, raise or lower the learning rate, or check the targets"
        )
