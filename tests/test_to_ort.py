"""What is exported answers as the model, is the same bytes every time, and lists the operators that it needs."""

import subprocess
import sys

import numpy as np
import pytest
from fakes import slow_but
from pydantic import ValidationError
from test_quantization import answer, toy_examples
from test_to_onnx import DYNAMIC, STATIC, plan_of, single_texts
from toy_models import toy_model

from eval import parity
from eval.runtimes import onnxruntime, pytorch
from export import to_onnx
from export.to_ort import FILE, OPERATORS, PRECISIONS, TOLERANCES, Params, convert, sort_kernel_table
from pipeline.base.errors import ExportError
from pipeline.data.batches import pad
from pipeline.models.checkpoints import save_classifier


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A toy model and its folder."""
    model = toy_model("bert", "sdpa")
    folder = tmp_path_factory.mktemp("model")
    save_classifier(model, folder)
    return model, folder


def exported(folder, out, plan=None, params=None):
    out.mkdir()
    return convert(folder, out, "int8" if plan else "fp32", params or Params(), 20, plan)


@pytest.mark.parametrize("settings", [None, DYNAMIC, STATIC], ids=["fp32", "dynamic", "static"])
def test_it_answers_as_pytorch(saved, tmp_path, settings):
    """Within the tolerance of its precision, one text at a time and in padded batches."""
    model, folder = saved
    artefact = exported(folder, tmp_path / "out", plan_of(model, settings) if settings else None)
    with (
        onnxruntime.open_session(tmp_path / "out", artefact, 1) as candidate,
        pytorch.open_session(folder, None, 1) as reference,
    ):
        parity.check(candidate, reference, single_texts(), TOLERANCES[artefact.precision])
        if settings is None:
            rows = toy_examples(9, "x", seed=9)
            batch = pad(rows.ids, 0)
            found = candidate.run({name: values.numpy() for name, values in batch.items()})["logits"]
            np.testing.assert_allclose(found, answer(model, rows).numpy(), atol=1e-4)


def test_int8_answers_as_the_onnx_file(saved, tmp_path):
    """Bit for bit: it is that file, optimized beforehand rather than at load."""
    model, folder = saved
    plan = plan_of(model, DYNAMIC)
    artefact = exported(folder, tmp_path / "ort", plan)
    (tmp_path / "onnx").mkdir()
    other = to_onnx.convert(folder, tmp_path / "onnx", "int8", to_onnx.Params(), 20, plan)
    with (
        onnxruntime.open_session(tmp_path / "ort", artefact, 1) as ours,
        onnxruntime.open_session(tmp_path / "onnx", other, 1) as theirs,
    ):
        for batch in single_texts():
            np.testing.assert_array_equal(ours.run(batch)["logits"], theirs.run(batch)["logits"])


def test_the_record_says_what_was_written(saved, tmp_path):
    """Names, types, version, and the file of operators beside it."""
    _, folder = saved
    artefact = exported(folder, tmp_path / "out", params=Params(inputs="int32"))
    assert (artefact.format, artefact.precision, artefact.file) == ("ort", "fp32", FILE)
    assert [(fact.name, fact.dtype) for fact in artefact.inputs] == [
        ("input_ids", "int32"),
        ("attention_mask", "int32"),
    ]
    assert artefact.tools["onnxruntime"] == onnxruntime.version()
    assert any(OPERATORS in note for note in artefact.notes)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [FILE, OPERATORS]


# onnxruntime's tool leaves its file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("optimization", slow_but(["extended", "basic"], "extended"))
def test_operators_are_those_of_onnxruntimes_own_tool(saved, tmp_path, optimization):
    """An independent reading of the same file; basic needs none of onnxruntime's own operators."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    model, folder = saved
    exported(folder, tmp_path / "out", plan_of(model, DYNAMIC), Params(optimization=optimization))
    create_config_from_models([tmp_path / "out" / FILE], tmp_path / "theirs.config", False)
    theirs = [line for line in (tmp_path / "theirs.config").read_text().splitlines() if not line.startswith("#")]
    ours = (tmp_path / "out" / OPERATORS).read_text().splitlines()
    assert sorted(ours) == sorted(theirs)
    assert any(line.startswith("com.microsoft;1;DynamicQuantizeMatMul") for line in ours) == (
        optimization == "extended"
    )


@pytest.mark.slow  # the ONNX file under it has the same test
def test_another_process_gives_the_same_bytes(saved, tmp_path):
    """onnxruntime's hashes differ from process to process, and with them the table that is sorted here."""
    _, folder = saved
    exported(folder, tmp_path / "fp32")
    (tmp_path / "again").mkdir()
    to_onnx.convert(folder, tmp_path / "again", "fp32", to_onnx.Params(), 20, None)
    code = (
        "import sys; from pathlib import Path; from export import to_ort;"
        "to_ort._save_as_ort(Path(sys.argv[1]), Path(sys.argv[2]), 'extended')"
    )
    written = set()
    for name in "ab":
        path = tmp_path / f"{name}.ort"
        subprocess.run([sys.executable, "-c", code, tmp_path / "again/model.onnx", path], check=True)
        written.add(sort_kernel_table(path.read_bytes()))
    assert written == {(tmp_path / "fp32" / FILE).read_bytes()}
    (data,) = written
    assert sort_kernel_table(data) == data
    for trace in (str(tmp_path), "site-packages", "/work"):
        assert trace.encode() not in data


def test_settings_that_do_not_fit_are_refused(saved, tmp_path):
    """Each with its reason."""
    _, folder = saved
    with pytest.raises(ExportError, match="ort cannot be written as 'fp16', expected one of fp32, int8"):
        convert(folder, tmp_path, "fp16", Params(), 20, None)
    with pytest.raises(ExportError, match="int8 needs a quantization plan"):
        convert(folder, tmp_path, "int8", Params(), 20, None)
    with pytest.raises(ValidationError):
        Params(optimization="all")
    assert set(PRECISIONS) == set(TOLERANCES)
