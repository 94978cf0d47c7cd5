"""Attention transfer that learns how much each layer counts, or how softly it is compared."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from pipeline.families import Shape
from pipeline.losses import LayerLossParams
from pipeline.models.layer_maps import heads_misfit, layer_misfit, layer_pairs
from pipeline.signals.divergences import log_row_kl, masked_log_probs
from pipeline.signals.reader import Signals, attention_scores

KIND = "signal"
NEEDS = ("attention",)
# Of the contract: the module's parameters learn this many times as fast as the student, and without weight decay. They
# have to move by about 1, which a rate made for fine-tuning does not reach.
LEARNING_RATE_FACTOR = 10.0

# The range of a learned temperature. Below it lies a false optimum: as the temperature goes to 0, so does divergence
# times temperature squared, whatever the two models attend to. Above it hardly anything changes any more: that product
# tends to a squared difference of centred scores.
LOWEST, HIGHEST = 0.5, 4.0

Form = Literal["layer_weights", "layer_temperatures"]


class Params(LayerLossParams):
    """Settings of attention_kl_adaptive."""

    form: Form = Field(
        default="layer_weights",
        description="What is learned for each mapped pair of layers: its weight in their mean, or the temperature that "
        "divides the scores of both sides.",
    )
    entropy_bonus: float = Field(
        default=1.0,
        gt=0,
        description="Price of uneven weights in nats of attention divergence, so that no layer is dropped; > 0, the "
        "higher the more even. Not used by layer_temperatures.",
    )


class LayerScales(nn.Module):
    """One number a mapped pair, from which its weight or its temperature comes; 0 at the start: all even, or all 1."""

    def __init__(self, form: Form, pairs: int) -> None:
        super().__init__()
        self.form = form
        self.scale = nn.Parameter(torch.zeros(pairs))

    def log_weights(self) -> Float[Tensor, " pairs"]:
        """Logarithms of weights that add up to 1."""
        return self.scale.float().log_softmax(0)

    def temperatures(self) -> Float[Tensor, " pairs"]:
        """Between LOWEST and HIGHEST by a sigmoid; a clamp would leave one that reached a bound without gradient."""
        share = (1 - LOWEST) / (HIGHEST - LOWEST)
        return LOWEST + (HIGHEST - LOWEST) * (self.scale.float() + math.log(share / (1 - share))).sigmoid()


def auxiliary(student: Shape, teacher: Shape, params: Params) -> LayerScales:
    """The scales of the mapped pairs, in the map's order."""
    return LayerScales(params.form, len(layer_pairs(params.map, student.layers, teacher.layers)))


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """Attention divergence of the mapped layers under learned weights or temperatures.

    Returns:
        layer_weights: the weighted mean of `attention_kl`'s values, and `entropy_bonus` times the nats by which the
        weights' entropy falls short of even ones. layer_temperatures: the mean of `attention_kl` at each pair's
        temperature, times temperature squared. Never negative; 0 when the two models agree and nothing was learned yet.

    Source: overviews name "adaptive scaling" of attention transfer without a formula; both forms are our reading. The
    best weights for fixed divergences are softmax(-divergence / entropy_bonus): a layer that the student cannot match
    counts less, yet never nothing.
    """
    assert isinstance(module, LayerScales)
    pairs = layer_pairs(params.map, len(student.queries), len(teacher.queries))
    by_temperature = params.form == "layer_temperatures"
    temperatures = module.temperatures() if by_temperature else module.scale.new_ones(len(pairs))
    divergences = []
    for (s, t), temperature in zip(pairs, temperatures, strict=True):
        ours, theirs = attention_scores(student, s), attention_scores(teacher, t).detach()
        # not row_kl, which would cut the temperature's gradient on the teacher's side off as well
        logs = [masked_log_probs(scores / temperature, student.mask) for scores in (ours, theirs)]
        divergences.append(log_row_kl(logs[0], logs[1], student.mask, student.mask) * temperature**2)
    if by_temperature:
        return torch.stack(divergences).mean()
    log_weights = module.log_weights()
    unevenness = (log_weights.exp() * (log_weights + math.log(len(pairs)))).sum()
    return (log_weights.exp() * torch.stack(divergences)).sum() + params.entropy_bonus * unevenness


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """The map must fit, and heads are compared one by one."""
    return heads_misfit(student, teacher) or layer_misfit(params.map, student.layers, teacher.layers)


def learned(module: nn.Module) -> dict[str, Any]:
    """The weights or the temperatures of the mapped pairs, in the map's order."""
    assert isinstance(module, LayerScales)
    values = module.temperatures() if module.form == "layer_temperatures" else module.log_weights().exp()
    return {module.form: values.tolist()}
