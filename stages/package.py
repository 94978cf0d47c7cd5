"""Writes a folder and a zip for each platform: an app drops it in, and it tests itself.

Reads the verdict and names it in each bundle; comes before the gate, so that a bundle can be looked at whatever the
verdict. `decant release` takes no bundle whose verdict is not a pass. Run as `python -m stages.package`.
"""

import json
import logging
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

from eval.budgets import overall
from export.bundles import Contents, Shipped, write_json
from pipeline import tasks
from pipeline.base import guard, plugins, records
from pipeline.base.errors import ExportError, SettingsError, UnusableRuntimeError
from pipeline.base.files import output_folder
from pipeline.base.machine import version_of
from pipeline.base.records import Artefact, Status, Tokenizers, Trial, Verdict, digest_of, open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.inputs import MODELS
from pipeline.data.prepared import read_encoded
from pipeline.formats import tokenizer_rules
from pipeline.formats.bundles import MODEL, NOT_MADE, UNRELEASED, write_manifest, write_zip
from pipeline.settings.params import Params, load
from pipeline.tasks import Task
from stages.packaging import golden, parts, trial
from stages.packaging.card import model_card
from stages.reporting.evidence import Evidence, gather
from stages.reporting.models import compare_models
from stages.targets import artefact_bytes, artefact_of

log = logging.getLogger(__name__)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def run(params: Params, workspace: Workspace) -> None:
    """Writes `artifacts/bundles/<platform>/` and `<platform>.zip`; one that cannot be made here is named, with why.

    Raises:
        SettingsError: a bundle's target is none of params.yaml, or of a format that its platform does not take.
        ExportError: ports cannot do what the tokenizer or the task does.
    """
    verdict = records.read(Verdict, workspace.report / "verdict.json")
    tokenizers = records.read(Tokenizers, workspace.tokenizers)
    evidence = gather(params, workspace)
    with output_folder(workspace.bundles) as partial:
        not_made = {}
        for platform in sorted(params.bundles):
            try:
                tried = _write(params, workspace, platform, verdict, evidence, tokenizers, partial)
                records.write(tried, partial / f"{platform}.json")
            except UnusableRuntimeError as error:
                not_made[platform] = str(error)
                shutil.rmtree(partial / platform, ignore_errors=True)
                log.warning("%s: not made: %s", platform, error)
        write_json(partial / NOT_MADE, not_made)


def _write(
    params: Params,
    workspace: Workspace,
    platform: str,
    verdict: Verdict,
    evidence: Evidence,
    tokenizers: Tokenizers,
    out: Path,
) -> Trial:
    """One platform's folder and zip, and how it did when it was tried."""
    made, bundle = plugins.load("bundle", platform), params.bundles[platform]
    card = open_folder(workspace.exported(bundle.target), "artefact")
    artefact = artefact_of(card)
    if artefact.format not in made.FORMATS:
        raise SettingsError(
            f"bundles.{platform}.target is {bundle.target}, whose format is {artefact.format}; "
            f"{platform} takes {', '.join(made.FORMATS)}"
        )
    size = artefact_bytes(card, artefact)
    if size > made.LIMIT_BYTES:
        raise ExportError(
            f"bundles.{platform}: the model of {bundle.target} has {size:,} bytes, {platform} takes at most "
            f"{made.LIMIT_BYTES:,}; ship a smaller target"
        )
    if (reason := made.why_unusable() if hasattr(made, "why_unusable") else None) is not None:
        raise UnusableRuntimeError(reason)
    task = tasks.of(params, workspace.data)
    with_rules = any(getattr(plugins.load("tokenizer", one), "FOLLOWS_RULES", False) for one in made.TOKENIZERS)
    dev, _ = read_encoded(workspace, "dev", params.data.max_length)
    if getattr(task, "CLIENT", None) != "label":
        raise ExportError(f"task {task.name}: code for apps answers with one label of several alone; take bundles out")
    if with_rules and len(dev.texts[0]) > 1:
        raise ExportError(
            f"bundles.{platform}: rows are pairs of texts, which no port of the tokenizer does; take it out, and keep "
            "python, whose code uses the tokenizers library"
        )
    compared = _check_tokenizers(platform, made, tokenizers)
    folder = out / platform
    folder.mkdir()
    contents = _contents(params, workspace, bundle.target, artefact, task, with_rules=with_rules)
    shipped = made.write(folder, contents, made.Params.model_validate_json(json.dumps(bundle.options)))
    found = golden.make(params, workspace, bundle.target, artefact, task)
    home = folder / made.HOME
    write_json(home / "golden.json", found.golden)
    model = (folder / shipped.model).relative_to(home).as_posix()
    rules = tokenizer_rules.write(contents.rules, home) if contents.rules is not None else None
    named = {"name": params.card.name, "version": UNRELEASED, "platform": platform, "digest": card.digest}
    named_files = {"file": model, "rules": rules}
    write_json(home / MODEL, golden.describe(named | named_files, artefact, task, contents.pad_id, found))
    for file in TOKENIZER_FILES:
        if (contents.exported / file).is_file():
            shutil.copyfile(contents.exported / file, home / file)
    facts: dict[str, Any] = {
        "platform": platform,
        "name": params.card.name,
        "target": bundle.target,
        "verdict": verdict.status.value,
        "target_verdict": _verdict_of(verdict, bundle.target).value,
        "artefact": artefact,
        "model": shipped.model,
        "home": made.HOME,
        "task": card.facts["task"],
        "sources": {
            "artefact": card.digest,
            "verdict": records.digest(verdict),
            **{kind: digest_of(getattr(workspace, kind)) for kind in ("data", "teacher", "student")},
        },
        "tools": {**artefact.tools, "decant": version_of("decant")},
        "tokenizers": compared,
    }
    base_models = open_folder(workspace.student, "student").facts[MODELS]
    _write_papers(params, folder, facts, verdict, evidence, shipped, base_models, made.HOW)
    manifest = write_manifest(folder, **facts)
    write_zip(folder, out / f"{platform}.zip")
    size, packed = sum(file.bytes for file in manifest.files.values()), (out / f"{platform}.zip").stat().st_size
    log.info("%s: %d files, %.1f MB, as a zip %.1f MB", platform, len(manifest.files), size / 1e6, packed / 1e6)
    test, _ = read_encoded(workspace, "test", params.data.max_length)
    tried = trial.hold(workspace, out / f"{platform}.zip", bundle.target, test, task, found.recorded)
    log.info("%s: %s", platform, _say(tried, task))
    return tried


def _verdict_of(verdict: Verdict, target: str) -> Status:
    """That of one target, whose budgets all count, since it ships."""
    budgets = [one for one in verdict.budgets if one.target == target]
    return overall([one.model_copy(update={"required": True}) for one in budgets], ())


def _say(tried: Trial, task: Task) -> str:
    """How a bundle did, for the log."""
    if tried.primary is None:
        return f"not tried here: {tried.not_tried}"
    said = (
        f"{tried.engine}: {task.METRIC.say(tried.primary.value)} on test, {tried.different} rows other than the target"
    )
    if tried.cold_ms is None:
        return said
    return f"{said}; first answer after {tried.cold_ms:.0f} ms, then {tried.warm_ms:.2f} ms a text"


def _check_tokenizers(platform: str, made: ModuleType, tokenizers: Tokenizers) -> dict[str, str]:
    """Title of each tokenizer that is used with the bundle -> how it compares with that of training.

    Raises:
        ExportError: the bundle's own code uses one that gives other ids.
    """
    for name in made.TOKENIZERS:
        facts = tokenizers.found[name]
        if facts.different:
            text, theirs, ours = facts.shown[0]
            raise ExportError(
                f"bundles.{platform}: {facts.title}: {facts.said} from the tokenizer of training, such as {text!r}: "
                f"{list(theirs)}, expected {list(ours)}; take bundles.{platform} out, or mend the tokenizer"
            )
    names = (*made.TOKENIZERS, *getattr(made, "BESIDE", ()))
    return {tokenizers.found[name].title: tokenizers.found[name].said for name in names}


def _contents(
    params: Params, workspace: Workspace, target: str, artefact: Artefact, task: Task, *, with_rules: bool
) -> Contents:
    _, dev = read_encoded(workspace, "dev", params.data.max_length)
    exported = workspace.exported(target)
    file = exported / "tokenizer.json"
    return Contents(
        exported=exported,
        artefact=artefact,
        labels=task.space.names,
        config=json.loads((workspace.student / "config.json").read_text("utf-8")),
        pad_id=dev.pad_id,
        rules=tokenizer_rules.of_file(file, artefact.max_length, dev.pad_id) if with_rules else None,
    )


def _write_papers(
    params: Params,
    folder: Path,
    facts: dict[str, Any],
    verdict: Verdict,
    evidence: Evidence,
    shipped: Shipped,
    base_models: list[str],
    how: str,
) -> None:
    """The model card, notices, and the bill of materials."""
    assert evidence.task is not None, "a task that cannot be read has stopped this before"
    rows = compare_models(evidence)
    ours = next(row for row in rows if row.role == "target" and row.name == facts["target"])
    text = model_card(params.card, evidence, rows, verdict, facts, how)
    (folder / "README.md").write_text(text, "utf-8", newline="\n")
    parts.write_notices(folder, params.card, base_models, shipped.parts)
    scores = {"": ours.score, **ours.by_slice} if ours.score is not None else {}
    metric = evidence.metric.name
    figures = {name: (metric, one) for name, one in scores.items()}
    parts.write_bill(folder, params.card, facts, shipped.parts, figures, evidence.task.HUB_NAME)


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params)
    with guard.lock(workspace.bundles):
        run(params, workspace)


if __name__ == "__main__":
    guard.run(main)
