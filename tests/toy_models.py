"""Random encoder classifiers of a few thousand weights, one for each family, and a batch with padding for them."""

import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from pipeline.families import family_of

_BERT_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 60,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
_DISTILBERT_SIZES = {
    "dim": 32,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 48,
    "vocab_size": 60,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
# the layer in the middle is local: a token sees two on either side
_MODERNBERT_SIZES = _BERT_SIZES | {
    "global_attn_every_n_layers": 2,
    "local_attention": 4,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "mlp_dropout": 0.1,  # as others have
}
FAMILIES = {
    "bert": (BertConfig, BertForSequenceClassification, _BERT_SIZES),
    "roberta": (RobertaConfig, RobertaForSequenceClassification, _BERT_SIZES),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaForSequenceClassification, _BERT_SIZES),
    # narrower embeddings, which ELECTRA projects before the first layer
    "electra": (ElectraConfig, ElectraForSequenceClassification, _BERT_SIZES | {"embedding_size": 16}),
    # embeddings as wide as the hidden size are projected as well
    "albert": (AlbertConfig, AlbertForSequenceClassification, _BERT_SIZES | {"embedding_size": 16}),
    "mpnet": (MPNetConfig, MPNetForSequenceClassification, _BERT_SIZES),
    "modernbert": (ModernBertConfig, ModernBertForSequenceClassification, _MODERNBERT_SIZES),
    "distilbert": (DistilBertConfig, DistilBertForSequenceClassification, _DISTILBERT_SIZES),
}
# of their own, so that a student's `embedding` is refused
NARROW_EMBEDDINGS = ("electra", "albert")
# whose positions turn pairs of a head's units, so that a head copied from a teacher cannot have any width
ROTARY = ("modernbert",)
# ELECTRA and MPNet have no fused attention in this version of transformers
FUSED = ("bert", "roberta", "xlm-roberta", "albert", "modernbert", "distilbert")


def toy_model(family: str = "bert", attention: str = "eager", seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random classifier in eval mode; weights are larger than usual, so that attention is far from even."""
    config_class, model_class, sizes = FAMILIES[family]
    torch.manual_seed(seed)
    config = config_class(**(sizes | {"initializer_range": 0.3} | changes), attn_implementation=attention)
    return model_class(config).eval()


def shallow_model(family: str) -> PreTrainedModel:
    """One layer, under fused attention where there is one.

    ALBERT goes through its layer twice, and ModernBERT has one of each kind.
    """
    layers = 2 if family in ("albert", "modernbert") else 1
    attention = "sdpa" if family in FUSED else "eager"
    return toy_model(family, attention, **{family_of(FAMILIES[family][0]()).sizes["layers"]: layers})


def toy_batch(seed: int = 0) -> dict[str, Tensor]:
    """Three sentences of 7, 4 and 1 tokens, padded to 7, with labels."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(7)[None, :] < torch.tensor([[7], [4], [1]])).long()
    # 0 and 1 are padding tokens in one family or another, and RoBERTa counts positions by them
    ids = torch.randint(2, 60, (3, 7), generator=generator)
    return {"input_ids": ids * mask + (1 - mask), "attention_mask": mask, "labels": torch.tensor([0, 2, 1])}


def marked_batch(seed: int = 0) -> dict[str, Tensor]:
    """The same batch with the first and last token of each sentence marked as delimiters."""
    batch = toy_batch(seed)
    last = batch["attention_mask"].sum(1, keepdim=True) - 1
    positions = torch.arange(batch["input_ids"].shape[1])[None, :]
    return batch | {"delimiters": (positions == 0) | (positions == last)}
