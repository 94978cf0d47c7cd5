"""Does every check catch what it is there for, and leave sound files alone? Each fault alone, on many students.

    python -m benchmarks.checks plant FOLDER --seeds 10    sound files and planted faults; each check is a line of
                                                           FOLDER/checks.jsonl, and a run that was ended goes on
    python -m benchmarks.checks table FOLDER               its record, and the table in docs/measuring.md
    python -m benchmarks.checks coverage ...               whether intervals hold: benchmarks/coverage.py

Students are trained here, another one for each seed: 2 layers of 192 with the bundled model's tokenizer, on the bundled
data's train texts, answering dev texts. (Random ones answer all texts nearly alike, and what is then answered to whom
no check can tell.) A fault counts as caught when the check that is there for it fails and says so; on a sound file
every check that fails is a false alarm. Faults are those of benchmarks/planted.py.
"""

import csv
import dataclasses
import json
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any
from unittest import mock

import numpy as np
import onnx
import torch
import typer

from benchmarks import coverage, planted
from benchmarks.gate import write_variant
from benchmarks.graphs import RUNTIMES, whole_plan
from benchmarks.pages import fill
from eval.checks import Subject
from eval.latency import Exported
from pipeline.base import guard, machine, plugins
from pipeline.base.errors import SettingsError
from pipeline.base.files import write_atomically
from pipeline.base.records import Artefact, Status, seal
from pipeline.data.batches import batches_by_length, pad
from pipeline.data.inputs import local_model_folder
from pipeline.data.prepared import EncodedSplit
from pipeline.models.checkpoints import save_classifier
from pipeline.models.vocabulary import cut_at, load_tokenizer, save_tokenizer
from pipeline.quantization.plan import quantize_weight
from pipeline.settings.teacher import TeacherSettings
from stages.examine import make
from stages.targets import artefact_bytes

DATA = Path("data/assistant")
MAX_LENGTH, CLASSES, TEXTS = 64, 20, 60
EPOCHS, BATCH, RATE = 6, 32, 1.0e-3
LENGTHS = {"lengths": (8, 16, 32, MAX_LENGTH)}
# kind of file -> (format, precision, options)
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "onnx fp32": ("onnx", "fp32", {}),
    "onnx int8": ("onnx", "int8", {"activations": "dynamic"}),
    "ort int8": ("ort", "int8", {"activations": "static"}),
    "openvino int8": ("openvino", "int8", {}),
    "litert int8": ("litert", "int8", {"activations": "dynamic", **LENGTHS}),
    "coreml fp16": ("coreml", "fp16", LENGTHS),
    "coreml int8": ("coreml", "int8", LENGTHS),
}
SLOWING = 400  # products that make an 8-bit file slower than its twin
SEEDS_OF_TIMINGS = 5  # checks that time something take half a minute
TIMED = ("int8", "settings")
SOUND = "sound"
RESULTS, PAGE = Path("docs/results/checks"), Path("docs/measuring.md")
COMMAND = "python -m benchmarks.checks table"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(coverage.app, name="coverage")


# --- students and their files ------------------------------------------------------------------------------------


@dataclass
class Student:
    """A small classifier of the bundled data, and its file of each kind once that is asked for."""

    seed: int
    root: Path

    def __post_init__(self) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(self.seed)
        config = BertConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=192,
            num_hidden_layers=2,
            num_attention_heads=6,
            intermediate_size=768,
            num_labels=CLASSES,
        )
        self.model = model = BertForSequenceClassification(config)
        self._train()
        self.score = self._score()
        self.folder.mkdir(parents=True)
        save_classifier(model, self.folder)
        save_tokenizer(self.tokenizer, self.folder)
        self.made: dict[str, Exported] = {}

    @property
    def folder(self) -> Path:
        return self.root / "student"

    @cached_property
    def tokenizer(self) -> Any:
        folder = local_model_folder(TeacherSettings().model)
        assert folder is not None, "the bundled model is a dependency"
        return load_tokenizer(folder)

    @cached_property
    def texts(self) -> EncodedSplit:
        """TEXTS rows of dev, others for each seed."""
        rows = self._read("dev")
        return rows.take(np.random.default_rng(self.seed).choice(len(rows), TEXTS, replace=False).tolist())

    def _read(self, split: str) -> EncodedSplit:
        with (DATA / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        with (DATA / "train.csv").open(encoding="utf-8", newline="") as file:
            numbers = {name: i for i, name in enumerate(sorted({row["label"] for row in csv.DictReader(file)}))}
        texts = [row["text"] for row in rows]
        ids = [self.tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"] for text in texts]
        return EncodedSplit(texts, ids, [numbers[row["label"]] for row in rows], pad_id=self.tokenizer.pad_token_id)

    def _train(self) -> None:
        """A few epochs on the labels, as good as it gets in half a minute."""
        rows, rng = self._read("train"), np.random.default_rng(self.seed)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE)
        self.model.train()
        for epoch in range(EPOCHS):
            batches = list(batches_by_length(rows.lengths, BATCH))
            for number, i in enumerate(rng.permutation(len(batches))):
                done = (epoch + number / len(batches)) / EPOCHS
                optimizer.param_groups[0]["lr"] = RATE * min(1.0, 10 * done, 1.05 - done)
                batch = rows.take(batches[i])
                loss = self.model(**pad(batch.ids, batch.pad_id), labels=torch.tensor(batch.targets)).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        self.model.eval()

    def _score(self) -> float:
        """Share of dev rows that are right."""
        rows, right = self._read("dev"), 0
        with torch.no_grad():
            for batch in batches_by_length(rows.lengths, BATCH):
                some = rows.take(batch)
                answers = self.model(**pad(some.ids, some.pad_id)).logits.argmax(1)
                right += int((answers == torch.tensor(some.targets)).sum())
        return right / len(rows)

    def exported(self, kind: str) -> Exported:
        """Its file of a kind, made once."""
        if kind not in self.made:
            self.made[kind] = self.convert(self.root / kind, kind, self.folder)
        return self.made[kind]

    def convert(self, out: Path, kind: str, source: Path, precision: str | None = None) -> Exported:
        """A model folder as a file of a kind, or of its float twin's precision."""
        name, wanted, options = KINDS[kind]
        precision = precision or wanted
        exporter = plugins.load("format", name)
        if precision != wanted:
            options = {key: value for key, value in options.items() if key != "activations"}
        params = exporter.Params(**options)
        scheme = exporter.scheme(precision, params)
        plan = whole_plan(self.model, scheme, self.texts) if scheme else None
        out.mkdir(parents=True)
        save_tokenizer(self.tokenizer, out)
        cut_at(out, MAX_LENGTH)
        return seal_up(out, exporter.convert(source, out, precision, params, MAX_LENGTH, plan))

    def subject(self, kind: str, exported: Exported | None = None) -> Subject:
        """What checks look at; another file than the sound one may be given."""
        name, precision, _ = KINDS[kind]
        twin = None
        if precision == "int8":
            key = f"{kind} twin"
            if key not in self.made:
                self.made[key] = self.convert(self.root / key, kind, self.folder, "fp32")
            twin = self.made[key]
        return Subject(
            target=kind,
            runtime=RUNTIMES.get(name, name),
            device="local",
            exported=exported or self.exported(kind),
            float_twin=twin,
            student=self.folder,
            tokenizer=self.folder,
            pad_id=self.texts.pad_id,
            sequences=self.texts.ids,
            texts=[(text,) for text in self.texts.names],
            tolerance=plugins.load("format", name).TOLERANCES[precision],
            seed=self.seed,
        )

    def changed(self, kind: str, change: Callable[[onnx.GraphProto], None]) -> Exported:
        """Its ONNX file with something done to the graph."""
        sound = self.exported(kind)
        out = Path(tempfile.mkdtemp(dir=self.root))
        shutil.copytree(sound.folder, out, dirs_exist_ok=True)
        model = onnx.load(out / sound.artefact.file)
        change(model.graph)
        onnx.save(model, out / sound.artefact.file)
        return seal_up(out, sound.artefact)

    def with_weights(self, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
        """The model folder, its weights changed."""
        from safetensors.torch import load_file, save_file

        out = Path(tempfile.mkdtemp(dir=self.root))
        shutil.copytree(self.folder, out, dirs_exist_ok=True)
        (file,) = out.glob("*.safetensors")
        state = load_file(file)
        change(state)
        save_file(state, file, metadata={"format": "pt"})
        return out


def seal_up(folder: Path, artefact: Artefact) -> Exported:
    """A folder as checks want it."""
    (folder / "card.json").unlink(missing_ok=True)
    card = seal(folder, "artefact", facts={"artefact": artefact.model_dump(mode="json")})
    return Exported(folder, artefact, card.digest, artefact_bytes(card, artefact))


# --- faults ------------------------------------------------------------------------------------------------------

Plant = Callable[[Student, str], Subject]


@dataclass(frozen=True)
class Fault:
    """What is wrong, the check that must see it, the kinds of files in which it is planted, and how."""

    name: str
    check: str
    kinds: tuple[str, ...]
    plant: Plant
    # what the check must say of it; a failure for another reason is none
    words: str


def _answers(spoil: Callable[..., Any], *, elsewhere: bool = False) -> Plant:
    return lambda student, kind: planted.Spoiled.of(student.subject(kind), spoil, elsewhere=elsewhere)


def _graph(change: Callable[[onnx.GraphProto], None]) -> Plant:
    return lambda student, kind: student.subject(kind, student.changed(kind, change))


def _positions(graph: onnx.GraphProto) -> None:
    planted.cut_positions(graph, MAX_LENGTH // 2, MAX_LENGTH)


def _tokenizer(change: Callable[[dict[str, Any]], object]) -> Plant:
    def plant(student: Student, kind: str) -> Subject:
        spoiled = student.changed(kind, lambda graph: None)
        file = spoiled.folder / "tokenizer.json"
        state = json.loads(file.read_text("utf-8"))
        change(state)
        file.write_text(json.dumps(state), "utf-8")
        return student.subject(kind, spoiled)

    return plant


def _float_file(student: Student, kind: str) -> Subject:
    """The float twin under the name of int8."""
    subject = student.subject(kind)
    twin = subject.float_twin
    assert twin is not None, "kinds of 8 bits have one"
    return student.subject(
        kind, dataclasses.replace(twin, artefact=twin.artefact.model_copy(update={"precision": "int8"}))
    )


def _slower(student: Student, kind: str) -> Subject:
    out = Path(tempfile.mkdtemp(dir=student.root)) / "slower"
    sound = student.exported(kind)
    write_variant(sound.folder, out, SLOWING, weights=False)  # of weights they would be products in float
    return student.subject(kind, seal_up(out, sound.artefact))


def _unsafe(student: Student, kind: str) -> Subject:
    """Plain scales, as other exporters have them."""

    def plain(weight: Any, per_channel: bool, pair_safe: bool = False) -> Any:
        return quantize_weight(weight, per_channel)

    out = Path(tempfile.mkdtemp(dir=student.root)) / "unsafe"
    with (
        mock.patch("export.onnx_int8.quantize_weight", plain),
        mock.patch("export.to_openvino.least_scale", lambda weights: np.zeros(len(weights))),
    ):
        return student.subject(kind, student.convert(out, kind, student.folder))


def _badly_set(student: Student, kind: str) -> Subject:
    """Ships with fusions switched off that the runtime's own defaults have."""
    sound = student.exported(kind)
    slow = {"disabled_optimizers": "MatMulIntegerToFloatFusion DynamicQuantizeMatMulFusion GeluFusionL2 BiasGeluFusion"}
    return student.subject(
        kind, dataclasses.replace(sound, artefact=sound.artefact.model_copy(update={"settings": slow}))
    )


def _loud(student: Student, kind: str) -> Subject:
    """A feed-forward layer that reaches 100,000 inside; answers stay as they were."""

    def change(state: dict[str, torch.Tensor]) -> None:
        layer = "bert.encoder.layer.0"
        state[f"{layer}.intermediate.dense.weight"] *= 3e4
        state[f"{layer}.output.dense.weight"] /= 3e4

    source = student.with_weights(change)
    out = Path(tempfile.mkdtemp(dir=student.root)) / "loud"
    return dataclasses.replace(student.subject(kind, student.convert(out, kind, source)), student=source)


def _other_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Plant:
    """The file is not of these weights, as if an exporter had mixed them up."""
    return lambda student, kind: dataclasses.replace(student.subject(kind), student=student.with_weights(change))


def _swap_rows(state: dict[str, torch.Tensor]) -> None:
    weight = state["bert.encoder.layer.1.attention.self.value.weight"]
    weight[[0, 1]] = weight[[1, 0]].clone()


def _transpose(state: dict[str, torch.Tensor]) -> None:
    name = "bert.encoder.layer.1.attention.output.dense.weight"
    state[name] = state[name].T.contiguous()


def _swap_biases(state: dict[str, torch.Tensor]) -> None:
    bias = state["bert.encoder.layer.0.output.dense.bias"]
    bias[[0, 1]] = bias[[1, 0]].clone()


EVERY = tuple(KINDS)
IN_BATCHES = ("onnx fp32", "onnx int8", "ort int8", "openvino int8")  # the others take one text a call
ONNX = ("onnx fp32", "onnx int8")
EIGHT_BIT = ("onnx int8", "ort int8", "openvino int8", "litert int8")
COREML = ("coreml fp16", "coreml int8")
FAULTS = (
    Fault("answers row 0 to everybody", "lengths", IN_BATCHES, _answers(planted.first_to_all), "batch of 3: "),
    Fault(
        "answers a batch in the opposite order", "lengths", IN_BATCHES, _answers(planted.rows_turned), "batch of 3: "
    ),
    Fault("reads ids as the mask", "lengths", EVERY, _answers(planted.inputs_swapped), ""),
    Fault("two labels have changed places", "lengths", EVERY, _answers(planted.labels_swapped), "of the spread away"),
    Fault("does not read the last token", "lengths", EVERY, _answers(planted.one_token_less), " tokens"),
    Fault(
        "answers what is too long", "lengths", EVERY, _answers(planted.long_texts_cut), "answered, expected an error"
    ),
    Fault("a number is NaN", "lengths", EVERY, _answers(planted.not_numbers), "answers inf of the spread away"),
    Fault(
        "the position table ends early",
        "lengths",
        ("onnx fp32",),
        _graph(_positions),
        "refused, though the card declares it",
    ),
    Fault(
        "padding counts as text",
        "padding",
        EVERY,
        _answers(planted.without_mask),
        "the mask does not reach every layer",
    ),
    *(
        Fault(f"tokenizer: {name}", "tokenizer", ("onnx fp32",), _tokenizer(change), "differs from the tokenizer")
        for name, change in planted.TOKENIZER.items()
    ),
    Fault("float under the name of int8", "int8", EIGHT_BIT, _float_file, "mostly float"),
    Fault("slower than in float", "int8", ("onnx int8",), _slower, "ship the float file instead"),
    Fault(
        "pairs of weights that saturate",
        "kernels",
        ("onnx int8", "ort int8", "openvino int8"),
        _unsafe,
        "pairs of neighbouring weights exceed",
    ),
    Fault(
        "another engine swaps two labels",
        "second_opinion",
        ONNX,
        _answers(planted.labels_swapped, elsewhere=True),
        "two engines",
    ),
    Fault("arithmetic on shapes", "graph", ONNX, _graph(planted.fatten), "Expand"),
    Fault("ships with fusions switched off", "settings", ("onnx int8",), _badly_set, "set options.settings"),
    Fault("overflows in fp16", "fp16_range", ("coreml fp16",), _loud, "overflows in"),
    Fault(
        "two rows of a matrix have changed places",
        "weights",
        COREML,
        _other_weights(_swap_rows),
        "value.weight: the values in the file",
    ),
    Fault(
        "a square matrix is transposed",
        "weights",
        COREML,
        _other_weights(_transpose),
        "attention.output.dense.weight: the values in the file",
    ),
    Fault("two biases have changed places", "weights", COREML, _other_weights(_swap_biases), "output.dense.bias"),
)


# --- the run -----------------------------------------------------------------------------------------------------


@app.command()
def plant(
    folder: Annotated[Path, typer.Argument(help="Where lines are added.")],
    seeds: Annotated[int, typer.Option(min=1, help="Students.")] = 10,
    kinds: Annotated[str, typer.Option(help="Kinds of files, with commas between.")] = ",".join(KINDS),
) -> None:
    """Every check on sound files and on planted faults."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "checks.jsonl"
    done = {_key(json.loads(line)) for line in file.open(encoding="utf-8")} if file.is_file() else set()
    facts = machine.facts()
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as temporary:
            student = None
            for kind, check, fault in _tasks(kinds.split(","), seed):
                line: dict[str, Any] = {
                    "seed": seed,
                    "kind": kind,
                    "check": check.__name__.rpartition(".")[2],
                    "fault": fault.name if fault else SOUND,
                }
                if _key(line) in done:
                    continue
                student = student or Student(seed, Path(temporary))
                start = time.monotonic()
                subject = fault.plant(student, kind) if fault else student.subject(kind)
                if not check.applies(subject):
                    continue
                result = make(check, subject)
                line |= {"status": result.status, "reason": result.reason[:300], "score": student.score}
                line |= {"seconds": round(time.monotonic() - start, 1), "cpu": facts["cpu"], "isa": facts["isa"]}
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)


def _tasks(kinds: list[str], seed: int) -> Iterator[tuple[str, ModuleType, Fault | None]]:
    """(kind, check, fault) of a student; None is the sound file."""
    for kind in kinds:
        if kind not in KINDS:
            raise SettingsError(f"no kind '{kind}'{plugins.nearest(kind, KINDS)}; known: {', '.join(KINDS)}")
        for name in plugins.names("check"):
            if seed < SEEDS_OF_TIMINGS or name not in TIMED:
                yield kind, plugins.load("check", name), None
        for fault in FAULTS:
            if kind in fault.kinds and (seed < SEEDS_OF_TIMINGS or fault.check not in TIMED):
                yield kind, plugins.load("check", fault.check), fault


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("seed", "kind", "check", "fault"))


# --- the table ---------------------------------------------------------------------------------------------------


@app.command()
def table(
    folder: Annotated[Path | None, typer.Argument(help="That `plant` has written to; none: only the page.")] = None,
) -> None:
    """Writes docs/results/checks/<machine>.json from a folder, and the tables of docs/measuring.md from all of them."""
    if folder is not None:
        record = collect([json.loads(line) for line in (folder / "checks.jsonl").open(encoding="utf-8")])
        path = RESULTS / f"{record['cpu'].lower().replace(' ', '_')}_{'_'.join(record['isa']) or 'plain'}.json"
        write_atomically(path, json.dumps(record, indent=1) + "\n")
        print(f"wrote {path}")
    write_atomically(PAGE, with_table(PAGE.read_text("utf-8"), RESULTS))
    print(f"wrote the table into {PAGE}")


def collect(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """How often each check ended how, for each fault; all must be of one machine."""
    machines = {(line["cpu"], tuple(line["isa"])) for line in lines}
    if len(machines) != 1:
        raise SettingsError(f"found checks of {len(machines)} machines, expected one: {machines}")
    ((cpu, isa),) = machines
    words = {fault.name: fault.words for fault in FAULTS}
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    kinds: dict[tuple[str, str], set[str]] = defaultdict(set)
    for line in lines:
        counts[line["check"], line["fault"]][line["status"]] += 1
        is_said = line["fault"] in words and words[line["fault"]] in line["reason"]
        counts[line["check"], line["fault"]]["caught"] += is_said and line["status"] == Status.FAIL
        kinds[line["check"], line["fault"]].add(line["kind"])
    rows = [
        {
            "check": check,
            "fault": fault,
            "kinds": sorted(kinds[check, fault], key=EVERY.index),
            **{status.value: found[status] for status in Status},
            "caught": found["caught"],
        }
        for (check, fault), found in counts.items()
    ]
    rows.sort(key=lambda row: (row["fault"] != SOUND, row["check"]))
    scores = {line["seed"]: line["score"] for line in lines}
    found = {"cpu": cpu, "isa": list(isa), "students": len(scores), "rows": rows}
    return found | {"scores": [min(scores.values()), max(scores.values())]}


def with_table(text: str, folder: Path) -> str:
    """The page with its table made anew from the records in a folder."""
    records = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    return fill(text, PAGE, "checks", COMMAND, "".join(f"\n{render(record)}\n" for record in records))


def render(record: dict[str, Any]) -> str:
    """One machine's checks as two Markdown tables: sound files, then faults."""
    sound = [row for row in record["rows"] if row["fault"] == SOUND]
    faults = [row for row in record["rows"] if row["fault"] != SOUND]
    files = f"**{record['cpu']}** ({', '.join(record['isa']) or 'none of the instruction sets that matter'}), "
    scores = " to ".join(f"{100 * score:.0f}" for score in record["scores"]) + " %"
    head = "| {} | kinds of files | checked | {} | inconclusive | not measured |\n|---|---|---|---|---|---|\n"
    lines = [
        f"| {row['check']} | {', '.join(row['kinds'])} | {_total(row)} | {row['fail']} | {row['inconclusive']} | "
        f"{row['not measured']} |\n"
        for row in sound
    ]
    caught = [
        f"| {row['fault']} ({row['check']}) | {', '.join(row['kinds'])} | {_total(row)} | {row['caught']} | "
        f"{row['inconclusive']} | {row['not measured']} |\n"
        for row in faults
    ]
    return (
        f"{files}{record['students']} students, {scores} of dev right. Sound files:\n\n"
        + head.format("check", "false alarms")
        + "".join(lines)
        + "\nPlanted faults:\n\n"
        + head.format("fault (check)", "caught")
        + "".join(caught)
    )


def _total(row: dict[str, Any]) -> int:
    return sum(row[status.value] for status in Status)


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
