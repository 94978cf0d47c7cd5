"""What do counted instructions tell? One file in many processes, planted work, 8 bits beside float, and longer texts.

    python -m benchmarks.instructions measure     a few minutes, needs qemu-user; docs/results/instructions
    python -m benchmarks.instructions table       the table of docs/measuring.md from the records

The planted work is that of `benchmarks.gate`: small matrix products in the graph, as many as a line through two counts
of them says are one per cent.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from jaxtyping import Int

from benchmarks.gate import FEW, FILES, MANY, write_variant
from benchmarks.graphs import VOCABULARY, open_exported, write
from benchmarks.pages import fill
from eval import instructions
from pipeline.base import emulation, guard, machine
from pipeline.base.files import write_atomically

LENGTHS = (8, 16, 32, 64)  # tokens of the texts; one text of each, the same in every process
PLANTED = 0.01
FLOAT = "onnx 2x192 fp32"
RESULTS, PAGE = Path("docs/results/instructions"), Path("docs/measuring.md")
COMMAND = "python -m benchmarks.instructions table"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def measure(
    processes: Annotated[int, typer.Option(min=2, help="Of the same file.")] = 10,
    of_others: Annotated[int, typer.Option(min=1, help="Of each other file.")] = 3,
) -> None:
    """Counts, prints and writes the record."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        write(out / "files", "onnx")
        base = out / "files" / FILES[0]
        counts = {"same": _count(base, processes), "float": _count(out / "files" / FLOAT, of_others)}
        for products in (FEW, MANY):
            write_variant(base, out / str(products), products)
        few, many = (float(_count(out / str(products), 1).sum()) for products in (FEW, MANY))
        whole, of_one = float(counts["same"].sum(axis=1).mean()), (many - few) / (MANY - FEW)
        products = round((PLANTED * whole - (few - FEW * of_one - whole)) / of_one)
        write_variant(base, out / "planted", products)
        counts["planted"] = _count(out / "planted", of_others)
    facts = machine.facts()
    record = {
        "cpu": facts["cpu"],
        "isa": facts["isa"],
        "runtime": f"onnxruntime {facts['packages'].get('onnxruntime')}",
        "emulator": emulation.version(),
        "files": {"same": FILES[0], "float": FLOAT, "planted": f"{FILES[0]} with {products} products more"},
        "lengths": list(LENGTHS),
        # of each file, of each process, of each text
        "counts": {name: found.tolist() for name, found in counts.items()},
    }
    path = RESULTS / f"{facts['cpu'].lower().replace(' ', '_')}_{'_'.join(facts['isa']) or 'plain'}.json"
    write_atomically(path, json.dumps(record, indent=1) + "\n")
    print(render(record))
    print(f"wrote {path}")


def _count(folder: Path, processes: int) -> Int[np.ndarray, "processes lengths"]:
    one = open_exported(folder)
    rng = np.random.default_rng(0)
    texts = [rng.integers(1000, VOCABULARY, length).tolist() for length in LENGTHS]
    found = [instructions.count("onnxruntime", one.folder, one.artefact, texts, 0, 1) for _ in range(processes)]
    print(f"{folder.name}: {[int(one.sum()) for one in found]}", flush=True)
    return np.stack(found)


@app.command()
def table() -> None:
    """Writes the tables of docs/measuring.md from all records."""
    write_atomically(PAGE, with_table(PAGE.read_text("utf-8"), RESULTS))
    print(f"wrote the table into {PAGE}")


def with_table(text: str, folder: Path) -> str:
    """The page with its table made anew from the records in a folder."""
    records = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    return fill(text, PAGE, "instructions", COMMAND, "".join(f"\n{render(record)}\n" for record in records))


def render(record: dict[str, Any]) -> str:
    """One host's counts as a Markdown table: the mean of a call, the spread of processes, and the ratio to the file."""
    counts = {name: np.array(found) for name, found in record["counts"].items()}
    same = counts["same"].sum(axis=1)
    lengths = record["lengths"]
    rows = []
    for name, found in counts.items():
        sums = found.sum(axis=1)
        cells = (
            record["files"][name],
            str(len(found)),
            f"{found.mean() / 1e6:.2f} M",
            f"{100 * (sums.max() / sums.min() - 1):.4f} %",
            *(f"{column.mean() / 1e6:.2f} M" for column in found.T),
            "" if name == "same" else f"{100 * (sums.mean() / same.mean() - 1):+.3f} %",
        )
        rows.append(f"| {' | '.join(cells)} |\n")
    return (
        f"On **{record['cpu']}** ({', '.join(record['isa']) or 'none of the instruction sets that matter'}), "
        f"{record['runtime']}, {record['emulator']}:\n\n"
        f"| file | processes | a call | processes differ by at most | {' | '.join(f'{n} tokens' for n in lengths)} | "
        f"beside the first |\n|---|---|---|---|{'---|' * len(lengths)}---|\n" + "".join(rows)
    )


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
