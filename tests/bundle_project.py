"""The tiny project up to its bundles, made once for every module and process that asks."""

import shutil

import pytest
from filelock import FileLock
from tiny_project import TARGET, write_project

from pipeline.base.workspace import Workspace
from pipeline.settings.params import load
from stages import (
    convert,
    distill,
    evaluate,
    examine,
    floors,
    machine,
    package,
    prepare,
    quantize,
    reference,
    report,
    teach,
    tokenizers,
)

RANDOM_TEXTS = 600
IOS = TARGET | {
    "format": "coreml",
    "precision": "fp16",
    "options": {"lengths": {"min": 2, "max": 16}},
    "runtime": "coreml_reference",
    "budgets": {"agreement": 0.9},
}
SETTINGS = {
    "targets": {
        "cpu": TARGET | {"required": True, "budgets": {"score": 0.3, "size_mb": 25.0}},
        "ios": IOS,
    },
    "bundles": {
        # of the package that the tokenizers are compared in, so that Kotlin is compiled once
        "android": {"target": "cpu", "options": {"package": "com.example.decant"}},
        "ios": {"target": "ios"},
        "python": {"target": "cpu"},
        "web": {"target": "cpu", "options": {"package": "tiny"}},
    },
    "card": {"name": "tiny", "license": "Apache-2.0", "use": "Tests <of> this|project", "limits": "All of them"},
}
ONCE_FOR_EACH = (convert, evaluate, examine)


def build(folder, **changes):
    """(settings, workspace) after every stage but the timing ones and the gate."""
    params, workspace = write_project(folder, **(SETTINGS | changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.root)
        for stage in (machine, prepare, floors, teach, reference, distill, quantize):
            stage.run(params, workspace)
        for stage in ONCE_FOR_EACH:
            for name in params.targets:
                stage.run(params, workspace, name)
        tokenizers.run(params, workspace, RANDOM_TEXTS)
        report.run(params, workspace)
        package.run(params, workspace)
    return params, workspace


def shared(tmp_path_factory):
    """(settings, workspace) of one build; of several processes of a run of tests, the first makes it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "popen" in base.name else base) / "bundle_project"
    with FileLock(f"{folder}.lock"):
        if not folder.with_suffix(".done").exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a test that could not build it
            folder.mkdir()
            build(folder)
            folder.with_suffix(".done").touch()
    return load(folder / "params.yaml"), Workspace(folder)


def copy_of(workspace, folder):
    """A copy of the project's bundles and records that may be spoiled."""
    shutil.copytree(workspace.root, folder, ignore=shutil.ignore_patterns("work", "variants"))
    return Workspace(folder)
