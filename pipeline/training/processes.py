"""Several processes that train one model together: who is first, and how they exchange numbers.

`torchrun` or `accelerate launch` starts them and says so in RANK and WORLD_SIZE; otherwise there is one process, and
nothing here costs anything. Each takes its share of every batch, and sums over processes stand in for the whole batch;
the first alone reads and writes what they share on disk (`pipeline.base.guard` gives it the lock).
"""

import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed

log = logging.getLogger(__name__)
T = TypeVar("T")
# How long the others wait for the first: it may run a teacher over all training text in the meantime.
PATIENCE = timedelta(days=2)


@functools.cache
def _state() -> PartialState:
    """Joins the others. CUDA where there is some; ACCELERATE_USE_CPU and ACCELERATE_TORCH_DEVICE say otherwise."""
    threads = torch.get_num_threads()
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1") or not torch.cuda.is_available()
    state = PartialState(cpu=use_cpu, timeout=PATIENCE)
    torch.set_num_threads(threads)  # Accelerate may choose a number of its own, and the last digits depend on it
    if state.num_processes == 1 and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        log.warning(
            "`accelerate launch` has started a single process, as it does without GPUs; several on CPUs: "
            "torchrun --nproc_per_node 2 -m stages.distill"
        )
    elif state.num_processes == 1 and state.device.type == "cuda" and (gpus := torch.cuda.device_count()) > 1:
        log.info(
            "one of %d GPUs is used; all of them: accelerate launch --multi_gpu --num_processes %d -m stages.distill",
            gpus,
            gpus,
        )
    return state


def device() -> torch.device:
    """What this process computes on."""
    return _state().device


def count() -> int:
    """How many processes train together."""
    return _state().num_processes


def rank() -> int:
    """This one's number among them, from 0."""
    return _state().process_index


def by_first(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, handed to all of them.

    The others wait. When it fails, they end with its exit status and leave the message to it.
    """
    if count() == 1:
        return work()
    told: list[Any] = [None, None]  # result, exit status
    if rank() == 0:
        try:
            told[0] = work()
        except Exception as error:
            told[1] = getattr(error, "exit_status", 1)
            distributed.broadcast_object_list(told, device=device())
            raise
    distributed.broadcast_object_list(told, device=device())
    if told[1] is not None:
        sys.exit(told[1])
    return told[0]


def first_then_others(work: Callable[[], T]) -> T:
    """What `work` gives in each process, the first one's turn before the others': they find what it left on disk."""
    done: list[T] = []
    by_first(lambda: done.append(work()))
    return done[0] if done else work()


def from_all(value: T) -> list[T]:
    """Every process's value, in the order of their numbers."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value)
    return values


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor, all float32, by its sum over the processes, in one exchange."""
    if count() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def copy_from_first(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by the first process's: other hosts may have rounded otherwise while making them."""
    if count() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def rows_of_all(tensor: Tensor, sizes: Sequence[Sequence[int]], length_axis: int | None) -> Tensor:
    """The rows of all processes, one process's after the other's, padded with zeros to the longest.

    Args:
        tensor: this process's rows; a gradient flows into these and no others, so that the processes' gradients of
            a loss over all rows add up to the whole one.
        sizes: (rows, length) of every process.
        length_axis: the axis that padding makes longer, if there is one.
    """
    shape = list(tensor.shape)
    shape[0] = max(rows for rows, _ in sizes)
    if length_axis is not None:
        shape[length_axis] = max(length for _, length in sizes)
    own = _padded(tensor, shape)
    parts = [torch.empty_like(own) for _ in sizes]
    distributed.all_gather(parts, own.detach().contiguous())
    parts[rank()] = own
    return torch.cat([part[:rows] for part, (rows, _) in zip(parts, sizes, strict=True)])


def _padded(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    missing = [after - before for before, after in zip(tensor.shape, shape, strict=True)]
    return torch.nn.functional.pad(tensor, [n for end in reversed(missing) for n in (0, end)])
