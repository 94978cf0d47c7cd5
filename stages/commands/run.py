"""Runs a recipe, or any settings file, in a workspace of its own.

    decant run banking77                                  from the hub
    decant run banking77 --files ../shared/banking77      from files in place of the hub
    decant run sst2 --set seed=1 --set distill.seeds=1    with changes

The workspace holds a copy of the code and the settings, and its own DVC state; the same command goes on where an
earlier one stopped.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from pipeline.base import guard
from pipeline.base.errors import EnvironmentFault, SettingsError
from pipeline.base.files import write_atomically
from pipeline.base.plugins import nearest
from pipeline.base.workspace import Workspace
from pipeline.settings.params import load, read_values
from pipeline.settings.student import GENERAL, RANDOM, TEACHER

CODE = ("pipeline", "stages", "export", "eval", "data", "dvc.yaml", ".dvcignore")
PROJECT = Path(__file__).resolve().parents[2]
# Settings that may be a path, or a list of them.
PATHS = (
    ("data", "files", "root"),
    ("data", "unlabelled", "files"),
    ("teacher", "model"),
    ("teacher", "second", "model"),
    ("student", "init", "from"),
    ("general", "texts"),
    ("general", "init", "from"),
    ("distill", "augment", "masked_lm"),
)


def command(
    recipe: Annotated[str, typer.Argument(help="A name under recipes/, or a settings file.")],
    files: Annotated[Path | None, typer.Option(help="Folder with the data files, in place of the hub.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, such as distill.seeds=1.")] = None,
    workspace: Annotated[Path | None, typer.Option(help="Default: workspaces/<recipe>.")] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage, such as distill.")] = None,
) -> int:
    source = find_recipe(recipe)
    folder = workspace or Path("workspaces") / source.stem
    prepare_workspace(source, folder, files, changes or [])
    return reproduce(folder, until)


def find_recipe(name: str) -> Path:
    """The settings file of a recipe.

    Raises:
        SettingsError: neither a recipe nor a file.
    """
    path = PROJECT / "recipes" / f"{name}.yaml"
    if path.is_file():
        return path
    if Path(name).is_file():
        return Path(name)
    known = sorted(file.stem for file in (PROJECT / "recipes").glob("*.yaml"))
    raise SettingsError(f"no recipe '{name}' and no such file{nearest(name, known)}")


def prepare_workspace(source: Path, folder: Path, files: Path | None, changes: list[str]) -> None:
    """Copies the code, writes the changed settings, and makes the folder a DVC project.

    Raises:
        SettingsError: the changed settings have problems; the workspace then keeps what it had.
    """
    settings = read_values(source)
    if files is not None:
        if not files.is_dir():
            raise SettingsError(f"--files {files}: no such folder")
        apply_change(settings, "data.source=files")
        apply_change(settings, f"data.files.root={json.dumps(str(files.resolve()))}")
    for change in changes:
        apply_change(settings, change)
    _resolve_paths(settings)
    folder.mkdir(parents=True, exist_ok=True)
    candidate = folder / ".params.candidate.yaml"
    write_atomically(candidate, yaml.safe_dump(settings, sort_keys=False))
    try:
        load(candidate)
    except SettingsError as error:
        candidate.unlink()
        # Lines of the candidate mean nothing to the user: the file's own problems first, else those of the changes.
        load(source)
        raise SettingsError(
            re.sub(rf"^{re.escape(str(candidate))}(:\d+)?", f"{source}, changed", str(error), flags=re.M)
        ) from None
    for name in CODE:
        _mirror(PROJECT / name, folder / name)
    candidate.replace(folder / "params.yaml")
    if not (folder / ".dvc").is_dir():
        dvc(folder, "init", "--no-scm", "--quiet")
        dvc(folder, "config", "core.analytics", "false")


def _resolve_paths(settings: dict[str, Any]) -> None:
    """Makes paths in the settings absolute: they are meant from where the command is run, not from the workspace."""
    for *above, last in PATHS:
        section: Any = settings
        for key in above:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict) and last in section:
            value = section[last]
            section[last] = [_resolved(one) for one in value] if isinstance(value, list) else _resolved(value)


def _resolved(value: Any) -> Any:
    is_path = isinstance(value, str) and value not in (TEACHER, RANDOM, GENERAL) and Path(value).exists()
    return str(Path(value).resolve()) if is_path else value


def apply_change(settings: dict[str, Any], change: str) -> None:
    """Applies KEY=VALUE, VALUE as YAML, in place.

    Raises:
        SettingsError: no '=', a value that is not YAML, or a key above the last one that is no section.
    """
    key, equals, value = change.partition("=")
    if not equals:
        raise SettingsError(f"--set {change}: expected KEY=VALUE, such as distill.seeds=1")
    *sections, last = key.split(".")
    place = settings
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise SettingsError(f"--set {change}: '{section}' is no section")
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise SettingsError(f"--set {change}: '{value}' is not valid YAML; quote it, or close its brackets") from None


def reproduce(folder: Path, until: str | None = None) -> int:
    """Runs `dvc repro` in a project and gives 0, or the exit status of the stage that failed, the gate among them."""
    failed = folder / guard.STATUS
    failed.unlink(missing_ok=True)
    result = dvc(folder, "repro", *([until] if until else []), check=False)
    page = Workspace(folder).report / "index.html"
    if until is None and page.is_file():
        print(f"report: {page.resolve()}")
    if result == 0:
        return 0
    # No status was left: DVC itself failed, or the stage was killed.
    return int(failed.read_text("utf-8")) if failed.is_file() else EnvironmentFault.exit_status


def _mirror(source: Path, target: Path) -> None:
    """Makes `target` equal to `source` file by file, so that DVC sees only what really changed."""
    if source.is_file():
        shutil.copyfile(source, target)
        return
    wanted = {
        file.relative_to(source) for file in source.rglob("*") if file.is_file() and "__pycache__" not in file.parts
    }
    for file in wanted:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file, target / file)
    for file in [f for f in target.rglob("*") if f.is_file() and "__pycache__" not in f.parts]:
        if file.relative_to(target) not in wanted:
            file.unlink()


def dvc(folder: Path, *words: str, check: bool = True) -> int:
    command = [sys.executable, "-m", "dvc", *words]
    result = subprocess.run(command, cwd=folder, env=dvc_environment(), check=False).returncode
    if check and result:
        raise EnvironmentFault(f"dvc {' '.join(words)} failed in {folder} with exit status {result}; see above")
    return result


def dvc_environment() -> dict[str, str]:
    """With the interpreter's folder first, so that `python` in dvc.yaml is the one that runs this."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    environment.pop("DVC_STAGE", None)
    return environment
