"""Fine-tunes the teacher, or takes a ready one, and scores it on test.

Run as `python -m stages.teach`; on several GPUs as `accelerate launch --multi_gpu -m stages.teach`.
"""

import json
import logging

import torch
from transformers import PreTrainedModel

from pipeline import tasks
from pipeline.base import guard
from pipeline.base.dependencies import trace
from pipeline.base.files import output_folder
from pipeline.base.records import Card, seal
from pipeline.base.workspace import Workspace
from pipeline.data.inputs import describe_source
from pipeline.data.prepared import EncodedSplit, open_data, read_encoded
from pipeline.distillation.variants import run_key
from pipeline.models.checkpoints import count_parameters, load_teacher, save_classifier
from pipeline.models.model_files import find_model
from pipeline.models.vocabulary import load_tokenizer, save_tokenizer
from pipeline.settings.params import Params, load
from pipeline.tasks import Task
from pipeline.training import processes
from pipeline.training.answers import check_learned, predict, score_of, write_answers
from pipeline.training.distiller import Distiller
from pipeline.training.loop import TrainingRun, fit

log = logging.getLogger(__name__)
KIND = "teacher"


def run(params: Params, workspace: Workspace) -> None:
    """Writes the teacher's folder with its tokenizer, training log and test answers."""
    torch.set_num_threads(params.threads)
    data = open_data(workspace)
    _, train = read_encoded(workspace, "train", params.data.max_length, for_teacher=True)
    _, dev = read_encoded(workspace, "dev", params.data.max_length, for_teacher=True)
    task = tasks.of(params, workspace.data)
    torch.manual_seed(params.seed)
    folder = find_model(params.teacher.model, params.teacher.revision)
    teacher = load_teacher(folder, params.teacher, task.head, data.facts["encoding"]["separator"])
    training = TrainingRun(steps=0, best_dev_score=float("nan"))
    if params.teacher.fine_tune:
        code = trace(["pipeline.training.loop"], {"loss": [task.TARGET_LOSS], "task": [task.name]})
        contents = _base_model(workspace), task.space.model_dump_json()
        key = run_key(_settings(params), code, params, train, dev, *contents)
        distiller = Distiller(teacher, None, {task.TARGET_LOSS: {}}, units=task.units)
        work, settings = workspace.work("teach"), params.teacher.training
        training = fit(distiller, train, dev, task, settings, work, key, params.seed, "teacher")
    processes.by_first(lambda: _finish(params, workspace, data, teacher, dev, task, training))


def _finish(
    params: Params,
    workspace: Workspace,
    data: Card,
    teacher: PreTrainedModel,
    dev: EncodedSplit,
    task: Task,
    training: TrainingRun,
) -> None:
    """Scores the teacher and writes its folder."""
    _, test = read_encoded(workspace, "test", params.data.max_length, for_teacher=True)
    on_dev = predict(teacher, dev.ids, dev.pad_id, "teacher on dev")
    check_learned(on_dev, dev.targets, task, "the teacher")
    on_test = predict(teacher, test.ids, test.pad_id, "teacher on test")
    dev_score, test_score = score_of(on_dev, dev.targets, task), score_of(on_test, test.targets, task)
    facts = {
        "source": describe_source(params.teacher.model),
        "parameters": count_parameters(teacher),
        "steps": training.steps,
        "dev_score": dev_score,
        "test_score": test_score,
        "seed": params.seed,
        "threads": params.threads,
    }
    with output_folder(workspace.teacher, expected_bytes=4 * count_parameters(teacher)) as partial:
        save_classifier(teacher.cpu(), partial)
        save_tokenizer(load_tokenizer(workspace.data / "teacher_tokenizer"), partial)
        (partial / "log.jsonl").write_text("".join(json.dumps(e, sort_keys=True) + "\n" for e in training.log), "utf-8")
        write_answers(partial, on_test, task)
        seal(partial, KIND, sources={"data": data.digest}, facts=facts)
    log.info("teacher: %s on dev, %s on test", task.METRIC.say(dev_score), task.METRIC.say(test_score))


def _base_model(workspace: Workspace) -> str:
    """What the machine check found the base model to be: other weights at the same place are another model."""
    return json.dumps(json.loads(workspace.inputs.read_text("utf-8"))["teacher"], sort_keys=True)


def _settings(params: Params) -> dict[str, object]:
    return {"model": describe_source(params.teacher.model), "training": params.teacher.training.model_dump(mode="json")}


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params)
    with guard.lock(workspace.teacher):
        run(params, workspace)


if __name__ == "__main__":
    guard.run(main)
