"""Writes facts about this machine, and digests of all that stages depend on.

Always runs, in about a second. Its outputs change only when the machine, the data files, the base model, the code or a
package change, and each stage depends on one file that holds its share of that, so the rest of the pipeline re-runs
exactly then. Run as `python -m stages.machine`.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.base import dependencies, guard, machine, plugins
from pipeline.base.errors import DataError, SettingsError
from pipeline.base.files import sha256_of, write_atomically
from pipeline.base.plugins import nearest
from pipeline.base.workspace import Workspace
from pipeline.data.inputs import base_model_files, data_files, describe_source, model_digest
from pipeline.settings import accepted
from pipeline.settings.params import Params, load
from pipeline.settings.targets import Target
from stages.packaging.tokenizers import named

# Every stage, in the order of dvc.yaml, and how much of the machine its result depends on: training and converting are
# held to give the same on any, what is answered depends on the instruction sets, and a time on everything.
Scope = Literal["nothing", "instruction sets", "everything"]
ONCE: dict[str, Scope] = {
    "prepare": "nothing",
    "floors": "everything",
    "teach": "nothing",
    "general": "nothing",
    "reference": "nothing",
    "distill": "nothing",
    "quantize": "nothing",
    "tokenizers": "nothing",
    "report": "everything",
    "package": "instruction sets",
    "gate": "nothing",
}
PER_TARGET: dict[str, Scope] = {
    "convert": "nothing",
    "evaluate": "instruction sets",
    "examine": "instruction sets",
    "benchmark": "everything",
}


def run(params: Params, workspace: Workspace) -> None:
    """Writes machine.json, inputs.json, accepted.json and the folder depends/."""
    facts = machine.facts()
    write_atomically(workspace.machine, _json(facts))
    write_atomically(workspace.inputs, _json(input_digests(params, workspace.root)))
    write_atomically(workspace.accepted, _json(accepted_today(params, workspace.root)))
    parsed = workspace.work("code.json")
    dependencies.remember(parsed)
    shutil.rmtree(workspace.artifacts / "depends", ignore_errors=True)  # a target that is gone has no file
    for stage in ONCE:
        write_atomically(workspace.depends(stage), _json(depends_on(stage, params, facts)))
    for stage in PER_TARGET:
        for name, target in params.targets.items():
            write_atomically(workspace.depends(stage, name), _json(depends_on(stage, params, facts, target)))
    dependencies.keep(parsed)


def depends_on(stage: str, params: Params, facts: dict[str, Any], target: Target | None = None) -> dict[str, Any]:
    """What the result of a stage depends on besides the data it reads and the settings that DVC follows.

    Args:
        stage: its name.
        params: for the plug-ins that they choose.
        facts: of `machine.facts`.
        target: for stages that run once for each.
    """
    if stage == "general" and not params.is_general:
        return {"inputs": "none is asked for"}  # and no edit of what would make one makes anything again
    found = dependencies.trace([f"stages.{stage}"], _chosen(stage, params, target))
    scope = PER_TARGET[stage] if target is not None else ONCE[stage]
    known = {
        "nothing": {},
        "everything": facts,
        "instruction sets": {key: facts[key] for key in ("architecture", "isa")},
    }
    return {"code": found.code, "packages": found.packages, "machine": known[scope], "inputs": _inputs(stage, params)}


def _chosen(stage: str, params: Params, target: Target | None) -> dict[str, list[str]]:
    """Plug-ins that a stage loads by a name of the settings."""
    if stage == "general":  # which knows no task, so that those of several share it
        models = [params.teacher.model, params.origin[0]]
        return {**_families(models), "loss": sorted(params.general.losses)}
    second = params.teacher.second
    models = [params.teacher.model, params.origin[0], *([second.model] if second is not None else [])]
    return {"task": [params.task.name], **_families(models), **_others(stage, params, target)}


def _families(models: Sequence[str]) -> dict[str, list[str]]:
    """Those of some models; nothing, which means any, where one is not on this machine yet."""
    found = [_family(model) for model in dict.fromkeys(models)]
    return {"family": sorted({family for family in found if family is not None})} if None not in found else {}


def _family(model: str) -> str | None:
    config = next((file for file in base_model_files(model) if file.name == "config.json"), None)
    try:
        kind = json.loads(config.read_text("utf-8"))["model_type"] if config is not None else None
    except (OSError, ValueError, KeyError, TypeError):
        kind = None  # the stage that loads it says what is wrong
    return kind.replace("-", "_") if isinstance(kind, str) else None


def _others(stage: str, params: Params, target: Target | None) -> dict[str, list[str]]:
    if target is not None:
        return {"format": [target.format], "runtime": [target.runtime], "device": [target.device]}
    if stage == "prepare":
        return {"reader": sorted({file.suffix.removeprefix(".") for file in data_files(params.data, Path()).values()})}
    if stage == "reference":
        return {"format": list(params.teacher.formats)}
    if stage in ("tokenizers", "package"):
        targets = [params.targets[bundle.target] for bundle in params.bundles.values()]
        return {
            "bundle": sorted(params.bundles),
            "client": sorted(params.bundles),
            "tokenizer": named(params),
            "runtime": sorted({target.runtime for target in targets}),
            "device": sorted({target.device for target in targets}),
        }
    # Both besides those of the settings: controls fall back on them. A plan is made for schemes that exporters declare,
    # not by their code: one that changed asks for another entry, and is told to make the plan again.
    target_loss = plugins.load("task", params.task.name).TARGET_LOSS
    losses = {
        "teach": [target_loss],
        "distill": sorted({*params.distill.losses, target_loss, "logit_kl"}),
    }
    return {"loss": losses.get(stage, [])}


def _inputs(stage: str, params: Params) -> dict[str, Any]:
    """What else a stage reads that is no output of another."""
    if stage == "prepare":
        unlabelled, origin = _digests(params.data.unlabelled.files), model_digest(*params.origin)
        return {"unlabelled": unlabelled, "origin": origin, "second": _second(params)}
    if stage == "teach":
        return {"second": _second(params)}
    if stage == "general":
        models = {"teacher": (params.teacher.model, params.teacher.revision), "origin": params.origin}
        return {"texts": _digests(params.general.texts), **{name: model_digest(*one) for name, one in models.items()}}
    if stage == "distill":
        masked_lm = params.distill.augment.masked_lm
        found = {"masked_lm": {file.name: _digest(file) for file in base_model_files(masked_lm)} if masked_lm else {}}
        return {**found, "origin": model_digest(*params.origin)}
    if stage == "report":
        return params.report.model_dump(mode="json")
    if stage in ("tokenizers", "package"):
        tools = {"bundle": params.bundles, "client": params.bundles, "tokenizer": named(params)}
        said = {f"{kind} {name}": _say(kind, name) for kind, names in tools.items() for name in names}
        return {**params.report.model_dump(mode="json"), **said}
    if stage == "quantize":
        targets = [[target.format, target.precision, target.options] for target in params.targets.values()]
        return {"targets": sorted({json.dumps(target, sort_keys=True) for target in targets})}
    return {}


def _say(kind: str, name: str) -> list[str | None]:
    """Why a plug-in cannot be used here, and its version: what was installed since makes again what it makes."""
    if name not in plugins.names(kind):
        return []
    module = plugins.load(kind, name)
    reason = module.why_unusable() if hasattr(module, "why_unusable") else None
    return [reason, module.version() if reason is None and hasattr(module, "version") else None]


def _second(params: Params) -> str | None:
    second = params.teacher.second
    return None if second is None else model_digest(second.model, second.revision)


def _digests(names: Sequence[str]) -> list[str | None]:
    return [_digest(Path(name)) for name in names]


def _digest(file: Path) -> str | None:
    return sha256_of(file) if file.is_file() else None


def input_digests(params: Params, root: Path) -> dict[str, object]:
    """What the data set and the base model are, by content where they are local, by name and revision where not."""
    data: dict[str, str | None] = {}
    for split, file in data_files(params.data, root).items():
        if not file.is_file():
            raise DataError(f"{file}: no such file; check data.files in params.yaml")
        data[split] = sha256_of(file)
    if params.data.source == "hub":
        hub = params.data.hub
        data = {"dataset": hub.dataset, "config": hub.config, "revision": hub.revision}
    is_local = bool(base_model_files(params.teacher.model))
    return {
        "data": data,
        "teacher": {
            "source": describe_source(params.teacher.model),
            "revision": params.teacher.revision,
            "sha256": model_digest(params.teacher.model, params.teacher.revision) if is_local else None,
        },
    }


def accepted_today(params: Params, root: Path) -> list[dict[str, Any]]:
    """The exceptions in force: this file changes on the day when one ends, and the report is made again."""
    found = accepted.in_force(accepted.read(root), accepted.today())
    for one in found:
        if one.target not in params.targets:
            raise SettingsError(
                f"{root / accepted.FILE}: found target '{one.target}', which params.yaml does not have"
                f"{nearest(one.target, params.targets)}; take that entry out"
            )
    return [one.model_dump(mode="json") for one in found]


def _json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def main() -> None:
    workspace = Workspace()
    run(load(workspace.params, with_plugins=False), workspace)


if __name__ == "__main__":
    guard.run(main)
