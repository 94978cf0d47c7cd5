"""Keeps what accepted versions measured, and shows where a figure drifted.

    decant history          a page of all of them, and the changes as text
    decant history --add    adds this version to history.jsonl; on the main branch, once its verdict is a pass

The file belongs under git. `decant compare last-accepted` compares with the version of its last line. No gate reads it.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from eval import history
from eval.budgets import overall
from pipeline.base import records
from pipeline.base.errors import IntegrityError
from pipeline.base.files import output_folder
from pipeline.base.records import Measurement, Status, Verdict
from pipeline.base.workspace import Workspace
from pipeline.settings.accepted import today
from stages.gating.bases import changed_files, revision_of
from stages.reporting.history import changes_of, render


def command(
    folder: Annotated[Path, typer.Option(help="The project.")] = Path(),
    add: Annotated[bool, typer.Option("--add", help="Add this version, whose verdict must be a pass.")] = False,
) -> None:
    workspace = Workspace(folder)
    if add:
        entry = _entry(workspace)
        did = "added" if history.add(workspace.root, entry) else "already has"
        print(f"{workspace.root / history.FILE}: {did} verdict {entry.verdict[:12]}")
    entries = history.read(workspace.root)
    with output_folder(workspace.history) as partial:
        (partial / "index.html").write_text(render(entries), "utf-8", newline="\n")
    for line in changes_of(entries):
        print(line)
    print(f"{len(entries)} accepted versions: {workspace.history / 'index.html'}")


def _entry(workspace: Workspace) -> history.Entry:
    """This version, from its report.

    Raises:
        IntegrityError: there is no report, or its verdict is no pass.
    """
    verdict = records.read(Verdict, workspace.report / "verdict.json")
    records.open_folder(workspace.report, "report")
    status = overall(verdict.budgets, verdict.problems, day=today().isoformat())
    if status is not Status.PASS:
        raise IntegrityError(
            f"{workspace.report / 'verdict.json'}: found '{status}', expected 'pass': only accepted versions are kept; "
            "see `decant stage gate`"
        )
    _refuse_stale(workspace, verdict)
    metrics = json.loads((workspace.report / "metrics.json").read_text("utf-8"))
    return history.Entry(
        day=today().isoformat(),
        revision=revision_of(workspace.root) or "",
        verdict=records.digest(verdict),
        machines={name: _machine(workspace, name) for name in metrics["targets"]},
        figures=metrics["targets"],
    )


def _refuse_stale(workspace: Workspace, verdict: Verdict) -> None:
    """A line names a commit: the artefacts that were judged must be here, and built by what is committed.

    Raises:
        IntegrityError: the report is of other artefacts, or git has other settings than those on disk.
    """
    for name, digest in verdict.evidence.items():
        kind, _, target = name.partition("/")
        if kind == "exported" and records.digest_of(workspace.exported(target)) != digest:
            raise IntegrityError(f"{workspace.report}: made of another artefact of '{target}'; run `dvc repro` first")
    changed = changed_files(workspace.root, "params.yaml", "dvc.lock")
    if changed:
        raise IntegrityError(
            f"{', '.join(changed)}: not committed, so the commit would be of another version; commit, then add"
        )


def _machine(workspace: Workspace, target: str) -> str:
    """What the target was timed on; empty where it was not."""
    path = workspace.measured(target)
    facts = records.read(Measurement, path).machine if path.is_file() else {}
    return ", ".join([str(facts["cpu"]), *facts["isa"]]) if "cpu" in facts else ""
