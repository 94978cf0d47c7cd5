"""What a distillation loss may see of a model: logits, hidden states, queries, keys and values.

Queries, keys and values are read by hooks on the projections, for two reasons. Under fused attention Hugging Face
returns an empty tuple of attention maps with a mere warning, so a loss that zips over it is 0 for ever; and the maps
that eager attention returns in train mode have been through dropout, so their rows do not sum to 1. What the hooks see
has neither fault, and a layer that gives nothing is an error here.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.base.errors import SignalError
from pipeline.data.prepared import TOKEN_POSITION
from pipeline.families import Part, family_of, layers_of, shape_of
from pipeline.tasks import Units, one_unit_a_row

# What a loss may list in NEEDS. attention: queries, keys and biases, from which the scores are computed;
# output_weights: the attention's output projection; delimiters: where [CLS] and [SEP] stand; token: the distillation
# token's last state.
SIGNALS = ("logits", "targets", "hidden", "attention", "values", "output_weights", "delimiters", "token")
PROJECTED: dict[str, tuple[Part, ...]] = {"attention": ("query", "key"), "values": ("value",)}
LAYERED = ("hidden", "attention", "values", "output_weights")  # those that each layer has


@dataclass(frozen=True, eq=False)
class Signals:
    """One model's answer to one batch.

    A signal that was not asked for is an empty tuple, or None; a layer that was not asked for is None in the tuple,
    so that a tuple's length still says how deep the model is.
    """

    logits: Float[Tensor, "units choices"]
    mask: Bool[Tensor, "batch length"]  # True: a real token, not padding
    hidden: tuple[Float[Tensor, "batch length width"] | None, ...] = ()  # 0: embedding output; l: output of layer l
    queries: tuple[Float[Tensor, "batch heads length head_width"] | None, ...] = ()  # of layer 1, 2, ...
    keys: tuple[Float[Tensor, "batch heads length head_width"] | None, ...] = ()
    values: tuple[Float[Tensor, "batch heads length head_width"] | None, ...] = ()
    # what a layer adds to its scores besides the mask, such as a bias for each distance; None: nothing
    biases: tuple[Float[Tensor, "1 #heads length length"] | None, ...] = ()
    output_weights: tuple[Float[Tensor, "width width"] | None, ...] = ()  # of nn.Linear: rows are outputs
    delimiters: Bool[Tensor, "batch length"] | None = None  # True: [CLS] or [SEP]
    token: Float[Tensor, "batch width"] | None = None
    targets: Int[Tensor, " units"] | None = None  # UNLABELLED: of a unit without one


def taken(layered: tuple[Tensor | None, ...], index: int) -> Tensor:
    """One entry of a layered signal.

    Raises:
        SignalError: it was not read, since no loss said that it looks at this layer.
    """
    tensor = layered[index]
    if tensor is None:
        raise SignalError(f"entry {index} of {len(layered)} was not read; the loss must name it in its `layers`")
    return tensor


def attention_scores(signals: Signals, layer: int) -> Float[Tensor, "batch heads length length"]:
    """Attention scores of a layer, counted from 1, before mask and softmax, in float32: rows query, columns key."""
    query, key = taken(signals.queries, layer - 1).float(), taken(signals.keys, layer - 1).float()
    # autocast would turn even float32 factors into half precision
    with torch.autocast(query.device.type, enabled=False):
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    bias = signals.biases[layer - 1] if signals.biases else None
    return scores if bias is None else scores + bias.float()


Needs = Mapping[str, Collection[int]]


class SignalReader:
    """Runs a model on batches and keeps what its layers computed on the way.

    A context manager; closing it takes the hooks off. Nothing is added to the model's parameters or its state.

    A student with a distillation token answers as if the token were not there: the losses compare it with a teacher
    that has none, position by position. The token's own state is the signal `token`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        needs: Iterable[str] | Needs,
        frozen: bool = False,
        units: Callable[[Mapping[str, Tensor], Tensor | None, Tensor], Units] = one_unit_a_row,
    ) -> None:
        """Hooks the modules of the layers whose signals are needed.

        Args:
            model: a classifier of a family that `pipeline.families` knows.
            needs: names of `SIGNALS`, of every layer; or the layers of each, counted from 1, with 0 for the embedding
                output. Logits and the mask are always read.
            frozen: for the teacher: every batch is read in eval mode and without gradient, even when a wrapper that
                owns both models was put into train mode in between.
            units: of the task: what its outputs are compared in.

        Raises:
            SignalError: a name that is no signal, or a layer that the model does not have.
            ModelError: a family that is not known.
        """
        shape = shape_of(model.config)
        self.model, self.frozen, self._units = model, frozen, units
        self._layers, self._has_token = shape.layers, shape.distillation_token
        if unknown := set(needs) - set(SIGNALS):
            raise SignalError(f"no signal {sorted(unknown)}; known: {', '.join(SIGNALS)}")
        self.needs = {
            name: frozenset(needs[name] if isinstance(needs, Mapping) else range(name != "hidden", self._layers + 1))
            for name in needs
        }
        if wrong := {(n, i) for n, which in self.needs.items() for i in which if not 0 <= i <= self._layers}:
            name, layer = min(wrong)
            raise SignalError(f"no layer {layer} to read {name} from: the model has {self._layers} layers")
        self._taken: dict[tuple[str, int], Tensor] | None = None
        self._calls: Counter[tuple[str, nn.Module]] = Counter()
        self._stop_when_taken = False
        self._handles: list[Any] = []
        self._family = family_of(model.config)
        self._expected = {
            (part, number)
            for name, parts in (*PROJECTED.items(), ("hidden", ("hidden",)))
            for number in self.needs.get(name, ())
            for part in parts
        }
        if self._has_token and "token" in self.needs:
            self._expected.add(("hidden", self._layers))
        self._hook(layers_of(model))

    def _hook(self, layers: list[nn.Module]) -> None:
        if ("hidden", 0) in self._expected:
            self._handles.append(layers[0].register_forward_pre_hook(self._keep_input, with_kwargs=True))
        modules: dict[str, list[nn.Module]] = {"hidden": layers}
        for part in (part for parts in PROJECTED.values() for part in parts):
            modules[part] = [layer.get_submodule(self._family.module_of(part)) for layer in layers]
        for name, each in modules.items():
            # A module that several layers share stands for one after the other as it is called.
            numbers: dict[nn.Module, list[int]] = {}
            for number, module in enumerate(each, start=1):
                numbers.setdefault(module, []).append(number)
            for module, shared in numbers.items():
                if any((name, number) in self._expected for number in shared):
                    self._handles.append(module.register_forward_hook(self._keep(name, shared)))

    def __enter__(self) -> "SignalReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def read(
        self,
        batch: Mapping[str, Tensor],
        through: nn.Module | None = None,
        outputs: Mapping[str, Tensor] | None = None,
    ) -> Signals:
        """The model's signals for one batch.

        Args:
            batch: the model's inputs, `attention_mask` among them, and targets and delimiters if they are needed.
                Targets are not shown to the model, which would compute a loss of its own.
            through: what to call in place of the model when something wraps it.
            outputs: what the model is known to answer, by name; then only the layers below the last needed signal are
                run.

        Raises:
            SignalError: a layer, the batch or the model did not give what is needed, or not with its gradient.
        """
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("targets", "delimiters")}
        if "attention_mask" not in inputs:
            raise SignalError("the batch has no 'attention_mask', so padding cannot be told from text; add it")
        for name in ("targets", "delimiters"):
            if name in self.needs and name not in batch:
                raise SignalError(f"the batch has no '{name}', which a loss needs; add them or drop that loss")
        if self.frozen:
            self.model.eval()
            assert not self.model.training
        elif self._handles and self.model.is_gradient_checkpointing:
            # The reentrant kind runs the layers without gradient the first time, which is what the hooks would see.
            raise SignalError("gradient checkpointing is on, which hides the layers' gradients; switch it off")
        self._taken, self._stop_when_taken = {}, outputs is not None
        self._calls.clear()
        try:
            # no_grad, not inference_mode: autograd may not save inference tensors for the student's backward pass
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
                if outputs is None or self._expected:
                    with contextlib.suppress(_AllTaken):
                        outputs = dict((through or self.model)(**inputs, return_dict=True))
            assert outputs is not None
            mask = inputs["attention_mask"].bool()
            units = self._units(outputs, batch.get("targets"), mask)
            found = Signals(
                logits=units.logits,
                mask=mask,
                hidden=self._collect("hidden", "hidden", first=0),
                queries=self._split_heads("attention", "query"),
                keys=self._split_heads("attention", "key"),
                values=self._split_heads("values", "value"),
                biases=self._biases(inputs["attention_mask"].shape[1]),
                output_weights=self.output_weights(),
                delimiters=batch["delimiters"].bool() if "delimiters" in self.needs else None,
                token=self._taken["hidden", self._layers][:, TOKEN_POSITION]
                if self._has_token and "token" in self.needs
                else None,
                targets=units.targets if "targets" in self.needs else None,
            )
            return without_position(found, TOKEN_POSITION) if self._has_token else found
        finally:
            self._taken = None

    def _keep(self, part: str, layers: Sequence[int]) -> Callable[[nn.Module, tuple, Any], None]:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            call = self._calls[part, module]
            self._calls[part, module] += 1
            if call < len(layers):
                self._take(part, layers[call], output[0] if isinstance(output, tuple) else output)

        return hook

    def _keep_input(self, module: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> None:
        if self._taken is not None and ("hidden", 0) not in self._taken:
            self._take("hidden", 0, inputs[0] if inputs else keywords["hidden_states"])

    def _take(self, part: str, layer: int, tensor: Tensor) -> None:
        if self._taken is None or (part, layer) not in self._expected:  # someone else may run it between two reads
            return
        self._taken[part, layer] = tensor
        if self._stop_when_taken and len(self._taken) == len(self._expected):
            raise _AllTaken

    def _collect(self, name: str, part: str, first: int = 1) -> tuple[Tensor | None, ...]:
        assert self._taken is not None
        if name not in self.needs:
            return ()
        for layer in self.needs[name]:
            if (part, layer) not in self._taken:
                raise SignalError(
                    f"layer {layer} of the {self._role()} gave no {part.replace('hidden', 'hidden state')}: its module "
                    "was not called, or the reader is closed; a loss on it would silently be 0"
                )
        return tuple(
            self._taken[part, layer] if layer in self.needs[name] else None for layer in range(first, self._layers + 1)
        )

    def output_weights(self) -> tuple[Tensor | None, ...]:
        """The attention output projections of the layers that need it; no model is run for them."""
        if "output_weights" not in self.needs:
            return ()
        wanted = self.needs["output_weights"]
        found = [self._family.linear(self.model, layer, "attention_output") for layer in range(self._layers)]
        return tuple(one[0] if one and number in wanted else None for number, one in enumerate(found, start=1))

    def _biases(self, length: int) -> tuple[Tensor | None, ...]:
        wanted = self.needs.get("attention", ())
        return tuple(
            self._family.score_bias(self.model, number - 1, length) if number in wanted else None
            for number in range(1, self._layers + 1)
        )

    def _split_heads(self, name: str, part: Part) -> tuple[Tensor | None, ...]:
        return tuple(
            None if projected is None else self._family.split(self.model, layer, part, projected)
            for layer, projected in enumerate(self._collect(name, part))
        )

    def _role(self) -> str:
        return "teacher" if self.frozen else "student"


class _AllTaken(Exception):  # noqa: N818 - no error: it ends a forward pass of which nothing more is needed
    """Every signal that was asked for is there."""


def without_position(signals: Signals, position: int) -> Signals:
    """The signals as if one token did not stand in the text; attention is over what remains."""

    def drop(tensor: Tensor | None, axis: int) -> Tensor | None:
        if tensor is None:
            return None
        before, _, after = tensor.tensor_split((position, position + 1), axis)
        return torch.cat((before, after), axis)

    mask = drop(signals.mask, 1)
    assert mask is not None
    return replace(
        signals,
        mask=mask,
        delimiters=drop(signals.delimiters, 1),
        hidden=tuple(drop(tensor, 1) for tensor in signals.hidden),
        queries=tuple(drop(tensor, 2) for tensor in signals.queries),
        keys=tuple(drop(tensor, 2) for tensor in signals.keys),
        biases=tuple(drop(drop(tensor, 2), 3) for tensor in signals.biases),
        values=tuple(drop(tensor, 2) for tensor in signals.values),
    )
