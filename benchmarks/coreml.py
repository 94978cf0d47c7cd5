"""Every Core ML variant of one student: size, answers on the whole test split by the reference interpreter, counts.

    python -m benchmarks.coreml measure WORKSPACE     a record in docs/results/coreml/
    python -m benchmarks.coreml table                 the tables in docs/coreml.md, from the records

The workspace holds a student, its quantization plan and its data; `decant run RECIPE --until quantize` makes one.
"""

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.pages import fill
from eval.runtimes import coreml_reference, pytorch
from eval.scores import answer
from eval.statistics import share_interval
from export import to_coreml
from pipeline.base import guard
from pipeline.base.files import write_atomically
from pipeline.base.machine import facts
from pipeline.base.records import Artefact, open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.batches import batches_by_length
from pipeline.data.prepared import read_encoded
from pipeline.mil.counts import count
from pipeline.mil.ops import OPERATIONS
from pipeline.quantization.plan import Plans
from pipeline.settings.params import load

RESULTS, PAGE = Path("docs/results/coreml"), Path("docs/coreml.md")
COMMAND = "python -m benchmarks.coreml table"
LENGTH = 32  # of the text whose operations are counted
MIXED = {"size_mb": 12.0, "changed_percent": 1.0}
# title -> precision, options
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("fp32", {}),
    "fp16": ("fp16", {}),
    "fp16, channels first": ("fp16", {"layout": "channels_first"}),
    "auto": ("auto", {}),
    "8-bit weights": ("int8", {}),
    "8-bit weights, channels first": ("int8", {"layout": "channels_first"}),
    "8-bit weights and activations": ("w8a8", {}),
    "palette, 8 bits": ("palette8", {}),
    "palette, 6 bits": ("palette6", {}),
    "palette, 6 bits, 30 % pruned": ("palette6", {"sparsity": 0.3}),
    "palette, 4 bits": ("palette4", {}),
    "palette, 4 bits, 16 channels each": ("palette4", {"group_channels": 16}),
    "palette, 4 bits, words 8": ("palette4", {"embedding_bits": 8}),
    "mixed": ("mixed", {"mixed": MIXED}),
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def measure(
    workspace: Annotated[Path, typer.Argument(help="A workspace with a student, its plan and its data.")],
    name: Annotated[str, typer.Option(help="Name of the record, such as the recipe's.")],
    threads: Annotated[int, typer.Option(help="Of the interpreter.")] = 2,
) -> None:
    """Makes every variant and answers the whole test split with each."""
    torch.set_num_threads(threads)
    place = Workspace(workspace.resolve())
    params = load(place.params)
    open_folder(place.student, "student")
    plans = Plans.model_validate_json((place.quantized / "plan.json").read_text("utf-8"))
    _, test = read_encoded(place, "test", params.data.max_length)
    plain = to_coreml.Params(lengths=_lengths(params.data.max_length))
    free = Artefact(
        format="pytorch",
        precision="fp32",
        file="student",
        inputs=(),
        outputs=(),
        max_length=params.data.max_length,
        tools={},
    )
    with pytorch.open_session(place.student, None, threads) as student:
        logits = answer(student, test.ids, free, test.pad_id)["logits"]
    labels, expected = np.array(test.targets), logits.argmax(1)
    found = {}
    for title, (precision, options) in VARIANTS.items():
        chosen = to_coreml.Params.model_validate({**plain.model_dump(), **options}, strict=False)
        plan = plans.entry(to_coreml.scheme(precision, chosen))
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            artefact = to_coreml.convert(
                place.student,
                out,
                precision,
                chosen,
                params.data.max_length,
                plan,
            )
            size = sum(part.stat().st_size for part in (out / artefact.file).rglob("*") if part.is_file())
            with coreml_reference.open_session(out, artefact, threads) as session:
                started = time.perf_counter()
                given = answer(session, test.ids, artefact, test.pad_id, coreml_reference.BATCH)["logits"]
                seconds = time.perf_counter() - started
                overflowed = _overflows(session, test.ids, test.pad_id)
                counts = count(session.interpreter, min(LENGTH, artefact.max_length))
                system = session.package.system
        right = int((given.argmax(1) == labels).sum())
        accuracy = share_interval(right, len(labels))
        found[title] = {
            "precision": precision,
            "options": options,
            "system": system,
            "size_bytes": size,
            "accuracy": accuracy.model_dump(exclude={"schema_version"}),
            "agreement": float((given.argmax(1) == expected).mean()),
            "worst_difference": float(np.abs(given - logits).max() / np.ptp(logits)),
            "overflows": overflowed,
            "seconds_per_1000": 1000 * seconds / len(labels),
            "counts": asdict(counts),
            "notes": list(artefact.notes),
        }
        print(f"{title}: {size / 1e6:.1f} MB, {accuracy.value:.2%} right", flush=True)
    record = {
        "recipe": name,
        "rows": len(labels),
        "student_accuracy": float((expected == labels).mean()),
        "cpu": facts()["cpu"],
        "threads": threads,
        "runtime": f"{coreml_reference.STAND_IN}; {coreml_reference.version()}",
        "length": LENGTH,
        "variants": found,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_atomically(RESULTS / f"{name}.json", json.dumps(record, indent=1) + "\n")


def _lengths(longest: int) -> tuple[int, ...]:
    return tuple(sorted({*(length for length in (16, 32, 64) if length < longest), longest}))


def _overflows(session: coreml_reference.CoreMlReferenceSession, sequences: Any, pad_id: int) -> int:
    """Numbers that become infinite or NaN over the whole split."""
    total = 0
    for batch in batches_by_length([len(row) for row in sequences], coreml_reference.BATCH):
        rows = [sequences[i] for i in batch]
        ids = np.full((len(rows), max(map(len, rows))), pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        total += sum(
            one.elements
            for one in session.interpreter.overflows(session.inputs({"input_ids": ids, "attention_mask": mask}))
        )
    return total


@app.command()
def table() -> None:
    """Writes the tables into docs/coreml.md."""
    write_atomically(PAGE, with_tables(PAGE.read_text("utf-8"), RESULTS))
    print(f"wrote the results into {PAGE}")


def with_tables(text: str, folder: Path) -> str:
    """The page with its tables made anew, from the records in a folder and from the operations there are."""
    records = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    text = fill(text, PAGE, "variants", COMMAND, "".join(f"\n{variants_table(record)}\n\n" for record in records))
    return fill(text, PAGE, "operations", COMMAND, f"\n{operations_table()}\n\n")


def variants_table(record: dict[str, Any]) -> str:
    """One student's variants as Markdown."""
    rows = [
        f"Student of {record['recipe']}, {record['student_accuracy']:.2%} of {record['rows']:,} test rows in PyTorch; "
        f"{record['runtime']}, {record['threads']} threads, {record['cpu']}. Counted at {record['length']} tokens.",
        "",
        "| variant | from | MB | accuracy (95 %) | agrees with PyTorch | worst difference | overflows | s per 1,000 | "
        "operations | M multiply-adds | MB moved |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for title, one in record["variants"].items():
        accuracy, counts = one["accuracy"], one["counts"]
        cells = [
            title,
            one["system"].replace("iOS", "iOS "),
            f"{one['size_bytes'] / 1e6:.1f}",
            f"{accuracy['value']:.2%} [{accuracy['low']:.1%}, {accuracy['high']:.1%}]",
            f"{one['agreement']:.2%}",
            f"{one['worst_difference']:.2g}",
            f"{one['overflows']}",
            f"{one['seconds_per_1000']:.1f}",
            f"{counts['operations']}",
            f"{counts['multiply_accumulates'] / 1e6:.0f}",
            f"{counts['activation_bytes'] / 1e6:.1f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def operations_table() -> str:
    """Every operation of the interpreter, its definition, and its test."""
    test = "`tests/test_mil_ops.py::test_each_operation_is_its_definition[{}]`"
    by_source: dict[str, list[str]] = {}
    for name, definition in OPERATIONS.items():
        by_source.setdefault(definition.source, []).append(name)
    rows = ["| definition in `mil/ops/defs` | operations |", "|---|---|"]
    rows += [
        f"| {source} | {', '.join(f'`{name}`' for name in names)} |" for source, names in sorted(by_source.items())
    ]
    count_line = f"{len(OPERATIONS)} operations. The test of `add`, for one, is {test.format('add')}; so for each."
    return "\n".join([count_line, "", *rows])


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
