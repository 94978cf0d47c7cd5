"""OpenVINO on the CPU, for its own files and, as a second engine beside onnxruntime, for .onnx files."""

import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from xml.parsers import expat

import numpy as np
from jaxtyping import Int8

from eval.runtimes import Arrays, Kernels, settings_of, take
from pipeline.base.errors import ModelError, first_line
from pipeline.base.extras import why_missing
from pipeline.base.records import Artefact
from pipeline.formats.onnx_files import check_onnx_file
from pipeline.formats.openvino_products import eight_bit_products

if TYPE_CHECKING:
    import openvino

# Importing openvino is reported to Google Analytics without asking, with an id that is kept under the home folder;
# neither happens where this package cannot be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

FORMATS = ("openvino", "onnx")
STAND_IN = None
SETTINGS = {
    "INFERENCE_NUM_THREADS": "",  # as many as the caller asks for
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
    # By default it computes in bfloat16 where the CPU can, and in fp16 on Arm: on a CPU with avx512_bf16 a quarter
    # faster, and 0.4 % of the logits' spread away from the fp32 that the card states.
    "INFERENCE_PRECISION_HINT": "f32",
    # A thread bound to a core waits for whoever else is on it: beside another process p90 was 1.64 ms, unbound 0.44.
    "ENABLE_CPU_PINNING": "NO",
}
_TOLD = ("layerType", "runtimePrecision", "originalLayersNames")
_INTEGER = ("i8", "u8")
# What OpenVINO and the ONNX exporter append to a module's name.
_NODE_PARTS = ("MatMul", "Gemm", "WithoutBiases", "DequantizationMultiply", "Add")
# 16 times the graph of 12 layers in 8 bits, which is the largest we write: about 70 kB a layer.
MAX_XML_BYTES = 16 * 2**20


def why_unusable() -> str | None:
    """The reason why it cannot run here, or None."""
    return why_missing("openvino", "openvino")


def version() -> str:
    """Its version."""
    return metadata.version("openvino")


def variants(artefact: Artefact) -> dict[str, dict[str, str]]:
    """Settings worth timing beside those that ship."""
    return {
        "hint for throughput": {"PERFORMANCE_HINT": "THROUGHPUT"},
        "bound to a core": {"ENABLE_CPU_PINNING": "YES"},
        "two threads": {"INFERENCE_NUM_THREADS": "2"},
    }


def library_files() -> list[Path]:
    """The core, the plugin of the CPU, what reads its own format, and its pool of threads."""
    import openvino

    (folder,) = openvino.__path__
    names = (
        "libopenvino",
        "libopenvino_intel_cpu_plugin",
        "libopenvino_arm_cpu_plugin",
        "libopenvino_ir_frontend",
        "libtbb",
    )
    return sorted(file for name in names for file in Path(folder).glob(f"libs/{name}.*"))


def open_session(folder: Path, artefact: Artefact, threads: int) -> "OpenVinoSession":
    """A session on the artefact's file or folder, once that has been checked.

    Raises:
        ModelError: a file is missing, damaged, hostile, or not what the artefact's record says.
    """
    prepare(folder, artefact)
    return open_prepared(folder, artefact, threads)


def prepare(folder: Path, artefact: Artefact) -> None:
    """Imports the library and checks the files: what an app has done before, so that it is no part of the load time."""
    import openvino  # noqa: F401

    if artefact.format == "onnx":
        check_onnx_file(folder / artefact.file)
    else:
        _check_ir(folder / artefact.file)


def open_prepared(folder: Path, artefact: Artefact, threads: int) -> "OpenVinoSession":
    """A session on files that `prepare` has checked."""
    path = folder / artefact.file
    return OpenVinoSession(path if artefact.format == "onnx" else path / "model.xml", artefact, threads)


def count_kernels(folder: Path, artefact: Artefact) -> Kernels:
    """What the CPU plugin executes: its own graph, after its own passes."""
    path = folder / artefact.file
    compiled = _load(path if artefact.format == "onnx" else path / "model.xml", 1, settings_of(artefact, SETTINGS))
    kinds: Counter[str] = Counter()
    integer, floats = 0, []
    for op in compiled.get_runtime_model().get_ops():
        facts = {key: value.astype(str) for key, value in op.get_rt_info().items() if key in _TOLD}
        kinds[facts["layerType"]] += 1
        if facts["layerType"] != "FullyConnected":  # products of two activations are MatMul
            continue
        if facts["runtimePrecision"] in _INTEGER:
            integer += 1
        else:
            floats.append(_module_of(facts["originalLayersNames"]))
    return Kernels(
        integer=integer,
        float_weights=tuple(floats),
        quantize=kinds["FakeQuantize"],
        dequantize=kinds["Dequantize"],
        cast=kinds["Convert"],
        nodes=kinds.total() - kinds["Const"] - kinds["Input"] - kinds["Output"],
    )


def pair_summed_weights(folder: Path, artefact: Artefact) -> dict[str, Int8[np.ndarray, "rows columns"]]:
    """Signed weights of every integer product, by operator: oneDNN multiplies them with unsigned activations."""
    import openvino

    path = folder / artefact.file
    model = openvino.Core().read_model(path if artefact.format == "onnx" else path / "model.xml")
    return {product.op.get_friendly_name(): product.weights.copy() for product in eight_bit_products(model)}


def _module_of(layers: str) -> str:
    """'/bert/pooler/dense/Gemm/WithoutBiases,…' gives 'bert.pooler.dense'."""
    parts = layers.split(",")[0].strip("/").split("/")
    while len(parts) > 1 and parts[-1] in _NODE_PARTS:
        parts.pop()
    return ".".join(parts)


class OpenVinoSession:
    """A loaded file."""

    def __init__(self, path: Path, artefact: Artefact, threads: int) -> None:
        self._compiled = _load(path, threads, settings_of(artefact, SETTINGS))
        found = {_name(port): port.get_element_type().to_dtype() for port in self._compiled.inputs}
        self.input_names = tuple(found)
        self.output_names = tuple(_name(port) for port in self._compiled.outputs)
        self._max_length = artefact.max_length
        expected = {fact.name: np.dtype(fact.dtype) for fact in artefact.inputs}
        if found != expected or self.output_names != tuple(fact.name for fact in artefact.outputs):
            raise ModelError(
                f"{path}: found inputs {_shown(found)} and outputs {list(self.output_names)}, expected "
                f"{_shown(expected)} and {[fact.name for fact in artefact.outputs]} as in its card; export it again"
            )
        self._dtypes = found
        # One for all calls, because its memory is kept from call to call.
        self._request = self._compiled.create_infer_request()

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs for a padded batch, float32."""
        given = take(inputs, self.input_names, self._max_length)
        feeds = {name: given[name].astype(dtype, copy=False) for name, dtype in self._dtypes.items()}
        # Inputs are read where they lie. Outputs are copied: the next call writes over what this one gave. Once shared,
        # always shared: a copy would go into the last call's array, and a longer text does not fit there.
        try:
            found = self._request.infer(feeds, share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise ModelError(
                f"OpenVINO cannot answer: {first_line(error)}; a token id beyond the vocabulary is the usual reason: "
                "use the tokenizer beside the model"
            ) from error
        return {name: found[name] for name in self.output_names}

    def close(self) -> None:
        """Frees the model."""
        self._request = self._compiled = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _name(port: "openvino.ConstOutput") -> str:
    return "/".join(sorted(port.get_names()))  # in a file of ours each port has one


def _shown(dtypes: dict[str, np.dtype]) -> dict[str, str]:
    return {name: str(dtype) for name, dtype in dtypes.items()}


def _load(path: Path, threads: int, settings: dict[str, str]) -> "openvino.CompiledModel":
    import openvino

    given = {**settings, "INFERENCE_NUM_THREADS": settings["INFERENCE_NUM_THREADS"] or str(threads)}
    try:
        core = openvino.Core()
        return core.compile_model(core.read_model(path), "CPU", given)
    except RuntimeError as error:
        raise ModelError(f"{path}: openvino cannot load it: {_reason(error)}; export it again") from error


def _reason(error: RuntimeError) -> str:
    """The last line that says something; those before it are places in OpenVINO's own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# --- checking a graph and its weights ----------------------------------------------------------------------------


def _check_ir(folder: Path) -> None:
    xml, weights = folder / "model.xml", folder / "model.bin"
    for path in (xml, weights):
        if not path.is_file():
            raise ModelError(f"{path}: no such file; export it again")
    size = xml.stat().st_size
    if not 0 < size <= MAX_XML_BYTES:
        raise ModelError(f"{xml}: found {size:,} bytes, expected 1 to {MAX_XML_BYTES:,}; export it again")
    needed, held = _needed_bytes(xml), weights.stat().st_size
    if held < needed:
        raise ModelError(
            f"{weights}: found {held:,} bytes, expected at least {needed:,} by model.xml; copy or export it again"
        )


def _needed_bytes(xml: Path) -> int:
    """The end of the last constant in model.bin, as model.xml states it."""
    ends = [0]

    def refuse(*_: object) -> None:
        raise ModelError(
            f"{xml}: found a document type (DOCTYPE), which can define entities, expected none; export it again"
        )

    def note(tag: str, attributes: dict[str, str]) -> None:
        if tag != "data" or "offset" not in attributes:
            return
        try:
            offset, size = int(attributes["offset"]), int(attributes["size"])
        except (KeyError, ValueError):
            offset = size = -1
        if offset < 0 or size < 0:
            raise ModelError(f"{xml}: a constant without a place in model.bin: {attributes}; export it again")
        ends.append(offset + size)

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = note
    try:
        parser.Parse(xml.read_bytes(), True)
    except expat.ExpatError as error:
        raise ModelError(f"{xml}: not XML or damaged ({error}); export it again") from None
    return max(ends)
