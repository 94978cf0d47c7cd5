"""Align-to-Distill: learns, beside the student, which student heads make up each teacher head, in any layer.

No layer map and no head counts are needed. The alignment is thrown away after training, but for what it learned.
"""

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.families import Shape
from pipeline.losses import LossParams
from pipeline.models.layer_maps import layer_misfit, layer_pairs
from pipeline.signals.divergences import MASKED_SCORE, log_row_kl, masked_log_probs, masked_probs, mean_over_examples
from pipeline.signals.reader import Signals, attention_scores, taken

KIND = "signal"
NEEDS = ("attention",)
# Of the contract: the loss is 0 only once its module has learned the alignment, also for a student that equals its
# teacher; learned together with the heads, it may settle before.
LEARNS_ALIGNMENT = True
# Of the contract: the module's parameters learn this many times as fast as the student, and without weight decay. They
# start from nothing and have to move by several units.
LEARNING_RATE_FACTOR = 10.0

# Scores of one chunk of teacher heads: 64 MiB in float32. Those of all layers at once need far more, in several copies.
CHUNK_SCORES = 2**24
LOWEST_PROBABILITY = 1e-12  # whose logarithm is still finite in float32
# What the row form starts with at the matching head; at 1 the softmax would have no gradient left to leave it.
IDENTITY_SHARE = 0.9

Form = Literal["row", "released"]
_Layers = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(strict=False, min_length=1)]


class Params(LossParams):
    """Settings of a2d."""

    form: Form = Field(
        default="row",
        description="row: shares of student heads that add up to 1, compared row by row. released: the authors' code, "
        "an unbounded mixture whose maps go through a softmax once more; its values are far smaller.",
    )
    init: Literal["uniform", "identity"] = Field(
        default="uniform",
        description="uniform: every teacher head starts as the mean of all student heads. identity: as the head of the "
        "same number in the layer that the uniform map gives it; others as in uniform.",
    )
    teacher_layers: _Layers | None = Field(
        default=None, description="Teacher layers to learn from, counted from 1; all if absent. Fewer need less memory."
    )
    entropy_bonus: float = Field(
        default=0.0,
        ge=0,
        description="Price of using student heads unevenly, in nats; >= 0. Against a fit by few heads, whose others "
        "then learn nothing.",
    )


class Alignment(nn.Module):
    """One row of numbers for each teacher head, one column for each student head."""

    def __init__(self, form: Form, rows: list[tuple[int, int]], columns: list[tuple[int, int]]) -> None:
        """Starts even.

        Args:
            form: which of the two losses it is for.
            rows: layer and number of each teacher head, both counted from 1.
            columns: of each student head.
        """
        super().__init__()
        self.form, self.rows, self.columns = form, rows, columns
        even = 1 / len(columns) if form == "released" else 0.0
        self.weight = nn.Parameter(torch.full((len(rows), len(columns)), even))
        # Without effect: the softmax over the whole map takes a constant away. It is there because the release has it.
        self.bias = nn.Parameter(torch.zeros(len(rows))) if form == "released" else None

    def mixture(self) -> Float[Tensor, "teacher_heads student_heads"]:
        """What each student head counts for in each teacher head."""
        weight = self.weight.float()
        return weight.softmax(-1) if self.form == "row" else weight

    def shares(self) -> Float[Tensor, "teacher_heads student_heads"]:
        """The mixture as shares that add up to 1 in each row; of the released form's magnitudes."""
        size = self.mixture().abs()
        return size / size.sum(-1, keepdim=True).clamp(min=LOWEST_PROBABILITY)

    def start_at(self, row: tuple[int, int], column: tuple[int, int]) -> None:
        """Makes a student head the start of a teacher head."""
        r, c = self.rows.index(row), self.columns.index(column)
        others = max(1, len(self.columns) - 1)
        odds = IDENTITY_SHARE / (1 - IDENTITY_SHARE)
        with torch.no_grad():
            self.weight[r] = 0.0
            self.weight[r, c] = 1.0 if self.form == "released" else math.log(odds * others)


def auxiliary(student: Shape, teacher: Shape, params: Params) -> Alignment:
    """The alignment of all student heads with the heads of the chosen teacher layers."""
    chosen = _teacher_layers(params, teacher.layers)
    module = Alignment(
        params.form, _heads_of(chosen, teacher.heads), _heads_of(range(1, student.layers + 1), student.heads)
    )
    if params.init == "identity":
        for s, t in layer_pairs("uniform", student.layers, teacher.layers):
            for head in range(1, teacher.heads + 1) if t in chosen else ():
                module.start_at((t, head), (s, head))
    return module


def loss(student: Signals, teacher: Signals, params: Params, module: nn.Module | None = None) -> Float[Tensor, ""]:
    """Divergence of the aligned student heads from the teacher's, and the price of uneven use.

    Returns:
        row: `row_form`, averaged over teacher heads. released: `released_form`, added up over teacher heads. Also for
        equal models it is 0 only once the alignment is learned.

    Source: Jin et al., LREC-COLING 2024, with the code's loss as one of two forms. The bonus is ours: the nats by which
    the entropy of all teacher heads' mean shares falls short of an even use of the student's heads.
    Teacher heads come in chunks that are computed again in the backward pass where there are many: the sum is the same,
    and memory that of the student's maps and one chunk. A step multiplies B L^2 (student heads) (teacher heads).
    """
    assert isinstance(module, Alignment)
    ours = _as_one_layer(student, range(1, len(student.queries) + 1))
    theirs = _as_one_layer(teacher, _teacher_layers(params, len(teacher.queries)))
    maps = masked_probs(attention_scores(ours, 1), student.mask)  # (B, F, Q, K)
    mixture, bias = module.mixture(), module.bias
    heads, (batch, length) = len(mixture), student.mask.shape
    size = max(1, CHUNK_SCORES // (batch * length**2))
    total = maps.new_zeros(())
    for start in range(0, heads, size):
        some = slice(start, start + size)
        inputs = (maps, mixture[some], None if bias is None else bias[some], _take(theirs, some), student.mask)
        if size >= heads:
            part = _compare(*inputs)
        else:
            part = checkpoint(_compare, *inputs, use_reentrant=False, preserve_rng_state=False)
        # the row form is a mean over the heads it is given, so each chunk counts by its share
        total = total + part * (len(mixture[some]) / heads if params.form == "row" else 1)
    if params.entropy_bonus == 0:
        return total
    use = module.shares().mean(0).clamp(min=LOWEST_PROBABILITY)
    return total + params.entropy_bonus * (use * (use.log() + math.log(len(use)))).sum()


def layers(student: Shape, teacher: Shape, params: Params) -> tuple[set[int], set[int]]:
    """All of the student's and the chosen ones of the teacher's."""
    return set(range(1, student.layers + 1)), set(_teacher_layers(params, teacher.layers))


def misfit(student: Shape, teacher: Shape, params: Params) -> str | None:
    """The teacher must have the layers, and an identity to start from needs heads and layers that correspond."""
    chosen = _teacher_layers(params, teacher.layers)
    if max(chosen) > teacher.layers:
        return f"teacher_layers names layer {max(chosen)}, but the teacher has {teacher.layers} layers"
    if len(set(chosen)) < len(chosen):
        return f"teacher_layers names a layer twice in {list(chosen)}; give each once"
    if params.init == "uniform":
        return None
    if student.heads != teacher.heads:
        return (
            f"init is 'identity', which starts from heads of the same number, but the student has {student.heads} "
            f"attention heads and the teacher {teacher.heads}; use init: uniform"
        )
    if reason := layer_misfit("uniform", student.layers, teacher.layers):
        return f"init is 'identity', which needs a layer map: {reason}; use init: uniform"
    mapped = {t for _, t in layer_pairs("uniform", student.layers, teacher.layers)}
    if not mapped & set(chosen):
        return (
            f"init is 'identity', but the uniform map gives a student layer to {sorted(mapped)} only and to none of "
            f"teacher_layers {list(chosen)}; choose among these, or use init: uniform"
        )
    return None


def align(
    maps: Float[Tensor, "batch student_heads length length"],
    mixture: Float[Tensor, "teacher_heads student_heads"],
    bias: Float[Tensor, " teacher_heads"] | None = None,
) -> Float[Tensor, "batch teacher_heads length length"]:
    """What the student's maps give for each teacher head: a 1x1 convolution, in float32 also under autocast."""
    # bmm, since a plain product of a matrix and a batch would copy all maps; autocast would mix in half precision
    with torch.autocast(maps.device.type, enabled=False):
        mixed = torch.bmm(mixture.expand(len(maps), -1, -1), maps.flatten(2)).unflatten(2, maps.shape[2:])
    return mixed if bias is None else mixed + bias[:, None, None]


def row_form(
    aligned: Float[Tensor, "batch heads length length"],
    log_teacher: Float[Tensor, "batch heads length length"],
    mask: Bool[Tensor, "batch length"],
) -> Float[Tensor, ""]:
    """Divergence of the aligned rows from the teacher's.

    Args:
        aligned: probabilities.
        log_teacher: log-probabilities; no gradient flows into them.
        mask: True for a real token.

    Returns:
        Nats per teacher head and query, averaged for each example, then over the batch.

    Source: ours, in place of the released form, whose second softmax makes all maps nearly alike.
    """
    log_aligned = aligned.clamp(min=LOWEST_PROBABILITY).log()
    return log_row_kl(log_aligned, log_teacher.detach().clamp(min=math.log(LOWEST_PROBABILITY)), mask, mask)


def released_form(
    aligned: Float[Tensor, "batch heads length length"],
    teacher: Float[Tensor, "batch heads length length"],
    mask: Bool[Tensor, "batch length"],
) -> Float[Tensor, ""]:
    """Divergence of whole maps, each of which goes through one softmax over all its entries.

    Args:
        aligned: any numbers.
        teacher: probabilities, which go through the softmax as if they were scores; no gradient flows into them.
        mask: True for a real token.

    Returns:
        Nats, added up over heads, averaged over the batch. Small: maps of 128 tokens that have nothing in common are
        less than 0.01 apart.

    Source: the authors' code, with these differences: it adds up over the batch, padding takes part in its softmax, and
    its maps have been through dropout. Its teacher may carry an untrained mixture of heads; ours does not.
    """
    block = (mask[:, :, None] & mask[:, None, :]).flatten(1)[:, None]  # (B, 1, Q * K)
    log_aligned, log_teacher = (
        torch.where(block, values.float().flatten(2), MASKED_SCORE).log_softmax(-1)
        for values in (aligned, teacher.detach())
    )
    terms = torch.where(block, log_teacher.exp() * (log_teacher - log_aligned), 0.0)
    return mean_over_examples(terms.sum((1, 2)), mask)


def learned(module: nn.Module) -> dict[str, Any]:
    """The alignment in plain values: what each teacher head is made of.

    Returns:
        teacher_heads and student_heads: layer and number of each row and column, counted from 1. mixture: the matrix.
        entropy_nats: of each row's shares, 0 where one head does it all. chosen: the largest student head of each row.
    """
    assert isinstance(module, Alignment)
    with torch.no_grad():
        mixture, shares = module.mixture(), module.shares()
        entropy = -torch.special.xlogy(shares, shares).sum(-1)
    return {
        "teacher_heads": [list(head) for head in module.rows],
        "student_heads": [list(head) for head in module.columns],
        "mixture": mixture.tolist(),
        "entropy_nats": entropy.tolist(),
        "chosen": [list(module.columns[column]) for column in mixture.argmax(-1).tolist()],
    }


def _compare(maps: Tensor, mixture: Tensor, bias: Tensor | None, teacher: Signals, mask: Tensor) -> Tensor:
    scores, aligned = attention_scores(teacher, 1), align(maps, mixture, bias)
    if bias is None:
        return row_form(aligned, masked_log_probs(scores, mask), mask)
    return released_form(aligned, masked_probs(scores, mask), mask)


def _teacher_layers(params: Params, count: int) -> tuple[int, ...]:
    return params.teacher_layers or tuple(range(1, count + 1))


def _heads_of(layers: Iterable[int], heads: int) -> list[tuple[int, int]]:
    return [(layer, head) for layer in layers for head in range(1, heads + 1)]


def _as_one_layer(signals: Signals, layers: Iterable[int]) -> Signals:
    """The heads of several layers side by side, so that their scores are one product: the maps are never copied."""
    layers = list(layers)
    queries, keys = (
        torch.cat([taken(layered, layer - 1) for layer in layers], 1) for layered in (signals.queries, signals.keys)
    )
    given = [signals.biases[layer - 1] for layer in layers] if signals.biases else []
    biases: tuple[Tensor, ...] = ()
    if any(bias is not None for bias in given):
        heads, length = queries.shape[1] // len(layers), queries.shape[2]
        each = [queries.new_zeros(1, 1, 1, 1) if bias is None else bias for bias in given]
        biases = (torch.cat([bias.expand(1, heads, length, length) for bias in each], 1),)
    return Signals(logits=signals.logits, mask=signals.mask, queries=(queries,), keys=(keys,), biases=biases)


def _take(joined: Signals, heads: slice) -> Signals:
    return Signals(
        logits=joined.logits,
        mask=joined.mask,
        queries=(taken(joined.queries, 0)[:, heads],),
        keys=(taken(joined.keys, 0)[:, heads],),
        biases=tuple(bias[:, heads] for bias in joined.biases if bias is not None),
    )
