"""Golden vectors: texts with the token ids, outputs and answer that an app must get, and what model.json says of both.

Outputs are those of the artefact in its own runtime, here. Another processor adds in another order, so outputs may be a
little off there: `tolerance`, in the unit of the outputs. An answer must be the same where the two largest outputs are
further apart than twice that; of others only the outputs are held against. Which of two level outputs is the answer is
told by vectors of their own.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from tokenizers import Tokenizer

from eval.calibration import confidence_levels
from eval.hard_texts import HARD, random_texts
from eval.scores import answer
from pipeline.base import plugins
from pipeline.base.errors import UnusableRuntimeError
from pipeline.base.records import Artefact
from pipeline.base.workspace import Workspace
from pipeline.data.examples import Examples
from pipeline.data.prepared import read_encoded
from pipeline.data.texts import clean
from pipeline.formats.bundles import MIN_GOLDEN
from pipeline.settings.params import Params
from pipeline.tasks import Task

# Of the spread of all outputs. Seen: int8 on a processor without VNNI 5e-8, in onnxruntime-web 0.0024 (docs/ship.md).
TOLERANCES = {"fp32": 1e-4}
TOLERANCE = 0.01
MAX_CLASSES, MAX_DEV_ROWS = 60, 2_000
LEVELS = (0.9, 0.95, 0.99)
# Which of two level outputs is the answer: the first.
TIES = ((1.0, 1.0, 0.0), (0.0, 2.0, 2.0), (3.0, 3.0, 3.0))


@dataclass(frozen=True)
class Golden:
    """The golden vectors, and from which confidence on answers are right how often."""

    golden: dict[str, Any]
    thresholds: list[dict[str, float]]
    # outputs for the ids of the golden vectors and of test
    recorded: list[tuple[list[int], list[float]]]


def make(params: Params, workspace: Workspace, name: str, artefact: Artefact, task: Task) -> Golden:
    """What the artefact answers to hard texts, to texts of every length, and to dev rows where texts may be published.

    Raises:
        UnusableRuntimeError: the target's runtime does not run here.
    """
    target = params.targets[name]
    runtime, device = plugins.load("runtime", target.runtime), plugins.load("device", target.device)
    if (reason := device.why_unusable() or runtime.why_unusable()) is not None:
        raise UnusableRuntimeError(f"its answers cannot be taken here: {reason}")
    examples, dev = read_encoded(workspace, "dev", params.data.max_length)
    _, test = read_encoded(workspace, "test", params.data.max_length)
    rows = dev.spread(MAX_DEV_ROWS)
    tokenizer = Tokenizer.from_file(str(workspace.exported(name) / "tokenizer.json"))
    texts = _texts(examples, params.report.publish_texts, artefact.max_length, params.seed)
    ids = [tokenizer.encode(*map(clean, text)).ids for text in texts]
    with device.open_session(target.runtime, workspace.exported(name), artefact, params.measure.threads) as session:
        outputs = answer(session, ids, artefact, dev.pad_id, 1)["logits"]
        of_rows = answer(session, rows.ids, artefact, dev.pad_id, getattr(runtime, "BATCH", None))
        of_test = answer(session, test.ids, artefact, dev.pad_id, getattr(runtime, "BATCH", None))["logits"]
    spread = float(of_rows["logits"].max() - of_rows["logits"].min())
    tolerance = TOLERANCES.get(artefact.precision, TOLERANCE) * spread
    answers = task.answers(of_rows, task.space)
    return Golden(
        {
            "kind": "decant golden 1",
            "tolerance": tolerance,
            "tie": "the first of level outputs is the answer",
            "ties": [{"outputs": list(tie), "answer": int(np.argmax(tie))} for tie in TIES],
            "rows": [
                {
                    "text": text[0] if len(text) == 1 else list(text),
                    "ids": row,
                    "outputs": [round(float(value), 6) for value in logits],
                    "answer": int(logits.argmax()),
                    "label": task.show(int(logits.argmax()), task.space),
                    "sure": bool(_margin(logits) > 2 * tolerance),
                }
                for text, row, logits in zip(texts, ids, outputs, strict=True)
            ],
        },
        _thresholds(task.confidences(of_rows), task.values(answers, rows.targets)),
        [(list(row), logits.tolist()) for row, logits in zip([*ids, *test.ids], [*outputs, *of_test], strict=True)],
    )


def _texts(examples: Examples, publish: bool, longest: int, seed: int) -> list[tuple[str, ...]]:
    """Hard ones, one longer than the model, and of each class one; none of the data where those are private."""
    parts = len(examples.texts[0])
    made = [*HARD, " ".join(map(str, range(longest + 1))), "a"]
    picked = [examples.texts[i] for i in _of_each_class(examples)] if publish else []
    made += list(random_texts(seed, max(10, MIN_GOLDEN - len(made) - len(picked))))
    return [*((text,) * parts for text in made), *picked]


def _of_each_class(examples: Examples) -> list[int]:
    """The first dev row of each class, the rarest classes first, and the shortest and the longest row."""
    counts = Counter(examples.groups)
    first: dict[str, int] = {}
    for i, group in enumerate(examples.groups):
        first.setdefault(group, i)
    rare = sorted(first, key=lambda group: (counts[group], group))[:MAX_CLASSES]
    by_length = sorted(range(len(examples)), key=lambda i: (sum(map(len, examples.texts[i])), i))
    return list(dict.fromkeys([*(first[group] for group in rare), by_length[0], by_length[-1]]))


def _margin(logits: Float[np.ndarray, " classes"]) -> float:
    second, first = np.sort(logits)[-2:]
    return float(first - second)


def _thresholds(confidences: Sequence[float], values: Sequence[float]) -> list[dict[str, float]]:
    sure = np.asarray(confidences)
    return [
        {"right": level, "confidence": round(confidence, 6), "answered": round(float((sure >= confidence).mean()), 4)}
        for level, confidence in confidence_levels(sure, np.asarray(values), LEVELS).items()
    ]


def describe(
    named: Mapping[str, str | None], artefact: Artefact, task: Task, pad_id: int, found: Golden
) -> dict[str, Any]:
    """model.json: all that the code for apps has to know of the model.

    Args:
        named: name, version and platform, which tell it from others, its digest, and the files beside this one: the
            model, and the tokenizer's table where the code follows one.
        artefact: what its exporter says.
        task: for the labels.
        pad_id: the token to pad with.
        found: for the thresholds.
    """
    return {
        "kind": "decant model 1",
        **named,
        "format": artefact.format,
        "precision": artefact.precision,
        "labels": list(task.space.names),
        "inputs": [{"name": one.name, "dtype": one.dtype} for one in artefact.inputs],
        "output": "logits",
        "max_length": artefact.max_length,
        # None: any length up to the greatest
        "lengths": list(artefact.lengths) if artefact.lengths else None,
        "pad_id": pad_id,
        "settings": artefact.settings,
        "thresholds": found.thresholds,
    }
