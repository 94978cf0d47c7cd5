"""What 8-bit files answer with and without VNNI, and what each cure of saturation costs.

    python -m benchmarks.kernels measure WORKSPACE --name assistant
    python -m benchmarks.kernels table

The same student four ways in onnxruntime: plain scales (as others' exporters have them), pair-safe ones (as
Decant has them), a range of 7 bits for all, and plain scales in the runtime's precise mode. Each answers the whole test
split on this machine and on an emulated x86 without VNNI; times are taken here, beside the plain file in the same
processes.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import typer

from benchmarks.pages import fill
from eval.figures import speedup
from eval.isolated import open_session
from eval.latency import Exported
from eval.latency import measure as take_times
from eval.runtimes import onnxruntime
from eval.scores import answer
from export import onnx_int8, to_onnx
from pipeline.base import emulation, guard, machine
from pipeline.base.errors import UnusableRuntimeError
from pipeline.base.files import sha256_of, write_atomically
from pipeline.base.workspace import Workspace
from pipeline.data.prepared import read_encoded
from pipeline.quantization.pair_sums import unsafe_pairs
from pipeline.quantization.plan import Plan, Scheme, quantize_weight
from pipeline.settings.measure import MeasureSettings
from pipeline.settings.params import load
from stages.quantize import plans_for

RESULTS = Path("docs/results/kernels")
PAGE = Path("docs/targets.md")
PLAIN, SAFE, SEVEN, PRECISE = "plain scales", "pair-safe scales", "7 bits for all", "plain scales, precise mode"
TIMING = MeasureSettings(processes=5, pairs=40, max_rounds=1, warmup=5, threads=1, lengths=())
app = typer.Typer(add_completion=False, help=__doc__)


def _seven_bits(weight: Any, per_channel: bool, pair_safe: bool = False) -> Any:
    """Codes of -63 to 63: any pair of them is safe."""
    codes, scale = quantize_weight(weight, per_channel)
    return (codes.float() * 63 / 127).round().to(codes.dtype), scale * 127 / 63


@app.command()
def measure(
    workspace: Annotated[Path, typer.Argument(help="A workspace with a student, its plan and its data.")],
    name: Annotated[str, typer.Option(help="Name of the record, such as the data set's.")],
) -> None:
    """Writes docs/results/kernels/NAME.json."""
    reason = emulation.why_unusable()
    if reason is not None:
        raise UnusableRuntimeError(reason)
    place = Workspace(workspace.resolve())
    params = load(place.params, with_plugins=False)
    _, test = read_encoded(place, "test", params.data.max_length)
    plan = plans_for(params, place, place.student).entry(Scheme(activations="example", pair_safe=True))
    facts = machine.facts()
    found: dict[str, Any] = {"cpu": facts["cpu"], "isa": facts["isa"], "onnxruntime": onnxruntime.version()}
    found |= {"emulator": emulation.version(), "rows": len(test), "variants": {}}
    with tempfile.TemporaryDirectory() as folder:
        made = {
            title: _make(place, Path(folder) / title, title, plan, params.data.max_length)
            for title in (PLAIN, SAFE, SEVEN, PRECISE)
        }
        for title, exported in made.items():
            found["variants"][title] = _measure_one(title, exported, made[PLAIN], test, params.seed)
            print(title, json.dumps(found["variants"][title]))
    write_atomically(RESULTS / f"{name}.json", json.dumps(found, indent=1, sort_keys=True) + "\n")


def _make(place: Workspace, out: Path, title: str, plan: Plan, max_length: int) -> Exported:
    out.mkdir(parents=True)
    plain = plan.model_copy(update={"scheme": Scheme(activations="example"), "pair_facts": None})
    quantizer = _seven_bits if title == SEVEN else quantize_weight
    with mock.patch.object(onnx_int8, "quantize_weight", quantizer):
        artefact = to_onnx.convert(
            place.student, out, "int8", to_onnx.Params(), max_length, plan if title == SAFE else plain
        )
    settings = {**onnxruntime.SETTINGS, "precise_sums": "1" if title == PRECISE else "0"}
    artefact = artefact.model_copy(update={"settings": settings})
    file = out / artefact.file
    return Exported(out, artefact, sha256_of(file), file.stat().st_size)


def _measure_one(title: str, exported: Exported, plain: Exported, test: Any, seed: int) -> dict[str, Any]:
    logits = []
    for emulated in (False, True):
        with open_session("onnxruntime", exported.folder, exported.artefact, 1, emulated=emulated) as session:
            logits.append(answer(session, test.ids, exported.artefact, test.pad_id)["logits"])
    here, there = logits
    labels = np.array(test.targets)
    weights = onnxruntime.pair_summed_weights(exported.folder, exported.artefact)
    result: dict[str, Any] = {
        "accuracy_here": float((here.argmax(1) == labels).mean()),
        "accuracy_without_vnni": float((there.argmax(1) == labels).mean()),
        "same_label": float((here.argmax(1) == there.argmax(1)).mean()),
        "largest_difference": float(np.abs(here - there).max() / np.ptp(here)),
        "size_bytes": exported.size_bytes,
        "unsafe_pairs": sum(int(unsafe_pairs(weight).sum()) for weight in weights.values()),
        "times_as_fast_as_plain": None,
    }
    if title != PLAIN:
        timed = take_times(
            target=title,
            runtime="onnxruntime",
            device="local",
            candidate=exported,
            reference=plain,
            sequences=test.ids,
            pad_id=test.pad_id,
            settings=TIMING,
            seed=seed,
            with_loads=False,
        )
        result["times_as_fast_as_plain"] = speedup(timed).model_dump(mode="json")
    return result


def render(name: str, record: Mapping[str, Any]) -> str:
    """One table, as Markdown."""
    lines = [
        f"**{name}**, {record['rows']:,} test rows; here: {record['cpu']} ({', '.join(record['isa'])}), onnxruntime "
        f"{record['onnxruntime']}; without VNNI: {record['emulator']}.",
        "",
        "| weights | accuracy here | without VNNI | same label | largest difference | unsafe pairs | MB | "
        "times as fast as plain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, one in record["variants"].items():
        ratio = one["times_as_fast_as_plain"]
        times = f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "–"
        lines.append(
            f"| {title} | {one['accuracy_here']:.2%} | {one['accuracy_without_vnni']:.2%} | {one['same_label']:.2%} | "
            f"{one['largest_difference']:.1%} of the spread | {one['unsafe_pairs']:,} | "
            f"{one['size_bytes'] / 1e6:.2f} | "
            f"{times} |"
        )
    return "\n".join(lines) + "\n"


@app.command()
def table() -> None:
    """Writes the tables between the markers of docs/targets.md."""
    write_atomically(PAGE, with_tables(PAGE.read_text("utf-8")))


def with_tables(text: str) -> str:
    """The page with its tables made anew from the records."""
    tables = [render(file.stem, json.loads(file.read_text("utf-8"))) for file in sorted(RESULTS.glob("*.json"))]
    command = "python -m benchmarks.kernels table"
    return fill(text, PAGE, "kernels", command, "".join(f"\n{one}\n" for one in tables))


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
