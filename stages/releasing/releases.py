"""Releases: a folder for each version and platform, signed, and an index.json that apps ask for what is new."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from pipeline.base import plugins, records
from pipeline.base.errors import IntegrityError, PipelineError, SettingsError
from pipeline.base.files import output_folder, write_atomically
from pipeline.base.records import Record, Status, Verdict
from pipeline.base.workspace import Workspace
from pipeline.formats.bundles import Manifest, check_files, read_manifest, write_manifest, write_zip
from stages.releasing import signing

INDEX = "index.json"


class NotReleasedError(PipelineError):
    """A bundle must not leave the house."""


class Release(Record):
    """One version for one platform."""

    version: str
    platform: str
    name: str
    # below the folder of releases, with slashes
    path: str
    revision: str | None


@dataclass(frozen=True)
class Index:
    """What index.json says."""

    releases: tuple[Release, ...]


def read_index(folder: Path) -> Index:
    """The releases of a folder, none where there is no index yet.

    Raises:
        IntegrityError: it cannot be read.
    """
    path = folder / INDEX
    if not path.exists():
        return Index(())
    try:
        found = json.loads(path.read_text("utf-8"))["releases"]
        return Index(tuple(Release.model_validate(one) for one in found))
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise IntegrityError(f"{path}: no index of releases: {error}; put the last good one back") from error


def release(workspace: Workspace, version: str, private: Path, folder: Path) -> list[Release]:
    """Signs every bundle of a project as a version, and adds them to the index.

    Raises:
        SettingsError: the version is none, or not above those that are there; the key cannot sign.
        NotReleasedError: a verdict is not a pass, or a bundle is of another verdict than the last.
    """
    numbers = _numbers(version)
    index = read_index(folder)
    above = max((one.version for one in index.releases), key=_numbers, default=None)
    if above is not None and numbers <= _numbers(above):
        raise SettingsError(
            f"found version {version}, expected one above {above}, which is released; apps never go back"
        )
    signing.public_key(private)
    bundles = sorted(path for path in workspace.bundles.glob("*") if (path / "manifest.json").is_file())
    if not bundles:
        raise NotReleasedError(
            f"{workspace.bundles}: no bundles; name some under bundles: in params.yaml, run `dvc repro`"
        )
    manifests = {path.name: _releasable(workspace, path) for path in bundles}
    revision = _revision(workspace.root)
    with output_folder(folder / version) as partial:
        made = [_write(path, partial, manifests[path.name], version, revision, private) for path in bundles]
    rows = [*index.releases, *made]
    text = json.dumps({"releases": [row.model_dump(exclude={"schema_version"}) for row in rows]}, indent=1)
    write_atomically(folder / INDEX, text + "\n")
    return made


def _releasable(workspace: Workspace, path: Path) -> Manifest:
    """A bundle's manifest, whose files, verdict and age are as they must be."""
    manifest = read_manifest(path)
    check_files(path, manifest)
    for verdict, what in ((manifest.verdict, "the project"), (manifest.target_verdict, f"target '{manifest.target}'")):
        if verdict != Status.PASS:
            raise NotReleasedError(
                f"{path}: the verdict of {what} is '{verdict}', expected 'pass'; mend what fails, or accept it with "
                "`decant accept`, and run `dvc repro`"
            )
    last = records.read(Verdict, workspace.report / "verdict.json")
    if manifest.sources["verdict"] != records.digest(last):
        raise NotReleasedError(f"{path}: made for another verdict than the last; run `dvc repro`")
    return manifest


def _write(path: Path, out: Path, manifest: Manifest, version: str, revision: str | None, private: Path) -> Release:
    target = out / path.name
    shutil.copytree(path, target)
    platform = plugins.load("bundle", manifest.platform)
    if hasattr(platform, "stamp"):
        platform.stamp(target, version)
    facts = manifest.model_dump(exclude={"files", "schema_version", "kind"}) | {
        "version": version,
        "revision": revision,
    }
    write_manifest(target, **facts)
    signing.sign(target, private)
    write_zip(target, out / f"{path.name}.zip")
    return Release(
        version=version,
        platform=manifest.platform,
        name=manifest.name,
        path=f"{version}/{path.name}",
        revision=revision,
    )


def _numbers(version: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,6}\.\d{1,6}\.\d{1,6}", version):
        raise SettingsError(f"found version '{version}', expected three numbers, such as 1.4.0")
    return tuple(map(int, version.split(".")))


def _revision(root: Path) -> str | None:
    """The project's commit, marked where files differ from it; None outside git."""

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and ask("status", "--porcelain", "--untracked-files=no") else commit
