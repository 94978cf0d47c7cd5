"""Scores one target's artefact in its own runtime on the whole test split.

Run as `python -m stages.evaluate --target cpu`.
"""

import json
import logging

from safetensors.numpy import load_file

from eval.calibration import calibrate
from eval.scores import Outputs, answer, score
from eval.wording import show_percent
from eval.worker import WorkerError
from pipeline import tasks
from pipeline.base import guard, plugins, records
from pipeline.base.errors import IntegrityError, UnusableRuntimeError
from pipeline.base.records import Card, Score, digest_of, open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.prepared import TEST_ANSWERS, TEST_OUTPUTS, read_encoded
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
    task = tasks.of(params, workspace.data)
    student_outputs = _student_outputs(workspace)
    folder, threads = workspace.exported(name), params.measure.threads
    with device.open_session(target.runtime, folder, artefact, threads) as session:
        outputs = answer(session, test.ids, artefact, test.pad_id, getattr(runtime, "BATCH", None))
    answers, student_answers = (task.answers(one, task.space) for one in (outputs, student_outputs))
    teacher_answers = json.loads((workspace.teacher / TEST_ANSWERS).read_text("utf-8"))
    found = score(
        target=name,
        runtime=target.runtime,
        device=target.device,
        artefact_digest=card.digest,
        metric=task.METRIC,
        outputs=outputs,
        student_outputs=student_outputs,
        answers=answers,
        student_answers=student_answers,
        values=task.values(answers, test.targets),
        student_values=task.values(student_answers, test.targets),
        teacher_values=task.values(teacher_answers, test.targets),
        further=task.further(answers, test.targets),
        stand_in=runtime.STAND_IN,
        runtime_version=session.runtime_version,
    )
    if task.says_confidence:
        sides = {"calibration": (outputs, answers), "student_calibration": (student_outputs, student_answers)}
        found = found.model_copy(
            update={
                name: calibrate(task.confidences(outputs_of_one), task.values(answers_of_one, test.targets))
                for name, (outputs_of_one, answers_of_one) in sides.items()
            }
        )
    folders = {"data": workspace.data, "teacher": workspace.teacher, "student": workspace.student}
    found = found.model_copy(update={"sources": {kind: digest_of(path) for kind, path in folders.items()}})
    assert found.primary is not None and found.agreement is not None
    said, agreement = task.METRIC.say(found.primary.value), show_percent(found.agreement.value, 2)
    log.info("%s: %s on test, %s of answers as the student's", name, said, agreement)
    return found


def _student_outputs(workspace: Workspace) -> Outputs:
    """What the student itself answers to test, which every target is compared with."""
    card = open_folder(workspace.student, "student")
    if TEST_OUTPUTS not in card.files:
        raise IntegrityError(
            f"{workspace.student}: no {TEST_OUTPUTS}: an earlier version made it; run `dvc repro --force distill`"
        )
    return load_file(workspace.student / TEST_OUTPUTS)


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params, with_plugins=False)
    name = parse_target(params, __doc__)
    with guard.lock(workspace.scored(name)):
        run(params, workspace, name)


if __name__ == "__main__":
    guard.run(main)
