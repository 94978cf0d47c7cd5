"""onnxruntime on the CPU: what runs .onnx and .ort files on phones, in servers and (as WebAssembly) in browsers."""

import tempfile
from collections import Counter
from importlib import metadata, util
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from jaxtyping import Int8

from eval.runtimes import Arrays, Kernels, settings_of, take
from pipeline.base.errors import ModelError, first_line
from pipeline.base.records import Artefact
from pipeline.formats.onnx_files import check_file

FORMATS = ("onnx", "ort")
STAND_IN = None
# onnxruntime's operators that multiply by 8-bit weights, and the place of the weights among their inputs.
INTEGER_PRODUCTS = {
    "MatMulInteger": 1,
    "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 3,
    "QGemm": 3,
    "QAttention": 1,
}
FLOAT_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Attention")
DTYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
SETTINGS = {
    "threads": "",  # as many as the caller asks for
    # A spinning thread takes a core from the other model in an interleaved measurement, and battery on a phone.
    "spinning": "0",
    # The fused kernel is slower: 7 to 14 % on int8 at every size tried. It is formed on files of opsets before 17,
    # where LayerNormalization is not one operator; ours never have it.
    "disabled_optimizers": "SkipLayerNormFusion",
    # On x86 without VNNI, kernels that do not add pairs of products in 16 bits. Our files are safe without them.
    "precise_sums": "0",
}


# Which of these is faster differs from one kind of CPU to another.
OF_THE_CPU = ("precise_sums",)


def why_unusable() -> str | None:
    """The reason why it cannot run here, or None."""
    return None if util.find_spec("onnxruntime") else "the package 'onnxruntime' is not installed"


def version() -> str:
    """Its version."""
    return metadata.version("onnxruntime")


def variants(artefact: Artefact) -> dict[str, dict[str, str]]:
    """Settings worth timing beside those that ship."""
    fused = {"SkipLayerNorm fused": {"disabled_optimizers": ""}} if artefact.format == "onnx" else {}
    precise = {"precise 8-bit sums": {"precise_sums": "1"}} if artefact.precision == "int8" else {}
    return {
        **fused,
        **precise,
        "two threads": {"threads": "2"},
        "two threads that spin": {"threads": "2", "spinning": "1"},
    }


def library_files() -> list[Path]:
    """The library with all operators; a build with those of the artefact's `.config` file alone is smaller."""
    import onnxruntime.capi

    (folder,) = onnxruntime.capi.__path__
    return sorted(Path(folder).glob("libonnxruntime.*"))


def open_session(folder: Path, artefact: Artefact, threads: int) -> "OnnxSession":
    """A session on the artefact's file, once that file has been checked.

    Raises:
        ModelError: the file is damaged, hostile, or not what the artefact's record says.
    """
    prepare(folder, artefact)
    return open_prepared(folder, artefact, threads)


def prepare(folder: Path, artefact: Artefact) -> None:
    """Imports the library and checks the file: what an app has done before, so that it is no part of the load time."""
    import onnxruntime  # noqa: F401

    check_file(folder / artefact.file)


def open_prepared(folder: Path, artefact: Artefact, threads: int) -> "OnnxSession":
    """A session on a file that `prepare` has checked."""
    return OnnxSession(folder / artefact.file, artefact, threads)


def count_kernels(folder: Path, artefact: Artefact) -> Kernels:
    """What onnxruntime makes of the file on this machine: its graph after all of its own passes."""
    graph = _optimised(folder, artefact)
    held = {tensor.name for tensor in graph.initializer}
    kinds = Counter(node.op_type for node in graph.node)
    return Kernels(
        integer=sum(kinds[kind] for kind in INTEGER_PRODUCTS),
        float_weights=tuple(
            _module_of(node.name) for node in graph.node if node.op_type in FLOAT_PRODUCTS and node.input[1] in held
        ),
        quantize=kinds["QuantizeLinear"] + kinds["DynamicQuantizeLinear"],
        dequantize=kinds["DequantizeLinear"],
        cast=kinds["Cast"],
        nodes=kinds.total(),
    )


def pair_summed_weights(folder: Path, artefact: Artefact) -> dict[str, Int8[np.ndarray, "rows columns"]]:
    """Signed weights of every integer product, by node: MLAS multiplies them with unsigned activations."""
    graph = _optimised(folder, artefact)
    held = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        place = INTEGER_PRODUCTS.get(node.op_type)
        name = node.input[place] if place is not None and len(node.input) > place else None
        if name in held and held[name].data_type == onnx.TensorProto.INT8:
            by_rows = node.op_type == "QGemm" and any(item.name == "transB" and item.i for item in node.attribute)
            weights = onnx.numpy_helper.to_array(held[name])
            found[_module_of(node.name)] = weights if by_rows else weights.T
    return found


def _optimised(folder: Path, artefact: Artefact) -> onnx.GraphProto:
    """What onnxruntime executes on this machine: the graph after all of its own passes."""
    with tempfile.TemporaryDirectory() as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        _load(folder / artefact.file, 1, settings_of(artefact, SETTINGS), optimised)
        return onnx.load(optimised).graph


def _module_of(name: str) -> str:
    """'/bert/pooler/dense/Gemm' gives 'bert.pooler.dense'."""
    return name.strip("/").rpartition("/")[0].replace("/", ".") or name


class OnnxSession:
    """A loaded file."""

    def __init__(self, path: Path, artefact: Artefact, threads: int) -> None:
        self._session = _load(path, threads, settings_of(artefact, SETTINGS))
        self.input_names = tuple(value.name for value in self._session.get_inputs())
        self.output_names = tuple(value.name for value in self._session.get_outputs())
        self._file, self._max_length = artefact.file, artefact.max_length
        found = {value.name: value.type for value in self._session.get_inputs()}
        expected = {fact.name: f"tensor({fact.dtype})" for fact in artefact.inputs}
        if found != expected or self.output_names != tuple(fact.name for fact in artefact.outputs):
            raise ModelError(
                f"{path}: found inputs {found} and outputs {list(self.output_names)}, expected {expected} and "
                f"{[fact.name for fact in artefact.outputs]} as in its card; export it again"
            )
        self._dtypes = {name: DTYPES[kind] for name, kind in found.items()}

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs for a padded batch, float32."""
        given = take(inputs, self.input_names, self._max_length)
        feeds = {name: given[name].astype(dtype, copy=False) for name, dtype in self._dtypes.items()}
        try:
            found = self._session.run(self.output_names, feeds)
        except _errors() as error:
            raise ModelError(
                f"{self._file}: onnxruntime cannot answer: {first_line(error)}; a token id beyond the vocabulary is "
                "the usual reason: use the tokenizer beside the model"
            ) from error
        return dict(zip(self.output_names, found, strict=True))

    def close(self) -> None:
        """Frees the model."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its classes share no base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    return tuple(getattr(state, kind) for kind in kinds)


def _load(path: Path, threads: int, settings: dict[str, str], optimised: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(settings["threads"] or threads)
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", settings["spinning"])
    options.add_session_config_entry("session.inter_op.allow_spinning", settings["spinning"])
    if settings["precise_sums"] == "1":
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3  # errors; they are raised as well
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    if path.suffix == ".ort":
        options.add_session_config_entry("session.load_model_format", "ORT")
    try:
        return onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=settings["disabled_optimizers"].split(),
        )
    except _errors() as error:
        raise ModelError(f"{path}: onnxruntime cannot load it: {first_line(error)}; export it again") from error
