"""A name in params.yaml is a file; nothing is registered anywhere."""

import sys
from pathlib import Path

import pytest

import eval.runtimes
import pipeline.losses
from pipeline.base import plugins
from pipeline.base.errors import SettingsError

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "task": "pipeline/tasks",
    "family": "pipeline/families",
    "reader": "pipeline/data/readers",
    "loss": "pipeline/losses",
    "format": "export",
    "runtime": "eval/runtimes",
    "device": "eval/devices",
    "check": "eval/checks",
    "bundle": "export/bundles",
    "client": "eval/clients",
    "tokenizer": "eval/tokenizers",
}


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_file_of_a_kind_is_a_name_and_every_name_is_a_file(kind):
    """Other files of the folder, `__init__` and helpers, are none."""
    names = plugins.names(kind)
    assert names == sorted(names) and names
    folder, prefix = ROOT / FOLDERS[kind], plugins.KINDS[kind][1]
    stems = {file.stem for file in folder.glob(f"{prefix}*.py") if not file.stem.startswith("_")}
    assert {f"{prefix}{name}" for name in names} == stems


def test_listing_names_imports_none_of_them():
    """coremltools takes seconds to import, and may be missing."""
    before = set(sys.modules)
    for kind in plugins.KINDS:
        plugins.names(kind)
    new = {
        name
        for name in set(sys.modules) - before
        if name.startswith(
            ("export.to_", "pipeline.losses.", "pipeline.families.", "pipeline.tasks.", "pipeline.data.readers.")
        )
    }
    assert not new


def test_a_new_file_is_a_new_name(tmp_path, monkeypatch):
    """It can be loaded at once; a file that starts with an underscore is a helper."""
    (tmp_path / "brand_new.py").write_text("KIND = 'logit'\n")
    (tmp_path / "_helper.py").write_text("")
    for package in (pipeline.losses, eval.runtimes):
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
        monkeypatch.setattr(package.__spec__, "submodule_search_locations", package.__path__)
    assert "brand_new" in plugins.names("loss")
    assert "_helper" not in plugins.names("loss")
    assert plugins.load("loss", "brand_new").KIND == "logit"
    monkeypatch.delitem(sys.modules, "pipeline.losses.brand_new")
    monkeypatch.delattr(pipeline.losses, "brand_new")


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (
            "loss",
            "logit_kll",
            r"no loss 'logit_kll' \(pipeline/losses/logit_kll.py does not exist\); did you mean 'logit_kl'",
        ),
        (
            "format",
            "onxx",
            r"no format 'onxx' \(export/to_onxx.py does not exist\); did you mean 'onnx'\? known: coreml, ",
        ),
        ("runtime", "zzzz", r"no runtime 'zzzz' \(eval/runtimes/zzzz.py does not exist\); known: browser, coreml, "),
        ("device", "../local", r"no device '../local'"),
        ("loss", "__init__", r"no loss '__init__'"),
        ("loss", "", r"no loss ''"),
        ("format", "os.path", r"no format 'os.path'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_and_all_known(kind, name, message):
    """Names come from a file that anyone may write: none leads out of the folder."""
    with pytest.raises(SettingsError, match=message):
        plugins.load(kind, name)


def test_every_plugin_has_what_its_kind_promises():
    """The lists in the `__init__` of each folder."""
    wanted = {
        "loss": ("KIND", "NEEDS", "Params", "loss"),
        "format": ("PRECISIONS", "TOLERANCES", "Params", "convert"),
        "runtime": ("FORMATS", "STAND_IN", "why_unusable", "version", "open_session"),
        "device": ("why_unusable",),
    }
    for kind, attributes in wanted.items():
        for name in plugins.names(kind):
            module = plugins.load(kind, name)
            missing = [attribute for attribute in attributes if not hasattr(module, attribute)]
            assert not missing, f"{kind} {name} lacks {missing}"
