"""How good a student is while it trains: what chooses the checkpoint that is kept."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.base.records import Metric
from pipeline.data.batches import Collator, batches_by_length
from pipeline.data.prepared import EncodedSplit
from pipeline.tasks import Task
from pipeline.training import processes
from pipeline.training.answers import predict, score_of
from pipeline.training.distiller import Distiller

BATCH = 64
LOSS = Metric(name="loss", title="loss on held-out text", unit="", scale=1.0, is_greater_better=False)


Collate = Callable[[Sequence[Any], int], Tensor] | None


class Judge(Protocol):
    """What the training loop asks."""

    metric: Metric
    collate: Collate  # targets of a batch as one tensor; None: there are none

    def score(self, distiller: Distiller) -> float:
        """The metric of the student as it is."""


class OnDev:
    """The task's metric on what the student answers to dev."""

    def __init__(self, dev: EncodedSplit, task: Task) -> None:
        self.metric, self._dev, self._task = task.METRIC, dev, task
        self.collate: Collate = task.collate

    def score(self, distiller: Distiller) -> float:
        """What the student answers is compared with the targets."""
        dev = self._dev
        return score_of(predict(distiller.student, dev.ids, dev.pad_id, "dev"), dev.targets, self._task)


class OnHeldOut:
    """The losses on text that is not learned from, where there is no task yet."""

    def __init__(self, rows: EncodedSplit) -> None:
        self.metric, self._rows = LOSS, rows
        self.collate: Collate = None

    def score(self, distiller: Distiller) -> float:
        """The weighted sum of the losses, a mean over rows, without dropout."""
        distiller.eval()
        device, collate, total = processes.device(), Collator(self._rows), 0.0
        distiller.to(device)
        with torch.no_grad():
            for rows in batches_by_length(self._rows.lengths, BATCH):
                batch = {name: tensor.to(device) for name, tensor in collate(rows.tolist()).items() if name != "rows"}
                total += float(distiller(**batch)["value"]) * len(rows)
        return total / len(self._rows)
