"""Counted instructions: the same from process to process, and more where more is computed."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from eval import changes, instructions
from eval.wording import say_change
from pipeline.base.errors import UnusableRuntimeError
from pipeline.base.records import Artefact, Status, TensorFact

# The emulator and the compiler are packages of the system, not of the project, and the figure is "not measured" without
# them, which the other tests hold to; what is judged and said of counts is tested everywhere.
needs_emulator = pytest.mark.skipif(instructions.why_unusable() is not None, reason=str(instructions.why_unusable()))
WIDTH = 64


def model(folder: Path, products: int) -> Artefact:
    """So many products of 64 x 64 behind a sum over the ids of a text."""
    folder.mkdir()
    matrix = np.random.default_rng(0).normal(0, 0.1, (WIDTH, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["0"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["0"], ["mean"], name="mean", keepdims=0),
        helper.make_node("Mul", ["matrix", "mean"], ["x0"], name="mul"),
        *(helper.make_node("MatMul", [f"x{i}", "matrix"], [f"x{i + 1}"], name=f"{i}") for i in range(products)),
        helper.make_node("Slice", [f"x{products}", "zero", "one"], ["logits"], name="slice"),
    ]
    graph = helper.make_graph(
        nodes,
        "counted",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, WIDTH])],
        [
            numpy_helper.from_array(matrix, "matrix"),
            numpy_helper.from_array(np.array([0]), "zero"),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "m.onnx")
    return Artefact(
        format="onnx",
        precision="fp32",
        file="m.onnx",
        inputs=(TensorFact(name="input_ids", dtype="int64", shape=("batch", "length")),),
        outputs=(TensorFact(name="logits", dtype="float32", shape=(1, WIDTH)),),
        max_length=16,
        tools={},
    )


@needs_emulator
def test_counts_repeat_and_follow_the_work(tmp_path: Path) -> None:
    """Two processes of one file to a thousandth; of a file with one product in fifty more, one in fifty more."""
    texts = [[1, 2, 3], [1, 2, 3, 4, 5, 6, 7, 8]]
    counts = []
    for name, products in (("once", 50), ("again", 50), ("more", 51), ("twice", 100)):
        artefact = model(tmp_path / name, products)
        counts.append(instructions.count("onnxruntime", tmp_path / name, artefact, texts, 0, 1).sum())
    once, again, more, twice = counts
    assert again == pytest.approx(once, rel=0.001)
    one_product = (twice - once) / 50
    assert more - once == pytest.approx(one_product, rel=0.2)


def test_without_an_emulator_nothing_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "which", lambda name: None)
    artefact = Artefact(format="onnx", precision="fp32", file="m.onnx", inputs=(), outputs=(), max_length=4, tools={})
    with pytest.raises(UnusableRuntimeError, match="is not installed"):
        instructions.count("onnxruntime", tmp_path, artefact, [[1]], 0, 1)


@pytest.mark.parametrize(("most", "status"), [(None, None), (0.005, Status.FAIL), (0.02, Status.PASS)])
def test_more_instructions_gate_where_settings_say_so(most: float | None, status: Status | None) -> None:
    found = changes.judge_instructions("cpu", [1e6, 3e6], [1.01e6, 3.03e6], most)
    assert found.status is status
    assert "1.0 % more" in say_change(found) and (found.base, found.head) == (2.0, pytest.approx(2.02))


@pytest.mark.parametrize(("decides", "status"), [(True, Status.NOT_MEASURED), (False, None)])
def test_what_was_not_counted_is_said(decides: bool, status: Status | None) -> None:
    """And is no pass where it should gate."""
    found = changes.not_measured("cpu", "instructions", "instructions of a call", "no qemu", decides=decides)
    assert found.status is status and "(no qemu)" in say_change(found)
