"""The model in LiteRT: it has a signature for each length, named after it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def open_session(path: Path, model: dict[str, Any], threads: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """A function from inputs by name, one row each, to the logits of that row."""
    interpreter = Interpreter(model_path=str(path), num_threads=threads)

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        signature = interpreter.get_signature_runner(f"length_{inputs['input_ids'].shape[1]}")
        feeds = {one["name"]: inputs[one["name"]].astype(np.int32) for one in model["inputs"]}
        return signature(**feeds)[model["output"]][0]

    return run
