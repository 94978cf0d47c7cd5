"""What a distillation loss may see of a model: logits, hidden states, queries, keys and values.

Queries, keys and values are read by hooks on the projections, for two reasons. Under fused attention Hugging Face
returns an empty tuple of attention maps with a mere warning, so a loss that zips over it is 0 for ever; and the maps
that eager attention returns in train mode have been through dropout, so their rows do not sum to 1. What the hooks see
has neither fault, and a layer that gives nothing is an error here.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.architectures import family_of, layers_of, shape_of
from pipeline.errors import SignalError

# what a loss may list in NEEDS; attention: queries and keys, from which the scores are computed
SIGNALS = ("logits", "labels", "hidden", "attention", "values")


@dataclass(frozen=True, eq=False)
class Signals:
    """One model's answer to one batch; a signal that was not asked for is an empty tuple."""

    logits: Float[Tensor, "batch classes"]
    mask: Bool[Tensor, "batch length"]  # True: a real token, not padding
    hidden: tuple[Float[Tensor, "batch length width"], ...] = ()  # 0: embedding output; l: output of layer l
    queries: tuple[Float[Tensor, "batch heads length head_width"], ...] = ()  # of layer 1, 2, ...
    keys: tuple[Float[Tensor, "batch heads length head_width"], ...] = ()
    values: tuple[Float[Tensor, "batch heads length head_width"], ...] = ()
    labels: Int[Tensor, " batch"] | None = None


def attention_scores(signals: Signals, layer: int) -> Float[Tensor, "batch heads length length"]:
    """Attention scores of a layer, counted from 1, before mask and softmax, in float32: rows query, columns key.

    Right only where positions enter before the projections, which `pipeline.architectures` sees to.
    """
    query, key = signals.queries[layer - 1].float(), signals.keys[layer - 1].float()
    # autocast would turn even float32 factors into half precision
    with torch.autocast(query.device.type, enabled=False):
        return query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])


class SignalReader:
    """Runs a model on batches and keeps what its layers computed on the way.

    A context manager; closing it takes the hooks off. Nothing is added to the model's parameters or its state.
    """

    def __init__(self, model: PreTrainedModel, needs: Iterable[str], frozen: bool = False) -> None:
        """Hooks the projections of every layer whose signals are needed.

        Args:
            model: a classifier of a family that `pipeline.architectures` knows.
            needs: names of `SIGNALS`; logits and the mask are always read.
            frozen: for the teacher: every batch is read in eval mode and without gradient, even when a wrapper that
                owns both models was put into train mode in between.

        Raises:
            SignalError: a name that is no signal.
            ModelError: a family that is not known.
        """
        self.model, self.needs, self.frozen = model, frozenset(needs), frozen
        if unknown := self.needs - set(SIGNALS):
            raise SignalError(f"no signal {sorted(unknown)}; known: {', '.join(SIGNALS)}")
        self._heads, self._layers = shape_of(model.config).heads, shape_of(model.config).layers
        self._taken: dict[tuple[str, int], Tensor] | None = None
        self._handles = []
        family = family_of(model.config)
        wanted = {"query": family.query, "key": family.key} if "attention" in self.needs else {}
        wanted |= {"value": family.value} if "values" in self.needs else {}
        for number, layer in enumerate(layers_of(model), start=1):
            for part, path in wanted.items():
                self._handles.append(layer.get_submodule(path).register_forward_hook(self._keep(part, number)))

    def __enter__(self) -> "SignalReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def read(self, batch: Mapping[str, Tensor], through: nn.Module | None = None) -> Signals:
        """The model's signals for one batch.

        Args:
            batch: the model's inputs, `attention_mask` among them, and labels if they are needed. Labels are not shown
                to the model, which would compute a loss of its own.
            through: what to call in place of the model when something wraps it, such as DistributedDataParallel,
                whose gradients would otherwise not be exchanged.

        Raises:
            SignalError: a layer, the batch or the model did not give what is needed, or not with its gradient.
        """
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        if "attention_mask" not in inputs:
            raise SignalError("the batch has no 'attention_mask', so padding cannot be told from text; add it")
        if "labels" in self.needs and "labels" not in batch:
            raise SignalError("the batch has no 'labels', which a loss needs; add them or drop that loss")
        if self.frozen:
            self.model.eval()
            assert not self.model.training
        elif self._handles and self.model.is_gradient_checkpointing:
            # The reentrant kind runs the layers without gradient the first time, which is what the hooks would see.
            raise SignalError("gradient checkpointing is on, which hides the layers' gradients; switch it off")
        self._taken = {}
        try:
            # no_grad, not inference_mode: autograd may not save inference tensors for the student's backward pass
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
                output = (through or self.model)(
                    **inputs, output_hidden_states="hidden" in self.needs, return_dict=True
                )
            return Signals(
                logits=output.logits,
                mask=inputs["attention_mask"].bool(),
                hidden=self._hidden(output) if "hidden" in self.needs else (),
                queries=self._collect("query") if "attention" in self.needs else (),
                keys=self._collect("key") if "attention" in self.needs else (),
                values=self._collect("value") if "values" in self.needs else (),
                labels=batch["labels"] if "labels" in self.needs else None,
            )
        finally:
            self._taken = None

    def _keep(self, part: str, layer: int) -> Callable[[nn.Module, tuple, Tensor], None]:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if self._taken is not None:  # someone else may run the model between two reads
                self._taken[part, layer] = output

        return hook

    def _collect(self, part: str) -> tuple[Tensor, ...]:
        assert self._taken is not None
        found = []
        for layer in range(1, self._layers + 1):
            if (part, layer) not in self._taken:
                raise SignalError(
                    f"layer {layer} of the {self._role()} gave no {part}: its projection was not called, or the reader "
                    "is closed; a loss on it would silently be 0"
                )
            projected = self._taken[part, layer]  # (B, L, D)
            found.append(projected.unflatten(-1, (self._heads, -1)).transpose(1, 2))  # (B, H, L, d)
        return tuple(found)

    def _hidden(self, output: Any) -> tuple[Tensor, ...]:
        hidden = output.hidden_states or ()
        if len(hidden) != self._layers + 1:
            raise SignalError(
                f"layer {max(len(hidden), 1)} of the {self._role()} gave no hidden state: {len(hidden)} came back, "
                f"{self._layers + 1} were expected (the embeddings and {self._layers} layers)"
            )
        return tuple(hidden)

    def _role(self) -> str:
        return "teacher" if self.frozen else "student"
