"""Training one student from one teacher, however many variants, methods or seeds of it are wanted.

Holds what all of them share: the teacher, the rows, and what the teacher says to them.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pipeline import tasks
from pipeline.augment.augmented import with_augmented
from pipeline.base import guard
from pipeline.base.dependencies import Trace, trace
from pipeline.base.errors import IntegrityError, SettingsError
from pipeline.base.files import output_folder
from pipeline.base.records import Card, open_folder, seal
from pipeline.base.workspace import Workspace
from pipeline.data.examples import SPLITS, UNLABELLED, read_prepared
from pipeline.data.inputs import MODELS, model_digest, models_behind
from pipeline.data.prepared import (
    TOKEN_POSITION,
    EncodedSplit,
    alignment_of,
    learned_splits,
    open_data,
    read_encoded,
    rows_apart,
)
from pipeline.data.seen import Digests, check_unseen, digests_of, read_digests, rows_of, write_digests
from pipeline.data.unlabelled import SPLIT as UNLABELLED_SPLIT
from pipeline.distillation.chosen_maps import chosen_maps
from pipeline.distillation.origins import load_origin, origin_folder, probe_of, student_settings
from pipeline.distillation.phases import Phase, phases_of
from pipeline.distillation.variants import Variant, run_key
from pipeline.families import shape_of
from pipeline.models.checkpoints import count_parameters, load_classifier, save_classifier
from pipeline.models.students import build_student
from pipeline.models.vocabulary import load_tokenizer, save_tokenizer
from pipeline.settings.params import Params
from pipeline.training import processes
from pipeline.training.answers import (
    as_arrays,
    cached_teacher_outputs,
    check_learned,
    mixed,
    predict,
    score_of,
    targeted_share,
    write_answers,
)
from pipeline.training.distiller import Distiller, loss_params
from pipeline.training.judges import OnDev
from pipeline.training.loop import TrainingRun, check_settings, fit
from pipeline.training.needs import aligned_by, needs_of, reads_teacher
from pipeline.training.teacher_signals import TeacherSignals, cached_teacher_signals, size_bytes

log = logging.getLogger(__name__)
KIND = "student"
UNSEEN = ("dev", "test")


class Distillation:
    """One teacher and one prepared data set, ready to train students."""

    def __init__(self, params: Params, workspace: Workspace, caches: Path | None = None) -> None:
        """Reads data and teacher.

        Args:
            params: the settings; `distill.seeds` and `distill.controls` do not matter here.
            workspace: where prepared data and teacher lie.
            caches: where what the teacher says is kept; `workspace`'s own work folder if None.
        """
        torch.set_num_threads(params.threads)
        self.params, self.workspace = params, workspace
        self.data, self.teacher_card = open_data(workspace), open_folder(workspace.teacher, "teacher")
        self.teacher = load_classifier(workspace.teacher)
        self.second = load_classifier(workspace.second_teacher) if params.teacher.second is not None else None
        self.task = tasks.of(params, workspace.data)
        self.splits = {
            split: read_encoded(workspace, split, params.data.max_length)[1]
            for split in (*SPLITS, *learned_splits(workspace.data))
        }
        self.alignment = alignment_of(self.data.facts["encoding"])
        self._origin = origin_folder(params, workspace)
        if self._origin is not None:
            held_out = {split: read_prepared(workspace.data, split).texts for split in UNSEEN}
            check_unseen(read_digests(self._origin), held_out, "student.init.from")
        self.caches = caches or workspace.work("teacher_answers")
        self._answered: EncodedSplit | None = None
        self.resumed = False  # whether some of the last training was done before

    @property
    def weights(self) -> str:
        """Digest of the teacher's weights."""
        return self.teacher_card.files["model.safetensors"].sha256

    @property
    def _second_weights(self) -> str:
        name = f"{self.workspace.second_teacher.name}/model.safetensors"
        return self.teacher_card.files[name].sha256 if self.second is not None else ""

    @property
    def _second_share(self) -> float:
        second = self.params.teacher.second
        return second.share if second is not None else 0.0

    @property
    def sources(self) -> dict[str, str]:
        """What a student is made from, for its card."""
        return {"data": self.data.digest, "teacher": self.teacher_card.digest}

    def new_student(self, seed: int) -> PreTrainedModel:
        """The student before any training."""
        origin = load_origin(self.params, self.workspace, self.data, self.task.head, seed)
        keep = self.data.facts["keep_tokens"]
        probe = probe_of(
            self._texts,
            by_teacher=origin is None,
            keep=keep,
            token_at=TOKEN_POSITION if self.params.student.distillation_token else None,
        )
        return build_student(origin or self.teacher.cpu(), student_settings(self.params), seed, keep, probe)

    def together(self, split: str) -> EncodedSplit:
        """The rows of a split whose tokens belong together in student and teacher."""
        apart, rows = rows_apart(self.data.facts["encoding"], split), self.splits[split]
        return rows.without(apart)

    @cached_property
    def _texts(self) -> EncodedSplit:
        """All text that the student may learn from, before variants are made of it."""
        train, further = self.splits["train"], self.splits.get(UNLABELLED_SPLIT)
        return train if further is None else train.plus(further)

    @cached_property
    def _seen(self) -> Digests:
        """What a student has learned from: text, and models that learned from text."""
        folder = self.workspace.data
        texts = chain.from_iterable(read_prepared(folder, split).texts for split in learned_splits(folder))
        models = [self.workspace.teacher, self.workspace.second_teacher, self._origin]
        return digests_of(rows_of(texts), [model for model in models if model is not None])

    @property
    def _models(self) -> list[str]:
        """What a student is made of, in words: what its teachers are, and what it was copied from."""
        if self.params.is_general:
            origin = open_folder(self.workspace.general, "general").facts[MODELS]
        else:
            origin = models_behind(self.params.origin[0]) if self.params.is_own_origin else []
        return list(dict.fromkeys([*self.teacher_card.facts[MODELS], *origin]))

    def check(self, variant: Variant) -> None:
        """Raises SettingsError when the variant's losses cannot compare the two models, or not as the training is set.

        Also when they leave a phase empty.
        """
        phases, student = phases_of(variant.losses, self.params.distill), self.new_student(variant.seed)
        with closing(Distiller(student, self.teacher, variant.losses, alignment=self.alignment)):
            pass
        self._check_confidence()
        for phase in phases:
            with closing(Distiller(student, self.teacher, phase.losses, alignment=self.alignment)) as distiller:
                check_settings(distiller, phase.training)

    def key(self, variant: Variant) -> str:
        """Digest of everything that decides the trained weights."""
        settings = {
            "student": self.params.student.model_dump(mode="json"),
            "distill": self.params.distill.model_dump(mode="json", exclude={"seeds", "controls", "cache_gb", "losses"}),
            "losses": variant.losses,
            "variant": variant.name,
            "second_share": self._second_share,
        }
        space = self.task.space.model_dump_json()
        rows, dev = self._training_rows(variant.losses), self.splits["dev"]
        contents = (self.weights, self._second_weights, space, self._origin_digest())
        return run_key(settings, self._code(variant.losses), self.params, rows, dev, *contents)

    def train(self, variant: Variant, folder: Path) -> Card:
        """Trains one student into `folder`/model, unless a finished one was made from the same inputs.

        In every process, when there are several; the first judges and writes.

        Raises:
            SettingsError: a loss does not fit.
            TrainingError: a loss is not finite, or the student learned nothing.
        """
        key, done = self.key(variant), folder / "model"
        finished = processes.by_first(lambda: self._find(variant, done, key))
        if finished is not None:
            self.resumed = True
            return finished
        started = time.monotonic()
        student = self.new_student(variant.seed)
        run, learned = self._run_phases(student, variant, folder, key)
        self.resumed = run.resumed_from_step > 0
        card = processes.by_first(lambda: self._finish(student, variant, done, key, run, learned))
        facts = card.facts
        log.info(
            "%s: %s on dev, %s on test after %d steps (%.0f s)",
            variant.name,
            self.task.METRIC.say(facts["dev_score"]),
            self.task.METRIC.say(facts["test_score"]),
            run.steps,
            time.monotonic() - started,
        )
        return card

    def _find(self, variant: Variant, done: Path, key: str) -> Card | None:
        """The card of a model that was finished before, scored on the test rows of now."""
        finished = _finished(done, key)
        if finished is None:
            return None
        log.info("%s: already trained", variant.name)
        return finished if finished.sources == self.sources else self._score_anew(finished, done)

    def _finish(
        self,
        student: PreTrainedModel,
        variant: Variant,
        done: Path,
        key: str,
        run: TrainingRun,
        learned: dict[str, Any],
    ) -> Card:
        """Scores a trained student and writes it under its name."""
        outputs = {
            split: predict(student, self.splits[split].ids, self.splits[split].pad_id, f"{variant.name} on {split}")
            for split in UNSEEN
        }
        scores = {split: score_of(found, self.splits[split].targets, self.task) for split, found in outputs.items()}
        if variant.kind == "distilled":
            check_learned(outputs["dev"], self.splits["dev"].targets, self.task, "the student")
        facts = {
            "key": key,
            "kind": variant.kind,
            "seed": variant.seed,
            MODELS: self._models,
            "losses": variant.losses,
            "parameters": count_parameters(student),
            "steps": run.steps,
            "dev_score": scores["dev"],
            "test_score": scores["test"],
            "threads": self.params.threads,
            "learned": learned,
        }
        with output_folder(done, expected_bytes=4 * count_parameters(student)) as partial:
            save_classifier(student.cpu(), partial)
            save_tokenizer(load_tokenizer(self.workspace.data / "tokenizer"), partial)
            lines = (json.dumps(entry, sort_keys=True) + "\n" for entry in run.log)
            (partial / "log.jsonl").write_text("".join(lines), "utf-8")
            write_digests(partial, self._seen)
            write_answers(partial, outputs["test"], self.task)
            return seal(partial, KIND, self.sources, facts)

    def _score_anew(self, finished: Card, folder: Path) -> Card:
        """The same weights on the test rows of now, on which no training depends, so that no key knows them."""
        test = self.splits["test"]
        outputs = predict(load_classifier(folder), test.ids, test.pad_id, "the student on test")
        facts = {**finished.facts, "test_score": score_of(outputs, test.targets, self.task)}
        with output_folder(folder) as partial:
            shutil.copytree(folder, partial, dirs_exist_ok=True)
            write_answers(partial, outputs, self.task)
            return seal(partial, KIND, self.sources, facts)

    def ask_teacher(self, variant: Variant) -> None:
        """Computes and keeps what the teacher says to the training rows, as far as this variant's losses look at it."""
        student = self.new_student(variant.seed)
        losses = chosen_maps(variant.losses, student, self.teacher, self.together("train"))
        self._known(losses, student, self._training_rows(losses))

    def _run_phases(
        self, student: PreTrainedModel, variant: Variant, folder: Path, key: str
    ) -> tuple[TrainingRun, dict[str, Any]]:
        """All phases as one run, and what the auxiliary modules of the first learned."""
        chosen = processes.by_first(lambda: chosen_maps(variant.losses, student, self.teacher, self.together("train")))
        whole, learned = TrainingRun(steps=0, best_dev_score=float("nan")), None
        for phase in phases_of(chosen, self.params.distill):
            run, found = self._fit(student, phase, folder / phase.folder, key, variant)
            learned = found if learned is None else learned
            before = {"step": whole.steps, "epoch": whole.log[-1]["epoch"] if whole.log else 0.0}
            shifted = [{**entry, **{name: entry[name] + before[name] for name in before}} for entry in run.log]
            whole = TrainingRun(
                whole.steps + run.steps,
                run.best_dev_score,
                [*whole.log, *shifted],
                whole.resumed_from_step + run.resumed_from_step,
            )
        return whole, learned or {}

    def _fit(
        self, student: PreTrainedModel, phase: Phase, work: Path, key: str, variant: Variant
    ) -> tuple[TrainingRun, dict[str, Any]]:
        train = self._training_rows(phase.losses)
        share = self.params.distill.unlabelled.share
        distiller = Distiller(
            student,
            self.teacher,
            phase.losses,
            variant.seed,
            known=self._known(phase.losses, student, train),
            class_token=self.params.distill.class_token,
            units=self.task.units,
            targeted_share=targeted_share(train, share, phase.training.batch_size),
            alignment=self.alignment,
        )
        dev, rows = self.splits["dev"], len(self.splits["train"])
        name = variant.name if phase.folder == "main" else f"{variant.name}, {phase.folder}"
        with closing(distiller):  # the next phase hooks the same student
            run = fit(
                distiller,
                train,
                OnDev(dev, self.task),
                phase.training,
                work,
                key,
                variant.seed,
                name,
                phase.keep,
                epoch_rows=rows,
                unlabelled_share=share,
            )
            return run, distiller.learned()

    def _training_rows(self, losses: Collection[str]) -> EncodedSplit:
        """The training rows; for losses that look at the teacher further text too, with the teacher's outputs.

        Where a loss looks at tokens, without the rows that the two tokenizers cut otherwise.
        """
        if not reads_teacher(losses):
            return self.splits["train"]
        if self._answered is None:
            self._answered = processes.first_then_others(self._with_answers)
        if all(aligned_by(name) == "rows" for name in losses):
            return self._answered
        return self._answered.without([i for i, name in enumerate(self._answered.names) if name in self._names_apart])

    @cached_property
    def _names_apart(self) -> set[str]:
        """Names of the rows that the two tokenizers, which cut alike, cut otherwise."""
        return {self._texts.names[i] for i in self._places_apart()}

    def _places_apart(self) -> set[int]:
        encoding, train = self.data.facts["encoding"], self.splits["train"]
        return rows_apart(encoding, "train") | {len(train) + i for i in rows_apart(encoding, UNLABELLED_SPLIT)}

    def _with_answers(self) -> EncodedSplit:
        with guard.lock(self.caches, wait=True):
            train = with_augmented(self.params, self.workspace, self._texts, self.caches)
            key = self._answers_key(train)
            outputs = cached_teacher_outputs(self.teacher, *train.for_teacher, self.caches, key)
            if self.second is not None:
                assert train.second_ids is not None
                key = hashlib.sha256(f"{key} {self._second_weights}".encode()).hexdigest()
                further = cached_teacher_outputs(self.second, train.second_ids, train.second_pad_id, self.caches, key)
                outputs = mixed(outputs, further, self._second_share)
        return self._sure(replace(train, teacher_outputs=outputs))

    def _sure(self, train: EncodedSplit) -> EncodedSplit:
        """The rows without those that have no label and of whose answer the teacher is not sure enough."""
        least = self.params.distill.unlabelled.confidence
        if not least:
            return train
        assert train.teacher_outputs is not None
        sure = self.task.confidences(as_arrays(dict(train.teacher_outputs))) >= least
        kept = [i for i, target in enumerate(train.targets) if target != UNLABELLED or sure[i]]
        without = sum(target == UNLABELLED for target in train.targets)
        log.info(
            "text without labels: the teacher is at least %g sure of %d of %d answers; the others are left out",
            least,
            without - (len(train) - len(kept)),
            without,
        )
        return train.take(kept)

    def _check_confidence(self) -> None:
        if self.params.distill.unlabelled.confidence and not self.task.says_confidence:
            raise SettingsError(
                f"distill.unlabelled.confidence: the task '{self.task.name}' does not say how sure an answer is; set "
                "it to 0"
            )

    def _origin_digest(self) -> str:
        """Of what the student is copied from; the teacher counts by itself."""
        if self.params.is_general:
            return open_folder(self.workspace.general, "general").files["model.safetensors"].sha256
        return model_digest(*self.params.origin) if self.params.is_own_origin else ""

    def _known(
        self, losses: Mapping[str, Mapping[str, Any]], student: PreTrainedModel, train: EncodedSplit
    ) -> TeacherSignals | None:
        """The teacher's signals from disk, when there are any to read and they fit the space that is given them."""
        _, needs = needs_of(loss_params(losses), shape_of(student.config), shape_of(self.teacher.config))
        size = size_bytes(needs, train, self.teacher)
        if size > self.params.distill.cache_gb * 1e9:
            log.info("the teacher runs in every step: its signals take %.1f GB, more than distill.cache_gb", size / 1e9)
            return None
        if not size:
            return None

        def read() -> TeacherSignals:
            with guard.lock(self.caches, wait=True):
                return cached_teacher_signals(self.teacher, needs, train, self.caches, self._answers_key(train))

        return processes.first_then_others(read)

    def _code(self, losses: Collection[str]) -> Trace:
        return trace([__name__], {"loss": losses, "task": [self.task.name]})

    def _answers_key(self, train: EncodedSplit) -> str:
        return run_key({}, self._code(()), self.params, train, self.splits["dev"], self.weights)


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
