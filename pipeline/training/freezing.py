"""Fitting only the upper part of a model: what is below stays as it is, and is computed once for every row.

A frozen layer says the same of a row in every epoch. So its states are kept as a teacher's signals are, and while the
rest trains the layers below are not run. Answers to rows that are not learned from come from the whole model.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.base.dependencies import trace
from pipeline.base.errors import EnvironmentFault, SettingsError
from pipeline.data.prepared import EncodedSplit
from pipeline.families import encoder_of, family_of, layers_of
from pipeline.training import processes
from pipeline.training.teacher_signals import TeacherSignals, cached_teacher_signals, remove_others


def frozen_layers(model: PreTrainedModel, freeze: int | Literal["encoder"] | None, setting: str) -> int:
    """How many layers the setting freezes.

    Raises:
        SettingsError: the model has no such layers, or they share weights with those above.
    """
    layers = layers_of(model)
    if freeze is None:
        return 0
    count = len(layers) if freeze == "encoder" else freeze
    if count > len(layers):
        raise SettingsError(f"{setting}: found {count}, but the model has {len(layers)} layers; use at most that many")
    if set(layers[:count]) & set(layers[count:]):
        raise SettingsError(f"{setting}: the model's layers share their weights; use 'encoder', or null")
    return count


def freeze_below(model: PreTrainedModel, layers: int, *, is_whole: bool) -> None:
    """Takes everything but the head and the layers from this one on out of training, in place.

    Args:
        model: a classifier.
        layers: how many of the lowest stay as they are.
        is_whole: whether all of the encoder does, what follows its last layer included.
    """
    if not layers:
        return
    kept = [module for module in family_of(model.config).head(model) if module is not None]
    trained = {weight for module in [*kept, *layers_of(model)[layers:]] for weight in module.parameters()}
    below = set(_below(model, layers)) if not is_whole else set(encoder_of(model).parameters())
    for weight in below - trained:
        weight.requires_grad_(False)


def _below(model: PreTrainedModel, layers: int) -> Iterator[nn.Parameter]:
    """Weights of the lowest layers, and of what comes before them: words, positions, their norm."""
    family, encoder = family_of(model.config), encoder_of(model)
    narrow = family.narrow(model)
    before = [encoder.get_submodule(family.words), *family.tables(model), *family.tables_of_heads(model)]
    before += [norm for norm in family.norms(model, None)[:1] if norm is not None]
    for module in [*before, *([narrow] if narrow is not None else []), *layers_of(model)[:layers]]:
        yield from module.parameters()


class FrozenStates:
    """What the frozen layers say of every training row, given in their place while the model trains."""

    def __init__(
        self, model: PreTrainedModel, layers: int, train: EncodedSplit, work: Path, base: str, setting: str
    ) -> None:
        """Computes them, or finds them on disk; those of other rows or another model are removed.

        Args:
            model: the classifier.
            layers: how many of the lowest layers are frozen, at least one.
            train: the rows that are learned from.
            work: folder of caches, of this training alone.
            base: digest of the model that the frozen layers are of; no rate or seed decides what they say.
            setting: what asks for it, for messages.

        Raises:
            SettingsError: the disk has no room for them.
            TrainingError: half precision cannot hold them.
        """
        needs = {"hidden": frozenset({layers})}
        content = [base, layers, train.digest, processes.device().type, trace([__name__], {}).digest]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        work.mkdir(parents=True, exist_ok=True)
        remove_others(work, key)
        try:
            self._known: TeacherSignals = cached_teacher_signals(
                model, needs, train, work, key, f"set {setting} to null"
            )
        except EnvironmentFault as error:
            raise SettingsError(f"{setting}: what frozen layers say is kept: {error}; or set it to null") from error
        self._layers, self._states = layers, torch.empty(0)
        self._modules = list(dict.fromkeys(layers_of(model)[:layers]))  # one that is called several times is there once

    def show(self, rows: Tensor, mask: Tensor) -> None:
        """Says which rows the next pass of the model is about."""
        found = self._known.read(rows, mask.bool(), torch.empty(len(rows), 0)).hidden[self._layers]
        assert found is not None
        self._states = found

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While this lasts, a model in train mode is given the states; in eval mode it computes all."""
        for module in self._modules:
            module.forward = self._given(module, module.forward)
        try:
            yield
        finally:
            for module in self._modules:
                del module.forward  # the class's own stands there again

    def _given(self, module: nn.Module, real: Any) -> Any:
        def forward(*args: Any, **keywords: Any) -> Any:
            # Families read the first entry, or the last.
            return (self._states,) if module.training else real(*args, **keywords)

        return forward
