"""A project of one's own: what is written, that it is this version's, and that no name of the user's collides."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fakes import ROOT

from pipeline.base.errors import SettingsError
from pipeline.settings.params import load
from stages import project
from stages.commands import new, stage


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "my-model"
    new.command(folder)
    return folder


def test_it_has_settings_map_ci_and_a_pinned_decant(made: Path) -> None:
    """And ten lines to read, and a DVC project in a git repository."""
    every = (path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
    files = {path for path in every if not path.startswith(".git/")}
    written = {"README.md", "params.yaml", "dvc.yaml", ".gitignore", ".dvcignore", "requirements.txt"}
    assert written | {".github/workflows/decant.yml"} <= files
    assert {path.split("/")[0] for path in files} <= written | {".github", ".dvc"}
    readme = (made / "README.md").read_text("utf-8")
    assert readme.startswith("# my-model\n") and len(readme.splitlines()) <= 15
    assert (made / "requirements.txt").read_text("utf-8").startswith("decant")
    assert (made / ".dvc" / "config").is_file() and (made / ".git").is_dir()


def test_its_settings_are_read_and_keep_texts_private(made: Path) -> None:
    params = load(made / "params.yaml")
    assert (params.data.source, params.data.files.root) == ("files", "data")
    assert params.report.publish_texts is False


def test_its_map_is_ours_with_stages_by_name(made: Path) -> None:
    """Every stage, with the same dependencies, settings and outputs; no command finds a user's folder."""
    ours = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))
    theirs = yaml.safe_load((made / "dvc.yaml").read_text("utf-8"))
    for name, one in ours["stages"].items():
        other = theirs["stages"][name]
        before, after = (each.get("do", each) for each in (one, other))
        assert {**before, "cmd": ""} == {**after, "cmd": ""}
        assert after["cmd"] == before["cmd"].replace(f"python -m stages.{name}", f"decant stage {name}")
        assert name in stage.STAGES
    assert "stages/" not in (made / "dvc.yaml").read_text("utf-8")


def test_a_folder_that_has_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    with pytest.raises(SettingsError, match="not empty"):
        new.command(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_stage_is_found_by_its_name_or_the_nearest_is_named() -> None:
    with pytest.raises(SettingsError, match="no stage 'convrt'; did you mean 'convert'"):
        stage.command("convrt")


def test_an_installed_decant_runs_beside_folders_of_the_same_names(made: Path, tmp_path: Path) -> None:
    """Installed as users have it, not from this checkout; their own `stages` and `eval` are not what is run."""
    site = tmp_path / "site"
    source = tmp_path / "source"  # building writes beside it
    source.mkdir()
    for name in ("pipeline", "stages", "export", "eval"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, capture_output=True)
    user = tmp_path / "user"
    user.mkdir()
    for name in ("stages", "eval", "pipeline", "export"):
        (user / name).mkdir()
        (user / name / "__init__.py").write_text("raise SystemExit('the user\\'s own')\n")
    (user / "params.yaml").write_text((made / "params.yaml").read_text("utf-8"))
    (user / "data").mkdir()
    for split in ("train", "test"):
        (user / "data" / f"{split}.csv").write_text("text,label\na,b\n")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, str(site / "bin" / "decant"), "stage", "machine"],
        cwd=user,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (user / "artifacts" / "depends" / "convert" / "cpu.json").is_file()
    listing = subprocess.run(
        [sys.executable, str(site / "bin" / "decant"), "new", str(tmp_path / "second")],
        cwd=user,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert listing.returncode == 0, listing.stderr
    assert (tmp_path / "second" / "dvc.yaml").read_text("utf-8") == (made / "dvc.yaml").read_text("utf-8")


def test_what_is_copied_is_made_from_ours() -> None:
    """By `decant schema`."""
    for name, make in ((project.DVC, project.dvc_yaml), (project.PARAMS, project.params_yaml)):
        assert (ROOT / "stages" / "project" / name).read_text("utf-8") == make((ROOT / name).read_text("utf-8"))
