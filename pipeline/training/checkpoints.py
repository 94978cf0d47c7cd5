"""A training on disk: all that it takes to go on to the last bit, in folders that appear whole, their card inside."""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.base.errors import IntegrityError
from pipeline.base.files import output_folder, write_atomically
from pipeline.base.records import Metric, open_folder, seal
from pipeline.training import processes
from pipeline.training.distiller import Distiller

log = logging.getLogger(__name__)
KIND = "checkpoint"
DEV_SCORE = "dev_score"  # in the log of a training, and on a card


@dataclass
class Progress:
    """Where a training stands."""

    step: int = 0
    log: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None  # of the best evaluation, the earliest of equals

    @property
    def scores(self) -> list[float]:
        """What each evaluation found."""
        return [entry[DEV_SCORE] for entry in self.log if DEV_SCORE in entry]

    @property
    def best_score(self) -> float:
        """That of the best evaluation."""
        return next(entry[DEV_SCORE] for entry in self.log if DEV_SCORE in entry and entry["step"] == self.best_step)

    def judge(self, score: float, epoch: float, metric: Metric) -> None:
        """Takes the evaluation of the weights as they are."""
        if self.best_step is None or metric.is_better(score, self.best_score):
            self.best_step = self.step
        self.log.append({"step": self.step, "epoch": epoch, DEV_SCORE: score})

    def out_of_patience(self, patience: int) -> bool:
        """Whether the last `patience` evaluations were no better than the best before them; never for patience 0."""
        judged = [entry["step"] for entry in self.log if DEV_SCORE in entry]
        return 0 < patience < len(judged) and self.best_step not in judged[-patience:]


class Checkpoints:
    """Those of one training, in one folder. The first process reads the folder and writes it."""

    def __init__(self, work: Path, key: str) -> None:
        """Empties the folder unless its checkpoints were made under this key."""
        self.work = work
        processes.by_first(lambda: self._claim(key))

    def _claim(self, key: str) -> None:
        marker = self.work / "key.json"
        if not marker.is_file() or json.loads(marker.read_text("utf-8") or "null") != key:
            shutil.rmtree(self.work, ignore_errors=True)
            write_atomically(marker, json.dumps(key))

    def save(
        self, progress: Progress, distiller: Distiller, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """Writes one, and removes older ones but for the best, or the one before where that is the best."""
        random = processes.from_all(_random_state())
        processes.by_first(lambda: self._write(progress, distiller, optimizer, scaler, random))

    def _write(
        self,
        progress: Progress,
        distiller: Distiller,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        random: list[dict[str, Tensor]],
    ) -> None:
        weights = {name: tensor.cpu().contiguous() for name, tensor in distiller.state_dict().items()}
        moments = {
            f"{number}.{name}": tensor.cpu().contiguous()
            for number, values in optimizer.state_dict()["state"].items()
            for name, tensor in values.items()
        }
        size = sum(tensor.nbytes for tensor in (*weights.values(), *moments.values()))
        with output_folder(self._place(progress.step), expected_bytes=size) as partial:
            save_file(weights, partial / "model.safetensors")
            save_file(moments, partial / "optimizer.safetensors")
            states = {f"{rank}.{name}": state for rank, found in enumerate(random) for name, state in found.items()}
            save_file(states, partial / "random.safetensors")
            state = {"progress": asdict(progress), "scaler": scaler.state_dict()}
            (partial / "progress.json").write_text(json.dumps(state), "utf-8")
            seal(partial, KIND)
        older = sorted((step for step in self._steps() if step < progress.step), reverse=True)
        kept = older[:1] if progress.best_step == progress.step else [progress.best_step]
        for step in older:
            if step not in kept:
                shutil.rmtree(self._place(step))

    def newest(self) -> Progress | None:
        """How far the newest checkpoint is whose files are all as sealed, and those of the best that it may end with.

        Damaged ones are removed, with a message.
        """
        return processes.by_first(self._newest)

    def _newest(self) -> Progress | None:
        for step in sorted(self._steps(), reverse=True):
            try:
                progress = self._read(step)
                if progress.best_step is not None:
                    open_folder(self._place(progress.best_step), KIND)
            except IntegrityError as error:
                log.warning("%s; not resuming from it", error)
                shutil.rmtree(self._place(step))
            else:
                return progress
        return None

    def restore(
        self, step: int, distiller: Distiller, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        """Puts everything back as it was when this checkpoint was saved."""
        self._load_weights(step, distiller)
        place = self._place(step)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in load_file(place / "optimizer.safetensors").items():
            number, _, name = key.partition(".")
            moments.setdefault(int(number), {})[name] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
        scaler.load_state_dict(json.loads((place / "progress.json").read_text("utf-8"))["scaler"])
        states, prefix = load_file(place / "random.safetensors"), f"{processes.rank()}."
        _set_random_state({key.removeprefix(prefix): s for key, s in states.items() if key.startswith(prefix)})

    def take_best(self, progress: Progress, distiller: Distiller) -> None:
        """Gives the distiller the weights of the best evaluation, which must be as they were sealed."""
        assert progress.best_step is not None
        best = progress.best_step
        processes.by_first(lambda: self._read(best) and None)  # never export weights that changed on disk
        self._load_weights(best, distiller)

    def _load_weights(self, step: int, distiller: Distiller) -> None:
        distiller.load_state_dict(load_file(self._place(step) / "model.safetensors"))

    def _read(self, step: int) -> Progress:
        """The progress of a checkpoint, after every file was checked."""
        open_folder(self._place(step), KIND)
        return Progress(**json.loads((self._place(step) / "progress.json").read_text("utf-8"))["progress"])

    def _place(self, step: int) -> Path:
        return self.work / f"checkpoint-{step}"

    def _steps(self) -> list[int]:
        numbers = (path.name.removeprefix("checkpoint-") for path in self.work.glob("checkpoint-*"))
        return [int(number) for number in numbers if number.isdigit()]


def _random_state() -> dict[str, Tensor]:
    """The random state of the CPU and of the device that this process computes on."""
    device = processes.device()
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def _set_random_state(states: Mapping[str, Tensor]) -> None:
    """Takes the states up again; a process that was not there when they were saved keeps its own."""
    for kind, state in states.items():
        if kind == "cpu":
            torch.set_rng_state(state)
        elif kind == processes.device().type:
            torch.get_device_module(kind).set_rng_state(state)
