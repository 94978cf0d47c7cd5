"""What a change is compared with: the artefacts of another version of the project, brought from where they are.

A git revision's artefacts come from the DVC cache or a remote, by the hashes in that revision's dvc.lock; else they are
converted again from cached weights, by that revision's own code; else, when asked, built from the start. All of it
happens in a worktree of git, so that nothing here is touched. What cannot be brought is a reason, never "no change".
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from eval import history
from pipeline.base.errors import PipelineError, SettingsError
from pipeline.base.records import open_folder, seal
from pipeline.base.workspace import Workspace
from pipeline.formats.bundles import MANIFEST, check_files, read_manifest, unpack
from stages.commands.run import dvc_environment

LAST_ACCEPTED = "last-accepted"  # the version of the last line of history.jsonl
# What converting reads besides its own settings.
OF_CONVERT = ("artifacts/data", "artifacts/student", "artifacts/quantized")


@dataclass(frozen=True)
class Base:
    """Another version's artefacts."""

    name: str
    version: str
    # target -> folder of its artefact, and why there is none
    folders: Mapping[str, Path]
    missing: Mapping[str, str] = field(default_factory=dict)
    # target -> version of the runtime that answered its test rows, where that is on record
    runtimes: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def bring(base: str, root: Path, targets: list[str], *, build: bool = False) -> Iterator[Base]:
    """The base that a word on the command line means, for the length of the block.

    Args:
        base: a project's folder, an exported artefact's folder, a bundle or its zip, a git revision, or LAST_ACCEPTED.
        root: the project.
        targets: names of those to bring.
        build: whether a revision whose artefacts nobody has kept is trained and exported again.

    Raises:
        SettingsError: no such folder or revision.
        IntegrityError: a bundle whose files are not as its manifest says.
    """
    path = Path(base)
    if path.suffix == ".zip" or (path / MANIFEST).is_file():
        with tempfile.TemporaryDirectory() as scratch:
            yield _bundle(path, Path(scratch), targets)
        return
    if path.is_dir():
        yield _folder(path, targets)
        return
    revision = _last_accepted(root) if base == LAST_ACCEPTED else base
    with _revision(revision, root, targets, build) as found:
        yield replace(found, name=base)


def _bundle(path: Path, scratch: Path, targets: list[str]) -> Base:
    """A bundle's artefact with its tokenizer, as it lay in the project that it is from; it stands for every target."""
    folder = path
    if path.is_file():
        folder = scratch / "bundle"
        unpack(path, folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    exported, model, home = scratch / "exported", folder / manifest.model, folder / manifest.home
    exported.mkdir()
    artefact = manifest.artefact.model_copy(update={"file": model.name})
    if model.is_dir():
        shutil.copytree(model, exported / model.name)
    else:
        shutil.copyfile(model, exported / model.name)
    shutil.copyfile(home / "tokenizer.json", exported / "tokenizer.json")
    facts = {"artefact": artefact.model_dump(mode="json"), "task": manifest.task}
    seal(exported, "artefact", manifest.sources, facts)
    version = f"{manifest.name} {manifest.version} for {manifest.platform}"
    return Base(str(path), version, dict.fromkeys(targets, exported))


def _folder(path: Path, targets: list[str]) -> Base:
    """A workspace, or one artefact's folder, which stands for every target."""
    if (path / "card.json").is_file():
        return Base(str(path), _digest(path), dict.fromkeys(targets, path))
    workspace = Workspace(path)
    if not (workspace.artifacts / "exported").is_dir():
        raise SettingsError(f"{path}: neither a project with artifacts/exported nor an artefact with card.json")
    folders = {name: workspace.exported(name) for name in targets if workspace.exported(name).is_dir()}
    missing = {name: f"{path} has no artefact of it" for name in targets if name not in folders}
    return Base(str(path), "", folders, missing, _recorded_runtimes(workspace, targets))


def _digest(folder: Path) -> str:
    return open_folder(folder, "artefact").digest


def revision_of(root: Path, name: str = "HEAD") -> str | None:
    """The commit that a name means in a project's repository; None where it means none, or there is no repository."""
    return _git(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")


def changed_files(root: Path, *names: str) -> list[str]:
    """Those of a project's files that git has otherwise, or not at all; none where there is no repository."""
    said = _git(root, "status", "--porcelain", "--", *names)
    return [] if said is None else [line.split()[-1] for line in said.splitlines()]


def _last_accepted(root: Path) -> str:
    revisions = [entry.revision for entry in history.read(root) if entry.revision]
    if not revisions:
        raise SettingsError(
            f"{root / history.FILE}: no accepted version yet; `decant history --add` on the main branch adds one"
        )
    return revisions[-1]


@contextmanager
def _revision(name: str, root: Path, targets: list[str], build: bool) -> Iterator[Base]:
    """A worktree of the revision, with the artefacts that could be brought."""
    commit = revision_of(root, name)
    if commit is None:
        raise SettingsError(f"'{name}' is neither a folder nor a git revision of {root.resolve()}; see `git log`")
    top = Path(_git(root, "rev-parse", "--show-toplevel") or root)
    place = Workspace(root).work(f"base-{commit[:12]}")
    shutil.rmtree(place, ignore_errors=True)  # of a run that was killed
    _git(root, "worktree", "prune")
    if _git(root, "worktree", "add", "--detach", "--force", str(place.resolve()), commit) is None:
        raise SettingsError(f"git could not put revision {commit[:12]} into {place}; is the disk full?")
    try:
        project = place.resolve() / root.resolve().relative_to(top.resolve())
        _share_cache(root, project)
        found = {target: _bring_one(project, target, build) for target in targets}
        yield Base(
            name,
            commit,
            {target: one for target, one in found.items() if isinstance(one, Path)},
            {target: one for target, one in found.items() if isinstance(one, str)},
            _recorded_runtimes(Workspace(project), targets),
        )
    finally:
        _git(root, "worktree", "remove", "--force", str(place.resolve()))
        shutil.rmtree(place, ignore_errors=True)


def _share_cache(root: Path, project: Path) -> None:
    """Lets the worktree take from this project's cache, and from its remotes with what is configured here alone."""
    cache = _dvc(root, "cache", "dir")
    local = root / ".dvc" / "config.local"
    if local.is_file():
        shutil.copyfile(local, project / ".dvc" / "config.local")
    if cache:
        _dvc(project, "cache", "dir", "--local", str((root / cache).resolve()))


def _bring_one(project: Path, target: str, build: bool) -> Path | str:
    """The folder of a target's artefact, or why it cannot be had: cache, remote, converting again, building."""
    folder = Workspace(project).exported(target)
    out = folder.relative_to(project).as_posix()
    tries: list[tuple[str, Callable[[], object]]] = [
        ("the DVC cache", partial(_dvc, project, "checkout", "--force", out)),
        ("a DVC remote", partial(_dvc, project, "pull", "--force", out)),
        ("weights in the cache", partial(_convert, project, target)),
    ]
    if build:
        tries.append(("training it again", partial(_dvc, project, "repro", f"convert@{target}", quiet=False)))
    if not (project / "dvc.lock").is_file() and not build:
        return "that revision has no dvc.lock, so nothing was built there; compare with --build"
    for _, attempt in tries:
        attempt()
        if _is_whole(folder):
            scored = Workspace(project).scored(target).relative_to(project).as_posix()
            if _dvc(project, "checkout", "--force", scored) is None:
                _dvc(project, "pull", "--force", scored)
            return folder
    tried = ", ".join(name for name, _ in tries)
    return f"its artefact is in none of: {tried}; `dvc pull` there, or compare with --build, which trains it"


def _recorded_runtimes(workspace: Workspace, targets: list[str]) -> dict[str, str]:
    """What the base's own scores say of the runtime's version; records of another schema say it too."""
    found = {}
    for target in targets:
        try:
            version = json.loads(workspace.scored(target).read_text("utf-8"))["record"]["runtime_version"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(version, str):
            found[target] = version
    return found


def _convert(project: Path, target: str) -> None:
    """Exports again from what the cache has, by the revision's own code."""
    if any(_dvc(project, "checkout", "--force", out) is None for out in OF_CONVERT):
        return
    subprocess.run(
        [sys.executable, "-m", "stages.convert", "--target", target],
        cwd=project,
        env=dvc_environment(),
        stdout=subprocess.DEVNULL,
        check=False,
    )


def _is_whole(folder: Path) -> bool:
    try:
        open_folder(folder, "artefact")
    except PipelineError:
        return False
    return True


def _git(folder: Path, *words: str) -> str | None:
    return _run(["git", "-C", str(folder), *words])


def _dvc(folder: Path, *words: str, quiet: bool = True) -> str | None:
    """What DVC prints, or None when it fails; its complaints are for those who asked it themselves."""
    return _run([sys.executable, "-m", "dvc", *words], cwd=folder, quiet=quiet)


def _run(command: list[str], cwd: Path | None = None, *, quiet: bool = True) -> str | None:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=dvc_environment(),
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.DEVNULL if quiet else None,
        text=True,
        check=False,
    )
    return None if done.returncode else (done.stdout or "").strip()
