"""The training loop's glue: `transformers.Trainer` on Accelerate, taught to distil, resume exactly and stop on NaN.

A killed run goes on from its newest whole checkpoint and ends with the same weights as one that was never disturbed:
the order of the data depends on seed and epoch only, and the Trainer restores optimizer, schedule and random state.
"""

import json
import logging
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from pipeline.base import plugins
from pipeline.base.errors import IntegrityError, SettingsError, TrainingError
from pipeline.base.files import write_atomically
from pipeline.base.records import open_folder, seal
from pipeline.data.batches import Collator, LengthGroupedSampler, Rows
from pipeline.data.prepared import EncodedSplit
from pipeline.families import Shape, shape_of
from pipeline.losses import LossParams
from pipeline.models.layer_maps import CKA
from pipeline.settings.params import ClassToken, TrainingSettings
from pipeline.signals.reader import SignalReader, Signals
from pipeline.training.answers import correct_share, predict_logits
from pipeline.training.class_token import ClassTokenNoise
from pipeline.training.needs import needs_of
from pipeline.training.teacher_signals import TeacherSignals

log = logging.getLogger(__name__)
CHECKPOINT = "checkpoint"
CLASS_TOKEN = "class_token"  # no loss has this name


class Distiller(nn.Module):
    """A student with its losses: what the Trainer trains. Auxiliary modules live here and are never exported."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        losses: Mapping[str, Mapping[str, Any]],
        seed: int = 0,
        *,
        known: TeacherSignals | None = None,
        class_token: ClassToken | None = None,
    ) -> None:
        """Checks that the losses fit the two models, and makes their auxiliary modules, whose weights `seed` decides.

        Args:
            student: the model to train.
            teacher: None when no loss looks at it.
            losses: settings by name.
            seed: of the auxiliary modules.
            known: what the teacher says to every training row; it is then not run.
            class_token: noise on the class token while training; None for none.

        Raises:
            SettingsError: with every loss that does not fit.
        """
        super().__init__()
        self.student = student
        self.losses = {name: plugins.load("loss", name) for name in losses}
        self.loss_params = loss_params(losses)
        small = shape_of(student.config)
        large = shape_of(teacher.config) if teacher is not None else small
        check_fit(self.loss_params, small, large)
        ours, theirs = needs_of(self.loss_params, small, large)
        self.auxiliary = nn.ModuleDict()
        # Of the seed alone: the global random state also knows which variants this process trained before.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for name, module in self.losses.items():
                made = module.auxiliary(small, large, self.loss_params[name]) if hasattr(module, "auxiliary") else None
                if made is not None:
                    self.auxiliary[name] = made
            if class_token is not None and class_token.kind != "plain":
                self.auxiliary[CLASS_TOKEN] = ClassTokenNoise(student, class_token)
        self._student_reader = SignalReader(student, ours)
        # A list hides the teacher from nn.Module: its weights are neither trained, saved nor put into train mode.
        self._teacher = [teacher]
        self._known = known
        self.needs_signals = bool(set(theirs) - {"logits", "delimiters"})
        self._teacher_reader = SignalReader(teacher, theirs, frozen=True) if teacher is not None else None

    def forward(self, progress: float = 0.0, rows: Tensor | None = None, **batch: Tensor) -> dict[str, Any]:
        """Logits, the weighted sum of the losses, each term by itself, and its weighted share of the sum.

        Args:
            progress: share of the phase that is done, for weights that decay.
            rows: numbers of the training rows, to look up what the teacher is known to say.
            batch: what the collator gives.
        """
        names = ("input_ids", "attention_mask", "labels", "delimiters")
        student = self._student_reader.read({name: batch[name] for name in names if name in batch})
        teacher = self._read_teacher(batch, student, rows)
        terms: dict[str, Tensor] = {}
        weighted: dict[str, Tensor] = {}
        for name, module in self.losses.items():
            params = self.loss_params[name]
            auxiliary = self.auxiliary[name] if name in self.auxiliary else None  # noqa: SIM401 - no get()
            terms[name] = module.loss(student, teacher, params, auxiliary)
            weighted[name] = terms[name] * params.weight * (1 - progress if params.decay == "linear" else 1)
        return {"loss": sum(weighted.values()), "logits": student.logits, "terms": terms, "weighted": weighted}

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

    def learned(self) -> dict[str, Any]:
        """What the auxiliary modules learned, of the losses that tell."""
        return {
            name: module.learned(self.auxiliary[name])
            for name, module in self.losses.items()
            if hasattr(module, "learned") and name in self.auxiliary
        }

    def _read_teacher(self, batch: dict[str, Tensor], student: Signals, rows: Tensor | None) -> Signals:
        if self._teacher_reader is None:
            return student  # no loss here looks at it: `check_fit` saw to that
        logits = batch.get("teacher_logits")
        if logits is not None and not self.needs_signals:
            return Signals(logits=logits, mask=student.mask, delimiters=student.delimiters)
        teacher = self._teacher[0]
        assert teacher is not None
        ids = batch.get("teacher_input_ids", batch["input_ids"])
        if teacher.device != ids.device:
            nn.Module.to(teacher, ids.device)  # transformers wraps its own `to` in a type that takes no device
        if self._known is not None and rows is not None and logits is not None:
            found = self._known.read(rows, student.mask, logits)
            return replace(found, delimiters=student.delimiters, output_weights=self._teacher_reader.output_weights())
        inputs = {"input_ids": ids, "attention_mask": student.mask.long()}
        if student.delimiters is not None:
            inputs["delimiters"] = student.delimiters  # the same texts, position by position
        # What is kept on disk was computed in float32, and keeping it must not change a result.
        with torch.autocast(ids.device.type, enabled=False):
            return self._teacher_reader.read(inputs, logits=logits)


def loss_params(losses: Mapping[str, Mapping[str, Any]]) -> dict[str, LossParams]:
    """The losses' settings as their files' models."""
    return {
        name: plugins.load("loss", name).Params.model_validate_json(json.dumps(settings))
        for name, settings in losses.items()
    }


def check_fit(losses: Mapping[str, LossParams], student: Shape, teacher: Shape) -> None:
    """Raises SettingsError with every loss that cannot compare these two shapes, and those that can."""
    problems = [
        f"distill.losses.{name}: {reason}"
        for name, params in losses.items()
        if (reason := _misfit(name, student, teacher, params))
    ]
    if problems:
        fitting = [
            name
            for name in plugins.names("loss")
            if _misfit(name, student, teacher, plugins.load("loss", name).Params()) is None
        ]
        problems.append(f"losses that fit these two models as they stand: {', '.join(fitting)}")
        raise SettingsError("\n".join(problems))


def _misfit(name: str, student: Shape, teacher: Shape, params: LossParams) -> str | None:
    module = plugins.load("loss", name)
    return module.misfit(student, teacher, params) if hasattr(module, "misfit") else None


@dataclass
class TrainingRun:
    """What a training run gives beside the trained weights."""

    steps: int
    best_dev_accuracy: float
    log: list[dict[str, Any]] = field(default_factory=list)
    resumed_from_step: int = 0


def fit(
    distiller: Distiller,
    train: EncodedSplit,
    dev: EncodedSplit,
    settings: TrainingSettings,
    work: Path,
    key: str,
    seed: int,
    name: str,
    keep: str = "best",
    epoch_rows: int | None = None,
) -> TrainingRun:
    """Trains the student inside `distiller`, in place.

    Args:
        distiller: the student and its losses.
        train: rows to learn from.
        dev: rows to choose the checkpoint on.
        settings: epochs, rates and the like.
        work: folder for checkpoints; emptied when `key` is not the one they were made under.
        key: digest of everything that decides the result (settings, data, teacher, threads).
        seed: decides order and dropout.
        name: what the progress lines call the run.
        keep: "best" on dev (the earliest when equal), or "last".
        epoch_rows: rows that count as an epoch; all of `train` if None. Augmented text takes no extra steps.

    Raises:
        TrainingError: a loss that is not finite, naming step, term and rows.
        SettingsError: batch_size leaves no whole step.
    """
    if unchosen := [n for n, p in distiller.loss_params.items() if getattr(p, "map", None) == CKA]:
        raise SettingsError(f"distill.losses.{unchosen[0]}.map: 'cka' is a rule; call chosen_maps for the pairs first")
    _claim(work, key)
    set_seed(seed)
    steps_per_epoch = math.ceil((epoch_rows or len(train)) / settings.batch_size)
    every = max(1, steps_per_epoch // settings.evaluations_per_epoch)
    total = max(1, round(settings.epochs * steps_per_epoch))
    use_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=total,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(settings.warmup_fraction * total),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",  # a third of the default's cost on CPU
        bf16=use_bf16,  # slower than fp32 on CPUs without AMX, and rounds differently from machine to machine
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=keep == "best",
        metric_for_best_model="eval_accuracy",
        greater_is_better=True,
        logging_steps=max(1, total // 60),
        logging_nan_inf_filter=False,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=not _on_a_terminal(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = _Trainer(
        model=distiller,
        args=arguments,
        train_dataset=Rows(train),
        eval_dataset=Rows(dev),
        data_collator=Collator(train),
        callbacks=[_Checkpoints(settings.patience), _Narrator(name)],
    )
    trainer.setup(train, dev, seed)
    trainer.remove_callback(PrinterCallback)
    if _on_a_terminal():
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_Bar(name))
    checkpoint = newest_checkpoint(work)
    state = _state_of(checkpoint) if checkpoint else TrainerState()
    resumed = state.global_step
    if checkpoint is not None:
        log.info("%s: going on from step %d of %d", name, resumed, total)
    if checkpoint is not None and (resumed >= total or _out_of_patience(state.log_history, settings.patience)):
        # The Trainer would take one more step.
        _load_weights(distiller, Path(state.best_model_checkpoint or checkpoint) if keep == "best" else checkpoint)
    else:
        with warnings.catch_warnings():
            # The Trainer's data loader warns about pinned memory without a GPU, whatever it is told.
            warnings.filterwarnings("ignore", message=".*pin_memory.*", category=UserWarning)
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        state = trainer.state
    history = [_clean_entry(entry) for entry in state.log_history if {"loss", "eval_accuracy"} & entry.keys()]
    accuracies = [entry["dev_accuracy"] for entry in history if "dev_accuracy" in entry]
    return TrainingRun(
        steps=state.global_step,
        best_dev_accuracy=(max(accuracies) if keep == "best" else accuracies[-1]) if accuracies else math.nan,
        log=history,
        resumed_from_step=resumed,
    )


class _Trainer(Trainer):
    """The Trainer with the distiller's losses, an order of rows that can be resumed, and a stop on NaN."""

    def setup(self, train: EncodedSplit, dev: EncodedSplit, seed: int) -> None:
        self._split, self._dev, self._seed = train, dev, seed
        self._sums: dict[str, float] = {}
        self._shares: dict[str, float] = {}
        self._count = 0

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return LengthGroupedSampler(self._split.lengths, self.args.train_batch_size, self._seed)

    def create_optimizer(self) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer()
        distiller = self.accelerator.unwrap_model(self.model)
        for factor, parameters in distiller.fast_parameters():
            chosen = {id(parameter) for parameter in parameters}
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
            # The schedule is made later and takes each group's rate as its own start.
            optimizer.add_param_group(
                {"params": parameters, "lr": factor * self.args.learning_rate, "weight_decay": 0.0}
            )
        return optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        rows = inputs.pop("rows")
        progress = self.state.global_step / max(1, self.state.max_steps)
        outputs = model(progress=progress, rows=rows, **inputs)
        loss = outputs["loss"]
        if not torch.isfinite(loss):
            self._stop_on_nan(outputs["terms"], rows)
        if len(outputs["weighted"]) > 1 and (self.state.global_step + 1) % self.args.logging_steps == 0:
            self._shares = _gradient_shares(outputs["weighted"], self.accelerator.unwrap_model(model).student)
        for name, term in outputs["terms"].items():
            self._sums[name] = self._sums.get(name, 0.0) + float(term.detach())
        self._count += 1
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        # The Trainer's own loop, given a loader that Accelerate did not make, cuts every batch to the size of the
        # training split's last one when it evaluates at the end of an epoch.
        student = self.accelerator.unwrap_model(self.model).student
        logits = predict_logits(student, self._dev.ids, self._dev.pad_id, "dev")
        metrics = {"eval_accuracy": correct_share(logits, self._dev.labels)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._count:
            logs |= {f"term_{name}": value / self._count for name, value in self._sums.items()}
            logs |= {f"gradient_share_{name}": share for name, share in self._shares.items()}
            self._sums, self._count, self._shares = {}, 0, {}
        super().log(logs, start_time)

    def _rotate_checkpoints(self, use_mtime: bool = False, output_dir: str | None = None) -> None:
        super()._rotate_checkpoints(use_mtime=False, output_dir=output_dir)  # two within a second look equally old

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if best is not None:
            open_folder(Path(best), CHECKPOINT)  # never export weights that changed on disk
        super()._load_best_model()

    def _stop_on_nan(self, terms: dict[str, Tensor], rows: Tensor) -> None:
        bad = [name for name, term in terms.items() if not torch.isfinite(term)] or ["the sum"]
        names = [self._split.names[i] for i in rows.tolist()[:5]]
        raise TrainingError(
            f"step {self.state.global_step + 1}: loss '{bad[0]}' is not finite on a batch with rows "
            f"{', '.join(names)}…; lower the learning rate or the loss's weight, or look at these rows"
        )


def _gradient_shares(weighted: Mapping[str, Tensor], student: nn.Module) -> dict[str, float]:
    """Each term's share of the summed gradient norms: what a weight means depends on it, not on the term's size."""
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    norms = {}
    for name, term in weighted.items():
        gradients = (
            torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True) if term.requires_grad else ()
        )
        norms[name] = math.sqrt(sum(float(g.float().square().sum()) for g in gradients if g is not None))
    total = sum(norms.values())
    return {name: norm / total if total else 0.0 for name, norm in norms.items()}


def _on_a_terminal() -> bool:
    import sys

    return sys.stderr.isatty()


class _Checkpoints(TrainerCallback):
    """When to evaluate, log and stop, from the state alone, so that a resumed run does the same.

    Seals each checkpoint once it is whole: one without a card was cut short, and is never resumed from.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True  # the Trainer saves the last step, but scores it only now and then
        if control.should_save or control.should_evaluate:
            control.should_log = True  # sums of losses are not in a checkpoint

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if _out_of_patience(state.log_history, self.patience):
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        seal(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", CHECKPOINT)


def _out_of_patience(history: Sequence[Mapping[str, Any]], patience: int) -> bool:
    """Whether the last `patience` evaluations were no better than the best before them; never for patience 0."""
    accuracies = [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]
    return 0 < patience < len(accuracies) and max(accuracies[-patience:]) <= max(accuracies[:-patience])


class _Narrator(TrainerCallback):
    """One line an evaluation."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        accuracy = (metrics or {}).get("eval_accuracy", math.nan)
        log.info(
            "%s: step %d of %d, dev accuracy %.2f %%", self.name, state.global_step, state.max_steps, 100 * accuracy
        )


class _Bar(ProgressCallback):
    """The Trainer's bar without the dictionaries that it prints through it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.name)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        pass


def _claim(work: Path, key: str) -> None:
    """Empties the folder unless its checkpoints were made under this key."""
    marker = work / "key.json"
    if not marker.is_file() or json.loads(marker.read_text("utf-8") or "null") != key:
        shutil.rmtree(work, ignore_errors=True)
        write_atomically(marker, json.dumps(key))


def newest_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint whose files are all as sealed, and those of the best one, which it may end with.

    Damaged or unfinished ones are removed, with a message.
    """
    found = [p for p in work.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    for checkpoint in sorted(found, key=lambda p: -int(p.name.rpartition("-")[2])):
        try:
            open_folder(checkpoint, CHECKPOINT)
            best = _state_of(checkpoint).best_model_checkpoint
            if best is not None:
                open_folder(Path(best), CHECKPOINT)
        except IntegrityError as error:
            log.warning("%s; not resuming from it", error)
            shutil.rmtree(checkpoint)
        else:
            return checkpoint
    return None


def _state_of(checkpoint: Path) -> TrainerState:
    return TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _load_weights(distiller: Distiller, checkpoint: Path) -> None:
    from safetensors.torch import load_file

    distiller.load_state_dict(load_file(checkpoint / "model.safetensors"))


# Log entries keep what was trained, not when or how fast: the same seed gives the same log.
_KEPT = {"epoch", "step", "loss", "grad_norm", "learning_rate"}


def _clean_entry(entry: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in entry.items() if key in _KEPT or key.startswith(("term_", "gradient_share_"))}
    if "eval_accuracy" in entry:
        kept["dev_accuracy"] = entry["eval_accuracy"]
    return kept
