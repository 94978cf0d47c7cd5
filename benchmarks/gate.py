"""How often does `decant compare` cry wolf, and what does it see? The shipped comparison, many times, on real files.

    python -m benchmarks.gate write FOLDER                        an int8 file, its copy, and slower ones by 5 and 10 %
    python -m benchmarks.gate compare FOLDER same --count 200     base and copy: every alarm is false
    python -m benchmarks.gate compare FOLDER slower5 --count 50   a planted slowdown: every pass is one that was missed
    python -m benchmarks.gate table FOLDER                        its record, and the table in docs/measuring.md

Every second comparison has a neighbour that loads a core at random. Each is a line of FOLDER/<name>.jsonl, so a run
that was ended goes on where it stopped. The slowdown is extra arithmetic inside the timed call: small matrix products
in the graph whose result is multiplied by zero, as many as a line through two counts of them says are that share of a
call. What share they are was then measured in the comparisons themselves, and stands in the table.
"""

import json
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

from benchmarks.graphs import KIND, make_texts, open_exported
from benchmarks.graphs import write as write_files
from benchmarks.pages import fill
from eval import changes, figures
from eval.latency import Exported, measure
from eval.statistics import share_interval
from pipeline.base import guard, machine
from pipeline.base.errors import SettingsError, UnusableRuntimeError
from pipeline.base.files import write_atomically
from pipeline.base.records import Status, seal
from pipeline.settings.budgets import Budgets
from pipeline.settings.measure import MeasureSettings
from pipeline.settings.params import Params
from pipeline.settings.targets import Target
from stages.gating.sides import take_times

FILES = ("onnx 2x192 int8 dynamic",)
WIDTH = 32  # of the extra products: one takes about 3 microseconds
FEW, MANY = 16, 64  # of them, by which one is measured, and what stands around them however many they are
SHARES = {"slower5": 0.05, "slower10": 0.10}
HEADS = {"same": "a copy", "slower5": "planted, meant as 5 %", "slower10": "planted, meant as 10 %"}
RESULTS, PAGE = Path("docs/results/gate"), Path("docs/measuring.md")
COMMAND = "python -m benchmarks.gate table"
TARGET = Target(
    format="onnx",
    precision="int8",
    options={},
    runtime="onnxruntime",
    device="local",
    required=True,
    budgets=Budgets(size_mb=100.0),
)
PARAMS = Params(targets={"cpu": TARGET})
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def write(out: Annotated[Path, typer.Argument(help="A folder to make.")]) -> None:
    """Writes base, copy, and the files that are slower by so much."""
    write_files(out / "files", "onnx")
    base = out / "files" / FILES[0]
    write_variant(base, out / "base", 0)
    write_variant(base, out / "same", 0, "a copy")
    shares = {}
    for count in (FEW, MANY):
        write_variant(base, out / f"with {count}", count)
        shares[count] = _ratio(open_exported(out / "base"), open_exported(out / f"with {count}")) - 1
    of_one = (shares[MANY] - shares[FEW]) / (MANY - FEW)
    around = shares[FEW] - FEW * of_one
    print(f"a product of {WIDTH} x {WIDTH} is {of_one:.3%} of a call, what stands around them {around:.2%}", flush=True)
    for name, share in SHARES.items():
        count = round((share - around) / of_one)
        if count < 1:
            raise SettingsError(f"{name}: no product is left to plant, what stands around them takes {around:.2%}")
        write_variant(base, out / name, count)
        print(f"{name}: {count} products", flush=True)


def write_variant(source: Path, out: Path, products: int, note: str = "", *, weights: bool = True) -> None:
    """The file with so many products more, and a note that makes its bytes another's.

    `weights`: the products are with a constant, as those of layers are.
    """
    card = json.loads((source / "card.json").read_text("utf-8"))["record"]
    name = card["facts"]["artefact"]["file"]
    model = onnx.load(source / name)
    model.doc_string = note
    if products:
        _add_products(model.graph, products, weights=weights)
    onnx.checker.check_model(model)
    out.mkdir(parents=True)
    onnx.save(model, out / name)
    seal(out, KIND, facts=card["facts"])


def _add_products(graph: onnx.GraphProto, count: int, *, weights: bool) -> None:
    """Behind the logits: (A tanh ... ) of a number that depends on the text, times zero."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(0, 1 / WIDTH**0.5, (WIDTH, WIDTH)).astype(np.float32)
    logits = next(value.name for value in graph.output if value.name == "logits")
    for node in graph.node:  # whoever gave the logits gives them to the sum
        for place, name in enumerate(node.output):
            if name == logits:
                node.output[place] = "extra_logits"
    constants = {"extra_matrix": matrix, "extra_zero": np.zeros(1, np.float32), "extra_small": np.array([1e-6], "f4")}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    nodes = [
        helper.make_node("Cast", [graph.input[0].name], ["extra_ids"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["extra_ids"], ["extra_mean"], keepdims=0),
        helper.make_node("Mul", ["extra_mean", "extra_small"], ["extra_scale"]),
        helper.make_node("Mul", ["extra_matrix", "extra_scale"], ["extra_0"]),
    ]
    for i in range(count):
        other = "extra_matrix" if weights else "extra_0"
        nodes.append(helper.make_node("MatMul", [f"extra_{i}", other], [f"extra_{i + 1}"]))
    nodes += [
        helper.make_node("ReduceSum", [f"extra_{count}"], ["extra_sum"], keepdims=0),
        helper.make_node("Mul", ["extra_sum", "extra_zero"], ["extra_nothing"]),
        helper.make_node("Add", ["extra_logits", "extra_nothing"], [logits]),
    ]
    for node in nodes:
        node.name = f"/extra/{node.output[0]}"
    graph.node.extend(nodes)


def _ratio(base: Exported, head: Exported) -> float:
    """How many times as long the head takes, from twenty processes."""
    texts = make_texts(200).ids
    found = measure(
        target="cpu",
        runtime="onnxruntime",
        device="local",
        candidate=head,
        reference=base,
        sequences=texts,
        pad_id=0,
        settings=MeasureSettings(processes=20, max_rounds=1, lengths=()),
        seed=0,
        with_loads=False,
    )
    if found.not_measured is not None:
        raise UnusableRuntimeError(found.not_measured)
    return figures.slowdown(found).value


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(help="That `write` has made.")],
    name: Annotated[str, typer.Argument(help="same, slower5 or slower10.")],
    count: Annotated[int, typer.Option(min=1, help="Comparisons in all, those that are there included.")] = 200,
) -> None:
    """Compares base and head so often, and adds a line for each."""
    if not (folder / name).is_dir():
        raise SettingsError(f"{folder / name}: no such folder; run `python -m benchmarks.gate write {folder}`")
    exports = (open_exported(folder / "base"), open_exported(folder / name))
    texts = make_texts(200).ids
    file = folder / f"{name}.jsonl"
    done = len(file.read_text("utf-8").splitlines()) if file.is_file() else 0
    for number in range(done, count):
        busy = number % 2 == 1
        params = PARAMS.model_copy(update={"seed": number})
        start = time.monotonic()
        with neighbour(number) if busy else _alone():
            measured = take_times(params, "cpu", exports, (texts, texts))
        found = changes.judge_time(measured, params.compare.time)
        line = {
            "number": number,
            "busy": busy,
            "status": found.status,
            "harm": None if found.harm is None else [found.harm.value, found.harm.low, found.harm.high],
            "noise": found.noise,
            "could_see": found.could_see,
            "rounds": 1 + max((series.round for series in measured.series), default=-1),
            "seconds": round(time.monotonic() - start, 1),
            "cpu": machine.facts()["cpu"],
            "isa": machine.facts()["isa"],
        }
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        print(f"{name} {number + 1}/{count}: {json.dumps(line)}", flush=True)


@contextmanager
def neighbour(seed: int) -> Iterator[None]:
    """A process that loads one core for up to two seconds, rests as long, and so on."""
    process = multiprocessing.get_context("spawn").Process(target=_burn, args=(seed,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


@contextmanager
def _alone() -> Iterator[None]:
    yield


def _burn(seed: int) -> None:
    rng = random.Random(seed)
    while True:
        end = time.monotonic() + rng.uniform(0.05, 2)
        while time.monotonic() < end:
            sum(range(10_000))
        time.sleep(rng.uniform(0.05, 2))


@app.command()
def table(
    folder: Annotated[Path | None, typer.Argument(help="That `compare` has written to; none: only the page.")] = None,
) -> None:
    """Writes docs/results/gate/<machine>.json from a folder, and the table of docs/measuring.md from all of them."""
    if folder is not None:
        record = collect(folder)
        path = RESULTS / f"{record['cpu'].lower().replace(' ', '_')}_{'_'.join(record['isa']) or 'plain'}.json"
        write_atomically(path, json.dumps(record, indent=1) + "\n")
        print(f"wrote {path}")
    write_atomically(PAGE, with_table(PAGE.read_text("utf-8"), RESULTS))
    print(f"wrote the table into {PAGE}")


def collect(folder: Path) -> dict[str, Any]:
    """How the comparisons of each kind of head ended; all must be of one machine."""
    lines = {file.stem: [json.loads(text) for text in file.open(encoding="utf-8")] for file in folder.glob("*.jsonl")}
    machines = {(line["cpu"], tuple(line["isa"])) for found in lines.values() for line in found}
    if len(machines) != 1:
        raise SettingsError(f"{folder}: found comparisons of {len(machines)} machines, expected one: {machines}")
    ((cpu, isa),) = machines
    zone = PARAMS.compare.time
    return {
        "cpu": cpu,
        "isa": list(isa),
        "runtime": f"onnxruntime {machine.facts()['packages'].get('onnxruntime')}",
        "file": FILES[0],
        "tolerated": zone.tolerated,
        "seen": zone.seen,
        "seconds_limit": PARAMS.compare.seconds,
        "heads": {name: _summary(lines[name]) for name in ("same", *SHARES) if name in lines},
    }


def _summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """How comparisons ended, with the exact 95 % interval of the share that failed."""
    counts = Counter(line["status"] for line in lines)
    alarms = share_interval(counts[Status.FAIL], len(lines))
    harms = [line["harm"][0] for line in lines if line["harm"] is not None]
    return {
        "comparisons": len(lines),
        "busy": sum(line["busy"] for line in lines),
        **{status.value: counts[status] for status in Status},
        "failed_share": [alarms.low, alarms.high],
        "failed_busy": sum(line["busy"] and line["status"] == Status.FAIL for line in lines),
        "harm": float(np.mean(harms)) if harms else None,
        "harm_sd": float(np.std(harms, ddof=1)) if len(harms) > 1 else None,
        "median_seconds": float(np.median([line["seconds"] for line in lines])),
        "most_seconds": max(line["seconds"] for line in lines),
    }


def with_table(text: str, folder: Path) -> str:
    """The page with its table made anew from the records in a folder."""
    records = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    return fill(text, PAGE, "gate", COMMAND, "".join(f"\n{render(record)}\n" for record in records))


def render(record: dict[str, Any]) -> str:
    """One machine's comparisons as a Markdown table."""
    rows = []
    for name, found in record["heads"].items():
        low, high = (f"{100 * end:.1f}" for end in found["failed_share"])
        sd = "" if found["harm_sd"] is None else f" ± {found['harm_sd']:.2f}"
        cells = (
            HEADS[name],
            f"{found['comparisons']} ({found['busy']} busy)",
            f"{found['fail']} ({found['failed_busy']} busy)",
            f"{low} to {high} %",
            str(found["inconclusive"]),
            str(found["pass"]),
            f"{found['harm']:.2f}{sd} %",
            f"{found['median_seconds']:.0f} (at most {found['most_seconds']:.0f})",
        )
        rows.append(f"| {' | '.join(cells)} |\n")
    return (
        f"**{record['cpu']}** ({', '.join(record['isa']) or 'none of the instruction sets that matter'}), "
        f"{record['runtime']}, {record['file']}; tolerated {record['tolerated']:.0%}, to be seen {record['seen']:.0%}, "
        f"at most {record['seconds_limit']:.0f} s:\n\n"
        "| head | comparisons | called a regression | of all, 95 % interval | inconclusive | passed | change found, "
        "mean ± sd | seconds |\n|---|---|---|---|---|---|---|---|\n" + "".join(rows)
    )


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
