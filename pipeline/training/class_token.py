"""Noise on the class token's embedding while a student trains, so that its answer leans less on one exact vector.

Source: a class token drawn from several trained vectors, or from a learned distribution, in text-dependent speaker
verification (arXiv 2111.03842, and its published version). We know the abstracts, which say no more than that: how the
vectors are made, drawn and started here is our own reading, and no published figure stands behind it. Different on
purpose: the encoder's own class token stays the mean of what is drawn, so that what ships is the plain model, and no
exported graph knows of the noise.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.models.checkpoints import token_table
from pipeline.settings.distill import ClassToken

SPREAD = 0.02  # of the noise at the start; BERT's weights begin with as much


class ClassTokenNoise(nn.Module):
    """Adds noise to the first token's embedding of a model in train mode, by a hook on its token table.

    A context manager; leaving it, or `detach`, takes the hook off. The noise has weights of its own, which are trained
    beside the model's and are no part of it. In eval mode the model is as if there were no noise.
    """

    def __init__(self, model: PreTrainedModel, settings: ClassToken) -> None:
        """Makes the noise's weights, drawn from the global random state, and hooks the model.

        Args:
            model: a classifier whose texts begin with the class token, at position 0.
            settings: `sampled` or `bayesian`; `plain` needs no noise.
        """
        super().__init__()
        assert settings.kind != "plain"
        width = token_table(model).embedding_dim  # of a factorised embedding the narrow one, which holds the row
        self.kind = settings.kind
        if self.kind == "sampled":
            self.deltas = nn.Parameter(torch.randn(settings.samples, width) * SPREAD)
        else:
            self.rho = nn.Parameter(torch.full((width,), math.log(math.expm1(SPREAD))))
        self._handle: Any = None
        self.attach(model)

    def __enter__(self) -> "ClassTokenNoise":
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def attach(self, model: PreTrainedModel) -> None:
        """Hooks the model; one that has such a noise already must be freed of it first."""
        table = token_table(model)
        owners = [getattr(hook, "__self__", None) for hook in table._forward_hooks.values()]
        assert not any(isinstance(owner, ClassTokenNoise) for owner in owners), "two noises would add up: detach one"
        self._handle = table.register_forward_hook(self._disturb)

    def detach(self) -> None:
        """Takes the hook off; the model is as it was."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def forward(self, count: int) -> Float[Tensor, "batch width"]:
        """What is added to the class token of each of `count` examples, drawn anew.

        sampled: one of K vectors whose mean is 0, so that a single one is no noise. bayesian: softplus(rho) times a
        standard normal vector; nothing but the task's losses holds the spread up, there is no prior.
        """
        if self.kind == "sampled":
            centred = self.deltas - self.deltas.mean(dim=0)
            return centred[torch.randint(len(centred), (count,), device=centred.device)]
        return nn.functional.softplus(self.rho) * torch.randn(count, len(self.rho), device=self.rho.device)

    def _disturb(self, table: nn.Module, inputs: tuple, embedded: Tensor) -> Tensor | None:
        """The hook: rows of the table as looked up (B, L, D), the first of each text disturbed."""
        if not table.training:  # the model's mode, not this module's: dev is scored while the distiller trains
            return None
        noise = self(len(embedded)).to(embedded.dtype)
        return torch.cat((embedded[:, :1] + noise[:, None], embedded[:, 1:]), dim=1)
