"""ExecuTorch from its pip package: the same XNNPACK kernels that run `.pte` programs on phones, on this CPU.

It answers one text a call, so a batch is a loop. Inputs have no names in the format: they go in by position, in the
order of the card. The number of threads belongs to the process and not to a model; see `_set_threads`.
"""

import ctypes
import json
import logging
import tempfile
import warnings
from collections import Counter
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self
from weakref import WeakSet

import numpy as np

from eval.runtimes import Arrays, Kernels, take
from pipeline.base import extras
from pipeline.base.errors import ModelError, UnusableRuntimeError, first_line
from pipeline.base.records import Artefact, TensorFact

FORMATS = ("executorch",)
STAND_IN = None
METHOD = "forward"
# What the runtime calls them: ScalarType in executorch/runtime/core/portable_type/scalar_type.h
DTYPES = {3: "int32", 4: "int64", 6: "float32"}
# Flatbuffer offset and identifier, then the extended header: magic and length (4 bytes each), then the sizes of the
# program and of what follows it, 8 bytes each. Source: docs/source/pte-file-format.md of ExecuTorch.
IDENTIFIER, HEADER, HEADER_BYTES = b"ET12", b"eh00", 32


def why_unusable() -> str | None:
    """The reason why it cannot run here, or None."""
    return extras.why_missing("executorch", "executorch")


def version() -> str:
    """Its version."""
    return metadata.version("executorch")


def library_files() -> list[Path]:
    """The core, XNNPACK, and kernels for what XNNPACK does not take."""
    import executorch

    (folder,) = executorch.__path__
    names = ("", "_backend_xnnpack", "_kernels_optimized", "_kernels_quantized")
    return sorted(file for name in names for file in Path(folder).glob(f"lib/libexecutorch{name}.*"))


def open_session(folder: Path, artefact: Artefact, threads: int) -> "ExecutorchSession":
    """A session on the artefact's file, once that file has been checked.

    Raises:
        ModelError: the file is damaged, or not what the artefact's record says.
        UnusableRuntimeError: not installed, or it cannot have so many threads: see `_set_threads`.
    """
    prepare(folder, artefact)
    return open_prepared(folder, artefact, threads)


def prepare(folder: Path, artefact: Artefact) -> None:
    """Imports the library and checks the file: what an app has done before, so that it is no part of the load time."""
    reason = why_unusable()
    if reason is not None:
        raise UnusableRuntimeError(reason)
    check_program_file(folder / artefact.file)
    _import_library()


def open_prepared(folder: Path, artefact: Artefact, threads: int) -> "ExecutorchSession":
    """A session on a file that `prepare` has checked."""
    return ExecutorchSession(folder / artefact.file, artefact, threads)


def count_kernels(folder: Path, artefact: Artefact) -> Kernels:
    """What XNNPACK is given to execute. Its graphs carry no names, so a product in float is '#' and a number."""
    from executorch.exir._serialize import _deserialize_pte_binary

    program = _deserialize_pte_binary((folder / artefact.file).read_bytes()).program
    kinds: Counter[str] = Counter()
    integer = floats = 0
    for delegate in program.execution_plan[0].delegates:
        graph = _read_delegate(program.backend_delegate_data[delegate.processed.index].data)
        types = dict(map(_number_and_type, graph["xvalues"]))
        for node in graph["xnodes"]:
            kind, operands = node["xnode_union_type"], node["xnode_union"]
            if kind == "XNNConvert":
                kind = "quantize" if "int8" in types[operands["output_id"]] else "dequantize"
            kinds[kind] += 1
            if kind == "XNNFullyConnected":
                is_integer = all("int8" in types[operands[name]] for name in ("input1_id", "filter_id"))
                integer, floats = integer + is_integer, floats + (not is_integer)
    return Kernels(
        integer=integer,
        float_weights=tuple(f"#{i + 1}" for i in range(floats)),
        quantize=kinds["quantize"],
        dequantize=kinds["dequantize"],
        cast=sum("_to_dim_order_copy" in one.name for one in program.execution_plan[0].operators),
        nodes=kinds.total() + len(program.execution_plan[0].operators),
    )


def _read_delegate(blob: bytes) -> dict[str, Any]:
    """XNNPACK's graph in a program: a header, then a FlatBuffer by the schema that ExecuTorch's package carries."""
    from executorch.backends.xnnpack import serialization
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize import _flatbuffer

    header = XNNHeader.from_bytes(blob[: XNNHeader.EXPECTED_LENGTH])
    (schemas,) = serialization.__path__
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "graph.bin"
        file.write_bytes(blob[header.flatbuffer_offset :][: header.flatbuffer_size])
        _flatbuffer._flatc_decompile(scratch, str(Path(schemas) / "runtime_schema.fbs"), str(file), ["--raw-binary"])
        return json.loads(file.with_suffix(".json").read_text("utf-8"))


def _number_and_type(value: dict[str, Any]) -> tuple[int, str]:
    """Of one of XNNPACK's values, such as (4, 'xnn_datatype_qdint8')."""
    tensor = value["xvalue_union"].get("tensor_value", value["xvalue_union"])
    return tensor["id_out"], tensor["datatype"]


def check_program_file(path: Path) -> None:
    """Raises ModelError unless the file is a program of this format and as long as its header says.

    The runtime refuses a short file as well, but says by how much on stderr only, and takes one that is too long.
    """
    with path.open("rb") as file:
        head = file.read(8 + HEADER_BYTES)
    if head[4:8] != IDENTIFIER:
        raise ModelError(
            f"{path}: found {head[4:8]!r} where an ExecuTorch program has {IDENTIFIER!r}; export it again, or install "
            "the version of ExecuTorch it was made for"
        )
    if len(head) < 8 + HEADER_BYTES or head[8:12] != HEADER or int.from_bytes(head[12:16], "little") < HEADER_BYTES:
        raise ModelError(
            f"{path}: found no header of {HEADER_BYTES} bytes that starts with {HEADER!r}; export it again"
        )
    program, behind, weights = (int.from_bytes(head[start : start + 8], "little") for start in (16, 24, 32))
    expected, found = behind + weights if behind else program, path.stat().st_size
    if found != expected:
        change = "truncated by" if found < expected else "longer by"
        raise ModelError(
            f"{path}: {change} {abs(expected - found):,} bytes (found {found:,}, expected {expected:,} as its header "
            "says); export it again"
        )


class ExecutorchSession:
    """A loaded program."""

    def __init__(self, path: Path, artefact: Artefact, threads: int) -> None:
        import torch

        _set_threads(threads)
        self._program, self._method = _load(path)
        _check_shapes(path, self._method.metadata, artefact)
        self.input_names = tuple(fact.name for fact in artefact.inputs)
        self.output_names = tuple(fact.name for fact in artefact.outputs)
        self._max_length = artefact.max_length
        self._to_tensor = torch.from_numpy
        _open.add(self)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs for a padded batch, float32.

        Raises:
            ModelError: longer than the program takes.
        """
        given = take(inputs, self.input_names, self._max_length)
        # rows one after the other in memory, whatever layout came in, or the runtime refuses them
        columns = [np.ascontiguousarray(given[name], np.int32) for name in self.input_names]
        rows = [
            self._method.execute([self._to_tensor(column[i : i + 1]) for column in columns])
            for i in range(len(columns[0]))
        ]
        return {
            name: np.concatenate([row[place].numpy() for row in rows]) for place, name in enumerate(self.output_names)
        }

    def close(self) -> None:
        """Frees the program."""
        self._method = self._program = None
        _open.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_open: WeakSet[ExecutorchSession] = WeakSet()


def _set_threads(threads: int) -> None:
    """Makes the process's pool of threads have this many.

    Every loaded program keeps a pointer to the pool, and a change replaces the pool: so none while a program is open.

    Raises:
        UnusableRuntimeError: programs are open with another number, or the pool would not change.
    """
    library = _import_library()
    found = library._threadpool_get_thread_count()
    if found == threads:
        return
    if _open:
        raise UnusableRuntimeError(
            f"ExecuTorch has {found} threads in this process while {len(_open)} of its programs are open, asked for "
            f"were {threads}; close them first, or use a process for each number of threads"
        )
    library._unsafe_reset_threadpool(threads)
    found = library._threadpool_get_thread_count()
    if found != threads:
        raise UnusableRuntimeError(f"ExecuTorch took {found} threads, asked for were {threads}; set threads to {found}")


def _load(path: Path) -> tuple[Any, Any]:
    """(program, its method)."""
    from executorch.runtime import Runtime

    try:
        program = Runtime.get().load_program(path)
        return program, program.load_method(METHOD)
    except (RuntimeError, KeyError) as error:
        raise ModelError(f"{path}: ExecuTorch cannot load it: {first_line(error)}; export it again") from error


def _check_shapes(path: Path, about: Any, artefact: Artefact) -> None:
    """Raises ModelError when the program's inputs and outputs are not those of the card, the longest input included."""
    inputs = [about.input_tensor_meta(i) for i in range(about.num_inputs())]
    outputs = [about.output_tensor_meta(i) for i in range(about.num_outputs())]
    found = [[(DTYPES.get(one.dtype(), "other"), tuple(one.sizes())) for one in some] for some in (inputs, outputs)]
    expected = [[_fact(one, artefact.max_length) for one in some] for some in (artefact.inputs, artefact.outputs)]
    names = [one.name for one in (*artefact.inputs, *artefact.outputs)]
    if found != expected or sorted(names[: len(inputs)]) != ["attention_mask", "input_ids"]:
        raise ModelError(
            f"{path}: found inputs {found[0]} and outputs {found[1]} (type, longest shape), expected {expected[0]} and "
            f"{expected[1]} named {names} as in its card; export it again"
        )


def _fact(fact: TensorFact, max_length: int) -> tuple[str, tuple[int, ...]]:
    return fact.dtype, tuple(max_length if isinstance(size, str) else size for size in fact.shape)


@cache
def _import_library() -> ModuleType:
    """The runtime's own module, with the kernels of 8-bit tables, which the package has but does not load."""
    for name in ("torchao", "torchao.kernel.intmm", "torch.utils._pytree"):
        logging.getLogger(name).addFilter(_is_news)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This API is experimental and subject to change", DeprecationWarning)
        # of importlib.resources and torch.jit, as ExecuTorch and torch call them
        warnings.filterwarnings("ignore", r"(read_text|open_text|read_binary) is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit\.script", DeprecationWarning)
        import executorch
        from executorch.extension.pybindings import portable_lib
    (folder,) = executorch.__path__
    for library in Path(folder).glob("lib/libexecutorch_kernels_quantized.*"):
        ctypes.CDLL(str(library))  # registers its kernels with the runtime
    return portable_lib


def _is_news(record: logging.LogRecord) -> bool:
    """False of what torchao, which ExecuTorch imports, says on every machine of this kind."""
    known = (
        "Failed to load ",  # its binary parts for GPUs and other versions of Python
        "Warning: Detected no triton",
        "<enum '",  # how it registers enumerations
    )
    return not record.getMessage().startswith(known)
