"""What is trained: a student with its losses, and the modules that the losses learn with."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.base import plugins
from pipeline.base.errors import SettingsError
from pipeline.data.alignment import CHARACTERS, TOKENS, Alignment
from pipeline.data.batches import ANSWERED
from pipeline.families import Shape, head_of, output_names, shape_of
from pipeline.losses import LossParams
from pipeline.settings.distill import ClassToken
from pipeline.signals.reader import SignalReader, Signals
from pipeline.signals.segments import both_by_segment
from pipeline.tasks import Units, one_unit_a_row
from pipeline.training.class_token import ClassTokenNoise
from pipeline.training.freezing import FrozenStates
from pipeline.training.needs import aligned_by, needs_of
from pipeline.training.teacher_signals import TeacherSignals, as_kept
from pipeline.training.whole_batch import whole_batch

CLASS_TOKEN = "class_token"  # no loss has this name


class Distiller(nn.Module):
    """A student with its losses: what the loop trains. Auxiliary modules live here and are never exported."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        losses: Mapping[str, Mapping[str, Any]],
        seed: int = 0,
        *,
        known: TeacherSignals | None = None,
        class_token: ClassToken | None = None,
        units: Callable[[Mapping[str, Tensor], Tensor | None, Tensor], Units] = one_unit_a_row,
        targeted_share: float = 1.0,
        alignment: Alignment = TOKENS,
        frozen: FrozenStates | None = None,
        section: str = "distill",
    ) -> None:
        """Checks that the losses fit the two models, and makes their auxiliary modules, whose weights `seed` decides.

        Args:
            student: the model to train.
            teacher: None when no loss looks at it.
            losses: settings by name.
            seed: of the auxiliary modules.
            known: what the teacher says to every training row; it is then not run.
            class_token: noise on the class token while training; None for none.
            units: of the task: what its outputs are compared in.
            targeted_share: of the training rows. A loss on targets is a mean over all rows of a batch, to which one
                without target adds nothing, and is divided by this: a target then weighs the same whichever rows it
                meets, and the term is as large as if there were no rows but those that have one.
            alignment: how the tokens of the two models belong together.
            section: of the settings, for messages.
            frozen: what the student's frozen layers say of every training row; they are then not run.

        Raises:
            SettingsError: with every loss that does not fit.
        """
        super().__init__()
        self.student, self.section = student, section
        self.losses = {name: plugins.load("loss", name) for name in losses}
        self.loss_params = loss_params(losses)
        small = shape_of(student.config)
        large = shape_of(teacher.config) if teacher is not None else small
        check_fit(self.loss_params, small, large, alignment, section)
        self._by = {name: aligned_by(name) for name in losses}
        ours, theirs = needs_of(self.loss_params, small, large)
        self._factors = {n: 1 / targeted_share if "targets" in file.NEEDS else 1.0 for n, file in self.losses.items()}
        self.auxiliary = nn.ModuleDict()
        # Of the seed alone: the global random state also knows which variants this process trained before.
        with torch.random.fork_rng(devices=[]):  # they are made on the CPU
            torch.manual_seed(seed)
            for name, module in self.losses.items():
                made = module.auxiliary(small, large, self.loss_params[name]) if hasattr(module, "auxiliary") else None
                if made is not None:
                    self.auxiliary[name] = made
            if class_token is not None and class_token.kind != "plain":
                self.auxiliary[CLASS_TOKEN] = ClassTokenNoise(student, class_token)
        self._student_reader = SignalReader(student, ours, units=units)
        # A list hides the teacher from nn.Module: its weights are neither trained, saved nor put into train mode.
        self._teacher = [teacher]
        self._known, self._units, self._frozen = known, units, frozen
        self.needs_signals = bool(set(theirs) - {"logits", "delimiters"})
        self._needs_logits = "logits" in theirs
        self._teacher_reader = (
            SignalReader(teacher, theirs, frozen=True, units=units) if teacher is not None and theirs else None
        )

    def forward(
        self, progress: float = 0.0, rows: Tensor | None = None, share: float = 1.0, **batch: Tensor
    ) -> dict[str, Any]:
        """The weighted sum of the losses, and each term by itself.

        A batch may come in parts, by micro-batches and processes. Values and gradients of the parts add up to those of
        the whole, since a loss is a mean over rows; one that compares the rows with each other sees all of them.

        Args:
            progress: share of the phase that is done, for weights that decay.
            rows: numbers of the training rows, to look up what the teacher is known to say.
            share: this part's share of the batch's rows; 0 for rows that only stand in where none was left.
            batch: what the collator gives.

        Returns:
            loss: what the gradient is taken of, the sum of `weighted`, which has each loss's part of it.
            value: the sum as a number; terms: each loss as one, without its weight. Both this part's share.
        """
        names = ("input_ids", "attention_mask", "targets", "delimiters")
        if self._frozen is not None and rows is not None:
            self._frozen.show(rows, batch["attention_mask"])
        student = self._student_reader.read({name: batch[name] for name in names if name in batch})
        teacher = self._read_teacher(batch, student, rows)
        sides = {"tokens": (student, teacher), "rows": (student, teacher)}
        sides["characters"] = self._pieces(batch, student, teacher)
        wholes: dict[str, tuple[Signals, ...]] = {}
        if self.compares_rows and rows is not None:  # a judge runs in one process alone
            rows_here = len(student.mask) if share else 0
            asked = {self._by[name] for name in self.compares_rows}
            wholes = {by: tuple(whole_batch(side, rows_here) for side in sides[by]) for by in asked}
        terms: dict[str, Tensor] = {}
        weighted: dict[str, Tensor] = {}
        total = student.logits.new_zeros((), dtype=torch.float32)
        for name, module in self.losses.items():
            params, is_whole = self.loss_params[name], name in self.compares_rows
            auxiliary = self.auxiliary[name] if name in self.auxiliary else None  # noqa: SIM401 - no get()
            pair = (wholes or sides if is_whole else sides)[self._by[name]]
            term = module.loss(*pair, params, auxiliary) * self._factors[name]
            value = term * params.weight * (1 - progress if params.decay == "linear" else 1)
            terms[name] = (term * share).detach()
            total = total + (value * share).detach()
            # Of a loss over all rows each process has the gradient of its own rows, whole.
            weighted[name] = value if is_whole else value * share
        return {"loss": sum(weighted.values()), "weighted": weighted, "value": total, "terms": terms}

    def close(self) -> None:
        """Takes every hook off the two models."""
        for reader in (self._student_reader, self._teacher_reader):
            if reader is not None:
                reader.close()
        for module in self.auxiliary.values():
            if isinstance(module, ClassTokenNoise):
                module.detach()

    def fast_parameters(self) -> list[tuple[float, list[nn.Parameter]]]:
        """(factor on the learning rate, parameters) of the auxiliary modules whose loss asks for a rate of its own."""
        factors = {name: getattr(module, "LEARNING_RATE_FACTOR", 1.0) for name, module in self.losses.items()}
        return [
            (factor, list(self.auxiliary[name].parameters()))
            for name, factor in factors.items()
            if factor != 1.0 and name in self.auxiliary
        ]

    @property
    def compares_rows(self) -> list[str]:
        """The losses that compare the rows of a batch with each other."""
        return [name for name, file in self.losses.items() if getattr(file, "IS_BATCH_STATISTIC", False)]

    def learned(self) -> dict[str, Any]:
        """What the auxiliary modules learned, of the losses that tell."""
        return {
            name: module.learned(self.auxiliary[name])
            for name, module in self.losses.items()
            if hasattr(module, "learned") and name in self.auxiliary
        }

    def _pieces(self, batch: dict[str, Tensor], student: Signals, teacher: Signals) -> tuple[Signals, Signals]:
        """Both sides by the pieces of text that their tokens make up; by tokens, where those belong together."""
        if "segments" not in batch or "characters" not in self._by.values():
            return student, teacher
        return both_by_segment(batch, student, teacher)

    def _known_outputs(self, batch: dict[str, Tensor], length: int) -> dict[str, Tensor] | None:
        """What the teacher is known to answer; answers to tokens are kept at the length of the longest row of all."""
        found = {name.removeprefix(ANSWERED): batch[name] for name in batch if name.startswith(ANSWERED)}
        if head_of(self.student.config) != "sequence":
            found = {name: values[:, :length] for name, values in found.items()}
        return found or None

    def _read_teacher(self, batch: dict[str, Tensor], student: Signals, rows: Tensor | None) -> Signals:
        if self._teacher_reader is None:
            return student  # no loss here looks at it
        outputs = self._known_outputs(batch, student.mask.shape[1])
        if outputs is None and not self._needs_logits:
            # Nobody looks at them, and naming them spares the layers above the last that somebody looks at.
            nothing = student.logits.new_empty(len(student.mask), 0)
            outputs = dict.fromkeys(output_names(self.student.config), nothing)
        logits = self._units(outputs, None, student.mask).logits if outputs is not None else None
        if logits is not None and not self.needs_signals:
            return Signals(logits=logits, mask=student.mask, delimiters=student.delimiters)
        teacher = self._teacher[0]
        assert teacher is not None
        ids = batch.get("teacher_input_ids", batch["input_ids"])
        mask = batch.get("teacher_attention_mask", student.mask.long())
        if teacher.device != ids.device:
            nn.Module.to(teacher, ids.device)  # transformers wraps its own `to` in a type that takes no device
        if self._known is not None and rows is not None and logits is not None:
            found = self._known.read(rows, mask.bool(), logits)
            return replace(found, delimiters=student.delimiters, output_weights=self._teacher_reader.output_weights())
        inputs = {"input_ids": ids, "attention_mask": mask}
        if student.delimiters is not None:
            inputs["delimiters"] = student.delimiters  # the same texts, position by position
        # What is kept on disk was computed in float32, and keeping it must not change a result.
        with torch.autocast(ids.device.type, enabled=False):
            return as_kept(self._teacher_reader.read(inputs, outputs=outputs))


def loss_params(losses: Mapping[str, Mapping[str, Any]]) -> dict[str, LossParams]:
    """The losses' settings as their files' models."""
    return {
        name: plugins.load("loss", name).Params.model_validate_json(json.dumps(settings))
        for name, settings in losses.items()
    }


def check_fit(
    losses: Mapping[str, LossParams],
    student: Shape,
    teacher: Shape,
    alignment: Alignment = TOKENS,
    section: str = "distill",
) -> None:
    """Raises SettingsError with every loss that cannot compare these two models, and those that can.

    Args:
        losses: their settings by name.
        student: its shape.
        teacher: its shape.
        alignment: how their tokens belong together.
        section: of the settings, for messages.
    """
    problems = [
        f"{section}.losses.{name}: {reason}"
        for name, params in losses.items()
        if (reason := _misfit(name, student, teacher, params, alignment))
    ]
    if problems:
        fitting = [
            name
            for name in plugins.names("loss")
            if _misfit(name, student, teacher, plugins.load("loss", name).Params(), alignment) is None
        ]
        problems.append(f"losses that fit these two models as they stand: {', '.join(fitting)}")
        raise SettingsError("\n".join(problems))


def _misfit(name: str, student: Shape, teacher: Shape, params: LossParams, alignment: Alignment) -> str | None:
    module = plugins.load("loss", name)
    if alignment == CHARACTERS and aligned_by(name) == "tokens":
        return (
            "it compares token with token, but the tokenizers of student and teacher cut text otherwise; choose a "
            "teacher whose word pieces the student shares"
        )
    return module.misfit(student, teacher, params) if hasattr(module, "misfit") else None
