"""Makes a project of one's own: settings, map, CI, and a pinned Decant.

    decant new my-model

Nothing of Decant's source is copied into it, and reports show no text of its data unless params.yaml says so.
"""

import importlib.metadata
import json
import subprocess
from importlib import resources
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from pipeline.base.errors import EnvironmentFault, SettingsError
from pipeline.base.files import output_folder
from stages.commands.run import dvc

FILES = {
    "README.md": "README.md",
    "params.yaml": "params.yaml",
    "dvc.yaml": "dvc.yaml",
    "gitignore": ".gitignore",
    "dvcignore": ".dvcignore",
    "github.yml": ".github/workflows/decant.yml",
}


def command(folder: Annotated[Path, typer.Argument(help="The folder to make.")]) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise SettingsError(f"{folder}: not empty; name a folder that is not there yet")
    source = resources.files("stages.project")
    with output_folder(folder) as partial:
        for name, place in FILES.items():
            text = source.joinpath(name).read_text("utf-8")
            path = partial / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(text).safe_substitute(name=folder.resolve().name) if name == "README.md" else text)
        (partial / "requirements.txt").write_text(f"{pinned()}\n", "utf-8")
        (partial / "data").mkdir()
    _git(folder, "init", "--quiet")
    dvc(folder, "init", "--quiet")
    dvc(folder, "config", "core.analytics", "false")
    print(f"made {folder}: put train.csv and test.csv into {folder / 'data'}, read {folder / 'params.yaml'}, then run")
    print("`dvc repro` in it")


def pinned() -> str:
    """The requirement that gives this very Decant: the commit that it was installed from, else its version."""
    distribution = importlib.metadata.distribution("decant")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id")
    return f"decant @ git+{origin['url']}@{commit}" if commit else f"decant=={distribution.version}"


def _git(folder: Path, *words: str) -> None:
    if subprocess.run(["git", "-C", str(folder), *words], check=False).returncode:
        raise EnvironmentFault(f"git {' '.join(words)} failed in {folder}; see above")
