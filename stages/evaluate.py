"""Scores one target's artefact in its own runtime on the whole test split.

Run as `python -m stages.evaluate --target cpu`.
"""

import json
import logging

import numpy as np
from jaxtyping import Float

from eval.scores import MACRO_F1, answer, macro_f1, score
from eval.statistics import right
from eval.wording import show_percent, show_value
from eval.worker import WorkerError
from pipeline.base import guard, plugins, records
from pipeline.base.errors import IntegrityError, UnusableRuntimeError
from pipeline.base.records import ACCURACY, Card, Score, open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.prepared import TEST_LOGITS, read_encoded
from pipeline.settings.params import Params, load
from stages.targets import artefact_of, parse_target

log = logging.getLogger(__name__)


def run(params: Params, workspace: Workspace, name: str) -> None:
    """Writes `artifacts/scored/<target>.json`; "not measured" with the reason when the runtime does not run here."""
    target = params.targets[name]
    card = open_folder(workspace.exported(name), "artefact")
    try:
        found = _score(params, workspace, name, card)
    except (UnusableRuntimeError, WorkerError) as error:
        found = Score(
            target=name,
            runtime=target.runtime,
            device=target.device,
            artefact_digest=card.digest,
            not_measured=str(error),
        )
        log.info("%s: not measured: %s", name, error)
    records.write(found, workspace.scored(name))


def _score(params: Params, workspace: Workspace, name: str, card: Card) -> Score:
    target, artefact = params.targets[name], artefact_of(card)
    runtime, device = plugins.load("runtime", target.runtime), plugins.load("device", target.device)
    reason = device.why_unusable() or runtime.why_unusable()
    if reason is not None:
        raise UnusableRuntimeError(reason)
    _, test = read_encoded(workspace, "test", params.data.max_length)
    open_folder(workspace.teacher, "teacher")
    student_logits = _student_logits(workspace)
    folder, threads = workspace.exported(name), params.measure.threads
    with device.open_session(target.runtime, folder, artefact, threads) as session:
        logits = answer(session, test.ids, artefact, test.pad_id, getattr(runtime, "BATCH", None))
    predictions = logits.argmax(axis=1)
    teacher = json.loads((workspace.teacher / "predictions.json").read_text("utf-8"))
    found = score(
        target=name,
        runtime=target.runtime,
        device=target.device,
        artefact_digest=card.digest,
        metric=ACCURACY,
        logits=logits,
        student_logits=student_logits,
        values=right(test.labels, predictions),
        student_values=right(test.labels, student_logits.argmax(axis=1)),
        teacher_values=right(test.labels, teacher),
        further={MACRO_F1: macro_f1(test.labels, predictions)},
        stand_in=runtime.STAND_IN,
        runtime_version=session.runtime_version,
    )
    assert found.primary is not None and found.agreement is not None
    log.info(
        "%s: %s %s on test, %s of answers as the student's",
        name,
        ACCURACY.title,
        show_value(found.primary.value, ACCURACY),
        show_percent(found.agreement.value, 2),
    )
    return found


def _student_logits(workspace: Workspace) -> Float[np.ndarray, "examples classes"]:
    """What the student itself answers to test, which every target is compared with."""
    card = open_folder(workspace.student, "student")
    if TEST_LOGITS not in card.files:
        raise IntegrityError(
            f"{workspace.student}: no {TEST_LOGITS}: an earlier version made it; run `dvc repro --force distill`"
        )
    return np.load(workspace.student / TEST_LOGITS, allow_pickle=False)


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params, with_plugins=False)
    name = parse_target(params, __doc__)
    with guard.lock(workspace.scored(name)):
        run(params, workspace, name)


if __name__ == "__main__":
    guard.run(main)
