"""Times one target's artefact beside the exported teacher, in one runtime and one run.

Every raw sample is kept. A time belongs to the machine it was taken on, so the machine's facts are a dependency.
Budgets decide only how long it samples: changing one re-judges and measures nothing.
Run as `python -m stages.benchmark --target cpu`.
"""

import json
import logging
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from eval import figures
from eval.latency import Exported, leaves_undecided, measure, time_tokenizer
from eval.statistics import TooFewError
from pipeline.base import guard, plugins, records
from pipeline.base.errors import UnusableRuntimeError
from pipeline.base.records import Measurement, digest_of, open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.examples import read_prepared
from pipeline.data.prepared import read_encoded
from pipeline.settings.params import Params, load
from stages.targets import artefact_bytes, artefact_of, no_measurement, parse_target

log = logging.getLogger(__name__)


def run(params: Params, workspace: Workspace, name: str, *, append: bool = False) -> None:
    """Writes `artifacts/measured/<target>.json`; `append` adds to the samples that are there, if a budget needs more.

    An optional target is sampled once: nothing waits for its verdict.
    """
    target = params.targets[name]
    try:
        candidate = _exported(workspace.exported(name), "artefact")
        not_timed = getattr(plugins.load("runtime", target.runtime), "NOT_TIMED", None)
        if not_timed is not None:
            raise UnusableRuntimeError(not_timed)
    except UnusableRuntimeError as error:
        records.write(no_measurement(name, target, str(error)), workspace.measured(name))
        log.info("%s: not measured: %s", name, error)
        return
    once = params.measure.model_copy(update={"max_rounds": 1})
    _, test = read_encoded(workspace, "test", params.data.max_length)
    tokenizer = Tokenizer.from_file(str(workspace.exported(name) / "tokenizer.json"))
    found = measure(
        target=name,
        runtime=target.runtime,
        device=target.device,
        candidate=candidate,
        reference=_reference(workspace, target.format),
        sequences=test.ids,
        pad_id=test.pad_id,
        settings=params.measure if target.required or append else once,
        seed=params.seed,
        reference_sequences=test.teacher_ids,
        undecided=partial(leaves_undecided, target.budgets),
        machine=json.loads(workspace.machine.read_text("utf-8")),
        tokenize_us=time_tokenizer(lambda texts: tokenizer.encode(*texts), read_prepared(workspace.data, "test").texts),
        earlier=records.read(Measurement, workspace.measured(name)) if append else None,
    )
    found = found.model_copy(update={"sources": {"data": digest_of(workspace.data)}})
    records.write(found, workspace.measured(name))
    log.info("%s: %s", name, _summary(found))


def _exported(folder: Path, kind: str) -> Exported:
    card = open_folder(folder, kind)
    artefact = artefact_of(card)
    return Exported(folder, artefact, card.digest, artefact_bytes(card, artefact))


def _reference(workspace: Workspace, format_name: str) -> Exported | None:
    """The teacher in this format, when teacher.formats names it."""
    folder = workspace.reference / format_name
    return _exported(folder, "reference") if folder.is_dir() else None


def _summary(found: Measurement) -> str:
    if found.not_measured is not None:
        return f"not measured: {found.not_measured}"
    try:
        return _figures(found)
    except TooFewError as error:
        return f"samples kept; {error}"


def _figures(found: Measurement) -> str:
    text = f"median {figures.p50_ms(found).value:.2f} ms, 90th percentile {figures.p90_ms(found).value:.2f} ms"
    if found.reference_digest is not None:
        text += f", {figures.speedup(found).value:.2f} times the teacher's speed"
    return text


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params, with_plugins=False)
    name = parse_target(params, __doc__)
    with guard.lock(workspace.measured(name)):
        run(params, workspace, name)


if __name__ == "__main__":
    guard.run(main)
