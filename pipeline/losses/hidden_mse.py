"""Hidden states: what each student layer says about a token follows the teacher, up to scale and shift."""

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from pipeline.architectures import Shape
from pipeline.divergences import mean_over_examples
from pipeline.layer_maps import Pairs, layer_misfit, layer_pairs
from pipeline.losses import LayerLossParams
from pipeline.signals import Signals, taken

KIND = "signal"
NEEDS = ("hidden",)


class Params(LayerLossParams):
    """Settings of hidden_mse."""

    embeddings: bool = Field(
        default=False, description="Compare the embedding output (hidden state 0) as well as the mapped layers."
    )


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """Mean of `hidden_mse` over the mapped layers, the student's states first brought to the teacher's width."""
    pairs = _pairs(params, len(student.hidden) - 1, len(teacher.hidden) - 1)
    projections = list(module.children()) if module is not None else [nn.Identity()] * len(pairs)
    per_pair = []
    for (s, t), projection in zip(pairs, projections, strict=True):
        # autocast would project in half precision
        with torch.autocast(student.mask.device.type, enabled=False):
            projected = projection(taken(student.hidden, s).float())
        per_pair.append(hidden_mse(projected, taken(teacher.hidden, t), student.mask))
    return torch.stack(per_pair).mean()


def layers(student: Shape, teacher: Shape, params: Params) -> tuple[set[int], set[int]]:
    """Those of the map, and the embedding outputs where they are compared."""
    pairs = _pairs(params, student.layers, teacher.layers)
    return {s for s, _ in pairs}, {t for _, t in pairs}


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """The map must fit; widths may differ."""
    return layer_misfit(params.map, student.layers, teacher.layers)


def auxiliary(student: Shape, teacher: Shape, params: Params) -> nn.ModuleList | None:
    """A linear map without bias for each pair, from the student's width to the teacher's; None for equal widths.

    TinyBERT's paper gives the embeddings a map of their own and its code shares one for all; here each pair has one.
    """
    if student.hidden == teacher.hidden:
        return None
    pairs = _pairs(params, student.layers, teacher.layers)
    return nn.ModuleList(nn.Linear(student.hidden, teacher.hidden, bias=False) for _ in pairs)


def hidden_mse(
    student: Float[Tensor, "batch length width"],
    teacher: Float[Tensor, "batch length width"],
    mask: Bool[Tensor, "batch length"],
) -> Float[Tensor, ""]:
    """Squared difference of the normalised states, averaged over width and valid tokens, then over the batch.

    Args:
        student: hidden states, already as wide as the teacher's.
        teacher: hidden states; no gradient flows into them.
        mask: True for a real token.

    Returns:
        0 when they agree up to a scale and a shift for each token; 2 when they are unrelated, 4 when opposite.

    Source: TinyBERT (Jiao et al. 2020), checked in its code, with both sides normalised as in MobileBERT's code, so
    that a few wide dimensions do not decide. The normalisation is without learned scale and shift, which could make the
    difference small without making the states alike. Valid tokens only, unlike TinyBERT's code.
    """
    width = (student.shape[-1],)
    difference = functional.layer_norm(student.float(), width) - functional.layer_norm(teacher.detach().float(), width)
    per_token = torch.where(mask, difference.square().mean(-1), 0.0)  # (B, L)
    return mean_over_examples(per_token.sum(1) / mask.sum(1).clamp(min=1), mask)


def _pairs(params: Params, student_layers: int, teacher_layers: int) -> Pairs:
    pairs = layer_pairs(params.map, student_layers, teacher_layers)
    return ((0, 0), *pairs) if params.embeddings else pairs
