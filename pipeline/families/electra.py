"""ELECTRA's discriminator: BERT with a GELU in its classifier, and often with narrow embeddings that are projected."""

from torch.nn.functional import gelu
from transformers import PretrainedConfig

from pipeline.base.errors import ModelError
from pipeline.families._post_norm import Head, PostNorm


def _adapt(config: PretrainedConfig, teacher: PretrainedConfig) -> None:
    """An embedding as wide as the hidden size follows it; a narrow one stays, and stays narrower."""
    if teacher.embedding_size == teacher.hidden_size:
        config.embedding_size = config.hidden_size
    elif config.embedding_size == config.hidden_size:
        raise ModelError(
            f"student.hidden {config.hidden_size} equals this ELECTRA's embedding size, whose projection would then "
            "disappear; choose another hidden size"
        )


FAMILY = PostNorm(Head("classifier.dense", gelu, "classifier.out_proj"), projection="embeddings_project", adapt=_adapt)
