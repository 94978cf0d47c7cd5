"""What an artefact answers in its own runtime on the whole test split, against what it was made from."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from eval.padding import pad
from eval.runtimes import Session
from eval.statistics import Values, drop_interval, flips, mean_interval, share_interval
from pipeline.base.errors import PipelineError
from pipeline.base.records import Artefact, Metric, Score
from pipeline.tasks import NO_CHOICE

MAX_BATCH = 32
Outputs = dict[str, Float[np.ndarray, "examples ..."]]


class AnswersUnusableError(PipelineError):
    """An artefact answered with something that must not be scored: not finite, or of the wrong shape."""


def answer(
    session: Session,
    sequences: Sequence[Sequence[int]],
    artefact: Artefact,
    pad_id: int,
    batch_size: int | None = None,
) -> Outputs:
    """Every output for every example, in the order given, from batches of similar length.

    An output with a value a token is NO_CHOICE behind the tokens of an example.

    Args:
        session: the loaded artefact.
        sequences: token ids of each example, special tokens included.
        artefact: which lengths and batch sizes the session takes.
        pad_id: the token to pad with.
        batch_size: None chooses: see `choose_batch_size`.

    Raises:
        AnswersUnusableError: an output is not finite, or came back with another number of rows or values.
    """
    size = batch_size or choose_batch_size(artefact)
    longest = max(map(len, sequences))
    found: Outputs = {}
    order = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), i))
    with tqdm(total=len(sequences), desc=artefact.file, unit="example", disable=None) as bar:
        for batch in _batches(order, size):
            for name, values in _run_full_batch(session, [sequences[i] for i in batch], artefact, pad_id).items():
                if name not in found:
                    rest = (longest, *values.shape[2:]) if name in artefact.token_outputs else values.shape[1:]
                    found[name] = np.full((len(sequences), *rest), NO_CHOICE, np.float32)
                _check(name, values, batch, found[name], artefact, tokens=len(sequences[batch[0]]))
                for i, row in zip(batch, values, strict=True):
                    if name in artefact.token_outputs:
                        found[name][i, : len(sequences[i])] = row[: len(sequences[i])]
                    else:
                        found[name][i] = row
            bar.update(len(batch))
    return found


def choose_batch_size(artefact: Artefact) -> int:
    """The artefact's own batch size if that is fixed, 1 for int8, else 32.

    Dynamic quantization takes one range of activations from the whole batch, so in a batch of 32 an int8 artefact gives
    other answers than on a phone, which asks one question at a time.
    """
    if artefact.fixed_batch is not None:
        return artefact.fixed_batch
    return 1 if artefact.precision == "int8" else MAX_BATCH


def score(
    *,
    target: str,
    runtime: str,
    device: str,
    artefact_digest: str,
    metric: Metric,
    outputs: Outputs,
    student_outputs: Outputs,
    answers: Sequence[Any],
    student_answers: Sequence[Any],
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
        outputs: from `answer`.
        student_outputs: of the same examples from the float student in PyTorch.
        answers: what follows from the outputs, in the task's words.
        student_answers: the same of the student's outputs.
        values: the metric on each of the artefact's answers.
        student_values: the same of the student's answers.
        teacher_values: the same of the teacher's.
        further: other figures of the artefact's answers, by name.
        stand_in: what executed it in place of the real runtime, if so.
        runtime_version: of what executed it.

    Returns:
        A record whose intervals are two-sided 95 %.

    Raises:
        AnswersUnusableError: an output or a value is not finite, or the counts of examples or outputs differ.
    """
    n = len(values)
    counts = {len(one) for one in (answers, student_answers, student_values, teacher_values)}
    shapes, student_shapes = ({name: one.shape for name, one in side.items()} for side in (outputs, student_outputs))
    if not (shapes == student_shapes and counts == {n} and n > 0):
        raise AnswersUnusableError(
            f"{target}: found outputs {shapes}, the student's {student_shapes}, and values of {n} answers, "
            f"{len(student_values)} of the student's and {len(teacher_values)} of the teacher's; expected the same "
            "examples and outputs; run `dvc repro` to make them from the same data"
        )
    finite = (*outputs.values(), *student_outputs.values(), values, student_values, teacher_values)
    if not all(np.isfinite(one).all() for one in finite):
        raise AnswersUnusableError(f"{target}: an output or a value of the metric is not finite; nothing was scored")
    differences = (np.abs(outputs[name].astype(np.float64) - student_outputs[name]).max() for name in outputs)
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
        agreement=share_interval(sum(a == b for a, b in zip(answers, student_answers, strict=True)), n),
        drop_from_student=drop_interval(student_values, values, metric),
        drop_from_teacher=drop_interval(teacher_values, values, metric),
        flips_from_student=flips(student_values, values, metric),
        flips_from_teacher=flips(teacher_values, values, metric),
        worst_output_difference=float(max(differences)),
        answers=tuple(answers),
        values=tuple(values.tolist()),
        student_values=tuple(student_values.tolist()),
        teacher_values=tuple(teacher_values.tolist()),
    )


def _batches(order: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _run_full_batch(session: Session, sequences: list[Sequence[int]], artefact: Artefact, pad_id: int) -> Outputs:
    """Fills the last batch up when the artefact's batch size is fixed, and takes the filling out of the outputs."""
    filling = (artefact.fixed_batch or len(sequences)) - len(sequences)
    outputs = session.run(pad([*sequences, *[sequences[-1]] * filling], pad_id, artefact))
    return {name: values[: len(values) - filling] for name, values in outputs.items()}


def _check(
    name: str,
    values: Float[np.ndarray, "batch ..."],
    batch: list[int],
    whole: Float[np.ndarray, "examples ..."],
    artefact: Artefact,
    tokens: int,
) -> None:
    rest = 2 if name in artefact.token_outputs else 1  # axes behind the batch, and the tokens
    is_cut = rest == 2 and values.ndim > 1 and values.shape[1] < tokens
    if is_cut or values.ndim != whole.ndim or len(values) != len(batch) or values.shape[rest:] != whole.shape[rest:]:
        raise AnswersUnusableError(
            f"{artefact.file}: found {name} of shape {values.shape}, expected {(len(batch), *whole.shape[1:])}"
        )
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
    if len(bad):
        raise AnswersUnusableError(
            f"{artefact.file}: the {name} of test row {batch[bad[0]]} are not finite "
            f"({values[bad[0]].ravel()[:8].tolist()}); nothing was scored; look for an overflow in the export or in "
            "the student's weights"
        )
