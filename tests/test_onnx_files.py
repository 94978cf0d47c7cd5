"""What an exported classifier never has is refused before anything loads it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from pipeline.base.errors import ModelError
from pipeline.formats.onnx_files import check_onnx_file


def tiny_model() -> ModelProto:
    """y = x W + b over four values."""
    weights = [
        numpy_helper.from_array(np.arange(16, dtype=np.float32).reshape(4, 4), "w"),
        numpy_helper.from_array(np.ones(4, dtype=np.float32), "b"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("Add", ["p", "b"], ["y"], name="sum"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    graph = helper.make_graph(nodes, "toy", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(model: ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def test_a_good_file_is_given_back_parsed(tmp_path):
    """The check hands over what it parsed."""
    assert check_onnx_file(saved(tiny_model(), tmp_path)) == tiny_model()


def test_every_truncation_is_refused(tmp_path):
    """Cut anywhere, the file is refused, and where a part is incomplete the message says by how much."""
    data = saved(tiny_model(), tmp_path).read_bytes()
    path = tmp_path / "cut.onnx"
    told = 0
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError) as caught:
            check_onnx_file(path)
        told += "truncated by at least" in str(caught.value)
    assert told > 0.9 * len(data)


def test_a_truncated_file_says_by_how_much(tmp_path):
    """Ten bytes taken out of the weights are counted."""
    model = tiny_model()
    path = saved(model, tmp_path)
    end_of_graph = path.read_bytes().rindex(model.opset_import[0].SerializeToString()) - 2
    path.write_bytes(path.read_bytes()[: end_of_graph - 10])
    with pytest.raises(ModelError, match="truncated by at least 10 bytes"):
        check_onnx_file(path)


def test_no_flipped_bit_escapes_as_another_error(tmp_path):
    """A flipped bit is refused with a message or harmless; nothing else is raised."""
    data = bytearray(saved(tiny_model(), tmp_path).read_bytes())
    path = tmp_path / "flipped.onnx"
    refused = 0
    for bit in range(0, 8 * len(data), 3):
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        try:
            check_onnx_file(path)
        except ModelError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found 0 bytes"),
        (b"\x80\x04\x95abc", "pickle or zip"),
        (b"PK\x03\x04abc", "pickle or zip"),
        (b"\xff" * 50, "not an ONNX file|truncated"),
        (b"\x0e" + bytes(50), "not an ONNX file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "ONNX file|truncated|no operator set"),
    ],
)
def test_what_is_no_onnx_file_is_refused(tmp_path, data, message):
    """Empty files, pickles, archives and noise."""
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message):
        check_onnx_file(path)


def test_a_missing_file_is_named(tmp_path):
    """The path is in the message."""
    with pytest.raises(ModelError, match=r"absent\.onnx: no such file"):
        check_onnx_file(tmp_path / "absent.onnx")


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "weights.bin"])
def test_external_data_is_refused(tmp_path, location):
    """Wherever it points, and the message names the tensor and the place."""
    model = tiny_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    with pytest.raises(ModelError, match=f"'w' points to external data '{location}'"):
        check_onnx_file(saved(model, tmp_path))


def test_external_data_in_an_attribute_is_refused(tmp_path):
    """A constant node can point outside too."""
    model = tiny_model()
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    node = helper.make_node("Constant", [], ["c"], name="constant")
    node.attribute.append(helper.make_attribute("value", tensor))
    model.graph.node.insert(0, node)
    with pytest.raises(ModelError, match="external data '/etc/passwd'"):
        check_onnx_file(saved(model, tmp_path))


@pytest.mark.parametrize("field", ["sparse_tensor", "sparse_tensors"])
def test_sparse_weights_in_an_attribute_are_refused(tmp_path, field):
    """They hold tensors of their own, which could point outside."""
    model = tiny_model()
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.external_data.add(key="location", value="/etc/passwd")
    node = helper.make_node("Constant", [], ["c"], name="constant")
    one = node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    getattr(one, field).CopyFrom(sparse) if field == "sparse_tensor" else one.sparse_tensors.append(sparse)
    model.graph.node.insert(0, node)
    with pytest.raises(ModelError, match="node 'constant' carries sparse weights"):
        check_onnx_file(saved(model, tmp_path))


def test_an_unknown_operator_set_is_refused(tmp_path):
    """Custom operators are code that is not ours."""
    model = tiny_model()
    model.opset_import.add(domain="evil.ops", version=1)
    with pytest.raises(ModelError, match=r"unknown operator set 'evil\.ops'"):
        check_onnx_file(saved(model, tmp_path))


def test_a_node_of_an_undeclared_operator_set_is_refused(tmp_path):
    """The node is named."""
    model = tiny_model()
    model.graph.node[1].domain = "evil.ops"
    with pytest.raises(ModelError, match=r"node 'sum' is of the operator set 'evil\.ops'"):
        check_onnx_file(saved(model, tmp_path))


def test_an_unknown_operator_is_refused(tmp_path):
    """The node and the operator are named."""
    model = tiny_model()
    model.graph.node[1].op_type = "Explode"
    with pytest.raises(ModelError, match="node 'sum': operator 'Explode' is not in ONNX opset 17"):
        check_onnx_file(saved(model, tmp_path))


@pytest.mark.parametrize(("field", "value"), [("opset", 999), ("ir", 999)])
def test_a_version_that_is_too_new_is_refused(tmp_path, field, value):
    """Rather than guessed at."""
    model = tiny_model()
    if field == "opset":
        model.opset_import[0].version = value
    else:
        model.ir_version = value
    with pytest.raises(ModelError, match="version 999, expected at most"):
        check_onnx_file(saved(model, tmp_path))


def test_functions_are_refused(tmp_path):
    """A function can hide any operator."""
    model = tiny_model()
    model.functions.add(name="f", domain="")
    with pytest.raises(ModelError, match="functions"):
        check_onnx_file(saved(model, tmp_path))


def test_subgraphs_are_refused(tmp_path):
    """An If or Loop is nothing that a classifier has."""
    model = tiny_model()
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], name="branch", then_branch=inner, else_branch=inner))
    with pytest.raises(ModelError, match="'branch' holds a subgraph"):
        check_onnx_file(saved(model, tmp_path))


def test_a_cycle_is_refused(tmp_path):
    """Nodes that wait for each other."""
    model = tiny_model()
    model.graph.node[0].input[0] = "y"
    with pytest.raises(ModelError, match="'product' reads 'y', which no earlier node gives"):
        check_onnx_file(saved(model, tmp_path))


@pytest.mark.parametrize("dims", [[2**31, 2**31], [5, 4], [4, 3], [-4, -4]])
def test_a_tensor_that_does_not_fit_its_bytes_is_refused(tmp_path, dims):
    """Before anything allocates the size it claims."""
    model = tiny_model()
    model.graph.initializer[0].dims[:] = dims
    with pytest.raises(ModelError, match="tensor 'w'"):
        check_onnx_file(saved(model, tmp_path))


def test_deep_nesting_is_refused_without_a_recursion_crash(tmp_path):
    """Ten thousand graphs inside one another."""

    def wrapped(tag: int, data: bytes) -> bytes:
        length, size = len(data), bytearray()
        while length >= 0x80:
            size.append(length & 0x7F | 0x80)
            length >>= 7
        return bytes([tag, *size, length]) + data

    graph = b""
    for _ in range(10_000):
        graph = wrapped(0x0A, wrapped(0x2A, wrapped(0x32, graph)))  # node { attribute { g { ... } } }
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x08\x08" + wrapped(0x3A, graph) + wrapped(0x42, b"\x10\x11"))
    with pytest.raises(ModelError, match="not an ONNX file or damaged"):
        check_onnx_file(path)


def test_very_many_parts_are_refused_quickly(tmp_path):
    """Millions of two-byte parts would keep a reader busy."""
    path = tmp_path / "parts.onnx"
    path.write_bytes(b"\x08\x08" * 1_000_000)
    with pytest.raises(ModelError, match="parts at the top level"):
        check_onnx_file(path)


def test_onnx_itself_has_the_last_word(tmp_path):
    """What only the checker of ONNX knows, such as a missing attribute, is refused as well."""
    model = tiny_model()
    model.graph.node.append(helper.make_node("Cast", ["y"], ["z"], name="cast"))
    with pytest.raises(ModelError, match="not a valid ONNX model"):
        check_onnx_file(saved(model, tmp_path))
