"""Fine-tunes the teacher, or takes a ready one, and scores it on test.

Run as `python -m stages.teach`; on several GPUs as `accelerate launch --multi_gpu -m stages.teach`.
"""

import json
import logging
from contextlib import nullcontext
from typing import Any

import torch

from pipeline import tasks
from pipeline.base import guard
from pipeline.base.dependencies import trace
from pipeline.base.files import output_folder
from pipeline.base.records import Card, seal
from pipeline.base.workspace import Workspace
from pipeline.data.examples import read_prepared
from pipeline.data.inputs import MODELS, describe_source, model_digest, models_behind
from pipeline.data.prepared import SECOND, TEACHER, EncodedSplit, open_data, read_encoded
from pipeline.data.seen import Digests, check_unseen, digests_of, read_digests, rows_of, write_digests
from pipeline.distillation.variants import run_key
from pipeline.models.checkpoints import count_parameters, load_with_head, save_classifier
from pipeline.models.model_files import find_model
from pipeline.models.vocabulary import load_tokenizer, save_tokenizer
from pipeline.settings.params import Params, load
from pipeline.settings.teacher import TaughtModel
from pipeline.tasks import Task
from pipeline.training import processes
from pipeline.training.answers import Outputs, check_learned, mixed, predict, score_of, write_answers
from pipeline.training.distiller import Distiller
from pipeline.training.freezing import FrozenStates, freeze_below, frozen_layers
from pipeline.training.judges import OnDev
from pipeline.training.loop import TrainingRun, fit

log = logging.getLogger(__name__)
KIND = "teacher"


def run(params: Params, workspace: Workspace) -> None:
    """Writes the teacher's folder with its tokenizer, training log and test answers; a second teacher inside it."""
    torch.set_num_threads(params.threads)
    data, task = open_data(workspace), tasks.of(params, workspace.data)
    first, second = _Taught(params, workspace, data, task, params.teacher, TEACHER), None
    if params.teacher.second is not None:
        second = _Taught(params, workspace, data, task, params.teacher.second, SECOND)
    # What is wrong with either is said before the first of them trains.
    for one in (first, second):
        if one is not None:
            one.fit()
    processes.by_first(lambda: _finish(params, workspace, data, task, first, second))


class _Taught:
    """A model that comes to know the task."""

    def __init__(
        self, params: Params, workspace: Workspace, data: Card, task: Task, settings: TaughtModel, reader: str
    ) -> None:
        """`reader` says which column of the encoded splits it reads."""
        self.params, self.workspace, self.task, self.settings, self.reader = params, workspace, task, settings, reader
        self.name = "teacher" if reader == TEACHER else "second teacher"
        self.training = TrainingRun(steps=0, best_dev_score=float("nan"))
        self.section = "teacher" if reader == TEACHER else "teacher.second"
        self.folder = find_model(settings.model, settings.revision, f"{self.section}.model")
        held_out = {split: read_prepared(workspace.data, split).texts for split in ("dev", "test")}
        check_unseen(read_digests(self.folder), held_out, f"{self.section}.model")
        torch.manual_seed(params.seed)  # of a new head
        separator = data.facts["encoding"]["separators"][reader]
        self.model = load_with_head(
            self.folder, task.head, separator, is_new=settings.fine_tune, setting=f"{self.section}.fine_tune"
        )
        freeze = settings.training.freeze if settings.fine_tune else None
        self._frozen = frozen_layers(self.model, freeze, f"{self.section}.training.freeze")

    def split(self, name: str) -> EncodedSplit:
        """A split as this model reads it."""
        return read_encoded(self.workspace, name, self.params.data.max_length, reader=self.reader)[1]

    def fit(self) -> None:
        """Trains it, unless it is taken as it is."""
        if not self.settings.fine_tune:
            return
        params, task, settings = self.params, self.task, self.settings.training
        train, dev = self.split("train"), self.split("dev")
        code = trace(["pipeline.training.loop"], {"loss": [task.TARGET_LOSS], "task": [task.name]})
        base, space = model_digest(self.settings.model, self.settings.revision), task.space.model_dump_json()
        key = run_key(settings.model_dump(mode="json"), code, params, train, dev, base, space)
        work = self.workspace.work("teach" if self.reader == TEACHER else "teach_second")
        layers = self._frozen
        freeze_below(self.model, layers, is_whole=settings.freeze == "encoder")
        setting, kept = f"{self.section}.training.freeze", work.with_name(f"{work.name}_states")
        states = processes.first_then_others(
            lambda: FrozenStates(self.model, layers, train, kept, base, setting) if layers else None
        )
        losses: dict[str, dict[str, Any]] = {task.TARGET_LOSS: {}}
        distiller = Distiller(self.model, None, losses, units=task.units, frozen=states)
        with states.in_place() if states is not None else nullcontext():
            self.training = fit(distiller, train, OnDev(dev, task), settings, work, key, params.seed, self.name)

    @property
    def seen(self) -> Digests:
        """What it has learned from, its base model included."""
        train = read_prepared(self.workspace.data, "train").texts if self.settings.fine_tune else ()
        return digests_of(rows_of(train), [self.folder])

    def answers(self, split: EncodedSplit, name: str) -> Outputs:
        """What it answers to a split."""
        return predict(self.model, split.ids, split.pad_id, f"{self.name} on {name}")


def _finish(
    params: Params, workspace: Workspace, data: Card, task: Task, first: _Taught, second: _Taught | None
) -> None:
    """Scores the teacher and writes its folder."""
    taught = [first, *([second] if second is not None else [])]
    targets = {split: first.split(split).targets for split in ("dev", "test")}
    outputs = {split: [one.answers(one.split(split), split) for one in taught] for split in targets}
    for one, found in zip(taught, outputs["dev"], strict=True):
        check_learned(found, targets["dev"], task, f"the {one.name}")
    scores = {split: [score_of(found, targets[split], task) for found in outputs[split]] for split in targets}
    facts: dict[str, Any] = {
        "source": describe_source(params.teacher.model),
        MODELS: models_behind(*(one.settings.model for one in taught)),
        "parameters": count_parameters(first.model),
        "steps": first.training.steps,
        "dev_score": scores["dev"][0],
        "test_score": scores["test"][0],
        "seed": params.seed,
        "threads": params.threads,
    }
    if second is not None:
        assert params.teacher.second is not None
        share = params.teacher.second.share
        both = {
            split: score_of(mixed(ours, further, share), targets[split], task)
            for split, (ours, further) in outputs.items()
        }
        facts["second"] = {
            "source": describe_source(second.settings.model),
            "parameters": count_parameters(second.model),
            "dev_score": scores["dev"][1],
            "test_score": scores["test"][1],
            "mixed": {f"{split}_score": score for split, score in both.items()},
        }
    size = 4 * sum(count_parameters(one.model) for one in taught)
    with output_folder(workspace.teacher, expected_bytes=size) as partial:
        places = [(partial, "teacher_tokenizer"), (partial / workspace.second_teacher.name, "second_tokenizer")]
        for one, found, (folder, tokenizer) in zip(taught, outputs["test"], places, strict=False):
            folder.mkdir(exist_ok=True)
            save_classifier(one.model.cpu(), folder)
            save_tokenizer(load_tokenizer(workspace.data / tokenizer), folder)
            lines = (json.dumps(entry, sort_keys=True) + "\n" for entry in one.training.log)
            (folder / "log.jsonl").write_text("".join(lines), "utf-8")
            write_digests(folder, one.seen)
            write_answers(folder, found, task)
        seal(partial, KIND, sources={"data": data.digest}, facts=facts)
    for one, dev, test in zip(taught, scores["dev"], scores["test"], strict=True):
        log.info("%s: %s on dev, %s on test", one.name, task.METRIC.say(dev), task.METRIC.say(test))


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params)
    with guard.lock(workspace.teacher):
        run(params, workspace)


if __name__ == "__main__":
    guard.run(main)
