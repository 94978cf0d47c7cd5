"""LiteRT (formerly TensorFlow Lite) on the CPU: what runs .tflite files on Android, with XNNPACK as on a phone.

It answers one text a call, so a batch is a loop. Each length has a signature of its own; all are allocated when the
file is loaded, since XNNPACK then packs the weights they share once, and no call pays for it.
"""

import math
import struct
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Int32

from eval.padding import cut, padded_length
from eval.runtimes import Arrays, Kernels, settings_of
from pipeline.base.errors import ModelError, first_line
from pipeline.base.extras import why_missing
from pipeline.base.records import Artefact

FORMATS = ("litert",)
STAND_IN = None
IDENTIFIER = b"TFL3"  # at byte 4 of every file
SETTINGS = {
    "threads": "",  # as many as the caller asks for
    "xnnpack": "1",  # XNNPACK's kernels where it has one
}
# What the schema's code raises where an offset or a length leads out of the file, or a text is none.
UNREADABLE = (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
# Bytes of one value; a constant of another type is not checked.
VALUE_BYTES = {"FLOAT32": 4, "FLOAT16": 2, "INT64": 8, "INT32": 4, "INT16": 2, "INT8": 1, "UINT8": 1, "BOOL": 1}


def why_unusable() -> str | None:
    """The reason why it cannot run here, or None."""
    return why_missing("litert", "ai_edge_litert")


def version() -> str:
    """Its version."""
    return metadata.version("ai-edge-litert")


def variants(artefact: Artefact) -> dict[str, dict[str, str]]:
    """Settings worth timing beside those that ship."""
    return {"without XNNPACK": {"xnnpack": "0"}, "two threads": {"threads": "2"}}


def library_files() -> list[Path]:
    """The library that an Android app links."""
    import ai_edge_litert

    (folder,) = ai_edge_litert.__path__
    return sorted(Path(folder).glob("libLiteRt.*"))


def open_session(folder: Path, artefact: Artefact, threads: int) -> "LitertSession":
    """A session on the artefact's file, once that file has been checked.

    Raises:
        ModelError: the file is damaged, or not what the artefact's record says.
    """
    prepare(folder, artefact)
    return open_prepared(folder, artefact, threads)


def prepare(folder: Path, artefact: Artefact) -> None:
    """Imports the library and checks the file: what an app has done before, so that it is no part of the load time."""
    import ai_edge_litert.interpreter  # noqa: F401

    check_litert_file(folder / artefact.file)


def open_prepared(folder: Path, artefact: Artefact, threads: int) -> "LitertSession":
    """A session on a file that `prepare` has checked."""
    return LitertSession(folder / artefact.file, artefact, threads)


def count_kernels(folder: Path, artefact: Artefact) -> Kernels:
    """What the interpreter holds once it is loaded, for the shortest length; products of two activations aside."""
    interpreter = _load(folder / artefact.file, 1, settings_of(artefact, SETTINGS))
    interpreter.allocate_tensors()
    dtypes = {one["index"]: np.dtype(one["dtype"]) for one in interpreter.get_tensor_details()}
    names = {one["index"]: one["name"] for one in interpreter.get_tensor_details()}
    operations = [one for one in interpreter._get_ops_details() if one["op_name"] != "DELEGATE"]
    kinds = Counter(one["op_name"] for one in operations)
    weights = [int(one["inputs"][1]) for one in operations if one["op_name"] == "FULLY_CONNECTED"]
    return Kernels(
        integer=sum(dtypes[index].kind == "i" for index in weights),
        float_weights=tuple(_module_of(names[index]) for index in weights if dtypes[index].kind != "i"),
        quantize=kinds["QUANTIZE"],
        dequantize=kinds["DEQUANTIZE"],
        cast=kinds["CAST"],
        nodes=kinds.total(),
    )


def _module_of(tensor: str) -> str:
    """'length_16/bert.pooler.dense.weight' gives 'bert.pooler.dense'."""
    return tensor.rpartition("/")[2].removesuffix(".weight")


class _Bucket(NamedTuple):
    """Where one signature's values are, and the room that its inputs are padded in."""

    subgraph: int
    inputs: dict[str, int]
    outputs: dict[str, int]
    room: dict[str, Int32[np.ndarray, "1 length"]]


class LitertSession:
    """A loaded file."""

    def __init__(self, path: Path, artefact: Artefact, threads: int) -> None:
        self._interpreter = _load(path, threads, settings_of(artefact, SETTINGS))
        self.input_names = tuple(fact.name for fact in artefact.inputs)
        self.output_names = tuple(fact.name for fact in artefact.outputs)
        self._artefact = artefact
        _check_signatures(self._interpreter, path, artefact)
        # Interpreter's public calls reach the first signature only, and those of a signature resize and allocate every
        # time: 7 of 151 microseconds for 2 int8 layers of 192 at 16 tokens.
        self._calls = self._interpreter._interpreter
        self._buckets = {length: self._allocate(length) for length in _lengths(artefact)}

    def _allocate(self, length: int) -> _Bucket:
        name = _signature_name(length)
        indices = self._interpreter._get_full_signature_list()[name]
        subgraph = self._calls.GetSubgraphIndexFromSignature(name)
        try:
            self._calls.AllocateTensors(subgraph)
        except RuntimeError as error:
            raise ModelError(
                f"{self._artefact.file}: LiteRT cannot prepare '{name}': {first_line(error)}; export it again"
            ) from error
        room = {one: np.zeros((1, length), np.int32) for one in self.input_names}
        return _Bucket(subgraph, indices["inputs"], indices["outputs"], room)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs for a padded batch, float32.

        Padding goes up to the shortest length that the file has a signature for; what stands there is masked.

        Raises:
            ModelError: longer than every length of the file, or a token id that it has no embedding for.
        """
        batch, length = inputs[self.input_names[0]].shape
        bucket = self._buckets[padded_length(length, self._artefact)]
        for room in bucket.room.values():
            room[0, length:] = 0
        rows = []
        for i in range(batch):
            for name, room in bucket.room.items():
                room[0, :length] = inputs[name][i]
            rows.append(self._answer(bucket))
        found = rows[0] if batch == 1 else {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        return cut(found, length, self._artefact) if self._artefact.token_outputs else found

    def _answer(self, bucket: _Bucket) -> dict[str, np.ndarray]:
        calls = self._calls
        for name, room in bucket.room.items():
            calls.SetTensor(bucket.inputs[name], room, bucket.subgraph)
        try:
            calls.Invoke(bucket.subgraph)
        except RuntimeError as error:
            raise ModelError(
                f"{self._artefact.file}: LiteRT cannot answer: {first_line(error)}; a token id beyond the vocabulary "
                "is the usual reason: use the tokenizer beside the model"
            ) from error
        return {name: calls.GetTensor(bucket.outputs[name], bucket.subgraph) for name in self.output_names}

    def close(self) -> None:
        """Frees the model."""
        self._interpreter = self._calls = None
        self._buckets = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _load(path: Path, threads: int, settings: dict[str, str]) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with_xnnpack = settings["xnnpack"] == "1"
    resolver = OpResolverType.AUTO if with_xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    threads = int(settings["threads"] or threads)
    try:
        return Interpreter(model_path=str(path), num_threads=threads, experimental_op_resolver_type=resolver)
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: LiteRT cannot load it: {first_line(error)}; export it again") from error


def _lengths(artefact: Artefact) -> tuple[int, ...]:
    return artefact.lengths or (artefact.max_length,)


def _signature_name(length: int) -> str:
    return f"length_{length}"


def _check_signatures(interpreter: Any, path: Path, artefact: Artefact) -> None:
    """Raises ModelError where a signature is missing, or has other names, types or shapes than the card."""
    known = sorted(interpreter.get_signature_list())
    wanted = sorted(_signature_name(length) for length in _lengths(artefact))
    if known != wanted:
        raise ModelError(f"{path}: found signatures {known}, expected {wanted} as in its card; export it again")
    for length in _lengths(artefact):
        runner = interpreter.get_signature_runner(_signature_name(length))
        found = [
            {name: (np.dtype(value["dtype"]).name, tuple(value["shape"].tolist())) for name, value in details.items()}
            for details in (runner.get_input_details(), runner.get_output_details())
        ]
        expected = [
            {
                fact.name: (fact.dtype, tuple(length if size == "length" else size for size in fact.shape))
                for fact in facts
            }
            for facts in (artefact.inputs, artefact.outputs)
        ]
        if found != expected:
            raise ModelError(
                f"{path}: signature '{_signature_name(length)}': found inputs {found[0]} and outputs {found[1]}, "
                f"expected {expected[0]} and {expected[1]} as in its card; export it again"
            )


# --- before it is loaded -----------------------------------------------------------------------------------------


def check_litert_file(path: Path) -> None:
    """Raises ModelError for what LiteRT would run on without a look: indices, offsets and sizes that do not fit."""
    content = path.read_bytes() if path.is_file() else b""
    if content[4:8] != IDENTIFIER:
        found = f"{len(content):,} bytes with {content[4:8]!r} at byte 4" if path.is_file() else "no such file"
        raise ModelError(f"{path}: not a .tflite file: found {found}, expected {IDENTIFIER!r}; export it again")
    from ai_edge_litert.tools import flatbuffer_utils

    try:
        flat = flatbuffer_utils.read_model_from_bytearray(content)
        fault = next(_faults(flat), None)
    except UNREADABLE as error:
        fault = f"its tables cannot be read ({type(error).__name__}: {first_line(error)})"
    if fault is not None:
        raise ModelError(f"{path}: damaged or cut short at {len(content):,} bytes: {fault}; export it again")


def _faults(flat: Any) -> Iterator[str]:
    for number, subgraph in enumerate(flat.subgraphs):
        count = len(subgraph.tensors)
        used = [*subgraph.inputs, *subgraph.outputs]
        for op in subgraph.operators:
            used += [index for index in (*_list(op.inputs), *_list(op.outputs)) if index != -1]  # -1 is left out
            if not 0 <= op.opcodeIndex < len(flat.operatorCodes):
                yield f"subgraph {number} has an operation of kind {op.opcodeIndex} of {len(flat.operatorCodes)}"
        if not all(0 <= index < count for index in used):
            yield f"subgraph {number} uses a tensor beyond its {count}"
        for tensor in subgraph.tensors:
            yield from _tensor_faults(flat, tensor)
    for signature in flat.signatureDefs:
        if not 0 <= signature.subgraphIndex < len(flat.subgraphs):
            yield f"signature {signature.signatureKey!r} is of subgraph {signature.subgraphIndex}, which is not there"


def _tensor_faults(flat: Any, tensor: Any) -> Iterator[str]:
    from ai_edge_litert import schema_py_generated as schema

    name = tensor.name.decode(errors="replace")
    data = flat.buffers[tensor.buffer].data
    kinds = {number: kind for kind, number in vars(schema.TensorType).items()}
    size = VALUE_BYTES.get(kinds.get(tensor.type, ""))
    expected = math.prod(_list(tensor.shape)) * (size or 0)
    if size is not None and data is not None and len(data) not in (0, expected):
        yield f"tensor '{name}' has {len(data):,} bytes, expected {expected:,}"


def _list(values: Any) -> list[int]:
    """A vector of the file; an empty one is None."""
    return [] if values is None else list(values)
