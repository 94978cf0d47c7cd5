"""Releases: a folder for each version and platform, signed, and an index.json that apps ask for what is new."""

import json
import re
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from export.bundles import write_json
from pipeline.base import plugins, records
from pipeline.base.errors import IntegrityError, PipelineError, SettingsError
from pipeline.base.files import output_folder, sha256_of, write_atomically
from pipeline.base.records import Record, Status, Tokenizers, Trial, Verdict
from pipeline.base.workspace import Workspace
from pipeline.formats.bundles import (
    MANIFEST,
    MODEL,
    NOT_MADE,
    Manifest,
    check_files,
    read_manifest,
    write_manifest,
    write_zip,
)
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


def release(
    workspace: Workspace,
    version: str,
    private: Path,
    folder: Path,
    *,
    not_tried: Collection[str] = (),
    without: Collection[str] = (),
) -> list[Release]:
    """Signs every bundle of a project as a version, and adds them to the index.

    Args:
        workspace: the project.
        version: three numbers.
        private: the key, as PEM.
        folder: of releases.
        not_tried: platforms that may leave though their code was not run here, or their tokenizer not compared.
        without: platforms that are left out.

    Raises:
        SettingsError: the version is none, or not above those that are there; the key cannot sign.
        NotReleasedError: a verdict is not a pass, a bundle is of another verdict than the last, was not made or not
            tried.
    """
    numbers = _numbers(version)
    index = read_index(folder)
    above = max((one.version for one in index.releases), key=_numbers, default=None)
    if above is not None and numbers <= _numbers(above):
        raise SettingsError(
            f"found version {version}, expected one above {above}, which is released; apps never go back"
        )
    signing.public_key(private)
    found = (path for path in workspace.bundles.glob("*") if (path / MANIFEST).is_file())
    bundles = sorted(path for path in found if path.name not in without)
    if not bundles:
        raise NotReleasedError(
            f"{workspace.bundles}: no bundles; name some under bundles: in params.yaml, run `dvc repro`"
        )
    _refuse_missing(workspace, without)
    manifests = {path.name: _releasable(workspace, path, may_be_untried=path.name in not_tried) for path in bundles}
    revision = _revision(workspace.root)
    with output_folder(folder / version) as partial:
        made = [_write(path, partial, manifests[path.name], version, revision, private) for path in bundles]
    rows = [*index.releases, *made]
    text = json.dumps({"releases": [row.model_dump(exclude={"schema_version"}) for row in rows]}, indent=1)
    write_atomically(folder / INDEX, text + "\n")
    return made


def _refuse_missing(workspace: Workspace, without: Collection[str]) -> None:
    """Raises NotReleasedError for a platform of params.yaml that has no bundle: apps could never get this version."""
    path = workspace.bundles / NOT_MADE
    missing = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    for platform, reason in sorted(missing.items()):
        if platform not in without:
            raise NotReleasedError(
                f"{workspace.bundles}: no bundle for {platform}: {reason}; or leave it out with --without {platform}"
            )


def _releasable(workspace: Workspace, path: Path, *, may_be_untried: bool) -> Manifest:
    """A bundle's manifest, whose files, verdict, trial and age are as they must be."""
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
    trial = records.read(Trial, path.with_suffix(".json"))
    if trial.manifest_digest != sha256_of(path / MANIFEST):
        raise NotReleasedError(f"{path}: another bundle was tried than this one; run `dvc repro`")
    found = records.read(Tokenizers, workspace.tokenizers).found
    names = plugins.load("bundle", manifest.platform).TOKENIZERS
    reasons = [trial.not_tried, *(found[name].not_compared for name in names if name in found)]
    reason = next((one for one in reasons if one is not None), None)
    if reason is not None and not may_be_untried:
        raise NotReleasedError(
            f"{path}: its code was not tried here: {reason}; try it elsewhere, and say so with --not-tried {path.name}"
        )
    return manifest


def _write(path: Path, out: Path, manifest: Manifest, version: str, revision: str | None, private: Path) -> Release:
    target = out / path.name
    shutil.copytree(path, target)
    platform = plugins.load("bundle", manifest.platform)
    if hasattr(platform, "stamp"):
        platform.stamp(target, version)
    model = target / manifest.home / MODEL
    write_json(model, {**json.loads(model.read_text("utf-8")), "version": version})
    facts = manifest.model_dump(exclude={"files", "schema_version", "kind"})
    write_manifest(target, **(facts | {"version": version, "revision": revision}))
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
    number = "(0|[1-9][0-9]{0,5})"
    if not re.fullmatch(rf"{number}\.{number}\.{number}", version):
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
