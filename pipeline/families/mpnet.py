"""MPNet: RoBERTa without token types, whose scores have a bias for each distance between two tokens."""

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from pipeline.families._interface import encoder_of
from pipeline.families._post_norm import Head, PostNorm

PADDING = 1  # whatever the configuration says: the embeddings count positions from it
FARTHEST = 128  # all that are farther away share a bias


def _refusal(config: PretrainedConfig) -> str | None:
    if config.pad_token_id == PADDING:
        return None
    return f"it pads with id {config.pad_token_id}, and positions are counted by id {PADDING}"


def _distances(model: Any, length: int) -> Tensor:
    """The bias of each head for a key so far behind its query, from -reach to reach: (2 reach + 1, H)."""
    encoder = encoder_of(model).encoder
    reach = min(length - 1, FARTHEST)
    distances = torch.arange(-reach, reach + 1, device=encoder.relative_attention_bias.weight.device)
    # the number of buckets is the function's own default, as in the model's forward
    return encoder.relative_attention_bias(encoder.relative_position_bucket(distances))


FAMILY = PostNorm(
    Head("classifier.dense", torch.tanh, "classifier.out_proj"),
    modules={
        "query": "attention.attn.q",
        "key": "attention.attn.k",
        "value": "attention.attn.v",
        "attention_output": "attention.attn.o",
        "ffn_in": "intermediate.dense",
        "ffn_out": "output.dense",
    },
    attention_norm="attention.LayerNorm",
    dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
    is_counted=True,
    distances=_distances,
    head_tables=("encoder.relative_attention_bias",),
    refused=_refusal,
)
