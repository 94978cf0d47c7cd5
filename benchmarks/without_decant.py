"""What one gets without Decant from the same student: the usual calls of Optimum and NNCF, as their pages show them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.runtimes import Arrays


class PlainOnnx:
    """onnxruntime as it is, without spinning threads, so that its neighbours in the same process can be timed."""

    def __init__(self, file: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._names = [value.name for value in self._session.get_inputs()]

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Logits; the type ids of one text are zeros."""
        given = {**inputs, "token_type_ids": np.zeros_like(inputs["input_ids"])}
        return {"logits": self._session.run(["logits"], {name: given[name] for name in self._names})[0]}

    def close(self) -> None:
        """Frees the model."""
        self._session = None


class PlainOpenVino:
    """OpenVINO with its hint for latency, in fp32 between integer products as Decant's."""

    def __init__(self, file: Path, threads: int) -> None:
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": str(threads),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._compiled = core.compile_model(core.read_model(file), "CPU", settings)
        self._request = self._compiled.create_infer_request()
        self._names = [port.get_any_name() for port in self._compiled.inputs]

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Logits; the type ids of one text are zeros."""
        given = {**inputs, "token_type_ids": np.zeros_like(inputs["input_ids"])}
        found = self._request.infer({name: given[name] for name in self._names}, share_inputs=True)
        return {"logits": found["logits"].copy()}

    def close(self) -> None:
        """Frees the model."""
        self._request = self._compiled = None


def make_optimum(student: Path, out: Path, heads: int, hidden: int) -> dict[str, Path]:
    """Optimum's export and its dynamic quantization for this kind of CPU, before and after offline fusion."""
    from onnxruntime.transformers import optimizer
    from optimum.exporters.onnx import main_export
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    # as `optimum-cli export onnx --task text-classification` and `optimum-cli onnxruntime quantize --avx512_vnni`
    main_export(str(student), out / "float", task="text-classification", do_validation=False)
    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
    ORTQuantizer.from_pretrained(out / "float").quantize(save_dir=out / "int8", quantization_config=config)
    fused = optimizer.optimize_model(
        str(out / "int8" / "model_quantized.onnx"), "bert", num_heads=heads, hidden_size=hidden
    )
    fused.save_model_to_file(str(out / "fused.onnx"))
    return {"plain": out / "int8" / "model_quantized.onnx", "fused": out / "fused.onnx"}


def make_nncf(model: Path, texts: Sequence[Sequence[int]], out: Path) -> Path:
    """NNCF's post-training quantization for transformers, on the calibration texts that Decant's plan has."""
    import nncf
    import openvino

    graph = openvino.Core().read_model(model)
    names = [port.get_any_name() for port in graph.inputs]

    def feeds(ids: Sequence[int]) -> dict[str, Any]:
        row = np.asarray([ids], dtype=np.int64)
        given = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
        return {name: given[name] for name in names}

    quantized = nncf.quantize(
        graph, nncf.Dataset(list(texts), feeds), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(texts)
    )
    openvino.save_model(quantized, out / "nncf.xml", compress_to_fp16=False)
    return out / "nncf.xml"


OPENERS: dict[str, Callable[[Path, int], Any]] = {".onnx": PlainOnnx, ".xml": PlainOpenVino}
