"""Building a student, and initialising it from a model: copied layers, projected where it is narrower.

That model is called the teacher here, since it mostly is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pipeline.base.errors import ModelError
from pipeline.families import (
    DISTILLATION_TOKEN,
    SEPARATOR,
    Linear,
    Part,
    Shape,
    encoder_of,
    family_of,
    head_of,
    shape_of,
)
from pipeline.models.checkpoints import FACTORISED, FactorisedEmbedding, new_model, token_table
from pipeline.models.layer_maps import layer_pairs
from pipeline.settings.student import StudentSettings

READING: tuple[Part, ...] = ("ffn_in", "ffn_gate")  # what an FFN's units are computed with
TOKEN_NOISE = 0.02  # spread of a distillation token around its class token at the start, as weights have


def student_config(
    teacher: PretrainedConfig, settings: StudentSettings, vocabulary: int | None = None
) -> PretrainedConfig:
    """The teacher's configuration with the student's sizes.

    Args:
        teacher: the teacher's.
        settings: the student's sizes.
        vocabulary: tokens of the teacher that the student keeps; None keeps all. A distillation token is one more.

    Raises:
        ModelError: heads do not divide the hidden size, or a size is larger than the teacher's while layers are copied.
    """
    family, whole = family_of(teacher), shape_of(teacher)
    shape = Shape(
        layers=settings.layers,
        hidden=settings.hidden or whole.hidden,
        heads=settings.heads or whole.heads,
        ffn=settings.ffn or (whole.ffn * (settings.hidden or whole.hidden) // whole.hidden),
        choices=whole.choices,
    )
    if shape.hidden % shape.heads:
        raise ModelError(
            f"student: hidden {shape.hidden} is not divisible by heads {shape.heads}; choose heads that divide it"
        )
    if not settings.init.is_random:
        for name in ("layers", "hidden", "heads", "ffn"):
            if getattr(shape, name) > getattr(whole, name):
                raise ModelError(
                    f"student.{name} is {getattr(shape, name)}, the model that it is copied from has "
                    f"{getattr(whole, name)}; a copy cannot be larger: choose less, or set student.init.from to random"
                )
    config = type(teacher).from_dict(teacher.to_dict())
    for size, name in family.sizes.items():
        setattr(config, name, getattr(shape, size))
    config.vocab_size = vocabulary or teacher.vocab_size
    if settings.dropout is not None:
        for name in family.dropouts:
            setattr(config, name, settings.dropout)
    if settings.distillation_token:
        if head_of(teacher) != "sequence":
            raise ModelError(
                "student.distillation_token is true, but this task answers each token, and that one is none of a text; "
                "set it to false"
            )
        config.vocab_size += 1
        setattr(config, DISTILLATION_TOKEN, True)
    family.adapt(config, teacher)
    if settings.embedding is not None and settings.embedding < shape.hidden:
        if (reason := family.own_embedding(config)) is not None:
            raise ModelError(f"student.embedding: a model of type '{config.model_type}' {reason}; leave it null")
        setattr(config, FACTORISED, settings.embedding)
    return config


def build_student(
    teacher: PreTrainedModel,
    settings: StudentSettings,
    seed: int,
    keep_tokens: Sequence[int] | None = None,
    probe: Sequence[dict[str, Tensor]] = (),
) -> PreTrainedModel:
    """A student in the teacher's family, initialised as the settings say.

    Args:
        teacher: the model to copy from, in eval mode; unchanged.
        settings: the student's sizes and initialisation.
        seed: decides every random weight.
        keep_tokens: teacher token ids that the student's vocabulary keeps, in the student's order; None keeps all.
        probe: batches of training text in teacher ids, without a distillation token; needed when the student is
            narrower than the teacher, or has such a token.
    """
    config = student_config(teacher.config, settings, len(keep_tokens) if keep_tokens is not None else None)
    for name in ("pad_token_id", SEPARATOR):
        if keep_tokens is not None and getattr(config, name, None) is not None:
            setattr(config, name, list(keep_tokens).index(getattr(config, name)))
    with torch.random.fork_rng(devices=[]):  # built on the CPU
        torch.manual_seed(seed)
        student = new_model(config)
        noise = torch.randn(token_table(student).embedding_dim) * TOKEN_NOISE
    with torch.no_grad():
        if not settings.init.is_random:
            _initialise(student, teacher, settings, keep_tokens, probe)
        if settings.distillation_token:
            # The last row: an id above all others leaves those of the text as they are.
            words = token_table(student).weight
            words[-1] = words[_class_token(probe, keep_tokens)] + noise
    return student


def _class_token(probe: Sequence[dict[str, Tensor]], keep_tokens: Sequence[int] | None) -> int:
    """The class token in the student's ids: what every text begins with, since no configuration names it for BERT."""
    if not probe:
        raise ModelError("a distillation token begins as a copy of the class token, which text shows: give probe text")
    first = int(probe[0]["input_ids"][0, 0])
    return first if keep_tokens is None else list(keep_tokens).index(first)


def _initialise(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    settings: StudentSettings,
    keep_tokens: Sequence[int] | None,
    probe: Sequence[dict[str, Tensor]],
) -> None:
    small, large = shape_of(student.config), shape_of(teacher.config)
    pairs = layer_pairs(_layer_choice(settings, small, large), small.layers, large.layers)
    layers = [(LayerOf(student, s - 1), LayerOf(teacher, t - 1)) for s, t in pairs]
    norms = _norms_of(layers)
    basis, seen = torch.eye(large.hidden), {}
    if small.hidden < large.hidden:
        seen = _seen_by([norm for _, _, norm in norms if norm is not None], teacher, probe)
        # Embeddings may have a width of their own, with directions of their own.
        states = [output for _, output in seen.values() if output.shape[-1] == large.hidden]
        basis = leading_directions(torch.cat(states), small.hidden)
    _copy_embeddings(student, teacher, basis, keep_tokens)
    _copy_head(student, teacher, basis)
    writing = [_writing(theirs, basis) for _, theirs in layers]
    head_tables = (family_of(teacher.config).tables_of_heads(model) for model in (student, teacher))
    for mine_table, their_table in zip(*head_tables, strict=True):
        writing = [torch.stack(writing).sum(0)] * len(writing)  # the same heads in every layer, as they share it
        mine_table.weight.copy_(their_table.weight[:, _largest(writing[0], small.heads)])
    for (mine, theirs), scores in zip(layers, writing, strict=True):
        _copy_attention(mine, theirs, basis, _largest(scores, small.heads))
        _copy_ffn(mine, theirs, basis)
    for layer, norm, whole in norms:
        if whole is None:
            continue  # the teacher's layer has none: the student's starts as new
        if whole.normalized_shape[0] == large.hidden > small.hidden:
            scale, shift = _fitted(*seen[id(whole)], basis, has_shift=whole.bias is not None)
        else:
            scale, shift = whole.weight, whole.bias
        if norm is None:
            assert layer is not None
            family_of(student.config).absorb(student, layer, scale)
        else:
            norm.weight.copy_(scale)
            if shift is not None:
                norm.bias.copy_(shift)


def _layer_choice(settings: StudentSettings, small: Shape, large: Shape) -> str | tuple[tuple[int, int], ...]:
    layers = settings.init.layers
    if isinstance(layers, str):
        return layers
    if len(layers) != small.layers or max(layers) > large.layers:
        raise ModelError(
            f"student.init.layers is {list(layers)}, expected {small.layers} numbers from 1 to {large.layers}"
        )
    return tuple(enumerate(layers, start=1))


def leading_directions(states: Float[Tensor, "tokens hidden"], width: int) -> Float[Tensor, "hidden width"]:
    """Orthonormal directions that keep most of the states' squared length (not centred: the mean matters too)."""
    _, vectors = torch.linalg.eigh(states.double().T @ states.double())
    chosen = vectors[:, -width:].flip(-1)
    # A sign is arbitrary in any eigenvector; fix it, or two machines initialise two students.
    signs = torch.sign(chosen[chosen.abs().argmax(dim=0), torch.arange(width)])
    return (chosen * signs).float()


Norm = nn.LayerNorm | None


def _norms_of(layers: "Sequence[tuple[LayerOf, LayerOf]]") -> list[tuple[int | None, Norm, Norm]]:
    """(student's layer or None, student's norm, teacher's norm) outside the layers and in each."""
    mine, theirs = layers[0]
    family = family_of(mine.model.config)
    places = [(None, None), *((one.number, other.number) for one, other in layers)]
    return [
        (place, norm, whole)
        for place, other in places
        for norm, whole in zip(family.norms(mine.model, place), family.norms(theirs.model, other), strict=True)
    ]


def _seen_by(
    norms: Sequence[nn.LayerNorm], model: PreTrainedModel, probe: Sequence[dict[str, Tensor]]
) -> dict[int, tuple[Tensor, Tensor]]:
    """What each norm takes and gives for the valid tokens of the probe, by id of the module: (tokens, hidden)."""
    if not probe:
        raise ModelError("a student narrower than its teacher is projected on the teacher's states: give probe text")
    each = {id(norm): norm for norm in norms}  # one that layers share is there once, and called for each
    collected: dict[int, list[tuple[Tensor, Tensor]]] = {key: [] for key in each}
    with _eval_mode(model):
        for batch in probe:
            valid = batch["attention_mask"].bool()
            hooks = [norm.register_forward_hook(_collector(collected[key], valid)) for key, norm in each.items()]
            model(**batch)
            for hook in hooks:
                hook.remove()
    return {
        key: (torch.cat([taken for taken, _ in pairs]), torch.cat([given for _, given in pairs]))
        for key, pairs in collected.items()
    }


def _collector(into: list[tuple[Tensor, Tensor]], valid: Tensor) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        into.append((args[0][valid], output[valid]))

    return hook


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    yield
    model.train(was_training)


def _fitted(
    taken: Float[Tensor, "tokens hidden"], given: Float[Tensor, "tokens hidden"], basis: Tensor, *, has_shift: bool
) -> tuple[Tensor, Tensor | None]:
    """Scale and shift of a norm in the student's directions, so that it gives what the teacher's gives, projected."""
    projected = given @ basis
    if has_shift:  # the spread and the mean of each direction
        return projected.std(dim=0), projected.mean(dim=0)
    normal = nn.functional.layer_norm(taken @ basis, (basis.shape[1],))
    return (normal * projected).sum(0) / normal.square().sum(0), None  # least squares


def _copy_embeddings(
    student: PreTrainedModel, teacher: PreTrainedModel, basis: Tensor, keep_tokens: Sequence[int] | None
) -> None:
    family = family_of(teacher.config)
    mine = encoder_of(student).get_submodule(family.words)
    words = token_table(teacher).weight
    narrow, new_narrow = family.narrow(teacher), family.narrow(student)
    # With such a projection the embedding keeps its own width, and only the projection changes basis.
    change = torch.eye(words.shape[1]) if narrow is not None else basis
    if keep_tokens is not None:
        words = words[torch.as_tensor(list(keep_tokens))]
    words = words @ change
    if isinstance(mine, FactorisedEmbedding):
        # The best rank-e approximation of the table, split evenly between its two factors.
        directions = leading_directions(words, mine.tokens.embedding_dim)
        mine.tokens.weight[: len(words)].copy_(words @ directions)
        mine.project.weight.copy_(directions)
    else:
        assert isinstance(mine, nn.Embedding)
        mine.weight[: len(words)].copy_(words)  # behind them only a distillation token
    for small, large in zip(family.tables(student), family.tables(teacher), strict=True):
        small.weight.copy_(large.weight @ change)
    if narrow is not None:
        assert new_narrow is not None, "the family keeps it"
        _set((new_narrow.weight, new_narrow.bias), basis.T @ narrow.weight, narrow.bias @ basis)


def _copy_head(student: PreTrainedModel, teacher: PreTrainedModel, basis: Tensor) -> None:
    """Copies the head. Between its two layers is an elementwise function, so units are chosen, not mixed."""
    family = family_of(teacher.config)
    (dense, norm, out), (new_dense, new_norm, new_out) = family.head(teacher), family.head(student)
    if dense is None or new_dense is None:
        _set((new_out.weight, new_out.bias), out.weight @ basis, out.bias)
        return
    writing = out.weight.norm(dim=0) if norm is None else out.weight.norm(dim=0) * norm.weight.abs()
    units = _largest(writing, new_dense.weight.shape[0])
    weight, bias = _filled((dense.weight, dense.bias))
    _set((new_dense.weight, new_dense.bias), weight[units] @ basis, bias[units])
    if norm is not None and new_norm is not None:
        weight, bias = _filled((norm.weight, norm.bias))
        _set((new_norm.weight, new_norm.bias), weight[units], bias[units])
    _set((new_out.weight, new_out.bias), out.weight[:, units], out.bias)


def _largest(scores: Float[Tensor, " units"], count: int) -> Tensor:
    """Numbers of the `count` largest scores, ascending."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _filled(linear: Linear) -> tuple[Tensor, Tensor]:
    weight, bias = linear
    return weight, weight.new_zeros(len(weight)) if bias is None else bias


def _set(linear: Linear, weight: Tensor, bias: Tensor) -> None:
    linear[0].copy_(weight)
    if linear[1] is not None:
        linear[1].copy_(bias)


@dataclass(frozen=True)
class LayerOf:
    """One layer of a model, counted from 0."""

    model: PreTrainedModel
    number: int

    def linear(self, part: Part) -> Linear:
        """Weight and bias of a part."""
        found = family_of(self.model.config).linear(self.model, self.number, part)
        assert found is not None, part
        return found

    def has(self, part: Part) -> bool:
        """Whether its family has such a part."""
        return family_of(self.model.config).linear(self.model, self.number, part) is not None

    def read(self, part: Part) -> tuple[Tensor, Tensor]:
        """The same, with zeros for a bias that it does not have."""
        return _filled(self.linear(part))

    @property
    def shape(self) -> Shape:
        """Of the model."""
        return shape_of(self.model.config)


def _copy_ffn(mine: LayerOf, theirs: LayerOf, basis: Tensor) -> None:
    """The units that write most, in the student's basis."""
    down, down_bias = theirs.read("ffn_out")
    writing, read_by = down.norm(dim=0), [part for part in READING if theirs.has(part)]
    for part in read_by:
        writing = writing * theirs.read(part)[0].norm(dim=1)
    units = _largest(writing, mine.shape.ffn)
    for part in read_by:
        up, up_bias = theirs.read(part)
        _set(mine.linear(part), up[units] @ basis, up_bias[units])
    _set(mine.linear("ffn_out"), basis.T @ down[:, units], down_bias @ basis)


def _writing(layer: LayerOf, basis: Float[Tensor, "hidden width"]) -> Float[Tensor, " heads"]:
    """How much each head writes into the student's states."""
    value, _ = layer.read("value")
    output, _ = layer.read("attention_output")
    H = layer.shape.heads
    v = (value @ basis).view(H, -1, basis.shape[1])
    o = (basis.T @ output).view(basis.shape[1], H, -1).transpose(0, 1)  # (H, D', d)
    return (o @ v).flatten(1).norm(dim=1)


def _copy_attention(mine: LayerOf, theirs: LayerOf, basis: Tensor, heads: Int[Tensor, " kept"]) -> None:
    """The numbered heads of one teacher layer, in the student's basis and head width."""
    small, large = mine.shape, theirs.shape
    H, d = large.heads, large.hidden // large.heads
    d_small = small.hidden // small.heads

    def per_head(part: Part) -> Tensor:
        """Weights and bias of each head on [state, 1], in the student's basis: (H, d, D' + 1)."""
        weight, bias = theirs.read(part)
        return torch.cat([(weight @ basis).view(H, d, -1), bias.view(H, d, 1)], dim=-1)

    q, k, v = per_head("query"), per_head("key"), per_head("value")
    output, output_bias = theirs.read("attention_output")
    o = (basis.T @ output).view(-1, H, d).transpose(0, 1)  # (H, D', d)
    q, k, v, o = q[heads], k[heads], v[heads], o[heads]
    if d_small != d:
        # Scores depend on Qᵀ K only, outputs on O V only: keep the best approximation of each product.
        scale = (d_small / d) ** 0.5  # scores are divided by √d'
        if family_of(theirs.model.config).turns_pairs:
            pairs = _pairs_kept(d, d_small)
            q, k = q[:, pairs] * scale, k[:, pairs]
        else:
            q, k = _split_product(q.transpose(1, 2) @ k * scale, d_small)
        o, v = _split_product(o @ v, d_small, left_columns=True)
    projections: tuple[tuple[Part, Tensor], ...] = (("query", q), ("key", k), ("value", v))
    for part, stacked in projections:
        flat = stacked.reshape(small.hidden, -1)
        _set(mine.linear(part), flat[:, :-1], flat[:, -1])
    flat = o.transpose(0, 1).reshape(small.hidden, small.hidden)
    _set(mine.linear("attention_output"), flat, output_bias @ basis)


def _pairs_kept(width: int, kept: int) -> Int[Tensor, " kept"]:
    """The units that turn, pair by pair, at the speeds that pairs of the narrower head have.

    Raises:
        ModelError: there are no such pairs.
    """
    if width % kept or kept % 2:
        raise ModelError(
            f"student: its heads are {kept} wide, the teacher's {width}, in which positions turn pairs of units at "
            f"speeds that go by the width; choose hidden and heads so that the width is even and divides {width}, or "
            "set student.init.from to random"
        )
    first = torch.arange(0, width // 2, width // kept)
    return torch.cat([first, first + width // 2])


def _split_product(
    product: Float[Tensor, "heads rows columns"], rank: int, left_columns: bool = False
) -> tuple[Tensor, Tensor]:
    """Factors of the best approximation: (rank, rows), or (rows, rank) if left_columns, and (rank, columns)."""
    u, s, vh = torch.linalg.svd(product.double(), full_matrices=False)
    root = s[:, :rank].sqrt()
    left, right = u[:, :, :rank] * root[:, None, :], vh[:, :rank] * root[:, :, None]
    missing = rank - root.shape[1]
    if missing > 0:  # fewer directions than the student's head has room for
        left = nn.functional.pad(left, (0, missing))
        right = nn.functional.pad(right, (0, 0, 0, missing))
    return (left if left_columns else left.transpose(1, 2)).float(), right.float()
