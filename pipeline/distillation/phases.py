"""The phases of one training: all losses together, or those inside the encoder first and those on its answers then."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.base import plugins
from pipeline.base.errors import SettingsError
from pipeline.settings.distill import DistillSettings
from pipeline.settings.training import TrainingSettings


@dataclass(frozen=True)
class Phase:
    """One call of the training loop."""

    folder: str
    losses: Mapping[str, Mapping[str, Any]]
    training: TrainingSettings
    keep: str  # the best weights on dev, or the last: before the logit losses a score on dev says nothing


def phases_of(losses: Mapping[str, Mapping[str, Any]], distill: DistillSettings) -> list[Phase]:
    """What a student is trained on, one phase after the other.

    Raises:
        SettingsError: two phases, and nothing to learn in the second.
    """
    if distill.phases == "one":
        return [Phase("main", losses, distill.training, "best")]
    signal = {name: s for name, s in losses.items() if plugins.load("loss", name).KIND == "signal"}
    logit = {name: s for name, s in losses.items() if name not in signal}
    if not logit:
        raise SettingsError(
            f"distill.phases: found 'two', but of distill.losses ({', '.join(losses)}) none is on logits, so that the "
            "second phase would have nothing to learn; add logit_kl, or set phases to 'one'"
        )
    first = distill.training.model_copy(update={"epochs": distill.signal_epochs, "steps": None, "patience": 0})
    # A control without signal losses trains its own losses in both phases: the same number of steps for all.
    return [Phase("signals", signal or losses, first, "last"), Phase("main", logit, distill.training, "best")]
