"""One check a file: something that every artefact must pass before it ships, whatever its budgets are.

A check file has:

- `TITLE`: what it asks, in a few words.
- `FORMATS` (optional): the formats it is for, as a literal: targets of others do not depend on its code.
- `applies(subject)`: whether it means anything for this artefact.
- `check(subject)`: a `pipeline.base.records.Check`. Raises UnusableRuntimeError with the reason when it cannot be made
  on this machine; a WorkerError (the artefact's process crashed or hung) or ModelError (it is not what its card
  says) is a failure of the check.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from eval.isolated import IsolatedSession, open_session
from eval.latency import Exported
from eval.padding import cut, pad
from eval.runtimes import Arrays, Session, pytorch
from pipeline.base import plugins
from pipeline.base.errors import UnusableRuntimeError
from pipeline.base.records import Artefact, Check, Status


@dataclass(frozen=True)
class Subject:
    """An artefact under examination, and what it is compared with."""

    target: str
    runtime: str
    device: str
    exported: Exported
    # the same model in float, in the same format; only for int8
    float_twin: Exported | None
    student: Path
    # the tokenizer that training text was encoded with
    tokenizer: Path
    pad_id: int
    # token ids of dev rows, special tokens included, and their texts
    sequences: Sequence[Sequence[int]]
    texts: Sequence[tuple[str, ...]]
    # largest parity difference of this format and precision, as a share of the reference's spread
    tolerance: float
    # modules that the quantization plan keeps in float
    exclude: tuple[str, ...] = ()
    threads: int = 1
    seed: int = 0

    @property
    def folder(self) -> Path:
        return self.exported.folder

    @property
    def artefact(self) -> Artefact:
        return self.exported.artefact

    def open(
        self, runtime: str | None = None, *, count_kernels: bool = False, emulated: bool = False
    ) -> IsolatedSession:
        """The artefact in its runtime, or in another one, in a child process, or on an emulated x86 without VNNI.

        Raises:
            UnusableRuntimeError: that runtime does not run here.
        """
        name = runtime or self.runtime
        reason = plugins.load("runtime", name).why_unusable()
        if reason is not None:
            raise UnusableRuntimeError(reason)
        artefact = self.artefact
        if name != self.runtime:  # settings are in the words of the artefact's own runtime
            artefact = artefact.model_copy(update={"settings": {}})
        return open_session(name, self.folder, artefact, self.threads, count_kernels=count_kernels, emulated=emulated)

    def open_student(self) -> Session:
        """The model it was made from, in PyTorch."""
        return pytorch.open_session(self.student, None, self.threads)

    def padded(self, sequences: Sequence[Sequence[int]]) -> dict[str, Int[np.ndarray, "B L"]]:
        """Inputs as the artefact wants them."""
        return pad(sequences, self.pad_id, self.artefact)

    def answers(self, session: Session, rows: Iterable[Sequence[int]]) -> Float[np.ndarray, " values"]:
        """What a session answers to rows, one at a time, all of it end to end."""
        return np.concatenate([self.flat(session.run(self.padded([row])), len(row))[0] for row in rows])

    def flat(self, outputs: Arrays, length: int) -> Float[np.ndarray, "B values"]:
        """Every output of each row of a batch, end to end, in the order of their names; rows have that many tokens."""
        real = cut(outputs, length, self.artefact)
        return np.concatenate([real[name].reshape(len(real[name]), -1) for name in sorted(real)], axis=1)

    @cached_property  # dev may have many rows, and is read from disk
    def _longest_first(self) -> list[tuple[int, ...]]:
        return sorted(set(map(tuple, self.sequences)), key=len, reverse=True)

    def of_length(self, length: int, which: int = 0) -> list[int]:
        """A row of exactly this many tokens: real ones, repeated or cut, the last one (a separator) at the end.

        Another one for each `which`, from the next longest row, as far as there are others.
        """
        row = self._longest_first[which % len(self._longest_first)]
        if length == 1:
            return [row[0]]
        return [*(list(row[:-1]) * (length // max(1, len(row) - 1) + 1))[: length - 1], row[-1]]


def difference(
    found: Float[np.ndarray, "..."], expected: Float[np.ndarray, "..."], spread: float | None = None
) -> float:
    """The largest difference as a share of the expected answers' spread; infinity when anything is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    width = spread if spread is not None else float(expected.max() - expected.min())
    return float(np.abs(found.astype(np.float64) - expected).max()) / max(width, 1e-12)


def passed(title: str, reason: str, **facts: object) -> Check:
    """A check that found nothing wrong."""
    return Check(title=title, status=Status.PASS, reason=reason, facts=facts)


def failed(title: str, reason: str, **facts: object) -> Check:
    """A check that found something wrong: what was found, what was expected, what to do."""
    return Check(title=title, status=Status.FAIL, reason=reason, facts=facts)
