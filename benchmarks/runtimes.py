"""How fast one student is in every runtime, beside what one gets without Decant, in turn in the same processes.

    python -m benchmarks.runtimes measure workspaces/banking77     a record in docs/results/runtimes/
    python -m benchmarks.runtimes table                            the table in docs/targets.md, from the records

The workspace holds a student and its quantization plan; `decant run RECIPE --until quantize` makes one. Without Decant
means: Optimum's own ONNX export with its dynamic quantization for this kind of CPU, the same after onnxruntime's
offline fusion, and NNCF's post-training quantization for transformers on OpenVINO, from the same calibration texts.
Every runtime has the same number of threads, none of which spins. A ratio is the median over rounds in which each file
is called once on the same text, in an order that changes from round to round, in several processes.
"""

import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from benchmarks import without_decant
from benchmarks.pages import fill
from eval import dying
from eval.padding import pad
from eval.runtimes import Session
from eval.scores import answer
from eval.statistics import median_ratio_interval, share_interval
from eval.worker import WorkerError, thread_environment
from pipeline.base import guard, plugins
from pipeline.base.files import write_atomically
from pipeline.base.machine import facts
from pipeline.base.records import Artefact, open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.prepared import read_encoded
from pipeline.families import shape_of
from pipeline.models.checkpoints import read_config
from pipeline.quantization.plan import Plans
from pipeline.settings.params import load

LENGTHS = (8, 16, 32, 64, 128)
THREADS = (1, 2)
ROUNDS, WARMUP, PROCESSES = 40, 5, 5
RESULTS, PAGE = Path("docs/results/runtimes"), Path("docs/targets.md")
# Decant's files: name -> (format, precision, options, runtime)
OURS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "onnxruntime int8": ("onnx", "int8", {}, "onnxruntime"),
    "onnxruntime fp32": ("onnx", "fp32", {}, "onnxruntime"),
    "onnxruntime .ort int8": ("ort", "int8", {}, "onnxruntime"),
    "LiteRT int8": ("litert", "int8", {"lengths": LENGTHS}, "litert"),
    "LiteRT fp32": ("litert", "fp32", {"lengths": LENGTHS}, "litert"),
    "ExecuTorch int8": ("executorch", "int8", {}, "executorch"),
    "OpenVINO int8": ("openvino", "int8", {}, "openvino"),
    "browser int8": ("onnx", "int8", {"inputs": "int32"}, "browser"),
}
OPTIMUM, FUSED, NNCF = "Optimum's dynamic int8", "the same, fused offline", "NNCF's int8 in OpenVINO"
COMMAND = "python -m benchmarks.runtimes table"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def measure(
    workspace: Annotated[Path, typer.Argument(help="A workspace with a student and its plan.")],
    processes: Annotated[int, typer.Option(min=2)] = PROCESSES,
    rounds: Annotated[int, typer.Option(min=10)] = ROUNDS,
) -> None:
    """Writes docs/results/runtimes/<layers>x<width>.json."""
    place = Workspace(workspace.resolve())
    shape = shape_of(read_config(place.student))
    accuracy: dict[str, Any] = {}
    rounds_of: dict[int, list[dict[str, Any]]] = {threads: [] for threads in THREADS}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        missing = make_files(place, root, shape.heads, shape.hidden)
        for process in range(processes):
            for threads in THREADS:  # in turn, so that a slow minute falls on both
                score = process == 0 and threads == 1
                job = Job(str(place.root), threads, process, rounds, score)
                found = _in_child(root, job)
                accuracy |= found["accuracy"]
                rounds_of[threads].append(found["ns"])
        sizes = {name: _bytes_of(root / name) for name in accuracy}
    record = {
        "student": f"{shape.layers}x{shape.hidden}",
        "recipe": place.root.name,
        "cpu": facts()["cpu"],
        "versions": {name: plugins.load("runtime", OURS[name][3]).version() for name in sizes if name in OURS},
        "processes": processes,
        "rounds": rounds,
        "accuracy": accuracy,
        "size_bytes": sizes,
        "not_measured": missing,
        "times": {str(threads): _summarise(ones) for threads, ones in rounds_of.items()},
    }
    path = RESULTS / f"{record['student']}.json"
    write_atomically(path, json.dumps(record, indent=1, sort_keys=True) + "\n")
    print(f"wrote {path}\n{render(record)}")


@app.command()
def table() -> None:
    """Writes the tables between the markers of docs/targets.md."""
    write_atomically(PAGE, with_tables(PAGE.read_text("utf-8"), RESULTS))
    print(f"wrote the results into {PAGE}")


def with_tables(text: str, folder: Path) -> str:
    """The page with the tables between its markers made anew from the records in a folder."""
    tables = [render(json.loads(file.read_text("utf-8"))) for file in sorted(folder.glob("*.json"))]
    return fill(text, PAGE, "runtimes", COMMAND, "".join(f"\n{table}\n" for table in tables))


# --- the files ---------------------------------------------------------------------------------------------------


def make_files(place: Workspace, root: Path, heads: int, hidden: int) -> dict[str, str]:
    """Writes every file into a folder of its name; gives those that cannot be made here, with the reason."""
    open_folder(place.student, "student")
    open_folder(place.quantized, "quantized")
    plans = Plans.model_validate_json((place.quantized / "plan.json").read_text("utf-8"))
    missing = {}
    for name, (format_name, precision, options, runtime) in OURS.items():
        exporter = plugins.load("format", format_name)
        reason = plugins.load("runtime", runtime).why_unusable()
        reason = reason or (exporter.why_unusable() if hasattr(exporter, "why_unusable") else None)
        if reason is not None:
            missing[name] = reason
            continue
        out = root / name
        out.mkdir()
        given = exporter.Params.model_validate_json(json.dumps(options))
        plan = plans.entry(exporter.scheme(precision, given)) if precision == "int8" else None
        artefact = exporter.convert(place.student, out, precision, given, LENGTHS[-1], plan)
        _note(out, artefact.model_dump_json(), runtime)
    with tempfile.TemporaryDirectory() as scratch:
        made = without_decant.make_optimum(place.student, Path(scratch), heads, hidden)
        for name, key in ((OPTIMUM, "plain"), (FUSED, "fused")):
            _keep(root / name, made[key])
        if "OpenVINO int8" not in missing:
            model = Path(scratch) / "float" / "model.onnx"
            _keep(root / NNCF, without_decant.make_nncf(model, plans.calibration_rows, Path(scratch)))
    return missing


def _keep(out: Path, file: Path) -> None:
    out.mkdir()
    for part in file.parent.glob(f"{file.stem}.*"):
        shutil.copy(part, out / part.name)
    _note(out, None, file.name)


def _note(out: Path, artefact: str | None, opened_by: str) -> None:
    """What the processes that time it need to know: the card and the runtime, or the file of a baseline."""
    (out / "made.json").write_text(json.dumps({"artefact": artefact, "opened_by": opened_by}), "utf-8")


def _bytes_of(folder: Path) -> int:
    """The model alone, without what helps an app to build or to test."""
    made = json.loads((folder / "made.json").read_text("utf-8"))
    if made["artefact"] is None:
        parts = [part for part in folder.iterdir() if part.suffix in (".onnx", ".xml", ".bin", ".data")]
    else:
        file = folder / Artefact.model_validate_json(made["artefact"]).file
        parts = list(file.iterdir()) if file.is_dir() else [file]
    return sum(part.stat().st_size for part in parts)


# --- in a fresh process ------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """What one process times."""

    workspace: str
    threads: int
    process: int
    rounds: int
    score: bool


def _in_child(root: Path, job: Job) -> dict[str, Any]:
    """A fresh process, since speed differs more from process to process than from call to call."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.runtimes", "child", str(root), json.dumps(job._asdict())],
        capture_output=True,  # runtimes say on stderr what CPU they found
        text=True,
        check=False,
        env={**os.environ, **thread_environment(job.threads)},
    )
    if done.returncode != 0:
        raise WorkerError(dying.reason(done.returncode, done.stderr))
    return json.loads(done.stdout.splitlines()[-1])


@app.command(hidden=True)
def child(root: Path, job: str) -> None:
    """One process of `measure`: times every file of a folder, and scores each where it is asked to."""
    task = Job(**json.loads(job))
    place = Workspace(Path(task.workspace))
    _, test = read_encoded(place, "test", load(place.params, with_plugins=False).data.max_length)
    opened = {folder.name: _open(folder, task.threads) for folder in sorted(root.iterdir())}
    rng = np.random.default_rng(task.process)
    found = {}
    for length in LENGTHS:
        texts = [_of_length(test.ids, length, rng) for _ in range(WARMUP + task.rounds)]
        found[length] = _time(opened, texts, test.pad_id, rng)
    accuracy = {}
    for name, (session, artefact) in opened.items() if task.score else ():
        logits = answer(session, test.ids, artefact, test.pad_id)["logits"]
        right = int((logits.argmax(axis=1) == test.targets).sum())
        accuracy[name] = share_interval(right, len(test)).model_dump(exclude={"schema_version"})
    for session, _ in opened.values():
        session.close()
    print("\n" + json.dumps({"ns": found, "accuracy": accuracy}))


def _open(folder: Path, threads: int) -> tuple[Session, Artefact]:
    made = json.loads((folder / "made.json").read_text("utf-8"))
    if made["artefact"] is None:
        file = folder / made["opened_by"]
        whole = Artefact(
            format="", precision="int8", file=file.name, inputs=(), outputs=(), max_length=LENGTHS[-1], tools={}
        )
        return without_decant.OPENERS[file.suffix](file, threads), whole
    artefact = Artefact.model_validate_json(made["artefact"])
    return plugins.load("runtime", made["opened_by"]).open_session(folder, artefact, threads), artefact


def _time(
    opened: Mapping[str, tuple[Session, Artefact]], texts: Sequence[list[int]], pad_id: int, rng: np.random.Generator
) -> dict[str, list[int]]:
    """Nanoseconds of each file's calls, round by round, warm-up left out; the browser's on its page's own clock."""
    taken: dict[str, list[int]] = {name: [] for name in opened}
    gc.collect()
    gc.disable()
    try:
        for text in texts:
            inputs = {name: pad([text], pad_id, artefact) for name, (_, artefact) in opened.items()}
            for name in rng.permutation(list(opened)):
                session = opened[name][0]
                start = time.perf_counter_ns()
                session.run(inputs[name])
                end = time.perf_counter_ns()
                taken[name].append(getattr(session, "last_call_ns", end - start))
    finally:
        gc.enable()
    return {name: calls[WARMUP:] for name, calls in taken.items()}


def _of_length(ids: Sequence[Sequence[int]], length: int, rng: np.random.Generator) -> list[int]:
    """Real tokens of the test split, repeated or cut to the length, the separator kept at the end."""
    row = list(ids[int(rng.integers(len(ids)))])
    return [*(row[:-1] * (length // (len(row) - 1) + 1))[: length - 1], row[-1]]


# --- what was found ----------------------------------------------------------------------------------------------


def _summarise(processes: Sequence[Mapping[str, Mapping[str, Sequence[int]]]]) -> dict[str, Any]:
    """length -> name -> median milliseconds, and times as fast as the fastest int8 file of ours is."""
    out = {}
    for length in map(str, LENGTHS):
        calls = {name: [ns for one in processes for ns in one[length][name]] for name in processes[0][length]}
        fastest = min((name for name in calls if name in OURS), key=lambda name: statistics.median(calls[name]))
        out[length] = {
            name: {
                "ms": statistics.median(ns) / 1e6,
                "fastest_is_times_as_fast": median_ratio_interval(ns, calls[fastest]).model_dump(
                    exclude={"schema_version"}
                ),
            }
            for name, ns in calls.items()
        } | {"fastest": fastest}
    return out


def render(record: Mapping[str, Any]) -> str:
    """A record as a Markdown table: medians at each length, and how many times as fast the fastest file is."""
    names = sorted(record["accuracy"], key=lambda name: record["times"]["1"]["16"][name]["ms"])
    heads = [f"{length} tokens" for length in LENGTHS]
    lines = [
        f"Student {record['student']} of {record['recipe']}, {record['cpu']}; {record['processes']} processes of "
        f"{record['rounds']} rounds for each number of threads. Median milliseconds, and in brackets how many times as "
        "fast the fastest of Decant's files is (95 %).",
    ]
    for threads in map(str, THREADS):
        lines += ["", f"| {threads} thread{'s' * (threads != '1')} | accuracy | MB | {' | '.join(heads)} |"]
        lines += ["|---" * (3 + len(LENGTHS)) + "|"]
        for name in names:
            cells = [_cell(record["times"][threads][str(length)], name) for length in LENGTHS]
            size = f"{record['size_bytes'][name] / 1e6:.1f}"
            accuracy = f"{100 * record['accuracy'][name]['value']:.2f}%"
            lines.append(f"| {name} | {accuracy} | {size} | {' | '.join(cells)} |")
    lines += [f"\n{name}: not measured: {reason}." for name, reason in record["not_measured"].items()]
    return "\n".join(lines) + "\n"


def _cell(at_length: Mapping[str, Any], name: str) -> str:
    one = at_length[name]
    if name == at_length["fastest"]:
        return f"**{one['ms']:.2f}**"
    ratio = one["fastest_is_times_as_fast"]
    return f"{one['ms']:.2f} ({ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}])"


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
