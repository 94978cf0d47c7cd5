"""The students that one distillation trains: the one that ships, more seeds of it, and controls."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.base import plugins
from pipeline.base.dependencies import Trace
from pipeline.data.prepared import EncodedSplit
from pipeline.settings.distill import DistillSettings
from pipeline.settings.params import Params
from pipeline.training import processes

WEIGHTED = ("weight", "decay")  # what a loss is among others


@dataclass(frozen=True)
class Variant:
    """One student to train. All variants of a run get the same number of steps, unless `patience` ends one earlier."""

    kind: str  # distilled | logits_only | no_teacher
    seed: int
    losses: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.seed}"


def variants_of(settings: DistillSettings, target_loss: str, seed: int) -> list[Variant]:
    """The students to train, the distilled ones first."""
    logit_losses = {name: s for name, s in settings.losses.items() if plugins.load("loss", name).KIND == "logit"}
    alone = {name: value for name, value in settings.losses.get(target_loss, {}).items() if name not in WEIGHTED}
    wanted: list[tuple[str, int, dict[str, dict[str, Any]]]] = [
        ("distilled", settings.seeds, settings.losses),
        ("logits_only", settings.controls.logits_only, logit_losses or {"logit_kl": {}}),
        ("no_teacher", settings.controls.no_teacher, {target_loss: alone}),
    ]
    return [Variant(kind, seed + i, losses) for kind, count, losses in wanted for i in range(count)]


def run_key(
    settings: Mapping[str, Any],
    code: Trace,
    params: Params,
    train: EncodedSplit,
    dev: EncodedSplit,
    *contents: str,
) -> str:
    """Digest of everything that decides trained weights: a checkpoint made under another key is not resumed.

    Args:
        settings: the settings of the run.
        code: what trains, and what it stands on: edited code must not find old weights, and a comment not lose them.
        params: for seed and threads.
        train: what is learned from, as the models see it.
        dev: what the checkpoint is chosen on.
        contents: what else decides, such as label names, and digests of the base model or the teacher's weights.
    """
    device = processes.device().type  # which decides what is computed in half precision
    content = [settings, params.seed, params.threads, device, train.digest, dev.digest, contents, code.digest]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
