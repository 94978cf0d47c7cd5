"""Classifies texts with this folder's model, and tests itself with the answers that the folder brings.

    python classifier.py "wake me at six"      label and confidence
    python classifier.py --self-test           replays every golden vector

Needs NumPy, tokenizers and the runtime that requirements.txt names.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from session import open_session
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Answer:
    """A label, how sure the model is of it, and how often answers as sure as this one were right on the data."""

    index: int
    label: str
    confidence: float
    right: float


class Classifier:
    """The model of a bundle's folder."""

    def __init__(self, folder: Path = HERE, threads: int = 1) -> None:
        self.model = _read(folder / "model.json")
        self.golden = _read(folder / "golden.json")
        if self.model["kind"] != "decant model 1":
            raise ValueError(f"{folder}: found '{self.model['kind']}', expected 'decant model 1'")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._run = open_session(folder / self.model["file"], self.model, threads)

    def classify(self, *text: str) -> Answer:
        """The answer to a text, or to a pair of texts."""
        return self.answer(self.run(self.encode(*text)))

    def encode(self, *text: str) -> list[int]:
        """Token ids with special tokens, cut to the length that the model takes."""
        return self._tokenizer.encode(*map(_tidy, text)).ids

    def run(self, ids: list[int]) -> np.ndarray:
        """The logits for token ids."""
        lengths = self.model["lengths"] or [len(ids)]
        length = min(one for one in lengths if one >= len(ids))
        row = np.full((1, length), self.model["pad_id"])
        row[0, : len(ids)] = ids
        return self._run({"input_ids": row, "attention_mask": (np.arange(length) < len(ids))[None].astype(np.int64)})

    def answer(self, logits: Any) -> Answer:
        """What logits say: the largest, of two that are level the first."""
        logits = np.asarray(logits, np.float64)
        index = int(logits.argmax())
        confidence = float(1 / np.exp(logits - logits[index]).sum())
        levels = [one["right"] for one in self.model["thresholds"] if confidence >= one["confidence"]]
        return Answer(index, self.model["labels"][index], confidence, max(levels, default=0.0))

    def self_test(self) -> list[str]:
        """Replays every golden vector; what differs, in words."""
        failures = [
            f"of the level outputs {tie['outputs']} it takes another than {tie['answer']}"
            for tie in self.golden["ties"]
            if self.answer(tie["outputs"]).index != tie["answer"]
        ]
        for number, row in enumerate(self.golden["rows"]):
            ids = self.encode(*row["text"]) if isinstance(row["text"], list) else self.encode(row["text"])
            if ids != row["ids"]:
                failures.append(f"row {number}: token ids {ids}, expected {row['ids']}")
                continue
            logits = self.run(ids)
            worst = float(np.abs(logits - np.array(row["outputs"])).max())
            if not worst <= self.golden["tolerance"]:  # written so that a NaN fails
                failures.append(
                    f"row {number}: outputs {worst:.3g} away, at most {self.golden['tolerance']:.3g} allowed"
                )
            elif row["sure"] and self.answer(logits).label != row["label"]:
                failures.append(f"row {number}: answers {self.answer(logits).label}, expected {row['label']}")
        return failures


def _tidy(text: str) -> str:
    """A text without NUL; half of a surrogate pair becomes a question mark, as in training."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def main() -> int:
    arguments = sys.argv[1:]
    if not arguments:
        print(__doc__)
        return 2
    classifier = Classifier()
    if arguments == ["--self-test"]:
        failures = classifier.self_test()
        print(
            "\n".join(failures) or f"all {len(classifier.golden['rows'])} golden vectors are answered as they should be"
        )
        return 1 if failures else 0
    found = classifier.classify(*arguments[:2])
    print(f"{found.label}  {found.confidence:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
