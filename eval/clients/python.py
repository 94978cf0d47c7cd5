"""The bundle for Python, in a process of its own."""

import sys
from collections.abc import Sequence
from pathlib import Path

from eval.clients import Used, limit_s
from eval.tokenizers import ask_program

# In the folder itself, as an app has it; -I and this path alone, so that nothing of Decant is at hand.
SCRIPT = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
start = time.perf_counter()
from classifier import Classifier
texts = json.load(sys.stdin)
classifier = Classifier()
answers, times = [], []
for text in texts:
    answers.append(classifier.classify(*text).index)
    times.append(time.perf_counter())
gaps = sorted(b - a for a, b in zip(times, times[1:], strict=False)) or [0.0]
print(json.dumps({
    "answers": answers,
    "failures": classifier.self_test(),
    "cold_ms": 1e3 * (times[0] - start),
    "warm_ms": 1e3 * gaps[len(gaps) // 2],
}))
"""


def why_unusable() -> str | None:
    """None: this Python runs it."""
    return None


def use(folder: Path, texts: Sequence[tuple[str, ...]]) -> Used:
    """What its `classifier.py` answers."""
    command = [sys.executable, "-I", "-B", "-c", SCRIPT, str(folder.resolve())]
    found = ask_program(command, list(texts), timeout_s=limit_s(len(texts)), what="its classifier.py")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Used(**found, first_bytes=size, engine=f"Python {sys.version.split()[0]}")
