"""Writes the facts about this machine, and digests of the data files and the base model.

Always runs, in under a second. Its outputs change only when the machine, the data files or the base model change, so
the rest of the pipeline re-runs exactly then. Run as `python -m stages.machine`.
"""

import hashlib
import json
from pathlib import Path

from pipeline import guard, machine, plugins
from pipeline.errors import DataError
from pipeline.files import sha256_of, write_atomically
from pipeline.inputs import base_model_files, data_files, describe_source
from pipeline.params import Params, load
from pipeline.workspace import Workspace


def run(params: Params, workspace: Workspace) -> None:
    """Writes machine.json, inputs.json and losses.json."""
    write_atomically(workspace.machine, _json(machine.facts()))
    write_atomically(workspace.inputs, _json(input_digests(params, workspace.root)))
    write_atomically(workspace.losses, _json(loss_digests(params)))


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
    digest = hashlib.sha256()
    files = base_model_files(params.teacher.model)
    for file in files:
        digest.update(f"{file.name} {sha256_of(file)}\n".encode())
    return {
        "data": data,
        "teacher": {
            "source": describe_source(params.teacher.model),
            "revision": params.teacher.revision,
            "sha256": digest.hexdigest() if files else None,
        },
    }


def loss_digests(params: Params) -> dict[str, str]:
    """Loss name -> digest of its file, for the losses that the settings name and those that controls fall back on."""
    used = {*params.distill.losses, "cross_entropy", "logit_kl"}
    return {name: sha256_of(plugins.file_of("loss", name)) for name in sorted(used)}


def _json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def main() -> None:
    workspace = Workspace()
    run(load(workspace.params, with_plugins=False), workspace)


if __name__ == "__main__":
    guard.run(main)
