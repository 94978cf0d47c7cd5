"""The model in OpenVINO."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # it would call home
import openvino  # noqa: E402 - after that

TYPES = {"int64": np.int64, "int32": np.int32}


def open_session(path: Path, model: dict[str, Any], threads: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """A function from inputs by name, one row each, to the logits of that row."""
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path / "model.xml", "CPU", config)
    types = {one["name"]: TYPES[one["dtype"]] for one in model["inputs"]}

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return compiled({name: inputs[name].astype(dtype) for name, dtype in types.items()})[model["output"]][0]

    return run
