"""Trains one student of a comparison in a process of its own, so that its peak memory is its own.

Run by `decant methods` in the workspace as `python -m stages.comparing.train METHOD SEED`.
"""

import json
import logging
import sys
import time
from pathlib import Path

import torch

from eval.worker import forget_peak, peak_bytes
from pipeline.base import guard
from pipeline.base.errors import IntegrityError, SettingsError
from pipeline.base.files import write_atomically
from pipeline.base.records import open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.alignment import TOKENS
from pipeline.distillation.distil import KIND, Distillation
from pipeline.distillation.variants import Variant
from pipeline.models.checkpoints import load_classifier
from pipeline.settings.params import load
from pipeline.signals.attention_analysis import attention_distance
from stages.comparing.places import Places

log = logging.getLogger(__name__)


def run(places: Places, method: str, seed: int) -> None:
    """Writes the trained student and `cost.json`, what it took and what it did to the student's attention."""
    params = load(places.settings(method))
    folder = places.run(method, seed)
    distillation = Distillation(params, Workspace(places.data(params)), caches=places.caches)
    variant = Variant(method, seed, params.distill.losses)
    if distillation.key(variant) == _key_of(folder / "cost.json"):
        log.info("%s: already trained", variant.name)
        return
    if distillation.alignment != TOKENS:
        raise SettingsError(
            "a comparison of methods tells how far attention is from the teacher's, token by token, but the tokenizers "
            "of student and teacher cut text otherwise; choose a teacher whose word pieces the student shares"
        )
    distillation.ask_teacher(variant)  # once for all methods and seeds, so it is no part of this one's seconds
    was_there = _key_of_model(folder / "model") == distillation.key(variant)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    forget_peak()
    started = time.monotonic()
    card = distillation.train(variant, folder)
    seconds, peak = time.monotonic() - started, _peak_mb()  # before anything else is computed here
    students = {"before": distillation.new_student(seed), "after": load_classifier(folder / "model")}
    cost = {
        "key": card.facts["key"],
        # Of a run that went on, only its last part would be known; of one that was killed after training, nothing.
        "seconds": None if distillation.resumed or was_there else seconds,
        "peak_mb": peak,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "attention_distance": {
            when: attention_distance(student, distillation.teacher, distillation.together("train"))
            for when, student in students.items()
        },
    }
    write_atomically(folder / "cost.json", json.dumps(cost, indent=1) + "\n")


def _key_of(path: Path) -> str | None:
    return json.loads(path.read_text("utf-8"))["key"] if path.is_file() else None


def _key_of_model(folder: Path) -> str | None:
    try:
        return open_folder(folder, KIND).facts["key"] if folder.is_dir() else None
    except IntegrityError:
        return None


def _peak_mb() -> float:
    """Megabytes (10^6) that this process had at its peak: of the GPU where there is one, or of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return peak_bytes() / 1e6


def main() -> None:
    places, method, seed = Places(Path()), sys.argv[1], int(sys.argv[2])
    with guard.lock(places.run(method, seed)):
        run(places, method, seed)


if __name__ == "__main__":
    guard.run(main)
