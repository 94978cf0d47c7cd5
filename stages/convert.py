"""Writes one target's artefact and compares it at once with the student it came from.

The folder is what ships: artefact, tokenizer, labels, reference inputs and outputs, card. A breach of parity fails
here, before anything is measured. Run as `python -m stages.convert --target cpu`.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from eval import parity
from eval.isolated import open_session
from eval.padding import MASK, pad
from eval.runtimes import pytorch
from eval.worker import WorkerError
from pipeline import tasks
from pipeline.base import guard, plugins
from pipeline.base.errors import ExportError, ParityError
from pipeline.base.files import output_folder
from pipeline.base.records import Artefact, Parity, open_folder, seal
from pipeline.base.workspace import Workspace
from pipeline.data.prepared import read_encoded
from pipeline.models.vocabulary import cut_at
from pipeline.quantization.plan import Plan
from pipeline.settings.params import Params, load
from pipeline.settings.targets import Target
from stages.plans import exporter_of, plan_of
from stages.targets import artefact_bytes, parse_target

log = logging.getLogger(__name__)
KIND = "artefact"
REFERENCE_ROWS = 32  # dev rows whose answers go with the artefact
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def run(params: Params, workspace: Workspace, name: str) -> None:
    """Writes `artifacts/exported/<target>/`; a card without artefact, with the reason, where its tools are missing.

    So it does where an optional target does not answer as the student: it must not keep the others from their verdict.

    Raises:
        ExportError: the format cannot have this precision, or the export is not valid.
        ParityError: the artefact of a required target has other names, shapes or values than the student.
    """
    target = params.targets[name]
    exporter, _ = exporter_of(target)
    if target.precision not in exporter.PRECISIONS:
        raise ExportError(
            f"targets.{name}.precision is {target.precision}, but {target.format} has {', '.join(exporter.PRECISIONS)}"
        )
    student = open_folder(workspace.student, "student")
    sources = {"student": student.digest}
    plan = None
    if target.precision in getattr(exporter, "PLANNED", ("int8",)):
        sources["plan"] = open_folder(workspace.quantized, "quantized").digest
        plan = plan_of(target, workspace)
    not_made = exporter.why_unusable() if hasattr(exporter, "why_unusable") else None
    if not_made is None:
        try:
            _export(params, workspace, name, sources, plan)
        except ParityError as error:
            if target.required:
                raise
            not_made = str(error)
    if not_made is not None:
        with output_folder(workspace.exported(name)) as partial:
            seal(partial, KIND, sources, {"artefact": None, "not_made": not_made})
        log.warning("%s: not made: %s", name, not_made)


def _export(params: Params, workspace: Workspace, name: str, sources: dict[str, str], plan: Plan | None) -> None:
    target = params.targets[name]
    exporter, options = exporter_of(target)
    task = tasks.of(params, workspace.data)
    _, dev = read_encoded(workspace, "dev", params.data.max_length)
    with output_folder(workspace.exported(name)) as partial:
        artefact = exporter.convert(workspace.student, partial, target.precision, options, params.data.max_length, plan)
        runtime = plugins.load("runtime", target.runtime)
        artefact = artefact.model_copy(update={"settings": {**getattr(runtime, "SETTINGS", {}), **artefact.settings}})
        for file in TOKENIZER_FILES:
            if (workspace.student / file).is_file():
                shutil.copy(workspace.student / file, partial / file)
        cut_at(partial, artefact.max_length)
        if task.space.names:
            (partial / "labels.json").write_text(json.dumps(task.space.names, indent=1) + "\n", "utf-8")
        sequences = dev.ids[:: max(1, len(dev) // REFERENCE_ROWS)][:REFERENCE_ROWS]
        batches = [pad([sequence], dev.pad_id, artefact) for sequence in sequences]
        _write_reference(workspace, partial, sequences, dev.pad_id, artefact)
        tolerance = exporter.TOLERANCES[target.precision]
        found, reason = _check_parity(workspace, partial, artefact, target, tolerance, batches)
        facts = {
            "artefact": artefact.model_dump(mode="json"),
            "parity": found.model_dump(mode="json") if found else None,
            "parity_not_measured": reason,
            "task": {**params.task.model_dump(mode="json"), "space": task.space.model_dump(mode="json")},
        }
        card = seal(partial, KIND, sources, facts)
    differs = f"worst difference {found.worst_difference:.2g} of {tolerance:g} allowed" if found else reason
    size = artefact_bytes(card, artefact)
    log.info("%s: %s %s, %.1f MB; parity: %s", name, target.format, target.precision, size / 1e6, differs)


def _write_reference(
    workspace: Workspace, folder: Path, sequences: Sequence[list[int]], pad_id: int, artefact: Artefact
) -> None:
    """Inputs as one padded batch, and the student's answers to them in PyTorch: an app can test itself with these.

    What is answered to padding differs from format to format, and is 0 there.
    """
    inputs = pad(sequences, pad_id, artefact)
    with pytorch.open_session(workspace.student, None, 1) as student:
        answers = student.run(inputs)
    for name in artefact.token_outputs:
        answers[name][inputs[MASK] == 0] = 0
    save_file({**inputs, **answers}, folder / "reference.safetensors")


def _check_parity(
    workspace: Workspace,
    folder: Path,
    artefact: Artefact,
    target: Target,
    tolerance: float,
    batches: list[dict[str, np.ndarray]],
) -> tuple[Parity | None, str | None]:
    """(parity, None), or (None, why it cannot be measured on this machine)."""
    runtime = plugins.load("runtime", target.runtime)
    if target.format not in runtime.FORMATS:
        raise ExportError(f"runtime '{target.runtime}' executes {', '.join(runtime.FORMATS)}, not {target.format}")
    reason = runtime.why_unusable()
    if reason is not None:
        return None, reason
    # Two threads for int8 and fp32 alike: parity asks what is answered, not how fast.
    try:
        with (
            open_session(target.runtime, folder, artefact, 2) as candidate,
            pytorch.open_session(workspace.student, None, 2) as model,
        ):
            found = parity.check(candidate, model, batches, tolerance, artefact.token_outputs)
            return found.model_copy(update={"stand_in": runtime.STAND_IN}), None
    except WorkerError as error:  # a loader that crashes is this target's result, and other targets go on
        return None, str(error)


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params)
    name = parse_target(params, __doc__)
    with guard.lock(workspace.exported(name)):
        run(params, workspace, name)


if __name__ == "__main__":
    guard.run(main)
