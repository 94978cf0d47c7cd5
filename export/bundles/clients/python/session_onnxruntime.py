"""The model in onnxruntime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

TYPES = {"int64": np.int64, "int32": np.int32}


def open_session(path: Path, model: dict[str, Any], threads: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """A function from inputs by name, one row each, to the logits of that row."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # a thread that spins takes a core from others
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    disabled = [name for name in model["settings"].get("disabled_optimizers", "").split(",") if name]
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )
    types = {one["name"]: TYPES[one["dtype"]] for one in model["inputs"]}

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        feeds = {name: inputs[name].astype(dtype) for name, dtype in types.items()}
        return session.run([model["output"]], feeds)[0][0]

    return run
