"""ALBERT: one layer that is gone through again and again, behind narrow embeddings that are always projected.

A student with fewer layers goes through it less often; whichever of the teacher's it is told to take are the same.
"""

import torch
from transformers import PretrainedConfig

from pipeline.families._post_norm import Head, PostNorm


def _refusal(config: PretrainedConfig) -> str | None:
    if config.num_hidden_groups == config.inner_group_num == 1:
        return None
    return "its layers are in groups of weights of their own, and only one layer that all share can be copied"


FAMILY = PostNorm(
    Head("albert.pooler", torch.tanh, "classifier"),
    stack="encoder.albert_layer_groups.0.albert_layers",
    is_shared=True,
    modules={
        "query": "attention.query",
        "key": "attention.key",
        "value": "attention.value",
        "attention_output": "attention.dense",
        "ffn_in": "ffn",
        "ffn_out": "ffn_output",
    },
    attention_norm="attention.LayerNorm",
    ffn_norm="full_layer_layer_norm",
    activation="activation",
    dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob"),
    projection="encoder.embedding_hidden_mapping_in",
    refused=_refusal,
)
