"""Rows of a split in padded batches of similar length."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from pipeline.data.alignment import NOWHERE
from pipeline.data.prepared import EncodedSplit

ANSWERED = "teacher_output_"  # before the name of an output that the teacher is known to give


def pad(sequences: Sequence[Sequence[int]], pad_id: int, length: int | None = None) -> dict[str, Tensor]:
    """A batch of int64 `input_ids` and `attention_mask` (B, L), padded on the right to the longest, or to `length`."""
    L = length or max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), L), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), L), dtype=torch.long)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = torch.tensor(sequence, dtype=torch.long)
        mask[i, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def batches_by_length(lengths: Sequence[int] | NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Row numbers in batches of similar length, longest first, so that a lack of memory shows at once."""
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


class Collator:
    """Row numbers -> one padded batch."""

    def __init__(self, split: EncodedSplit, collate: Callable[[Sequence[Any], int], Tensor] | None = None) -> None:
        """`collate` is the task's: targets of a batch, its tokens -> one tensor. None leaves them out."""
        self.split, self._targets = split, collate

    def __call__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        split = self.split
        batch = pad([split.ids[i] for i in rows], split.pad_id)
        if self._targets is not None:
            batch["targets"] = self._targets([split.targets[i] for i in rows], batch["input_ids"].shape[1])
        batch["rows"] = torch.tensor(rows)
        if split.teacher_ids is not None:
            teacher_ids = [split.teacher_ids[i] for i in rows]
            # As wide as the student's where tokens belong together one by one: losses then share one mask.
            width = max(batch["input_ids"].shape[1] - split.has_token, *map(len, teacher_ids))
            theirs = pad(teacher_ids, split.teacher_pad_id, width)
            batch["teacher_input_ids"], batch["teacher_attention_mask"] = theirs["input_ids"], theirs["attention_mask"]
            if split.segments is not None:
                ours, theirs_too = ([side[i] for i in rows] for side in split.segments)
                length = batch["input_ids"].shape[1] - split.has_token
                batch["segments"] = pad(ours, NOWHERE, length)["input_ids"]
                batch["teacher_segments"] = pad(theirs_too, NOWHERE, width)["input_ids"]
        # Some tokenizers pad with their separator, and padding delimits nothing.
        found = torch.isin(batch["input_ids"], torch.tensor(split.delimiter_ids, dtype=torch.long))
        batch["delimiters"] = found & batch["attention_mask"].bool()
        for name, outputs in (split.teacher_outputs or {}).items():
            batch[f"{ANSWERED}{name}"] = outputs[list(rows)]
        return batch


class LengthGroupedSampler(Sampler[int]):
    """Shuffled rows in which each batch has similar lengths; the order depends on seed and epoch alone.

    Drawn from the global random state, a resumed epoch would see other batches.
    """

    POOL = 50  # batches that are sorted together: longer pools waste less padding, shorter ones shuffle better

    def __init__(self, lengths: Sequence[int] | NDArray[np.int64], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = np.asarray(lengths, np.int64), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """At the start of each epoch, and on resuming."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).numpy()
        pool = self.POOL * self.batch_size
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            order[start : start + pool] = rows[np.argsort(-self.lengths[rows], kind="stable")]
        # A short last batch stays last, or every batch after it would be cut at other places.
        whole = len(order) // self.batch_size
        batches = order[: whole * self.batch_size].reshape(whole, self.batch_size)
        for i in torch.randperm(whole, generator=generator).tolist():
            yield from batches[i].tolist()
        yield from order[whole * self.batch_size :].tolist()
