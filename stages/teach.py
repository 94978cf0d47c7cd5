"""Fine-tunes the teacher, or takes a ready one, and scores it on test.

Run as `python -m stages.teach`; on several GPUs as `accelerate launch --multi_gpu -m stages.teach`.
"""

import json
import logging

import torch
from transformers import PreTrainedModel

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
from pipeline.training import processes
from pipeline.training.answers import check_not_collapsed, correct_share, predict_logits
from pipeline.training.distiller import Distiller
from pipeline.training.loop import TrainingRun, fit

log = logging.getLogger(__name__)
KIND = "teacher"


def run(params: Params, workspace: Workspace) -> None:
    """Writes the teacher's folder with its tokenizer, training log and test predictions."""
    torch.set_num_threads(params.threads)
    data = open_data(workspace)
    _, train = read_encoded(workspace, "train", params.data.max_length, for_teacher=True)
    dev_examples, dev = read_encoded(workspace, "dev", params.data.max_length, for_teacher=True)
    torch.manual_seed(params.seed)
    teacher = load_teacher(
        find_model(params.teacher.model, params.teacher.revision), params.teacher, dev_examples.names
    )
    training = TrainingRun(steps=0, best_dev_accuracy=float("nan"))
    if params.teacher.fine_tune:
        code = trace(["pipeline.training.loop"], {"loss": ["cross_entropy"]})
        key = run_key(_settings(params), code, params, train, dev, _base_model(workspace), *dev_examples.names)
        distiller = Distiller(teacher, None, {"cross_entropy": {}})
        training = fit(
            distiller, train, dev, params.teacher.training, workspace.work("teach"), key, params.seed, "teacher"
        )
    processes.by_first(lambda: _finish(params, workspace, data, teacher, dev, training))


def _finish(
    params: Params,
    workspace: Workspace,
    data: Card,
    teacher: PreTrainedModel,
    dev: EncodedSplit,
    training: TrainingRun,
) -> None:
    """Scores the teacher and writes its folder."""
    _, test = read_encoded(workspace, "test", params.data.max_length, for_teacher=True)
    dev_logits = predict_logits(teacher, dev.ids, dev.pad_id, "teacher on dev")
    check_not_collapsed(dev_logits, dev.labels, "the teacher")
    dev_accuracy = correct_share(dev_logits, dev.labels)
    logits = predict_logits(teacher, test.ids, test.pad_id, "teacher on test")
    test_accuracy = correct_share(logits, test.labels)
    facts = {
        "source": describe_source(params.teacher.model),
        "parameters": count_parameters(teacher),
        "steps": training.steps,
        "dev_accuracy": dev_accuracy,
        "test_accuracy": test_accuracy,
        "seed": params.seed,
        "threads": params.threads,
    }
    with output_folder(workspace.teacher, expected_bytes=4 * count_parameters(teacher)) as partial:
        save_classifier(teacher.cpu(), partial)
        save_tokenizer(load_tokenizer(workspace.data / "teacher_tokenizer"), partial)
        (partial / "log.jsonl").write_text("".join(json.dumps(e, sort_keys=True) + "\n" for e in training.log), "utf-8")
        (partial / "predictions.json").write_text(json.dumps(logits.argmax(-1).tolist()), "utf-8")
        seal(partial, KIND, sources={"data": data.digest}, facts=facts)
    log.info("teacher: %.2f %% on dev, %.2f %% on test", 100 * dev_accuracy, 100 * test_accuracy)


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
