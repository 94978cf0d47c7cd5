"""What an artefact answers in its own runtime on the whole test split, against what it was made from."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import f1_score
from tqdm import tqdm

from eval.padding import pad
from eval.runtimes import Session
from eval.statistics import Values, drop_interval, flips, mean_interval, share_interval
from pipeline.base.errors import PipelineError
from pipeline.base.records import Artefact, Metric, Score

MAX_BATCH = 32
MACRO_F1 = "macro F1"  # among the further figures of a classifier


class AnswersUnusableError(PipelineError):
    """An artefact answered with something that must not be scored: not finite, or of the wrong shape."""


def answer(
    session: Session,
    sequences: Sequence[Sequence[int]],
    artefact: Artefact,
    pad_id: int,
    batch_size: int | None = None,
) -> Float[np.ndarray, "examples classes"]:
    """The logits of every example, in the order given, from batches of similar length.

    Args:
        session: the loaded artefact.
        sequences: token ids of each example, special tokens included.
        artefact: which lengths and batch sizes the session takes.
        pad_id: the token to pad with.
        batch_size: None chooses: see `choose_batch_size`.

    Raises:
        AnswersUnusableError: a logit is not finite, or a batch came back with another number of rows or classes.
    """
    size = batch_size or choose_batch_size(artefact)
    rows: list[Float[np.ndarray, " classes"] | None] = [None] * len(sequences)
    order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), i))
    with tqdm(total=len(sequences), desc=artefact.file, unit="example", disable=None) as bar:
        for batch in _batches(order, size):
            logits = _run_full_batch(session, [sequences[i] for i in batch], artefact, pad_id)
            _check(logits, batch, rows[order[0]], artefact)
            for i, row in zip(batch, logits, strict=True):
                rows[i] = row
            bar.update(len(batch))
    return np.stack([row for row in rows if row is not None]).astype(np.float32)


def choose_batch_size(artefact: Artefact) -> int:
    """The artefact's own batch size if that is fixed, 1 for int8, else 32.

    Dynamic quantization takes one range of activations from the whole batch, so in a batch of 32 an int8 artefact gives
    other answers than on a phone, which asks one question at a time.
    """
    fixed = _fixed_batch(artefact)
    if fixed is not None:
        return fixed
    return 1 if artefact.precision == "int8" else MAX_BATCH


def score(
    *,
    target: str,
    runtime: str,
    device: str,
    artefact_digest: str,
    metric: Metric,
    logits: Float[np.ndarray, "examples classes"],
    student_logits: Float[np.ndarray, "examples classes"],
    values: Values,
    student_values: Values,
    teacher_values: Values,
    further: Mapping[str, float],
    stand_in: str | None = None,
    runtime_version: str | None = None,
) -> Score:
    """The score of an artefact's answers, beside the student it was made from and the teacher.

    Args:
        target: name of the target.
        runtime: what executed the artefact.
        device: where.
        artefact_digest: of the artefact's card.
        metric: what the values are.
        logits: from `answer`.
        student_logits: of the same examples from the float student in PyTorch.
        values: the metric on each of the artefact's answers.
        student_values: the same of the student's answers.
        teacher_values: the same of the teacher's.
        further: other figures of the artefact's answers, by name.
        stand_in: what executed it in place of the real runtime, if so.
        runtime_version: of what executed it.

    Returns:
        A record whose intervals are two-sided 95 %.

    Raises:
        AnswersUnusableError: a logit or a value is not finite, or the counts of examples or classes differ.
    """
    n = len(values)
    counts = {len(logits), len(student_values), len(teacher_values)}
    if not (logits.shape == student_logits.shape and counts == {n} and n > 0):
        raise AnswersUnusableError(
            f"{target}: found logits {logits.shape}, student logits {student_logits.shape}, and values of {n} answers, "
            f"{len(student_values)} of the student's and {len(teacher_values)} of the teacher's; expected the same "
            "examples and classes; run `dvc repro` to make them from the same data"
        )
    if not all(np.isfinite(one).all() for one in (logits, student_logits, values, student_values, teacher_values)):
        raise AnswersUnusableError(f"{target}: a logit or a value of the metric is not finite; nothing was scored")
    predictions = logits.argmax(axis=1)
    return Score(
        target=target,
        runtime=runtime,
        device=device,
        artefact_digest=artefact_digest,
        stand_in=stand_in,
        runtime_version=runtime_version,
        metric=metric,
        primary=mean_interval(values),
        further=dict(further),
        agreement=share_interval(int(np.sum(predictions == student_logits.argmax(axis=1))), n),
        drop_from_student=drop_interval(student_values, values, metric),
        drop_from_teacher=drop_interval(teacher_values, values, metric),
        flips_from_student=flips(student_values, values, metric),
        flips_from_teacher=flips(teacher_values, values, metric),
        worst_logit_difference=float(np.abs(logits.astype(np.float64) - student_logits).max()),
        predictions=tuple(predictions.tolist()),
        values=tuple(values.tolist()),
        student_values=tuple(student_values.tolist()),
        teacher_values=tuple(teacher_values.tolist()),
    )


def macro_f1(labels: Sequence[int], predictions: Sequence[int] | Int[np.ndarray, " n"]) -> float:
    """The mean of F1 over the classes that occur in labels or predictions; a class never met counts for nothing."""
    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def _fixed_batch(artefact: Artefact) -> int | None:
    first = artefact.inputs[0].shape[0] if artefact.inputs and artefact.inputs[0].shape else None
    return first if isinstance(first, int) else None


def _batches(order: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _run_full_batch(
    session: Session, sequences: list[Sequence[int]], artefact: Artefact, pad_id: int
) -> Float[np.ndarray, "batch classes"]:
    """Fills the last batch up when the artefact's batch size is fixed, and takes the filling out of the answer."""
    filling = (_fixed_batch(artefact) or len(sequences)) - len(sequences)
    logits = session.run(pad([*sequences, *[sequences[-1]] * filling], pad_id, artefact))["logits"]
    return logits[: len(logits) - filling]


def _check(
    logits: Float[np.ndarray, "batch classes"],
    batch: list[int],
    first: Float[np.ndarray, " classes"] | None,
    artefact: Artefact,
) -> None:
    if logits.ndim != 2 or len(logits) != len(batch) or (first is not None and logits.shape[1:] != first.shape):
        classes = "classes" if first is None else len(first)
        raise AnswersUnusableError(
            f"{artefact.file}: found logits of shape {logits.shape}, expected ({len(batch)}, {classes})"
        )
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise AnswersUnusableError(
            f"{artefact.file}: the logits of test row {batch[bad[0]]} are not finite ({logits[bad[0]].tolist()}); "
            "nothing was scored; look for an overflow in the export or in the student's weights"
        )
