"""The signals of a batch that several processes share, as one process would have read them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.signals.reader import Signals
from pipeline.training import processes

# field of Signals -> the axis along which texts are long; None: there is none
SINGLE = {"mask": 1, "delimiters": 1, "token": None}
OF_UNITS = ("logits", "targets")  # of which a text may have several
LAYERED = {"hidden": 1, "queries": 2, "keys": 2, "values": 2}


def whole_batch(signals: Signals, rows: int) -> Signals:
    """The signals of all processes' rows, for a loss that compares examples with each other.

    Args:
        signals: of this process; only they get a gradient.
        rows: how many of them belong to the batch; 0 in a process that had none left and computes on a stand-in.
    """
    if processes.count() == 1:
        return signals
    told = processes.from_all((rows, signals.mask.shape[1], len(signals.logits) if rows else 0))
    of_rows, of_units = ([(one[place], one[1]) for one in told] for place in (0, 2))

    def whole(tensor: Tensor | None, axis: int | None, sizes: list[tuple[int, int]] = of_rows) -> Tensor | None:
        if tensor is None:
            return None
        if tensor.dtype == torch.bool:
            return processes.rows_of_all(tensor.byte(), sizes, axis).bool()
        # A loss computes in float32; not every exchange can carry bfloat16.
        return processes.rows_of_all(tensor.float() if tensor.is_floating_point() else tensor, sizes, axis)

    found: dict[str, Any] = {name: whole(getattr(signals, name), axis) for name, axis in SINGLE.items()}
    found |= {name: whole(getattr(signals, name), None, of_units) for name in OF_UNITS}
    for name, axis in LAYERED.items():
        found[name] = tuple(whole(one, axis) for one in getattr(signals, name))
    return replace(signals, **found)
