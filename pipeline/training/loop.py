"""The training loop: one for teacher and student, in one process or in several, that resumes exactly.

The steps are the same however many processes there are and however small the parts are that a batch is computed in: the
batch is that of the settings, each process takes its share, and gradients are added up. The result is the same too, up
to summation order, where no dropout draws and losses are means over rows. A killed run goes on from its
newest whole checkpoint and ends with the same weights as one that was never disturbed: the order of the rows depends on
seed and epoch only, the rate on the step, and everything else is in the checkpoint.
"""

import functools
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline.base.errors import SettingsError
from pipeline.data.batches import LengthGroupedSampler
from pipeline.data.prepared import EncodedSplit
from pipeline.families import head_of
from pipeline.models.layer_maps import CKA
from pipeline.settings.training import TrainingSettings
from pipeline.tasks import UNLABELLED
from pipeline.training import processes
from pipeline.training.answers import rows_without
from pipeline.training.checkpoints import Checkpoints, Progress
from pipeline.training.distiller import Distiller
from pipeline.training.judges import Judge
from pipeline.training.optimizer import half_precision
from pipeline.training.steps import Steps

log = logging.getLogger(__name__)
MOST_EVALUATIONS = 20  # of so many steps, where nobody says how many: an epoch of few labels is a step or two
LOGGED = 60  # entries of the log that a training has, besides those of its evaluations
SEED_STRIDE = 1_000_003  # between the processes' random states: each draws a dropout of its own


@dataclass
class TrainingRun:
    """What a training run gives beside the trained weights."""

    steps: int
    best_dev_score: float
    log: list[dict[str, Any]] = field(default_factory=list)
    resumed_from_step: int = 0


def fit(
    distiller: Distiller,
    train: EncodedSplit,
    judge: Judge,
    settings: TrainingSettings,
    work: Path,
    key: str,
    seed: int,
    name: str,
    keep: str = "best",
    epoch_rows: int | None = None,
    unlabelled_share: float | None = None,
) -> TrainingRun:
    """Trains the student inside `distiller`, in place; in every process, when there are several.

    Args:
        distiller: the student and its losses.
        train: rows to learn from.
        judge: says how good the student is, which chooses the checkpoint.
        settings: epochs, rates and the like.
        work: folder for checkpoints, which all processes see; emptied when `key` is not the one they were made under.
        key: digest of everything that decides the result (settings, data, teacher, threads).
        seed: decides order and dropout.
        name: what the progress lines call the run.
        keep: "best" by the judge (the earliest when equal), or "last".
        epoch_rows: rows that count as an epoch; all of `train` if None. Augmented text takes no extra steps.
        unlabelled_share: share of each batch that has no target; None: as the rows come.

    Raises:
        TrainingError: a loss that is not finite, naming step, term and rows.
        SettingsError: the settings cannot be followed here, or with these losses.
    """
    if unchosen := [n for n, p in distiller.loss_params.items() if getattr(p, "map", None) == CKA]:
        raise SettingsError(
            f"{distiller.section}.losses.{unchosen[0]}.map: 'cka' is a rule; call chosen_maps for the pairs first"
        )
    check_settings(distiller, settings)
    steps_per_epoch = math.ceil((epoch_rows or len(train)) / settings.batch_size)
    total = settings.steps or max(1, round(settings.epochs * steps_per_epoch))
    every = steps_per_epoch // settings.evaluations_per_epoch
    if settings.evaluations is not None:
        every = math.ceil(total / settings.evaluations)
    elif settings.steps is not None:
        every = max(every, math.ceil(total / MOST_EVALUATIONS))
    every = max(1, every)
    log_every = max(1, total // LOGGED)
    passes = passes_of(train, settings.batch_size, seed, unlabelled_share)
    checkpoints, progress = Checkpoints(work, key), Progress()
    torch.manual_seed(seed + SEED_STRIDE * processes.rank())
    steps = Steps(distiller, train, judge.collate, settings, total)
    processes.copy_from_first(list(distiller.state_dict().values()))
    if (found := checkpoints.newest()) is not None:
        progress = found
        checkpoints.restore(progress.step, distiller, steps.optimizer, steps.scaler)
        log.info("%s: going on from step %d of %d", name, progress.step, total)
    resumed = progress.step
    with tqdm(total=total, initial=resumed, desc=name, disable=not _shows_a_bar(), leave=False) as bar:
        while progress.step < total and not progress.out_of_patience(settings.patience):
            is_logged = (progress.step + 1) % log_every == 0
            steps.take(progress.step, passes(progress.step), is_logged)
            progress.step += 1
            bar.update()
            is_evaluated = progress.step % every == 0 or progress.step == total
            epoch = progress.step / steps_per_epoch
            if is_logged or is_evaluated:  # sums of losses are not in a checkpoint
                progress.log.append({"step": progress.step, "epoch": epoch, **steps.told()})
            if is_evaluated:
                score = processes.by_first(lambda: judge.score(distiller))
                progress.judge(score, epoch, judge.metric)
                log.info("%s: step %d of %d, dev %s", name, progress.step, total, judge.metric.say(score))
                checkpoints.save(progress, distiller, steps.optimizer, steps.scaler)
    if keep == "best":
        checkpoints.take_best(progress, distiller)
    found_best = progress.best_score if keep == "best" else progress.scores[-1]
    return TrainingRun(progress.step, found_best, progress.log, resumed)


def check_settings(distiller: Distiller, settings: TrainingSettings) -> None:
    """Raises SettingsError for what cannot be done with these losses, by so many processes, on this device."""
    half_precision(settings.precision, processes.device())
    for name in distiller.compares_rows:
        loss = f"{distiller.section}.losses.{name}"
        if settings.micro_batches > 1:
            raise SettingsError(
                f"training.micro_batches: found {settings.micro_batches}, but {loss} compares the rows "
                "of a batch with each other, which must then be computed together; use 1, or a smaller batch_size"
            )
        if processes.count() > 1 and head_of(distiller.student.config) == "span":
            raise SettingsError(
                f"{loss} compares the rows of a batch, whose choices are the tokens of a text and "
                "differ from process to process; use one process"
            )
        if processes.count() > 1 and name in distiller.auxiliary:
            raise SettingsError(
                f"{loss} compares the rows of a batch and learns a module of its own, whose gradient "
                "several processes would count several times; use one process"
            )


def passes_of(
    train: EncodedSplit, batch_size: int, seed: int, unlabelled_share: float | None = None
) -> Callable[[int], list[int]]:
    """The number of a step to the rows of its batch: of all rows, or of those with and without a target by the share.

    At least one row of a batch is of each kind, and every batch is whole, so that each has the share: where a kind has
    few rows, the next pass over them begins inside a batch. Where all rows are of one kind, the share says nothing.
    """
    kinds = [
        [i for i, target in enumerate(train.targets) if (target == UNLABELLED) is without] for without in (False, True)
    ]
    if unlabelled_share is None or not all(kinds):
        return _Passes(list(range(len(train))), train, batch_size, seed).rows
    without = rows_without(unlabelled_share, batch_size)
    sizes = (batch_size - without, without)
    parts = [_Passes(rows, train, size, seed) for rows, size in zip(kinds, sizes, strict=True)]
    return lambda step: [row for part in parts for row in part.whole(step)]


class _Passes:
    """The rows of each step, by its number: passes over some training rows, each in an order of its own."""

    def __init__(self, rows: Sequence[int], train: EncodedSplit, batch_size: int, seed: int) -> None:
        self.batch_size, self.steps = batch_size, math.ceil(len(rows) / batch_size)
        self._rows = rows
        self._sampler = LengthGroupedSampler(train.lengths[rows], batch_size, seed)
        self._order = functools.lru_cache(maxsize=2)(self._ordered)  # a whole batch may lie in two passes

    def whole(self, step: int) -> list[int]:
        """As many as the batch size says in every step: a pass begins where the one before it ends."""
        found: list[int] = []
        while len(found) < self.batch_size:
            number, place = divmod(step * self.batch_size + len(found), len(self._rows))
            found += self._order(number)[place : place + self.batch_size - len(found)]
        return [self._rows[i] for i in found]

    def rows(self, step: int) -> list[int]:
        """Those of the whole batch, all processes together; the last of a pass has what is left."""
        number, place = divmod(step, self.steps)
        order = self._order(number)[place * self.batch_size : (place + 1) * self.batch_size]
        return [self._rows[i] for i in order]

    def _ordered(self, number: int) -> list[int]:
        self._sampler.set_epoch(number)
        return list(self._sampler)


def _shows_a_bar() -> bool:
    return sys.stderr.isatty() and processes.rank() == 0
