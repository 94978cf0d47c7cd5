"""Exports the teacher, so that each target is timed beside it in the same runtime.

Run as `python -m stages.reference`.
"""

import logging

from pipeline.base import guard, plugins
from pipeline.base.files import output_folder
from pipeline.base.records import open_folder, seal
from pipeline.base.workspace import Workspace
from pipeline.settings.params import Params, load

log = logging.getLogger(__name__)
KIND = "reference"


def run(params: Params, workspace: Workspace) -> None:
    """Writes `artifacts/reference/<format>/` for each format in teacher.formats, each with its own card."""
    teacher = open_folder(workspace.teacher, "teacher")
    with output_folder(workspace.reference) as partial:
        for name in params.teacher.formats:
            exporter = plugins.load("format", name)
            reason = exporter.why_unusable() if hasattr(exporter, "why_unusable") else None
            if reason is not None:
                log.warning("teacher as %s: not made, so no target is timed beside it: %s", name, reason)
                continue
            folder = partial / name
            folder.mkdir()
            artefact = exporter.convert(
                workspace.teacher, folder, "fp32", exporter.Params(), params.data.max_length, None
            )
            facts = {"artefact": artefact.model_dump(mode="json")}
            card = seal(folder, KIND, {"teacher": teacher.digest}, facts)
            size = sum(fact.bytes for fact in card.files.values())
            log.info("teacher as %s: %.1f MB", name, size / 1e6)


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params)
    with guard.lock(workspace.reference):
        run(params, workspace)


if __name__ == "__main__":
    guard.run(main)
