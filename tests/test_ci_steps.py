"""The steps of both workflows, run as shell with Decant, DVC and the services' programs stood in for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import ROOT

MARKER = "<!-- decant compare -->"
# Each writes down how it was called. `decant` ends as GATE and COMPARE say, and leaves a comment unless there is none.
PROGRAMS = {
    "decant": """
case "$1 $2" in
  "stage gate") mkdir -p artifacts/report; echo "the report" > artifacts/report/summary.md; exit ${GATE:-0};;
  compare*) if [ -z "${NO_COMMENT:-}" ]; then
      mkdir -p artifacts/compared; printf '<!-- decant compare -->\\n\\nthe comment\\n' > artifacts/compared/comment.md
    fi; exit ${COMPARE:-0};;
esac
""",
    "dvc": "",
    "git": "",
    "gh": 'case "$*" in *--paginate*) echo "${OLD:-}";; esac\n',
    # the body of a note is in a file, whose content is written down as well
    "curl": """
case "$*" in *--request*) for one in "$@"; do case "$one" in body@*) cat "${one#body@}" >> calls.log;; esac; done;;
  *) echo "${NOTES:-[]}";;
esac
""",
    "python": f"""
if [ "$1" = -m ]; then mkdir -p .venv/bin; printf '#!/bin/sh\\n' > .venv/bin/pip; chmod +x .venv/bin/pip
else exec {sys.executable} "$@"; fi
""",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the programs beside it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f'#!/bin/bash\necho "{name} $*" >> calls.log\n{text}')
        (programs / name).chmod(0o755)
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def shell(place: Path, script: str, *options: str, **variables: str) -> tuple[int, str]:
    """(exit status, what was called and written down since the last time)."""
    calls = place / "calls.log"
    calls.unlink(missing_ok=True)
    environment = {**os.environ, "PATH": f"{place.parent / 'bin'}:{os.environ['PATH']}", **variables}
    done = subprocess.run(
        ["bash", "-e", *options, "-c", script], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, calls.read_text("utf-8") if calls.is_file() else ""


# --- GitHub Actions ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steps() -> dict[str, dict[str, Any]]:
    """Name -> step."""
    workflow = yaml.safe_load((ROOT / "stages" / "project" / "github.yml").read_text("utf-8"))
    return {step.get("name", step.get("uses", "")): step for step in workflow["jobs"]["gate"]["steps"]}


def test_a_gate_that_fails_fails_its_step_and_the_job_goes_on(place: Path, steps: dict[str, Any]) -> None:
    """To comment, to keep the report, and to fail at the end."""
    for status in ("0", "1", "3"):
        code, calls = shell(place, steps["Build"]["run"], GATE=status)
        assert code == int(status) and "dvc repro" in calls and "decant stage gate" in calls
    assert steps["Build"]["continue-on-error"] and steps["Compare with the base"]["continue-on-error"]
    code, calls = shell(place, steps["Compare with the base"]["run"], COMPARE="3", GITHUB_BASE_REF="main")
    assert (code, calls.split()[:3]) == (3, ["decant", "compare", "origin/main"])


def test_the_summary_has_both_pages(place: Path, steps: dict[str, Any]) -> None:
    """Which is what a fork's pull request has in place of a comment."""
    shell(place, f"{steps['Build']['run']}\n{steps['Compare with the base']['run']}", GITHUB_BASE_REF="main")
    shell(place, steps["Summary"]["run"], GITHUB_STEP_SUMMARY="summary.md")
    assert (place / "summary.md").read_text("utf-8") == f"{MARKER}\n\nthe comment\nthe report\n"
    assert "head.repo.full_name == github.repository" in steps["Comment"]["if"]


def test_one_comment_is_written_and_then_edited(place: Path, steps: dict[str, Any]) -> None:
    """And where there is nothing to say, that is said."""
    names = {"GITHUB_REPOSITORY": "me/mine", "PULL": "7", "GH_TOKEN": "x"}
    shell(place, "decant compare main")
    code, calls = shell(place, steps["Comment"]["run"], **names)
    assert code == 0 and "--method POST repos/me/mine/issues/7/comments -F body=@artifacts/compared/comment.md" in calls
    code, calls = shell(place, steps["Comment"]["run"], **names, OLD="99")
    assert code == 0 and "--method PATCH repos/me/mine/issues/comments/99 -F body=@" in calls and "POST" not in calls
    (place / "artifacts" / "compared" / "comment.md").unlink()
    code, calls = shell(place, steps["Comment"]["run"], **names)
    assert code == 0 and "body=@comment.md" in calls
    assert (place / "comment.md").read_text("utf-8").startswith(f"{MARKER}\n\n### ○ Decant: cannot compare")


@pytest.mark.parametrize(
    ("build", "compare", "passes"),
    [
        ("success", "success", True),
        ("success", "skipped", True),
        ("failure", "success", False),
        ("success", "failure", False),
        ("failure", "skipped", False),
    ],
)
def test_the_job_ends_as_gate_and_comparison_did(
    place: Path, steps: dict[str, Any], build: str, compare: str, passes: bool
) -> None:
    code, _ = shell(place, steps["Verdict"]["run"], BUILD=build, COMPARE=compare)
    assert (code == 0) == passes


# --- GitLab CI ---------------------------------------------------------------------------------------------------

MERGE_REQUEST = {
    "CI_MERGE_REQUEST_IID": "7",
    "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main",
    "CI_API_V4_URL": "https://gitlab.example/api/v4",
    "CI_PROJECT_ID": "5",
}
NOTES = f"{MERGE_REQUEST['CI_API_V4_URL']}/projects/5/merge_requests/7/notes"


@pytest.fixture(scope="module")
def script() -> str:
    """All of the job in one shell, as GitLab's runner has it."""
    return "\n".join(yaml.safe_load((ROOT / "docs" / "ci" / "gitlab-ci.yml").read_text("utf-8"))["decant"]["script"])


def test_a_note_is_written_and_then_edited(place: Path, script: str) -> None:
    code, calls = shell(place, script, "-o", "pipefail", **MERGE_REQUEST, DECANT_TOKEN="x")
    assert code == 0 and "decant compare origin/main --build" in calls
    assert (
        f"--request POST --header PRIVATE-TOKEN: x --data-urlencode body@artifacts/compared/comment.md {NOTES}" in calls
    )
    assert "the comment" in calls
    notes = json.dumps([{"id": 3, "body": "nice"}, {"id": 42, "body": f"{MARKER} old"}])
    code, calls = shell(place, script, "-o", "pipefail", **MERGE_REQUEST, DECANT_TOKEN="x", NOTES=notes)
    assert code == 0 and f"{NOTES}/42" in calls and "--request PUT" in calls and "POST" not in calls


@pytest.mark.parametrize("variables", [{"GATE": "1"}, {"GATE": "3"}, {"COMPARE": "1"}, {"COMPARE": "3"}])
def test_a_job_that_fails_has_its_note_first(place: Path, script: str, variables: dict[str, str]) -> None:
    code, calls = shell(place, script, "-o", "pipefail", **MERGE_REQUEST, DECANT_TOKEN="x", **variables)
    assert code != 0 and "--request POST" in calls


def test_without_a_token_or_a_comment_nothing_is_lost(place: Path, script: str) -> None:
    code, calls = shell(place, script, "-o", "pipefail", **MERGE_REQUEST)
    assert code == 0 and "curl" not in calls
    (place / "artifacts" / "compared" / "comment.md").unlink()
    code, calls = shell(place, script, "-o", "pipefail", **MERGE_REQUEST, DECANT_TOKEN="x", NO_COMMENT="1", COMPARE="4")
    assert code != 0 and "cannot compare, see the log" in calls
    code, calls = shell(place, script, "-o", "pipefail")  # the default branch
    assert code == 0 and "decant compare" not in calls
