"""A student for many tasks: distilled on general text from the body of a teacher that knows no task yet.

Source: MiniLMv2 (Wang et al. 2021) and the general stage of TinyBERT (Jiao et al. 2020), whose losses are files of
pipeline/losses; theirs is Wikipedia and books, ours whatever text the settings name.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline.base import plugins
from pipeline.base.dependencies import trace
from pipeline.base.errors import DataError, IntegrityError, SettingsError
from pipeline.base.files import output_folder, sha256_of
from pipeline.base.records import open_folder, seal
from pipeline.base.workspace import Workspace
from pipeline.data.examples import read_prepared
from pipeline.data.inputs import MODELS, describe_source, model_digest, models_behind
from pipeline.data.prepared import EncodedSplit, alignment_of, as_prepared, encoded_split, rows_apart, write_encoded
from pipeline.data.seen import DIGEST_BYTES, digest_of, digests_of, rows_of, write_digests
from pipeline.data.unlabelled import new_texts
from pipeline.distillation.origins import probe_of
from pipeline.distillation.variants import run_key
from pipeline.families import shape_of
from pipeline.models.checkpoints import check_positions, count_parameters, load_with_head, read_config, save_classifier
from pipeline.models.layer_maps import CKA
from pipeline.models.model_files import find_model
from pipeline.models.students import build_student
from pipeline.models.vocabulary import load_tokenizer, save_tokenizer
from pipeline.settings.params import Params
from pipeline.settings.student import InitSettings, StudentSettings
from pipeline.tasks import Head
from pipeline.training import processes
from pipeline.training.distiller import Distiller, loss_params
from pipeline.training.judges import OnHeldOut
from pipeline.training.loop import TrainingRun, check_settings, fit
from pipeline.training.needs import aligned_by, needs_of
from pipeline.training.teacher_signals import TeacherSignals, cached_teacher_signals, size_bytes

log = logging.getLogger(__name__)
KIND = "general"
HEAD = Head("sequence", 1, 1)  # transformers has no class without one; a task puts its own in its place
TRAIN, DEV = "train", "dev"


def distil_general(params: Params, workspace: Workspace) -> None:
    """Writes the general student with its tokenizer; a folder that says so, where the settings ask for none."""
    if not params.is_general:
        with output_folder(workspace.general) as partial:
            seal(partial, KIND, facts={"not_made": "student.init.from is not 'general'"})
        return
    torch.set_num_threads(params.threads)
    settings, shape = params.general, _plain(params.student, params.general.init)
    _check_losses(settings.losses)
    folder = find_model(params.teacher.model, params.teacher.revision)
    teacher = _load(folder, params.seed)
    own = find_model(*params.origin, "general.init.from")
    for config in (teacher.config, read_config(own)):
        check_positions(config, settings.max_length, "its teacher or origin", "general.max_length")
    texts = _texts(params, workspace, folder, own)
    train, dev, alignment = (texts[name] for name in (TRAIN, DEV, "alignment"))
    origin = _load(own, params.seed) if params.is_own_origin else None
    probe = probe_of(train, by_teacher=origin is None)
    student = build_student(origin or teacher, shape, params.seed, None, probe)
    code = trace([__name__], {"loss": settings.losses})
    made_of = [describe_source(params.teacher.model), model_digest(params.teacher.model, params.teacher.revision)]
    chosen = {
        "general": settings.model_dump(mode="json", exclude={"cache_gb", "texts"}),
        "student": shape.model_dump(mode="json"),
    }
    key = run_key(chosen, code, params, train, dev, *made_of, model_digest(*params.origin))
    work = workspace.work(KIND)
    distiller = Distiller(
        student,
        teacher,
        settings.losses,
        params.seed,
        known=_known(params, student, teacher, train, work / "signals"),
        alignment=alignment,
        section="general",
    )
    with closing(distiller):
        check_settings(distiller, settings.training)
        before = processes.by_first(lambda: OnHeldOut(dev).score(distiller))
        run = fit(
            distiller, train, OnHeldOut(dev), settings.training, work / "main", key, params.seed, "general student"
        )
    processes.by_first(lambda: _write(params, workspace, student, run, before, folder, own))


def _check_losses(losses: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises SettingsError for a loss that compares answers, since there is no task yet, or asks for a chosen map."""
    for name, settings in losses.items():
        if settings.get("map") == CKA:
            raise SettingsError(
                f"general.losses.{name}.map: 'cka' is chosen for a task; use uniform, last_only or pairs"
            )
        if found := {"logits", "targets", "token"} & set(plugins.load("loss", name).NEEDS):
            raise SettingsError(
                f"general.losses.{name}: it reads {sorted(found)[0]}, which no model gives before it has a task; use "
                "losses that look inside the encoder, such as minilm_v2, attention_kl or hidden_mse"
            )


def _texts(params: Params, workspace: Workspace, teacher: Path, own: Path) -> dict[str, Any]:
    """The texts to learn from and those held out, as both models read them, and how their tokens belong together."""
    settings, work = params.general, workspace.work(KIND) / "texts"
    files = [workspace.root / name for name in settings.texts]
    content = {
        "files": [sha256_of(file) if file.is_file() else None for file in files],
        "max_length": settings.max_length,
        "held_out": settings.held_out,
        "models": [model_digest(params.teacher.model, params.teacher.revision), model_digest(*params.origin)],
        "code": trace([__name__], {}).digest,
    }

    def make() -> None:
        try:
            if open_folder(work, "texts").facts["content"] == content:
                return
        except IntegrityError:
            pass
        with output_folder(work) as partial:
            counts = _cut(files, partial, settings.held_out)
            tokenizers = load_tokenizer(own), load_tokenizer(teacher)
            encoding = write_encoded(
                partial, *tokenizers, settings.max_length, splits=(TRAIN, DEV), compared=(TRAIN, DEV)
            )
            seal(partial, "texts", facts={"content": content, "encoding": encoding, "texts": counts})

    processes.by_first(make)
    facts = open_folder(work, "texts").facts["encoding"]
    splits: dict[str, Any] = {
        name: encoded_split(work, name, facts, read_prepared(work, name)) for name in (TRAIN, DEV)
    }
    for name in splits:
        if any(aligned_by(loss) != "rows" for loss in settings.losses):
            splits[name] = splits[name].without(rows_apart(facts, name))
    return {**splits, "alignment": alignment_of(facts)}


def _cut(files: list[Path], folder: Path, held_out: float) -> dict[str, int]:
    """Writes both splits; a text's own digest decides in which it is, so that order and neighbours do not.

    But for the first text, which is held out, so that few texts have one to be judged on.
    """
    counts = {TRAIN: 0, DEV: 0}
    with (
        (folder / f"{TRAIN}.jsonl").open("w", encoding="utf-8", newline="\n") as learned,
        (folder / f"{DEV}.jsonl").open("w", encoding="utf-8", newline="\n") as aside,
    ):
        for name, text in new_texts(files, (), (), (), "general.texts"):
            is_aside = int.from_bytes(digest_of(text)) < held_out * 2 ** (8 * DIGEST_BYTES) or not counts[DEV]
            (aside if is_aside else learned).write(as_prepared(name, text))
            counts[DEV if is_aside else TRAIN] += 1
    if not counts[TRAIN]:
        raise DataError(f"general.texts: {counts[DEV]} texts in all, expected some to learn from and one to hold out")
    return counts


def _load(folder: Path, seed: int) -> PreTrainedModel:
    """A model with a head that nobody looks at, whose weights `seed` decides: they are part of the file's bytes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_with_head(folder, HEAD).eval()


def _plain(student: StudentSettings, init: InitSettings) -> StudentSettings:
    """The student's shape, with all tokens and no embedding of its own width: those are a task's to choose."""
    return student.model_copy(
        update={"init": init, "vocabulary": "full", "embedding": None, "distillation_token": False}
    )


def _known(
    params: Params, student: PreTrainedModel, teacher: PreTrainedModel, train: EncodedSplit, work: Path
) -> TeacherSignals | None:
    """The teacher's signals from disk, where they fit and more than one pass asks for them."""
    settings = params.general
    _, needs = needs_of(loss_params(settings.losses), shape_of(student.config), shape_of(teacher.config))
    size = size_bytes(needs, train, teacher)
    if settings.training.epochs <= 1 or not size or size > settings.cache_gb * 1e9:
        log.info("general student: the teacher runs in every step; its signals take %.1f GB", size / 1e9)
        return None
    made_of = [model_digest(params.teacher.model, params.teacher.revision), train.digest]
    key = hashlib.sha256(json.dumps([*made_of, trace([__name__], {}).digest]).encode()).hexdigest()
    return processes.first_then_others(lambda: cached_teacher_signals(teacher, needs, train, work, key))


def _write(
    params: Params,
    workspace: Workspace,
    student: PreTrainedModel,
    run: TrainingRun,
    before: float,
    teacher: Path,
    own: Path,
) -> None:
    texts = workspace.work(KIND) / "texts"
    facts = {
        "teacher": describe_source(params.teacher.model),
        MODELS: models_behind(params.teacher.model, params.origin[0]),
        "init": params.general.init.model_dump(mode="json", by_alias=True),
        "losses": params.general.losses,
        "texts": open_folder(texts, "texts").facts["texts"],
        "parameters": count_parameters(student),
        "steps": run.steps,
        "held_out_loss": {"before": before, "after": run.best_dev_score},
        "seed": params.seed,
        "threads": params.threads,
    }
    with output_folder(workspace.general, expected_bytes=4 * count_parameters(student)) as partial:
        save_classifier(student.cpu(), partial)
        save_tokenizer(load_tokenizer(own), partial)
        write_digests(partial, digests_of(rows_of(read_prepared(texts, TRAIN).texts), (teacher, own)))
        (partial / "log.jsonl").write_text("".join(json.dumps(e, sort_keys=True) + "\n" for e in run.log), "utf-8")
        card = seal(partial, KIND, facts=facts)
    log.info(
        "general student: loss on held-out text %.4f before, %.4f after %d steps; weights %s",
        before,
        run.best_dev_score,
        run.steps,
        card.files["model.safetensors"].sha256[:16],
    )
