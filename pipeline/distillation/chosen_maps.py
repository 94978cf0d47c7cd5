"""The layer map "cka": which teacher layer each student layer resembles most before training."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from pipeline.data.batches import Collator
from pipeline.data.prepared import EncodedSplit, spread_rows
from pipeline.families import shape_of
from pipeline.models.layer_maps import CKA, layer_misfit
from pipeline.signals.cka import best_monotone_map, cka_matrix
from pipeline.signals.reader import SignalReader, taken
from pipeline.signals.segments import both_by_segment

ROWS = 256


def chosen_maps(
    losses: Mapping[str, Mapping[str, Any]], student: PreTrainedModel, teacher: PreTrainedModel, train: EncodedSplit
) -> dict[str, dict[str, Any]]:
    """The losses with the pairs that CKA chose in place of the word; as they are when none asks for it.

    Args:
        losses: settings by name.
        student: as initialised: a student with random weights resembles no layer in particular.
        teacher: put into eval mode.
        train: some of its rows are read, spread over all; rows whose tokens, or pieces of text, belong together.

    Source: linear CKA with the best monotone assignment; CoFi's closest-layer map is its training-time kin.
    """
    settings = {name: dict(values) for name, values in losses.items()}
    asking = [values for values in settings.values() if values.get("map") == CKA]
    small, large = shape_of(student.config), shape_of(teacher.config)
    if not asking or layer_misfit(CKA, small.layers, large.layers) is not None:  # `check_fit` tells why it cannot be
        return settings
    pairs = best_monotone_map(_resemblance(student, teacher, train))
    for values in asking:
        values["map"] = [list(pair) for pair in pairs]
    return settings


def _resemblance(student: PreTrainedModel, teacher: PreTrainedModel, train: EncodedSplit) -> list[list[float]]:
    """CKA of each student layer (rows) with each teacher layer (columns) over the tokens of some training texts."""
    batch = Collator(train)(spread_rows(len(train), ROWS))
    student.cpu(), teacher.cpu()
    with (
        SignalReader(student, ["hidden"], frozen=True) as small,
        SignalReader(teacher, ["hidden"], frozen=True) as large,
    ):
        mine = small.read({name: batch[name] for name in ("input_ids", "attention_mask")})
        teacher_ids = batch.get("teacher_input_ids", batch["input_ids"])
        other = large.read(
            {"input_ids": teacher_ids, "attention_mask": batch.get("teacher_attention_mask", mine.mask.long())}
        )
    if "segments" in batch:
        mine, other = both_by_segment(batch, mine, other)
    ours, theirs = ([taken(side.hidden, i) for i in range(1, len(side.hidden))] for side in (mine, other))
    return cka_matrix(ours, theirs, mine.mask)
