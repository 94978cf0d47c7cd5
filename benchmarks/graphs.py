"""Is one version of the exported files as fast as another? Times the same students' files, in turn in one process.

    python -m benchmarks.graphs write FOLDER        the files of random students, as this checkout exports them, and
                                                    the CPU time that each took
    python -m benchmarks.graphs compare OLD NEW     both folders' files beside each other; ends with one line of JSON

Run `write` in a checkout of each version. The students are 3 layers of 384 and 2 of 192 with random weights, since time
does not depend on them, in every format and the usual precisions. Each pair of files is opened as the format's runtime
opens it, and called A B B A on one text with one thread, in fresh processes. A ratio is the time of the new file
through that of the old: the median over pairs, with the 98 % interval that budgets have. Core ML is compared in size
and operations, since its time on Linux says nothing.
"""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from eval.figures import p50_ms, speedup
from eval.latency import Exported
from eval.latency import measure as take_times
from pipeline.base import guard, machine, plugins
from pipeline.base.errors import UnusableRuntimeError
from pipeline.base.files import CARD_NAME
from pipeline.base.records import Measurement, open_folder, seal
from pipeline.data.prepared import EncodedSplit
from pipeline.mil.package import read_package
from pipeline.models.checkpoints import save_classifier
from pipeline.quantization.plan import Plan, Scheme, calibrate
from pipeline.settings.measure import MeasureSettings
from stages.targets import artefact_bytes, artefact_of

# layers, width, heads
SIZES = {"3x384": (3, 384, 12), "2x192": (2, 192, 6)}
LENGTHS = (8, 16, 32, 64)
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("fp32", {}),
    "int8 dynamic": ("int8", {"activations": "dynamic"}),
    "int8 static": ("int8", {"activations": "static"}),
}
# format -> kind -> (precision, options)
FORMATS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "onnx": ACTIVATIONS,
    "ort": ACTIVATIONS,
    "litert": {
        kind: (precision, options | {"lengths": LENGTHS})
        for kind, (precision, options) in {**ACTIVATIONS, "fp16": ("fp16", {})}.items()
    },
    "executorch": {"fp32": ("fp32", {}), "int8": ("int8", {})},
    "openvino": {"fp32": ("fp32", {}), "fp16": ("fp16", {}), "int8": ("int8", {})},
    "coreml": {
        kind: (kind, {"lengths": LENGTHS, "deployment_target": "iOS18"})
        for kind in ("fp32", "fp16", "int8", "palette4")
    },
}
RUNTIMES = {"onnx": "onnxruntime", "ort": "onnxruntime", "coreml": "coreml_reference"}  # others have the format's name
VOCABULARY = 30_522
KIND = "artefact"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def write(
    out: Annotated[Path, typer.Argument(help="A folder to make.")],
    formats: Annotated[str, typer.Option(help="Formats, with commas between.")] = ",".join(FORMATS),
) -> None:
    """Writes a folder for each student, format and kind of file."""
    texts = make_texts(64)
    for size, (layers, width, heads) in SIZES.items():
        model = _student(layers, width, heads)
        source = out / "students" / size
        source.mkdir(parents=True)
        save_classifier(model, source)
        for format_name, (kind, (precision, options)) in _kinds(formats.split(",")):
            exporter = plugins.load("format", format_name)
            params = exporter.Params(**options)
            scheme = exporter.scheme(precision, params)
            plan = whole_plan(model, scheme, texts) if scheme else None
            folder = out / f"{format_name} {size} {kind}"
            folder.mkdir()
            started = time.process_time()
            artefact = exporter.convert(source, folder, precision, params, LENGTHS[-1], plan)
            took = time.process_time() - started
            card = seal(folder, KIND, facts={"artefact": artefact.model_dump(mode="json")})
            print(f"{folder.name}: {artefact_bytes(card, artefact):,} bytes in {took:.1f} s of CPU time", flush=True)


def _kinds(formats: Iterable[str]) -> Iterator[tuple[str, tuple[str, tuple[str, dict[str, Any]]]]]:
    for name in formats:
        for kind in FORMATS[name].items():
            yield name, kind


def _student(layers: int, width: int, heads: int) -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_labels=20,
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases are 0 at first, and one copy of equal ones would be kept
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def whole_plan(model: Any, scheme: Scheme, texts: EncodedSplit) -> Plan:
    """Everything in 8 bits."""
    ranges = calibrate(model, texts, "minmax", 100.0) if scheme.activations == "fixed" else {}
    rows = tuple(map(tuple, texts.ids))
    return Plan(scheme=scheme, per_channel=True, embeddings=True, ranges=ranges, calibration_rows=rows)


def make_texts(count: int) -> EncodedSplit:
    rng = np.random.default_rng(0)
    rows = [rng.integers(1000, VOCABULARY, rng.integers(5, LENGTHS[-1])).tolist() for _ in range(count)]
    return EncodedSplit([str(i) for i in range(count)], rows, [0] * count, pad_id=0)


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(help="A folder that `write` has made.")],
    new: Annotated[Path, typer.Argument(help="Another.")],
    processes: Annotated[int, typer.Option(min=2)] = 5,
    pairs: Annotated[int, typer.Option(min=10, help="Pairs of calls in each process.")] = 60,
    only: Annotated[str, typer.Option(help="Files whose name holds this.")] = "",
) -> None:
    """Prints a line for each file, then everything as one line of JSON."""
    settings = MeasureSettings(processes=processes, pairs=pairs, max_rounds=1, lengths=LENGTHS)
    facts = machine.facts()
    found: dict[str, Any] = {"cpu": facts["cpu"], "isa": facts["isa"], "packages": facts["packages"]}
    found["files"] = {}
    for card in sorted(new.glob(f"*/{CARD_NAME}")):
        name = card.parent.name
        if only not in name:
            continue
        before, after = open_exported(old / name), open_exported(new / name)
        if before.digest == after.digest:
            print(f"{name}: the same bytes", flush=True)
        else:
            found["files"][name] = _compare(name, before, after, settings)
            print(_line(name, found["files"][name]), flush=True)
    print(json.dumps(found))


def open_exported(folder: Path) -> Exported:
    card = open_folder(folder, KIND)
    artefact = artefact_of(card)
    return Exported(folder, artefact, card.digest, artefact_bytes(card, artefact))


def _compare(name: str, old: Exported, new: Exported, settings: MeasureSettings) -> dict[str, Any]:
    sizes = {"old_bytes": old.size_bytes, "new_bytes": new.size_bytes}
    runtime = RUNTIMES.get(new.artefact.format, new.artefact.format)
    if hasattr(plugins.load("runtime", runtime), "NOT_TIMED"):
        counts = [len(read_package(one.folder / one.artefact.file).operations) for one in (old, new)]
        return {**sizes, "old_operations": counts[0], "new_operations": counts[1], "lengths": {}}
    timed = take_times(
        target=name,
        runtime=runtime,
        device="local",
        candidate=new,
        reference=old,
        sequences=make_texts(200).ids,
        pad_id=0,
        settings=settings,
        seed=0,
        with_loads=False,
    )
    if timed.not_measured is not None:
        raise UnusableRuntimeError(f"{name}: {timed.not_measured}")
    return {**sizes, "lengths": {length: _ratio(timed, str(length)) for length in LENGTHS}}


def _ratio(timed: Measurement, length: str) -> dict[str, float]:
    times = speedup(timed, length)  # old through new
    old, new = (p50_ms(timed, length, model=model).value for model in ("reference", "candidate"))
    found = {"old_ms": old, "new_ms": new, "ratio": 1 / times.value, "low": 1 / times.high, "high": 1 / times.low}
    return {what: round(value, 4) for what, value in found.items()}


def _line(name: str, found: dict[str, Any]) -> str:
    ratios = ", ".join(
        f"{length}: {one['ratio']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
        for length, one in found["lengths"].items()
    )
    size = f"{name}: size {found['new_bytes'] / found['old_bytes']:.4f}"
    if not ratios:
        return f"{size}; operations {found['old_operations']} -> {found['new_operations']}"
    return f"{size}; time new / old at {ratios}"


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
