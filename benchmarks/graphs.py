"""Is one version of the exported graph as fast as another? Times the same students' files, in turn in one process.

    python -m benchmarks.graphs write FOLDER        the files of random students, as this checkout exports them
    python -m benchmarks.graphs compare OLD NEW     both folders' files beside each other; ends with one line of JSON

Run `write` in a checkout of each version. The students are 3 layers of 384 and 2 of 192 with random weights, since time
does not depend on them; each as fp32, 8-bit with ranges from the input, and 8-bit with fixed ones. Each pair of files
is opened as `eval.runtimes.onnxruntime` opens it and called A B B A on one text with one thread, in fresh processes. A
ratio is the time of the new file through that of the old: the median over pairs, with the 98 % interval that budgets
have.
"""

import json
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
from pipeline.base.files import sha256_of
from pipeline.base.records import Artefact
from pipeline.data.prepared import EncodedSplit
from pipeline.models.checkpoints import save_classifier
from pipeline.quantization.plan import Plan, Scheme, calibrate
from pipeline.settings.measure import MeasureSettings

# layers, width, heads
SIZES = {"3x384": (3, 384, 12), "2x192": (2, 192, 6)}
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "fp32": ("fp32", {}),
    "int8 dynamic": ("int8", {"activations": "dynamic"}),
    "int8 static": ("int8", {"activations": "static"}),
}
LENGTHS = (8, 16, 32, 64)
VOCABULARY = 30_522
CARD = "artefact.json"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def write(
    out: Annotated[Path, typer.Argument(help="A folder to make.")],
    format_name: Annotated[str, typer.Option("--format", help="onnx or ort.")] = "onnx",
) -> None:
    """Writes a folder for each student and kind of file."""
    exporter = plugins.load("format", format_name)
    texts = _texts(64)
    for size, (layers, width, heads) in SIZES.items():
        model = _student(layers, width, heads)
        source = out / "students" / size
        source.mkdir(parents=True)
        save_classifier(model, source)
        for kind, (precision, options) in KINDS.items():
            params = exporter.Params(**options)
            scheme = exporter.scheme(precision, params)
            folder = out / f"{size} {kind}"
            folder.mkdir()
            artefact = exporter.convert(
                source, folder, precision, params, LENGTHS[-1], _plan(model, scheme, texts) if scheme else None
            )
            (folder / CARD).write_text(artefact.model_dump_json(), "utf-8")
            print(f"{folder.name}: {(folder / artefact.file).stat().st_size:,} bytes; {artefact.notes[0]}")


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


def _plan(model: Any, scheme: Scheme, texts: EncodedSplit) -> Plan:
    """Everything in 8 bits."""
    ranges = calibrate(model, texts, "minmax", 100.0) if scheme.activations == "fixed" else {}
    return Plan(scheme=scheme, per_channel=True, embeddings=True, ranges=ranges)


def _texts(count: int) -> EncodedSplit:
    rng = np.random.default_rng(0)
    rows = [rng.integers(1000, VOCABULARY, rng.integers(5, LENGTHS[-1])).tolist() for _ in range(count)]
    return EncodedSplit([str(i) for i in range(count)], rows, [0] * count, pad_id=0)


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(help="A folder that `write` has made.")],
    new: Annotated[Path, typer.Argument(help="Another.")],
    processes: Annotated[int, typer.Option(min=1)] = 5,
    pairs: Annotated[int, typer.Option(min=10, help="Pairs of calls in each process.")] = 60,
    only: Annotated[str, typer.Option(help="Files whose name holds this.")] = "",
) -> None:
    """Prints a line for each file, then everything as one line of JSON."""
    settings = MeasureSettings(processes=processes, pairs=pairs, max_rounds=1, lengths=LENGTHS)
    facts = machine.facts()
    found: dict[str, Any] = {"cpu": facts["cpu"], "isa": facts["isa"], "onnxruntime": facts["packages"]["onnxruntime"]}
    found["files"] = {}
    for card in sorted(new.glob(f"*/{CARD}")):
        name = card.parent.name
        before, after = _exported(old / name), _exported(new / name)
        if only in name and before.digest == after.digest:
            print(f"{name}: the same bytes", flush=True)
        elif only in name:
            found["files"][name] = _compare(name, before, after, settings)
            print(_line(name, found["files"][name]), flush=True)
    print(json.dumps(found))


def _exported(folder: Path) -> Exported:
    artefact = Artefact.model_validate_json((folder / CARD).read_text("utf-8"))
    file = folder / artefact.file
    return Exported(folder, artefact, sha256_of(file), file.stat().st_size)


def _compare(name: str, old: Exported, new: Exported, settings: MeasureSettings) -> dict[str, Any]:
    timed = take_times(
        target=name,
        runtime="onnxruntime",
        device="local",
        candidate=new,
        reference=old,
        sequences=_texts(200).ids,
        pad_id=0,
        settings=settings,
        seed=0,
        with_loads=False,
        with_canary=False,
    )
    if timed.not_measured is not None:
        raise UnusableRuntimeError(f"{name}: {timed.not_measured}")
    ratios = {}
    for length in LENGTHS:
        times = speedup(timed, str(length))  # old through new
        ms = {model: p50_ms(timed, str(length), model=model).value for model in ("reference", "candidate")}
        ratios[length] = {
            "old_ms": round(ms["reference"], 4),
            "new_ms": round(ms["candidate"], 4),
            "ratio": round(1 / times.value, 4),
            "low": round(1 / times.high, 4),
            "high": round(1 / times.low, 4),
        }
    return {"old_bytes": old.size_bytes, "new_bytes": new.size_bytes, "lengths": ratios}


def _line(name: str, found: dict[str, Any]) -> str:
    ratios = ", ".join(
        f"{length}: {one['ratio']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
        for length, one in found["lengths"].items()
    )
    return f"{name}: size {found['new_bytes'] / found['old_bytes']:.4f}; time new / old at {ratios}"


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
