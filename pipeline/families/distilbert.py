"""DistilBERT: BERT without token types and pooler, under names of its own."""

import torch

from pipeline.families._post_norm import Head, PostNorm

FAMILY = PostNorm(
    Head("pre_classifier", torch.relu, "classifier"),
    stack="transformer.layer",
    modules={
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "attention_output": "attention.out_lin",
        "ffn_in": "ffn.lin1",
        "ffn_out": "ffn.lin2",
    },
    attention_norm="sa_layer_norm",
    ffn_norm="output_layer_norm",
    activation="ffn.activation",
    sizes={"layers": "n_layers", "hidden": "dim", "heads": "n_heads", "ffn": "hidden_dim"},
    dropouts=("dropout", "attention_dropout", "seq_classif_dropout"),
)
