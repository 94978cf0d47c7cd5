"""Reading a file for onnxruntime that may be damaged or hostile: refused is what an exported classifier never has.

What cannot be seen here, such as a flipped bit in a weight, is seen by the hash in the card (`pipeline.base.records`).
"""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

from pipeline.base.errors import ModelError, first_line

MAX_BYTES = 2**31 - 1  # protobuf's own limit
MAX_FIELDS = 10_000  # top-level parts of a model file; ours have about ten
MAX_NODES = 100_000
ORT_ALIGNMENT = 16  # `export.to_ort` pads its files to it; other lengths have been cut
# Operator sets of ONNX itself and onnxruntime's own operators, which its optimizer writes.
DOMAINS = {"": onnx.defs.onnx_opset_version(), "ai.onnx": onnx.defs.onnx_opset_version(), "com.microsoft": 1}


def check_onnx_file(path: Path) -> ModelProto:
    """The parsed model, once nothing speaks against loading it.

    Raises:
        ModelError: missing, empty, truncated, a pickle or zip, external data, an unknown operator set or operator,
            functions or subgraphs, a cycle, or a tensor whose size is not that of its data.
    """
    data = _read(path)
    try:
        model = ModelProto.FromString(data)
    except (DecodeError, RecursionError) as error:
        raise ModelError(f"{path}: not an ONNX file or damaged ({error}); export it again") from None
    try:
        _check_versions(model)
        _check_tensors(model)
        _check_nodes(model)
        onnx.checker.check_model(model)
    except _RefusedError as error:
        raise ModelError(f"{path}: {error}") from None
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{path}: not a valid ONNX model: {first_line(error)}; export it again") from None
    return model


def check_file(path: Path) -> None:
    """Nothing speaks against handing an .onnx or .ort file to onnxruntime.

    Raises:
        ModelError: as `check_onnx_file` and `check_ort_file`.
    """
    if path.suffix == ".ort":
        check_ort_file(path)
    else:
        check_onnx_file(path)


def check_ort_file(path: Path) -> None:
    """Nothing speaks against handing the file to onnxruntime, which checks its structure before it reads it.

    Raises:
        ModelError: missing, cut off within its head, or of another format.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; export it again")
    with path.open("rb") as file:
        head = file.read(8)
    size = path.stat().st_size
    if len(head) == 8 and head[4:] != b"ORTM":
        raise ModelError(f"{path}: not an .ort file: found {head[4:]!r} at byte 4, expected b'ORTM'; export it again")
    if len(head) < 8 or size % ORT_ALIGNMENT:
        raise ModelError(
            f"{path}: truncated: {size:,} bytes, expected a multiple of {ORT_ALIGNMENT}; copy or export it again"
        )


class _RefusedError(Exception):
    pass


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; export it again")
    size = path.stat().st_size
    if not 0 < size <= MAX_BYTES:
        raise ModelError(f"{path}: found {size:,} bytes, expected 1 to {MAX_BYTES:,}; export it again")
    data = path.read_bytes()
    if (data[:1] == b"\x80" and data[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}) or data[:4] == b"PK\x03\x04":
        raise ModelError(f"{path}: a pickle or zip archive under the name of an ONNX file; it is never opened")
    missing = _missing_bytes(data, path)
    if missing:
        raise ModelError(
            f"{path}: truncated by at least {missing:,} bytes (found {size:,}); copy or export the file again"
        )
    return data


def _missing_bytes(data: bytes, path: Path) -> int:
    """How many bytes the outermost parts of a protobuf message need beyond the end of the data."""
    position = 0
    for _ in range(MAX_FIELDS):
        if position == len(data):
            return 0
        key, position = _read_varint(data, position)
        length = {0: 0, 1: 8, 5: 4}.get(key & 7)
        if key & 7 in {0, 2}:
            number, position = _read_varint(data, position)
            length = number if key & 7 == 2 else 0
        if length is None or key >> 3 == 0:
            raise ModelError(f"{path}: not an ONNX file or damaged at byte {position:,}; export it again")
        position += length
        if position > len(data):
            return position - len(data)
    raise ModelError(f"{path}: more than {MAX_FIELDS:,} parts at the top level, which no exporter writes")


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """A variable-length number and where it ends; at the end of the data, one byte beyond it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            return 0, len(data) + 1
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return value, position


def _check_versions(model: ModelProto) -> None:
    if not model.opset_import or not model.graph.node:
        raise _RefusedError("no operator set or no nodes: cut short, or not a model; export it again")
    if model.ir_version > onnx.IR_VERSION:
        raise _RefusedError(
            f"IR version {model.ir_version}, expected at most {onnx.IR_VERSION}; export with an older opset"
        )
    for opset in model.opset_import:
        if opset.domain not in DOMAINS:
            raise _RefusedError(f"unknown operator set '{opset.domain}'; custom operators are not allowed")
        if opset.version > DOMAINS[opset.domain]:
            raise _RefusedError(
                f"operator set '{opset.domain or 'ai.onnx'}' of version {opset.version}, expected at most "
                f"{DOMAINS[opset.domain]}; export with an older opset"
            )
    if model.functions or model.training_info or model.graph.sparse_initializer:
        raise _RefusedError(
            "it carries functions, training parts or sparse weights, which an exported classifier never has"
        )


def _check_tensors(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        _check_tensor(tensor)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _check_tensor(attribute.t)
            for tensor in attribute.tensors:
                _check_tensor(tensor)
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise _RefusedError(
                    f"node '{node.name}' carries sparse weights, which an exported classifier never has"
                )


def _check_tensor(tensor: TensorProto) -> None:
    name = tensor.name
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "?")
        raise _RefusedError(f"tensor '{name}' points to external data '{where}'; weights must be inside the file")
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        raise _RefusedError(f"tensor '{name}' is of unknown type {tensor.data_type}; export it again")
    count = 1
    for axis in tensor.dims:
        if axis < 0:
            raise _RefusedError(f"tensor '{name}' has the dimension {axis}; export it again")
        count *= axis
    if tensor.data_type == TensorProto.STRING:
        return
    held = len(tensor.raw_data) if tensor.HasField("raw_data") else _listed_bytes(tensor)
    expected = count * _bytes_of(tensor.data_type)
    if held < expected or (tensor.HasField("raw_data") and held > expected + 1):
        raise _RefusedError(f"tensor '{name}' of shape {list(tensor.dims)} needs {expected:,.0f} bytes, found {held:,}")


def _bytes_of(data_type: int) -> float:
    """Bytes of one value; types below a byte have no such size in NumPy and are not written here."""
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize
    except (KeyError, TypeError):
        raise _RefusedError(f"a tensor is of type {data_type}, which cannot be read; export it again") from None


def _listed_bytes(tensor: TensorProto) -> int:
    """An upper bound of the bytes that values in the typed lists stand for."""
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    return 16 * max(len(field) for field in fields)


def _check_nodes(model: ModelProto) -> None:
    graph = model.graph
    if len(graph.node) > MAX_NODES:
        raise _RefusedError(f"{len(graph.node):,} nodes, expected at most {MAX_NODES:,}")
    opsets = {opset.domain or "ai.onnx": opset.version for opset in model.opset_import}
    known = {""} | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for number, node in enumerate(graph.node):
        name = node.name or f"number {number} ({node.op_type})"
        _check_operator(node, name, opsets)
        for attribute in node.attribute:
            if (
                attribute.type in {AttributeProto.GRAPH, AttributeProto.GRAPHS}
                or attribute.HasField("g")
                or attribute.graphs
            ):
                raise _RefusedError(f"node '{name}' holds a subgraph, which an exported classifier never has")
        # Nodes must stand behind those they read from, so a cycle shows as an unknown input.
        unknown = [value for value in node.input if value not in known]
        if unknown:
            raise _RefusedError(f"node '{name}' reads '{unknown[0]}', which no earlier node gives: a cycle, or damaged")
        known.update(node.output)


def _check_operator(node: NodeProto, name: str, opsets: dict[str, int]) -> None:
    domain = node.domain or "ai.onnx"
    if domain not in opsets:
        raise _RefusedError(f"node '{name}' is of the operator set '{domain}', which the file does not declare")
    if domain != "ai.onnx":
        return
    try:
        onnx.defs.get_schema(node.op_type, opsets[domain], "")
    except (onnx.defs.SchemaError, TypeError):  # TypeError: a name that is not UTF-8 comes out as bytes
        raise _RefusedError(
            f"node '{name}': operator '{node.op_type}' is not in ONNX opset {opsets[domain]}; export it again"
        ) from None
