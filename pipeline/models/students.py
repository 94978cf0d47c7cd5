"""Building a student, and initialising it from its teacher: copied layers, projected where it is narrower."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pipeline.base.errors import ModelError
from pipeline.families.architectures import (
    DISTILLATION_TOKEN,
    Family,
    Shape,
    encoder_of,
    family_of,
    layers_of,
    shape_of,
)
from pipeline.models.checkpoints import FACTORISED, FactorisedEmbedding, new_model, token_table
from pipeline.models.layer_maps import layer_pairs
from pipeline.settings.params import StudentSettings

# Of BERT, RoBERTa and ELECTRA, then of DistilBERT.
DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
)
TOKEN_NOISE = 0.02  # spread of a distillation token around its class token at the start: BERT's own initial spread


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
        labels=whole.labels,
    )
    if shape.hidden % shape.heads:
        raise ModelError(
            f"student: hidden {shape.hidden} is not divisible by heads {shape.heads}; choose heads that divide it"
        )
    if settings.init.source == "teacher":
        for name in ("layers", "hidden", "heads", "ffn"):
            if getattr(shape, name) > getattr(whole, name):
                raise ModelError(
                    f"student.{name} is {getattr(shape, name)}, the teacher has {getattr(whole, name)}; a student "
                    "copied from its teacher cannot be larger: choose less, or set student.init.from to random"
                )
    config = type(teacher).from_dict(teacher.to_dict())
    for name in ("layers", "hidden", "heads", "ffn"):
        setattr(
            config,
            getattr(family, {"layers": "num_layers", "heads": "num_heads"}.get(name, f"{name}_size")),
            getattr(shape, name),
        )
    config.vocab_size = vocabulary or teacher.vocab_size
    if settings.dropout is not None:
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, settings.dropout)
    if settings.distillation_token:
        config.vocab_size += 1
        setattr(config, DISTILLATION_TOKEN, True)
    if config.model_type == "electra" and teacher.embedding_size == teacher.hidden_size:
        config.embedding_size = shape.hidden
    elif config.model_type == "electra" and config.embedding_size == shape.hidden:
        raise ModelError(
            f"student.hidden {shape.hidden} equals this ELECTRA's embedding size, whose projection would then "
            "disappear; choose another hidden size"
        )
    if settings.embedding is not None and settings.embedding < shape.hidden:
        if config.model_type == "electra":
            raise ModelError("student.embedding: ELECTRA has a factorised embedding of its own; leave it null")
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
        teacher: in eval mode; unchanged.
        settings: the student's sizes and initialisation.
        seed: decides every random weight.
        keep_tokens: teacher token ids that the student's vocabulary keeps, in the student's order; None keeps all.
        probe: batches of training text in teacher ids, without a distillation token; needed when the student is
            narrower than the teacher, or has such a token.
    """
    config = student_config(teacher.config, settings, len(keep_tokens) if keep_tokens is not None else None)
    if keep_tokens is not None and teacher.config.pad_token_id is not None:
        config.pad_token_id = list(keep_tokens).index(teacher.config.pad_token_id)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = new_model(config)
        noise = torch.randn(token_table(student).embedding_dim) * TOKEN_NOISE
    with torch.no_grad():
        if settings.init.source == "teacher":
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
    narrower = small.hidden < large.hidden
    basis = torch.eye(large.hidden)
    outputs: dict[int, Tensor] = {}
    if narrower:
        norms = _norms_of(teacher, [t for _, t in pairs])
        outputs = _outputs_of(teacher, norms, probe)
        # ELECTRA's embeddings may have a width of their own, with directions of their own.
        states = [output for output in outputs.values() if output.shape[-1] == large.hidden]
        basis = leading_directions(torch.cat(states), small.hidden)
    _copy_embeddings(student, teacher, basis, keep_tokens)
    _copy_head(student, teacher, basis)
    for s, t in pairs:
        _copy_layer(
            layers_of(student)[s - 1], layers_of(teacher)[t - 1], family_of(teacher.config), small, large, basis
        )
    teacher_norms = _norms_of(teacher, [t for _, t in pairs])
    student_norms = _norms_of(student, [s for s, _ in pairs])
    for mine, theirs in zip(student_norms, teacher_norms, strict=True):
        if narrower and mine.normalized_shape != theirs.normalized_shape:
            _fit_norm(mine, outputs[id(theirs)] @ basis)
        else:
            mine.load_state_dict(theirs.state_dict())


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


def _norms_of(model: PreTrainedModel, layers: Sequence[int]) -> list[nn.LayerNorm]:
    """The LayerNorms of the embeddings and of the numbered layers (from 1), in a fixed order."""
    family = family_of(model.config)
    norms = [encoder_of(model).embeddings.LayerNorm]
    for number in layers:
        layer = layers_of(model)[number - 1]
        for name in (family.attention_norm, family.ffn_norm):
            norm = layer.get_submodule(name)
            assert isinstance(norm, nn.LayerNorm)
            norms.append(norm)
    return norms


def _outputs_of(
    model: PreTrainedModel, norms: Sequence[nn.LayerNorm], probe: Sequence[dict[str, Tensor]]
) -> dict[int, Tensor]:
    """What each norm gives for the valid tokens of the probe, by id of the module: (tokens, hidden)."""
    if not probe:
        raise ModelError("a student narrower than its teacher is projected on the teacher's states: give probe text")
    collected: dict[int, list[Tensor]] = {id(norm): [] for norm in norms}
    with _eval_mode(model):
        for batch in probe:
            valid = batch["attention_mask"].bool()
            hooks = [norm.register_forward_hook(_collector(collected[id(norm)], valid)) for norm in norms]
            model(**batch)
            for hook in hooks:
                hook.remove()
    return {key: torch.cat(parts) for key, parts in collected.items()}


def _collector(into: list[Tensor], valid: Tensor) -> Callable[..., None]:
    def hook(module: nn.Module, args: object, output: Tensor) -> None:
        into.append(output[valid])

    return hook


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    yield
    model.train(was_training)


def _fit_norm(norm: nn.LayerNorm, projected: Float[Tensor, "tokens width"]) -> None:
    """Scale and shift that give each direction the spread and mean it has in the projected teacher."""
    norm.weight.copy_(projected.std(dim=0))
    norm.bias.copy_(projected.mean(dim=0))


def _copy_embeddings(
    student: PreTrainedModel, teacher: PreTrainedModel, basis: Tensor, keep_tokens: Sequence[int] | None
) -> None:
    mine, theirs = encoder_of(student).embeddings, encoder_of(teacher).embeddings
    projected = getattr(encoder_of(teacher), "embeddings_project", None)  # ELECTRA with a narrow embedding
    # With such a projection the embedding keeps its own width, and only the projection changes basis.
    change = torch.eye(theirs.word_embeddings.weight.shape[1]) if projected is not None else basis
    words = theirs.word_embeddings.weight
    if keep_tokens is not None:
        words = words[torch.as_tensor(list(keep_tokens))]
    words = words @ change
    if isinstance(mine.word_embeddings, FactorisedEmbedding):
        # The best rank-e approximation of the table, split evenly between its two factors.
        width = mine.word_embeddings.tokens.embedding_dim
        directions = leading_directions(words, width)
        mine.word_embeddings.tokens.weight[: len(words)].copy_(words @ directions)
        mine.word_embeddings.project.weight.copy_(directions)
    else:
        mine.word_embeddings.weight[: len(words)].copy_(words)  # behind them only a distillation token
    for name in ("position_embeddings", "token_type_embeddings"):
        if hasattr(theirs, name):
            getattr(mine, name).weight.copy_(getattr(theirs, name).weight @ change)
    if projected is not None:
        encoder_of(student).embeddings_project.weight.copy_(basis.T @ projected.weight)
        encoder_of(student).embeddings_project.bias.copy_(projected.bias @ basis)


# family -> the classifier's two linear layers, relative to the whole model
_HEADS = {"bert": ("bert.pooler.dense", "classifier"), "distilbert": ("pre_classifier", "classifier")}


def _copy_head(student: PreTrainedModel, teacher: PreTrainedModel, basis: Tensor) -> None:
    """Copies the classifier. Between its two layers is an elementwise function, so units are chosen, not mixed."""
    dense_name, out_name = _HEADS.get(teacher.config.model_type, ("classifier.dense", "classifier.out_proj"))
    dense, out = _linear(teacher, dense_name), _linear(teacher, out_name)
    units = _largest(out.weight.norm(dim=0), _linear(student, dense_name).weight.shape[0])
    _set_linear(_linear(student, dense_name), dense.weight[units] @ basis, dense.bias[units])
    _set_linear(_linear(student, out_name), out.weight[:, units], out.bias)


def _largest(scores: Float[Tensor, " units"], count: int) -> Tensor:
    """Numbers of the `count` largest scores, ascending."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _linear(module: nn.Module, name: str) -> nn.Linear:
    found = module.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found


def _set_linear(linear: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)


def _copy_layer(mine: nn.Module, theirs: nn.Module, family: Family, small: Shape, large: Shape, basis: Tensor) -> None:
    """One teacher layer in the student's sizes: heads that write most, FFN units that write most, changed basis."""
    _copy_attention(mine, theirs, family, small, large, basis)
    up, down = _linear(theirs, family.ffn_in), _linear(theirs, family.ffn_out)
    units = _largest(up.weight.norm(dim=1) * down.weight.norm(dim=0), small.ffn)
    _set_linear(_linear(mine, family.ffn_in), up.weight[units] @ basis, up.bias[units])
    _set_linear(_linear(mine, family.ffn_out), basis.T @ down.weight[:, units], down.bias @ basis)


def _copy_attention(
    mine: nn.Module, theirs: nn.Module, family: Family, small: Shape, large: Shape, basis: Tensor
) -> None:
    H, d = large.heads, large.hidden // large.heads
    d_small = small.hidden // small.heads
    query, key, value, output = (
        _linear(theirs, name) for name in (family.query, family.key, family.value, family.attention_output)
    )

    def per_head(linear: nn.Linear) -> Tensor:
        """Weights and bias of each head on [state, 1], in the student's basis: (H, d, D' + 1)."""
        weight = (linear.weight @ basis).view(H, d, -1)
        return torch.cat([weight, linear.bias.view(H, d, 1)], dim=-1)

    q, k, v = per_head(query), per_head(key), per_head(value)
    o = (basis.T @ output.weight).view(-1, H, d).transpose(0, 1)  # (H, D', d)
    heads = _largest((o @ v[..., :-1]).flatten(1).norm(dim=1), small.heads)
    q, k, v, o = q[heads], k[heads], v[heads], o[heads]
    if d_small != d:
        # Scores depend on Qᵀ K only, outputs on O V only: keep the best approximation of each product.
        scale = (d_small / d) ** 0.5  # scores are divided by √d'
        q, k = _split_product(q.transpose(1, 2) @ k * scale, d_small)
        o, v = _split_product(o @ v, d_small, left_columns=True)
    for name, stacked in ((family.query, q), (family.key, k), (family.value, v)):
        flat = stacked.reshape(small.hidden, -1)
        _set_linear(_linear(mine, name), flat[:, :-1], flat[:, -1])
    _set_linear(
        _linear(mine, family.attention_output),
        o.transpose(0, 1).reshape(small.hidden, small.hidden),
        output.bias @ basis,
    )


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
