"""Trains one student of a comparison in a process of its own, so that its peak memory is its own.

Run by `decant methods` in the workspace as `python -m stages.comparing.train METHOD SEED`.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch

from pipeline import guard
from pipeline.attention_analysis import attention_distance
from pipeline.distillation import Distillation
from pipeline.files import write_atomically
from pipeline.models import load_classifier
from pipeline.params import load
from pipeline.training import newest_checkpoint
from pipeline.variants import Variant
from pipeline.workspace import Workspace
from stages.comparing.places import Places


def run(places: Places, method: str, seed: int) -> None:
    """Writes the trained student and `cost.json`, what it took and what it did to the student's attention."""
    params = load(places.settings(method))
    folder = places.run(method, seed)
    distillation = Distillation(params, Workspace(places.data(params)), caches=places.caches)
    variant = Variant(method, seed, params.distill.losses)
    resumed = any(newest_checkpoint(work) is not None for work in (folder / "main", folder / "signals"))
    before = attention_distance(distillation.new_student(seed), distillation.teacher, distillation.splits["dev"])
    distillation.ask_teacher(variant)  # once for all methods and seeds, so it is no part of this one's cost
    started = time.monotonic()
    card = distillation.train(variant, folder)
    seconds = time.monotonic() - started
    student = load_classifier(folder / "model")
    after = attention_distance(student, distillation.teacher, distillation.splits["dev"])
    if card.facts["key"] == _key_of(folder / "cost.json"):
        return  # it was trained by an earlier process, whose cost stands
    cost = {
        "key": card.facts["key"],
        "seconds": None if resumed else seconds,  # of a run that went on, only its last part would be known
        "peak_mb": _peak_mb(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "attention_distance": {"before": before, "after": after},
    }
    write_atomically(folder / "cost.json", json.dumps(cost, indent=1) + "\n")


def _key_of(path: Path) -> str | None:
    return json.loads(path.read_text("utf-8"))["key"] if path.is_file() else None


def _peak_mb() -> float:
    """Megabytes (10^6) that this process had at its peak: of the GPU where there is one, or of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main() -> None:
    run(Places(Path()), sys.argv[1], int(sys.argv[2]))


if __name__ == "__main__":
    guard.run(main)
