"""Loading, saving and checking classifiers: teachers, and students with a factorised embedding.

Weights are read from safetensors only: a pickle can run code when it is opened.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from pipeline.base.errors import ModelError, first_line
from pipeline.families import (
    CHOICES,
    DISTILLATION_TOKEN,
    HEAD,
    SEPARATOR,
    encoder_of,
    family_of,
    head_of,
    positions_of,
    token_types,
)
from pipeline.models.model_files import check_folder
from pipeline.tasks import Head

# Attribute of a saved configuration: width of a factorised token embedding.
FACTORISED = "decant_embedding_size"
# kind of head -> the class of transformers that has it
AUTO = {
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
}


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration in a model folder, of a family that Decant knows."""
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: config.json cannot be read: {first_line(error)}") from error
    family_of(config)
    return config


def check_positions(
    config: PretrainedConfig, max_length: int, model: str = "teacher.model", setting: str = "data.max_length"
) -> None:
    """Raises ModelError when data.max_length is beyond what a model has positions for."""
    if max_length > positions_of(config):
        raise ModelError(
            f"{setting} is {max_length}, but {model} has positions for {positions_of(config)} tokens; lower it"
        )


def check_origin(config: PretrainedConfig, name: str, setting: str) -> None:
    """Raises ModelError for a model that was made with what a student is given anew."""
    for key, what in ((FACTORISED, "a factorised embedding"), (DISTILLATION_TOKEN, "a distillation token")):
        if getattr(config, key, None):
            raise ModelError(
                f"{setting} '{name}': a student with {what}, which is no model to copy from; name what it was "
                "copied from, and set the student's own embedding and distillation_token"
            )


def check_vocabulary(config: PretrainedConfig, tokens: int) -> None:
    """Raises ModelError when a tokenizer has tokens that the model has no embedding for."""
    if tokens > config.vocab_size:
        raise ModelError(
            f"the tokenizer has {tokens} tokens, but the model {config.vocab_size}; it belongs to another model"
        )


def load_with_head(
    folder: Path,
    head: Head,
    separator: int | None = None,
    *,
    is_new: bool = True,
    setting: str = "teacher.fine_tune",
) -> PreTrainedModel:
    """The model in `folder` with a task's head.

    One that is not new is the folder's own, and must have the same outputs in the same order, compared by name.

    Args:
        folder: a model, with or without a head.
        head: what the task needs.
        separator: the token between the texts of a pair, None where a row is one text.
        is_new: whether the head is a random one.
        setting: what asks for a new head, for messages.

    Raises:
        ModelError: the outputs differ, or the weights do not fit the configuration or are not finite.
    """
    config = read_config(folder)
    if not is_new:
        _check_outputs(config, head, setting)
    config.num_labels = head.outputs
    if head.names:
        names = dict(enumerate(head.names))
        config.id2label, config.label2id = names, {name: number for number, name in names.items()}
    config.problem_type = head.problem_type
    set_attributes(config, {HEAD: head.kind, CHOICES: head.choices, SEPARATOR: separator})
    model = _from_folder(folder, config, new_head=is_new)
    check_finite(model, str(folder))
    return model


def set_attributes(config: PretrainedConfig, values: Mapping[str, Any]) -> None:
    """Sets what Decant itself keeps in a configuration; None takes an attribute away."""
    for name, value in values.items():
        if value is not None:
            setattr(config, name, value)
        elif hasattr(config, name):
            delattr(config, name)


def _class_of(config: PretrainedConfig) -> Any:
    """The class of transformers that has a model's head."""
    return getattr(transformers, AUTO[head_of(config)])


def _told_types(model: PreTrainedModel) -> PreTrainedModel:
    """Has a model of pairs find out by itself which text a token belongs to, so that nobody needs to pass it."""
    separator = getattr(model.config, SEPARATOR, None)
    if separator is not None and getattr(model.config, "type_vocab_size", 1) > 1:

        def tell(module: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            return inputs, {**keywords, "token_type_ids": token_types(keywords["input_ids"], separator).long()}

        model.register_forward_pre_hook(tell, with_kwargs=True)
    return model


def _from_folder(folder: Path, config: PretrainedConfig, *, new_head: bool = False) -> PreTrainedModel:
    """The model in a folder, whole: transformers would fill what is missing with random weights, and go on."""
    family_of(config).prepare(config)
    try:
        model, info = _class_of(config).from_pretrained(
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
        # A fresh head (and a pooler, where a checkpoint has none) may be wanted; a fresh encoder is not.
        is_encoder = name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name
        return not new_head or is_encoder

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
    return _told_types(model)


def _check_outputs(config: PretrainedConfig, head: Head, setting: str) -> None:
    labels = head.names or tuple(f"LABEL_{i}" for i in range(head.outputs))
    found = [(config.id2label or {})[i] for i in range(config.num_labels)]
    generic = [f"LABEL_{i}" for i in range(len(found))]
    if len(found) != len(labels):
        raise ModelError(
            f"the teacher answers {len(found)} labels ({', '.join(found[:5])}…), the data has {len(labels)} "
            f"({', '.join(labels[:5])}…); give a teacher for this data, or set {setting} to true"
        )
    if found != list(labels) and found != generic:
        raise ModelError(
            f"the teacher's labels {found[:5]}… differ from the data's {list(labels)[:5]}… in name or order; "
            f"rename them, or set {setting} to true"
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

        model = new_model(config)
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


def token_table(model: PreTrainedModel) -> nn.Embedding:
    """The token embedding with one row for each id: the narrow one where the embedding is factorised."""
    words = encoder_of(model).get_submodule(family_of(model.config).words)
    table = words.tokens if isinstance(words, FactorisedEmbedding) else words
    assert isinstance(table, nn.Embedding)
    return table


def new_model(config: PretrainedConfig) -> PreTrainedModel:
    """A classifier of this configuration with random weights, factorised embedding included."""
    family_of(config).prepare(config)
    model = _told_types(_class_of(config).from_config(config))
    width = getattr(config, FACTORISED, None)
    if width is not None:
        plain = token_table(model)
        words = FactorisedEmbedding(config.vocab_size, width, plain.embedding_dim, plain.padding_idx)
        encoder_of(model).set_submodule(family_of(config).words, words.to(plain.weight.dtype))
        nn.init.normal_(words.tokens.weight, std=0.02)
    return model
