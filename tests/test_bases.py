"""What a change is compared with: brought from where it is, or a reason; the project is left as it was."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.base.errors import SettingsError
from pipeline.base.records import open_folder, seal
from pipeline.base.workspace import Workspace
from stages.commands.run import dvc_environment
from stages.gating.bases import bring

# Stands for the exporter: a sealed folder that holds what the weights were.
MAKE = """
import sys
from pathlib import Path
from pipeline.base.records import seal
out = Path("artifacts/exported") / sys.argv[1]
out.mkdir(parents=True, exist_ok=True)
(out / "model.txt").write_text(Path("weights.txt").read_text())
seal(out, "artefact")
"""
MAP = {
    "stages": {
        "convert": {
            "foreach": ["cpu"],
            "do": {
                "cmd": "python make.py ${item}",
                "deps": ["make.py", "weights.txt"],
                "outs": ["artifacts/exported/${item}"],
            },
        }
    }
}


def run(folder: Path, *command: str) -> None:
    environment = {**dvc_environment(), "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def dvc(folder: Path, *words: str) -> None:
    run(folder, sys.executable, "-m", "dvc", *words)


def commit(project: Path, weights: str) -> None:
    """A version of the project, built and committed."""
    (project / "weights.txt").write_text(weights)
    dvc(project, "repro", "--quiet")
    run(project, "git", "add", "-A")
    run(project, "git", "commit", "--quiet", "-m", weights)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the project in a folder of it: version one, and version two on top."""
    top = tmp_path_factory.mktemp("repository")
    project = top / "app"
    project.mkdir()
    run(top, "git", "init", "--quiet")
    for key, value in (("user.name", "nobody"), ("user.email", "nobody@localhost")):
        run(top, "git", "config", key, value)
    dvc(project, "init", "--subdir", "--quiet")
    (project / "make.py").write_text(MAKE)
    (project / "dvc.yaml").write_text(json.dumps(MAP))
    (project / ".gitignore").write_text("/artifacts\n")
    commit(project, "one")
    commit(project, "two")
    return project


@pytest.fixture
def project(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    return Path(shutil.copytree(built.parent, tmp_path / "repository", symlinks=True)) / "app"


def version_of(folder: Path) -> str:
    open_folder(folder, "artefact")
    return (folder / "model.txt").read_text()


def test_a_revision_comes_from_the_cache_and_nothing_is_touched(project: Path) -> None:
    """Nor is anything left: no worktree, no folder."""
    with bring("HEAD~1", project, ["cpu", "gone"]) as base:
        assert version_of(base.folders["cpu"]) == "one"
        assert base.name == "HEAD~1" and len(base.version) == 40
        assert base.missing["gone"].startswith("its artefact is in none of: the DVC cache, a DVC remote, weights in")
        place = base.folders["cpu"]
    assert not place.exists()
    assert version_of(project / "artifacts/exported/cpu") == "two"
    listed = subprocess.run(["git", "worktree", "list"], cwd=project, capture_output=True, text=True, check=True).stdout
    assert len(listed.splitlines()) == 1
    status = subprocess.run(["git", "status", "--short"], cwd=project, capture_output=True, text=True, check=True)
    assert status.stdout == ""


def test_without_a_cache_it_comes_from_a_remote_or_is_built_when_asked(project: Path, tmp_path: Path) -> None:
    cache = project / ".dvc" / "cache"
    dvc(project, "remote", "add", "--local", "--default", "kept", str(tmp_path / "remote"))
    dvc(project, "push", "--all-commits", "--quiet")
    shutil.rmtree(cache)
    with bring("HEAD~1", project, ["cpu"]) as base:
        assert version_of(base.folders["cpu"]) == "one"
    shutil.rmtree(cache, ignore_errors=True)
    shutil.rmtree(tmp_path / "remote")
    with bring("HEAD~1", project, ["cpu"]) as base:
        assert base.folders == {} and "compare with --build" in base.missing["cpu"]
    with bring("HEAD~1", project, ["cpu"], build=True) as base:
        assert version_of(base.folders["cpu"]) == "one"


def test_a_folder_is_a_project_or_an_artefact(project: Path, tmp_path: Path) -> None:
    with bring(str(project), project, ["cpu", "ios"]) as base:
        assert version_of(base.folders["cpu"]) == "two" and "has no artefact" in base.missing["ios"]
    with bring(str(project / "artifacts/exported/cpu"), project, ["cpu"]) as base:
        assert version_of(base.folders["cpu"]) == "two" and base.version
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="neither a project"), bring(str(tmp_path / "empty"), project, ["cpu"]):
        pass


@pytest.mark.parametrize("name", ["no-such-branch", "--upload-pack=x", "HEAD~99"])
def test_what_is_no_base_is_refused(project: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="neither a folder nor a git revision"), bring(name, project, ["cpu"]):
        pass


def test_a_run_that_was_killed_is_cleared_away(project: Path) -> None:
    """Its worktree is still registered, and its folder half full."""
    said = subprocess.run(["git", "rev-parse", "HEAD~1"], cwd=project, capture_output=True, text=True, check=True)
    place = Workspace(project).work(f"base-{said.stdout[:12]}")
    run(project, "git", "worktree", "add", "--quiet", "--detach", str(place), "HEAD~1")
    rubbish = place / "app" / "artifacts" / "exported" / "cpu"
    rubbish.mkdir(parents=True)
    (rubbish / "model.txt").write_text("half")
    with bring("HEAD~1", project, ["cpu"]) as base:
        assert version_of(base.folders["cpu"]) == "one"
    assert not place.exists()


def test_a_damaged_artefact_is_not_taken(project: Path) -> None:
    """DVC restores a damaged cache file without a word; the card beside it tells."""
    for file in (project / ".dvc" / "cache").rglob("*"):
        if file.is_file() and file.read_bytes() == b"one":
            file.chmod(0o644)
            file.write_bytes(b"0ne")
    with bring("HEAD~1", project, ["cpu"]) as base:
        assert base.folders == {} and "none of" in base.missing["cpu"]


def test_sealing_is_what_the_stand_in_does(tmp_path: Path) -> None:
    """Or the tests above would say nothing of real artefacts."""
    (tmp_path / "model.txt").write_text("x")
    seal(tmp_path, "artefact")
    assert version_of(tmp_path) == "x"
