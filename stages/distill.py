"""Trains the student, more seeds of it and its controls, and ships the best on dev.

Run as `python -m stages.distill`. Several GPUs or hosts: `accelerate launch -m stages.distill`.
"""

import json
import logging
import statistics
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline import guard, plugins
from pipeline.answers import cached_teacher_logits, check_not_collapsed, correct_share, predict_logits
from pipeline.batches import EncodedSplit
from pipeline.data import batches_by_length, pad
from pipeline.errors import IntegrityError
from pipeline.files import output_folder
from pipeline.models import count_parameters, load_classifier, save_classifier
from pipeline.params import Params, TrainingSettings, load
from pipeline.prepared import open_data, read_encoded
from pipeline.records import Card, open_folder, seal
from pipeline.students import build_student
from pipeline.training import Distiller, TrainingRun, fit
from pipeline.variants import Variant, run_key, variants_of
from pipeline.vocabulary import load_tokenizer, save_tokenizer
from pipeline.workspace import Workspace

log = logging.getLogger(__name__)
KIND = "student"
PROBE_ROWS = 256  # training texts on which a narrower student's directions are chosen


def run(params: Params, workspace: Workspace) -> None:
    """Writes `artifacts/variants/` with every student trained and `artifacts/student/` with the one that ships."""
    torch.set_num_threads(params.threads)
    data, teacher_card = open_data(workspace), open_folder(workspace.teacher, "teacher")
    teacher = load_classifier(workspace.teacher)
    splits = {split: read_encoded(workspace, split, params.data.max_length)[1] for split in ("train", "dev", "test")}
    variants = variants_of(params.distill, params.seed)
    # All variants are checked against the teacher's shape before the first one trains.
    for variant in variants:
        Distiller(_new_student(params, data, teacher, splits["train"], variant.seed), teacher, variant.losses)
    logits = cached_teacher_logits(
        teacher,
        splits["train"],
        workspace.work("teacher_logits"),
        run_key({}, params, splits["train"], splits["dev"], _weights(teacher_card)),
    )
    train = EncodedSplit(**{**splits["train"].__dict__, "teacher_logits": logits})
    cards = {}
    for variant in variants:
        cards[variant.name] = _train_variant(variant, params, workspace, teacher, train, splits, data, teacher_card)
    shipped = max(
        (v.name for v in variants if v.kind == "distilled"),
        key=lambda name: (cards[name].facts["dev_accuracy"], -cards[name].facts["seed"]),
    )
    _ship(shipped, cards, workspace, data, teacher_card)


def _weights(teacher: Card) -> str:
    return teacher.files["model.safetensors"].sha256


def _new_student(
    params: Params, data: Card, teacher: PreTrainedModel, train: EncodedSplit, seed: int
) -> PreTrainedModel:
    ids = (train.teacher_ids or train.ids)[:PROBE_ROWS]
    pad_id = train.teacher_pad_id if train.teacher_ids is not None else train.pad_id
    probe = [pad([ids[i] for i in rows], pad_id) for rows in batches_by_length([len(row) for row in ids], 64)]
    return build_student(teacher.cpu(), params.student, seed, data.facts["keep_tokens"], probe)


def _train_variant(
    variant: Variant,
    params: Params,
    workspace: Workspace,
    teacher: PreTrainedModel,
    train: EncodedSplit,
    splits: dict[str, EncodedSplit],
    data: Card,
    teacher_card: Card,
) -> Card:
    """Trains one student unless a finished one was made from the same inputs."""
    settings = {
        "student": params.student.model_dump(mode="json"),
        "distill": params.distill.model_dump(mode="json", exclude={"seeds", "controls"}),
        "losses": variant.losses,
        "variant": variant.name,
    }
    names = json.dumps(teacher.config.id2label)
    key = run_key(settings, params, splits["train"], splits["dev"], _weights(teacher_card), names)
    folder = workspace.work("distill") / variant.name
    done = folder / "model"
    finished = _finished(done, key)
    if finished is not None:
        log.info("%s: already trained", variant.name)
        return finished
    student = _new_student(params, data, teacher, train, variant.seed)
    training = _run_phases(student, teacher, variant, params, train, splits["dev"], folder, key)
    dev_logits = predict_logits(student, splits["dev"].ids, splits["dev"].pad_id, f"{variant.name} on dev")
    test_logits = predict_logits(student, splits["test"].ids, splits["test"].pad_id, f"{variant.name} on test")
    dev_accuracy = correct_share(dev_logits, splits["dev"].labels)
    if variant.kind == "distilled":
        check_not_collapsed(dev_accuracy, splits["dev"].labels, "the student")
    test_accuracy = correct_share(test_logits, splits["test"].labels)
    facts = {
        "key": key,
        "kind": variant.kind,
        "seed": variant.seed,
        "losses": variant.losses,
        "parameters": count_parameters(student),
        "steps": training.steps,
        "dev_accuracy": dev_accuracy,
        "test_accuracy": test_accuracy,
        "threads": params.threads,
    }
    with output_folder(done, expected_bytes=4 * count_parameters(student)) as partial:
        save_classifier(student.cpu(), partial)
        save_tokenizer(load_tokenizer(workspace.data / "tokenizer"), partial)
        (partial / "log.jsonl").write_text("".join(json.dumps(e, sort_keys=True) + "\n" for e in training.log), "utf-8")
        (partial / "predictions.json").write_text(json.dumps(test_logits.argmax(-1).tolist()), "utf-8")
        card = seal(partial, KIND, {"data": data.digest, "teacher": teacher_card.digest}, facts)
    log.info(
        "%s: %.2f %% on dev, %.2f %% on test after %d steps (%.0f s)",
        variant.name,
        100 * dev_accuracy,
        100 * test_accuracy,
        training.steps,
        training.seconds,
    )
    return card


def _finished(folder: Path, key: str) -> Card | None:
    """The card of a model that an earlier run finished under the same key; a damaged one is trained again."""
    if not folder.is_dir():
        return None
    try:
        card = open_folder(folder, KIND)
    except IntegrityError as error:
        log.warning("%s; training it again", error)
        return None
    return card if card.facts["key"] == key else None


def _run_phases(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    variant: Variant,
    params: Params,
    train: EncodedSplit,
    dev: EncodedSplit,
    folder: Path,
    key: str,
) -> TrainingRun:
    """One phase with all losses; or signal losses first, whose last weights go on to the logit losses."""
    settings = params.distill.training
    signal = {n: s for n, s in variant.losses.items() if plugins.load("loss", n).KIND == "signal"}
    two = params.distill.phases == "two"
    if not two:
        return fit(
            Distiller(student, teacher, variant.losses, variant.seed),
            train,
            dev,
            settings,
            folder / "main",
            key,
            variant.seed,
            variant.name,
        )
    first_settings = TrainingSettings(
        **{**settings.model_dump(), "epochs": params.distill.signal_epochs, "patience": 0}
    )
    # A control without signal losses trains its own losses in both phases: the same number of steps for every variant.
    first = fit(
        Distiller(student, teacher, signal or variant.losses, variant.seed),
        train,
        dev,
        first_settings,
        folder / "signals",
        key,
        variant.seed,
        f"{variant.name}, signals",
        keep="last",
    )
    logit = {n: s for n, s in variant.losses.items() if n not in signal} or {"logit_kl": {}}
    second = fit(
        Distiller(student, teacher, logit, variant.seed),
        train,
        dev,
        settings,
        folder / "main",
        key,
        variant.seed,
        variant.name,
    )
    shifted = [{**e, "step": e["step"] + first.steps} if "step" in e else e for e in second.log]
    return TrainingRun(
        first.steps + second.steps,
        second.best_dev_accuracy,
        [*first.log, *shifted],
        seconds=first.seconds + second.seconds,
    )


def _ship(shipped: str, cards: dict[str, Card], workspace: Workspace, data: Card, teacher_card: Card) -> None:
    """Copies the finished variants under their names, and the chosen one as the student."""
    import shutil

    summary = {
        kind: _summary([c.facts for c in cards.values() if c.facts["kind"] == kind])
        for kind in sorted({str(c.facts["kind"]) for c in cards.values()})
    }
    sources = {"data": data.digest, "teacher": teacher_card.digest}
    with output_folder(workspace.variants) as partial:
        for name in cards:
            shutil.copytree(workspace.work("distill") / name / "model", partial / name)
        seal(partial, "variants", sources, {"summary": summary, "shipped": shipped})
    with output_folder(workspace.student) as partial:
        shutil.copytree(workspace.work("distill") / shipped / "model", partial, dirs_exist_ok=True)
        seal(partial, KIND, sources, {**cards[shipped].facts, "variants": summary})


def _summary(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds; the deviation is None for one seed."""
    test = [f["test_accuracy"] for f in facts]
    dev = [f["dev_accuracy"] for f in facts]
    return {
        "seeds": sorted(f["seed"] for f in facts),
        "steps": facts[0]["steps"],
        "parameters": facts[0]["parameters"],
        "test_accuracy": test,
        "test_mean": statistics.mean(test),
        "test_sd": statistics.stdev(test) if len(test) > 1 else None,
        "dev_mean": statistics.mean(dev),
        "dev_sd": statistics.stdev(dev) if len(dev) > 1 else None,
    }


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params)
    with guard.lock(workspace.student):
        run(params, workspace)


if __name__ == "__main__":
    guard.run(main)
