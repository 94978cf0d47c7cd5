"""What a recipe's models score over seeds, from the teacher to the int8 file: the table in docs/results.md.

    decant run banking77 --files FOLDER                              trains, exports, measures
    python -m benchmarks.recipes measure workspaces/banking77        int8 of each seed -> docs/results/banking77.json
    python -m benchmarks.recipes table                               all records of docs/results -> docs/results.md

Latency and its ratio to the teacher are the shipped seed's, from the workspace's own record. Every distilled seed is
planned and exported here by the stages' functions, and its int8 file scored in onnxruntime on the whole test split.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import distill
from benchmarks.pages import begin_of, fill
from eval import figures
from eval.runtimes import onnxruntime
from eval.scores import answer
from export import to_onnx
from pipeline import tasks
from pipeline.base import guard, records
from pipeline.base.files import write_atomically
from pipeline.base.records import Floors, Measurement, Score, open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.prepared import read_encoded
from pipeline.settings.params import Params, load
from stages.comparing import results
from stages.quantize import plans_for

RESULTS = Path("docs/results")
PAGE = Path("docs/results.md")
COMMAND = "python -m benchmarks.recipes table"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def measure(
    workspace: Annotated[Path, typer.Argument(help="A workspace in which the recipe has run.")],
    target: Annotated[str, typer.Option(help="The int8 target to report.")] = "cpu",
) -> None:
    """Writes docs/results/<workspace's name>.json."""
    place = Workspace(workspace)
    params = load(place.params)
    found = collect(params, place, target)
    path = RESULTS / f"{workspace.name}.json"
    write_atomically(path, json.dumps(found, indent=1) + "\n")
    print(f"wrote {path}")


def collect(params: Params, workspace: Workspace, target: str) -> dict[str, Any]:
    """Everything the table shows, as plain values: accuracies are shares of 1, sizes bytes."""
    teacher = open_folder(workspace.teacher, "teacher")
    variants = open_folder(workspace.variants, "variants")
    floors = records.read(Floors, workspace.floors)
    score = records.read(Score, workspace.scored(target))
    measured = records.read(Measurement, workspace.measured(target))
    summary = variants.facts["summary"]
    int8 = [_int8_accuracy(params, workspace, target, f"distilled-{seed}") for seed in summary["distilled"]["seeds"]]
    speedup = figures.speedup(measured)
    return {
        "test_rows": floors.examples,
        "floors": {floor.name: floor.primary.value for floor in floors.floors},
        "teacher": {"test_score": [teacher.facts["test_score"]], "steps": teacher.facts["steps"],
                    "parameters": teacher.facts["parameters"], "size_bytes": measured.reference_size_bytes},
        "variants": summary,
        "shipped": variants.facts["shipped"],
        "int8": {"test_score": int8, "size_bytes": measured.size_bytes,
                 "shipped_score": score.primary.value if score.primary else None},
        "latency": {
            "runtime": f"{measured.runtime} {measured.runtime_version}",
            "threads": measured.threads,
            "cpu": measured.machine["cpu"],
            "p50_ms": figures.p50_ms(measured).value,
            "p90_ms": figures.p90_ms(measured).value,
            "speedup": speedup.model_dump(exclude={"schema_version"}),
        },
    }  # fmt: skip


def _int8_accuracy(params: Params, workspace: Workspace, target: str, name: str) -> float:
    """Test accuracy of one variant's int8 ONNX file in onnxruntime, from a plan of its own."""
    folder = workspace.variants / name
    _, test = read_encoded(workspace, "test", params.data.max_length)
    options = to_onnx.Params.model_validate_json(json.dumps(params.targets[target].options))
    alone = params.model_copy(update={"targets": {target: params.targets[target]}})  # one scheme, not those of all
    plan = plans_for(alone, workspace, folder).entry(to_onnx.scheme("int8", options))
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        artefact = to_onnx.convert(folder, out, "int8", options, params.data.max_length, plan)
        with onnxruntime.open_session(out, artefact, params.threads) as session:
            outputs = answer(session, test.ids, artefact, test.pad_id)
    task = tasks.of(params, workspace.data)
    return float(task.values(task.answers(outputs, task.space), test.targets).mean())


@app.command()
def table() -> None:
    """Writes the tables between the markers of docs/results.md, and the plots beside their records."""
    for file in _compared(RESULTS):
        write_atomically(file.with_suffix(".svg"), results.plot(results.read(file)))
    write_atomically(PAGE, with_tables(PAGE.read_text("utf-8"), RESULTS))
    print(f"wrote the results into {PAGE}")


def with_tables(text: str, folder: Path) -> str:
    """A page with every table between its markers made anew from the records in a folder."""
    for name, content in {"recipes": _recipes(folder), "methods": _methods(folder), "speed": _speed(folder)}.items():
        # a page may show fewer tables; that of the recipes has to have its place once there is one
        if begin_of(name, COMMAND) in text or (content and name == "recipes"):
            text = fill(text, PAGE, name, COMMAND, content)
    return text


def _recipes(folder: Path) -> str:
    return "".join(render(file.stem, json.loads(file.read_text("utf-8"))) for file in sorted(folder.glob("*.json")))


def _compared(folder: Path) -> list[Path]:
    return sorted((folder / "methods").glob("*.json"))


def _methods(folder: Path) -> str:
    return "".join(
        f"\n{results.table(results.read(file))}\n"
        f"![Every method and seed on {file.stem}](results/methods/{file.stem}.svg)\n"
        for file in _compared(folder)
    )


def _speed(folder: Path) -> str:
    records_of_speed = sorted((folder / "speed").glob("*.json"))
    return "".join(f"\n{distill.table(json.loads(file.read_text('utf-8')))}\n" for file in records_of_speed)


def render(name: str, found: dict[str, Any]) -> str:
    """A recipe's results as a Markdown table with the facts it needs to be read."""
    latency, speedup = found["latency"], found["latency"]["speedup"]
    teacher = found["teacher"]["test_score"]
    rows = [
        _row("majority class", [found["floors"]["majority"]], ""),
        _row("TF-IDF and a linear classifier", [found["floors"]["linear"]], ""),
        _row("teacher", teacher, _mb(found["teacher"]["size_bytes"])),
    ]
    labels = {"distilled": "student", "logits_only": "student, logits only", "no_teacher": "student, no teacher"}
    for kind, label in labels.items():
        if kind in found["variants"]:
            variant = found["variants"][kind]
            rows.append(_row(label, variant["test_score"], _mb(4 * variant["parameters"])))
    rows.append(
        _row("student, int8 ONNX in onnxruntime", found["int8"]["test_score"], _mb(found["int8"]["size_bytes"]))
    )
    kept = statistics.mean(found["variants"]["distilled"]["test_score"]) / statistics.mean(teacher)
    return (
        f"\n**{name}**, {found['test_rows']:,} test rows, {found['variants']['distilled']['steps']:,} steps for every "
        f"student\n\n| model | test accuracy, mean ± sd | seeds | size |\n|---|---|---|---|\n{''.join(rows)}\n"
        f"The student keeps {kept:.1%} of its teacher's accuracy. int8 against the teacher in the same runtime in the "
        f"same run: {speedup['value']:.1f} times as fast ({speedup['confidence']:.0%} interval {speedup['low']:.1f} to "
        f"{speedup['high']:.1f}), median {latency['p50_ms']:.2f} ms, {latency['threads']} thread, "
        f"{latency['runtime']}, {latency['cpu']}.\n"
    )


def _row(label: str, accuracies: list[float], size: str) -> str:
    mean = f"{100 * statistics.mean(accuracies):.2f} %"
    spread = f" ± {100 * statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"| {label} | {mean}{spread} | {len(accuracies)} | {size} |\n"


def _mb(size_bytes: float | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / 1e6:.1f} MB"


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
