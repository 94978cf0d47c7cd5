"""A bundle tried as an app would: unpacked from its zip, its own code asked, on the whole test split.

Its self-test must pass, and its answers be those of the target's runtime but for rounding; both are refused otherwise.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.clients import Recorded, Used
from eval.statistics import mean_interval
from pipeline.base import plugins, records
from pipeline.base.errors import ExportError, ModelError
from pipeline.base.files import sha256_of
from pipeline.base.records import Score, Trial, digest_of
from pipeline.base.workspace import Workspace
from pipeline.data.examples import Examples
from pipeline.formats.bundles import MANIFEST, check_files, read_manifest, unpack
from pipeline.tasks import Task

# Of test rows: another build of a runtime rounds otherwise, and answers a row otherwise where two labels are level.
MAX_DIFFERENT = 0.01


def hold(workspace: Workspace, archive: Path, target: str, test: Examples, task: Task, recorded: Recorded) -> Trial:
    """What came of it.

    Raises:
        ExportError: the self-test fails, or too many answers are others than the target's.
    """
    platform = archive.stem
    client = plugins.load("client", platform) if platform in plugins.names("client") else None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        unpack(archive, folder)
        manifest = read_manifest(folder)
        check_files(folder, manifest)
        known: dict[str, Any] = {
            "platform": platform,
            "target": target,
            "manifest_digest": sha256_of(folder / MANIFEST),
            "sources": {"data": digest_of(workspace.data), "artefact": manifest.sources["artefact"]},
        }
        reason = "its code runs on another system" if client is None else client.why_unusable()
        if client is None or reason is not None:
            return Trial(**known, not_tried=reason)
        needs = getattr(client, "NEEDS_RECORDED", False)
        try:
            used = client.use(folder, test.texts, recorded) if needs else client.use(folder, test.texts)
        except ModelError as error:
            raise ExportError(f"bundles.{platform}: {error}") from error
    return _judge(workspace, known, used, test, task, is_recorded=needs)


def _judge(
    workspace: Workspace, known: Mapping[str, Any], used: Used, test: Examples, task: Task, *, is_recorded: bool
) -> Trial:
    platform = known["platform"]
    if used.failures:
        raise ExportError(
            f"bundles.{platform}: its self-test fails on {used.engine}: {used.failures[0]}"
            f"{f' and {len(used.failures) - 1} more' if len(used.failures) > 1 else ''}"
        )
    score = records.read(Score, workspace.scored(known["target"]))
    different = _different(used.answers, score.answers)
    if different > MAX_DIFFERENT * len(test):
        raise ExportError(
            f"bundles.{platform}: {different} of {len(test)} test rows are answered otherwise on {used.engine} than by "
            f"target {known['target']}, expected at most {MAX_DIFFERENT:.0%}"
        )
    return Trial(
        **known,
        engine=used.engine,
        examples=len(test),
        primary=mean_interval(task.values(list(used.answers), test.numbers)),
        different=different,
        cold_ms=used.cold_ms,
        warm_ms=used.warm_ms,
        first_bytes=used.first_bytes,
        is_recorded=is_recorded,
    )


def _different(found: Sequence[Any], expected: Sequence[Any]) -> int:
    return int((np.asarray(found) != np.asarray(expected)).sum())
