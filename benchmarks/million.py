"""Does a million rows go through `prepare` and an epoch of training in bounded memory? Minutes and peak memory of each.

    python -m benchmarks.million                      a million rows; three quarters of an hour on two cores
    python -m benchmarks.million --rows 100000        fewer
    python -m benchmarks.million --only prepare       no training

Makes rows of made-up words in a temporary folder, a tiny BERT that reads them, and runs the stages as `dvc repro` does,
each in a process of its own. Rows are planted that stand in train and test, and test rows that are almost rows of
train; that exactly these are found is checked. The last line is JSON.
"""

import csv
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from pipeline.base import guard
from pipeline.base.errors import PipelineError
from pipeline.base.records import open_folder
from pipeline.base.workspace import Workspace

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[1]
STAGES = ("prepare", "teach", "distill")
CLASSES = ("amber", "birch", "cedar", "delta")
WORDS = 30_000
CHUNK = 50_000  # rows that are made at once
PLANTED = 1_000  # one row in so many is of each kind that must be found
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    rows: Annotated[int, typer.Option(min=20_000, help="Rows of train and test together.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Decides the rows.")] = 0,
    only: Annotated[str | None, typer.Option(help="Stop after this stage: prepare, teach.")] = None,
) -> None:
    """Prints minutes and peak memory of each stage."""
    stages = STAGES[: STAGES.index(only) + 1] if only is not None else STAGES
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        write_rows(workspace.root, rows, seed)
        _write_model(workspace.root / "model", seed)
        workspace.params.write_text(yaml.safe_dump(_settings()), "utf-8")
        found: dict[str, Any] = {"rows": rows, "csv_mb": _megabytes(workspace.root / "train.csv")}
        _run("machine", workspace.root)  # says what the base model is
        for stage in stages:
            found[stage] = _run(stage, workspace.root)
            log.info("%s: %s", stage, found[stage])
        facts = open_folder(workspace.data, "data").facts
    found["planted"] = {"leaks": rows // PLANTED, "near_duplicates": rows // PLANTED}
    found["found"] = {
        "leaks": facts["rows_also_in_test_removed"]["train"],
        "near_duplicates": facts["near_duplicates"]["test_rows"],
    }
    print(json.dumps(found))
    if found["found"] != found["planted"]:
        raise PipelineError(f"found {found['found']}, planted {found['planted']}")


def write_rows(folder: Path, rows: int, seed: int) -> None:
    """train.csv and, a twentieth as many rows, test.csv."""
    rng = np.random.default_rng(seed)
    test = [row for chunk in _rows(rng, rows // 20) for row in chunk]
    planted = rows // PLANTED
    near = rng.choice(len(test), planted, replace=False)
    train = _rows(rng, rows - len(test) - planted)
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for number, chunk in enumerate(train):
            writer.writerows(chunk)
            if number == 0:  # a letter more is another text, and nearly the same
                for place, (text, label) in zip(near, (row for row in chunk if len(row[0]) > 60), strict=False):
                    test[place] = (f"{text}s", label)
        leaked = sorted(set(range(len(test))) - set(near.tolist()))[:planted]
        writer.writerows((f"{test[i][0].upper()}!", test[i][1]) for i in leaked)
    with (folder / "test.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *test])


def _rows(rng: np.random.Generator, count: int) -> Iterator[list[tuple[str, str]]]:
    """Sentences of 6 to 18 words, common words common as in a language, one of them the class's."""
    words = np.array(_words())
    chance = 1 / np.arange(10, len(words) + 10)
    chance /= chance.sum()
    for start in range(0, count, CHUNK):
        some = min(CHUNK, count - start)
        labels, lengths = rng.integers(len(CLASSES), size=some), rng.integers(6, 19, size=some)
        drawn = words[rng.choice(len(words), size=int(lengths.sum()), p=chance)]
        ends = np.cumsum(lengths)
        drawn[ends - rng.integers(2, lengths)] = np.array(CLASSES)[labels]
        yield [
            (" ".join(drawn[end - length : end]), CLASSES[label])
            for end, length, label in zip(ends.tolist(), lengths.tolist(), labels.tolist(), strict=True)
        ]


def _words() -> list[str]:
    """Words of two to four syllables, the same every time."""
    rng = np.random.default_rng(1)
    syllables = [first + vowel + last for first in "bdfgklmnprstvz" for vowel in "aeiou" for last in ("", "n", "r")]
    found: dict[str, None] = {}
    while len(found) < WORDS:
        found["".join(rng.choice(syllables, size=rng.integers(2, 5)))] = None
    return list(found)


def _write_model(folder: Path, seed: int) -> None:
    """A BERT of two layers and 64 units that knows the common half of the words, the rest by letters."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    from pipeline.models.vocabulary import save_tokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *CLASSES, *_words()[: WORDS // 2]]
    numbers = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    inner = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, numbers[name]) for name in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **names)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(numbers),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    BertForSequenceClassification(config).save_pretrained(str(folder), safe_serialization=True)
    save_tokenizer(tokenizer, folder)


def _settings() -> dict[str, Any]:
    """The student sees every row once; the teacher, of which nothing is claimed, as many as it needs to learn words."""
    training = {"epochs": 1.0, "batch_size": 256, "learning_rate": 3.0e-3, "evaluations_per_epoch": 1}
    target = {"format": "onnx", "precision": "fp32", "runtime": "onnxruntime", "device": "local", "required": False}
    target |= {"options": {"inputs": "int64"}, "budgets": {}}
    return {
        "seed": 0,
        "threads": 2,
        "data": {"source": "files", "files": {"root": "."}, "dev_fraction": 0.02, "max_length": 48},
        "teacher": {"model": "model", "training": training | {"epochs": 0.2}},
        "student": {"layers": 1},
        "distill": {"training": training, "losses": {"logit_kl": {"temperature": 2.0}}},
        "targets": {"none_is_made": target},
    }


def _run(stage: str, folder: Path) -> dict[str, float]:
    """Minutes, those of CPU time, and peak memory of one stage in a process of its own."""
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=environment)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise PipelineError(f"stages.{stage} ended with {child.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    minutes = (time.perf_counter() - started) / 60
    return {
        "minutes": round(minutes, 2),
        "cpu_minutes": round((used.ru_utime + used.ru_stime) / 60, 2),
        "peak_rss_gb": round(used.ru_maxrss * unit / 1e9, 2),
    }


def _megabytes(path: Path) -> float:
    return round(path.stat().st_size / 1e6, 1)


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
