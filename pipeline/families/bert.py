"""BERT, and checkpoints of its kind such as MiniLM."""

import torch

from pipeline.families._post_norm import Head, PostNorm

FAMILY = PostNorm(Head("bert.pooler.dense", torch.tanh, "classifier"))
