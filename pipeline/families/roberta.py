"""RoBERTa: BERT without a pooler, whose positions are counted over the tokens that are not padding."""

import torch

from pipeline.families._post_norm import Head, PostNorm

FAMILY = PostNorm(Head("classifier.dense", torch.tanh, "classifier.out_proj"), is_counted=True)
