"""Hidden states: what each student layer says about a token follows the teacher, number by number."""

from functools import partial

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from pipeline.families import Shape
from pipeline.losses import LayerLossParams
from pipeline.models.layer_maps import Pairs, layer_misfit, layer_pairs
from pipeline.signals.hidden_states import mean_over_pairs, mean_over_tokens, projections
from pipeline.signals.reader import Signals

KIND = "signal"
NEEDS = ("hidden",)
ALIGNED_BY = "characters"


class Params(LayerLossParams):
    """Settings of hidden_mse."""

    embeddings: bool = Field(
        default=False, description="Compare the embedding output (hidden state 0) as well as the mapped layers."
    )
    normalize: bool = Field(
        default=True,
        description="Bring each token's state to mean 0 and variance 1 on both sides first; false as in TinyBERT.",
    )


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """Mean of `hidden_mse` over the mapped layers, the student's states first brought to the teacher's width."""
    pairs = _pairs(params, len(student.hidden) - 1, len(teacher.hidden) - 1)
    compare = partial(hidden_mse, mask=student.mask, normalize=params.normalize)
    return mean_over_pairs(compare, student.hidden, teacher.hidden, pairs, module)


def layers(student: Shape, teacher: Shape, params: Params) -> tuple[set[int], set[int]]:
    """Those of the map, and the embedding outputs where they are compared."""
    pairs = _pairs(params, student.layers, teacher.layers)
    return {s for s, _ in pairs}, {t for _, t in pairs}


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """The map must fit; widths may differ."""
    return layer_misfit(params.map, student.layers, teacher.layers)


def auxiliary(student: Shape, teacher: Shape, params: Params) -> nn.ModuleList | None:
    """A projection for each pair, the embeddings included where they are compared; None for equal widths."""
    return projections(student, teacher, _pairs(params, student.layers, teacher.layers))


def hidden_mse(
    student: Float[Tensor, "batch length width"],
    teacher: Float[Tensor, "batch length width"],
    mask: Bool[Tensor, "batch length"],
    normalize: bool = True,
) -> Float[Tensor, ""]:
    """Squared difference of the states, averaged over width and valid tokens, then over the batch.

    Args:
        student: hidden states, already as wide as the teacher's.
        teacher: hidden states; no gradient flows into them.
        mask: True for a real token.
        normalize: bring each token's state to mean 0 and variance 1 on both sides first.

    Returns:
        0 when they agree. Normalised: agreement is up to a scale and a shift for each token, 2 when they are unrelated,
        4 when opposite. Otherwise as large as the states make it.

    Source: TinyBERT (Jiao et al. 2020), checked in its code, for the plain difference; both sides normalised as in
    MobileBERT's code, so that a few wide dimensions do not decide. The normalisation is without learned scale and
    shift, which could make the difference small without making the states alike. Valid tokens only, unlike TinyBERT's
    code.
    """
    ours, theirs = student.float(), teacher.detach().float()
    if normalize:
        width = (student.shape[-1],)
        ours, theirs = functional.layer_norm(ours, width), functional.layer_norm(theirs, width)
    return mean_over_tokens((ours - theirs).square().mean(-1), mask)


def _pairs(params: Params, student_layers: int, teacher_layers: int) -> Pairs:
    pairs = layer_pairs(params.map, student_layers, teacher_layers)
    return ((0, 0), *pairs) if params.embeddings else pairs
