"""The operations of an ML Program, one file a family, as functions of tensors.

An operation gets its parameters by the names of the MIL documentation: tensors, texts for string constants, lists where
several values go in. It computes in the type it is given (float32, or float64 in tests); rounding to the declared type
is the interpreter's. It must work under `torch.func.vmap`, which is how many texts are answered at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Definition:
    """An operation that is known."""

    function: Callable[..., Any]
    # file of the MIL documentation that defines it, with the system that the newest definition followed here came with
    source: str


OPERATIONS: dict[str, Definition] = {}


def operation(source: str, *names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function under its own name, or under these."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names or (function.__name__,):
            assert name not in OPERATIONS, name
            OPERATIONS[name] = Definition(function, source)
        return function

    return register


def ints(value: Tensor | None) -> list[int]:
    """A constant vector of integers, or a scalar as a vector of one."""
    return [] if value is None else [int(one) for one in value.reshape(-1).tolist()]


def number(value: Tensor | int) -> int:
    """A constant integer."""
    return int(value)


def flag(value: Tensor | bool) -> bool:
    """A constant truth value."""
    return bool(value)
