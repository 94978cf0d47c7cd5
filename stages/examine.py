"""Puts one target's artefact through every check, whatever its budgets are.

The checks are the files of eval/checks. A failed check fails the gate where the target is required.
Run as `python -m stages.examine --target cpu`.
"""

import json
import logging
import tempfile
from pathlib import Path
from types import ModuleType

from eval.checks import Subject
from eval.latency import Exported
from eval.worker import WorkerError
from pipeline.base import guard, plugins, records
from pipeline.base.errors import ModelError, UnusableRuntimeError
from pipeline.base.files import sha256_of
from pipeline.base.records import Card, Check, Examination, Status, digest_of, open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.prepared import read_encoded
from pipeline.settings.params import Params, load
from stages.plans import plan_of
from stages.targets import artefact_bytes, artefact_of, parse_target

log = logging.getLogger(__name__)
EIGHT_BIT = ("int8", "w8a8")  # those with a plan of what stays in float, and a float twin to compare with


def run(params: Params, workspace: Workspace, name: str) -> None:
    """Writes `artifacts/examined/<target>.json`; "not measured" with the reason when the runtime does not run here."""
    target = params.targets[name]
    card = open_folder(workspace.exported(name), "artefact")
    runtime = plugins.load("runtime", target.runtime)
    reason = plugins.load("device", target.device).why_unusable() or runtime.why_unusable()
    found: dict[str, object] = {"not_measured": reason}
    try:
        artefact_of(card)
        if reason is None:
            found = {"checks": _examine(params, workspace, name, card)}
    except UnusableRuntimeError as error:
        found = {"not_measured": str(error)}
    examination = Examination(
        target=name,
        runtime=target.runtime,
        artefact_digest=card.digest,
        sources={"data": digest_of(workspace.data), "student": digest_of(workspace.student)},
        stand_in=runtime.STAND_IN,
        **found,
    )
    records.write(examination, workspace.examined(name))
    for check in examination.checks:
        level = logging.WARNING if check.status is Status.FAIL else logging.INFO
        log.log(level, "%s: %s: %s: %s", name, check.title, check.status, check.reason)
    if examination.not_measured is not None:
        log.info("%s: not examined: %s", name, examination.not_measured)


def _examine(params: Params, workspace: Workspace, name: str, card: Card) -> tuple[Check, ...]:
    target, artefact = params.targets[name], artefact_of(card)
    exporter = plugins.load("format", target.format)
    examples, dev = read_encoded(workspace, "dev", params.data.max_length)
    exclude: tuple[str, ...] = ()
    if target.precision in EIGHT_BIT:
        open_folder(workspace.quantized, "quantized")
        exclude = plan_of(target, workspace).exclude
    folder = workspace.exported(name)
    with tempfile.TemporaryDirectory() as scratch:
        subject = Subject(
            target=name,
            runtime=target.runtime,
            device=target.device,
            exported=Exported(folder, artefact, card.digest, artefact_bytes(card, artefact)),
            float_twin=_export_twin(params, workspace, name, Path(scratch)) if target.precision in EIGHT_BIT else None,
            student=workspace.student,
            tokenizer=workspace.data / "tokenizer",
            pad_id=dev.pad_id,
            sequences=dev.ids,
            texts=examples.texts,
            tolerance=exporter.TOLERANCES[target.precision],
            exclude=exclude,
            threads=params.measure.threads,
            seed=params.seed,
        )
        checks = (plugins.load("check", check) for check in plugins.names("check"))
        return tuple(make(check, subject) for check in checks if check.applies(subject))


def _export_twin(params: Params, workspace: Workspace, name: str, out: Path) -> Exported:
    """The same model in the same format and float, to tell what 8 bits gained."""
    target = params.targets[name]
    exporter = plugins.load("format", target.format)
    # How 8-bit activations get their ranges says nothing about a float file, and is refused for one.
    options = {name: value for name, value in target.options.items() if name != "activations"}
    artefact = exporter.convert(
        workspace.student,
        out,
        "fp32",
        exporter.Params.model_validate_json(json.dumps(options)),
        params.data.max_length,
        None,
    )
    file = out / artefact.file
    parts = sorted(part for part in file.rglob("*") if part.is_file()) if file.is_dir() else [file]
    return Exported(out, artefact, sha256_of(parts[0]), sum(part.stat().st_size for part in parts))


def make(check: ModuleType, subject: Subject) -> Check:
    """One check, or why it could not be made."""
    try:
        found = check.check(subject)
    except UnusableRuntimeError as error:
        found = Check(title=check.TITLE, status=Status.NOT_MEASURED, reason=str(error))
    except WorkerError as error:
        found = Check(title=check.TITLE, status=Status.FAIL, reason=f"the process with the artefact {error}")
    except ModelError as error:  # the runtime finds another file than the card describes
        found = Check(title=check.TITLE, status=Status.FAIL, reason=str(error))
    return found.model_copy(update={"name": check.__name__.rpartition(".")[2]})


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params)
    name = parse_target(params, __doc__)
    with guard.lock(workspace.examined(name)):
        run(params, workspace, name)


if __name__ == "__main__":
    guard.run(main)
