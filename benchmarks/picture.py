"""The README's picture: what the demo built, each model's accuracy, size and time beside the teacher's.

python -m benchmarks.picture measure .        records of a finished demo -> docs/results/demo/assistant.json
python -m benchmarks.picture draw             that record -> docs/demo.svg
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer
from matplotlib.figure import Figure

from pipeline.base import guard
from pipeline.base.files import write_atomically
from pipeline.base.records import open_folder
from pipeline.base.workspace import Workspace

RECORD = Path("docs/results/demo/assistant.json")
PICTURE = Path("docs/demo.svg")
# As a newcomer reads them, in the order of the picture. A majority class of 5 % would squeeze all others together.
NAMES = {
    "linear floor": "bag of words",
    "teacher": "teacher, 6 layers",
    "cpu_fp32": "cpu_fp32: ONNX, float",
    "cpu": "cpu: ONNX, 8-bit",
    "android": "android: LiteRT, 8-bit",
    "ios": "ios: Core ML, float",
}
INK, MUTED, MARK, PAPER = "#1f2933", "#7b8794", "#1f6feb", "#ffffff"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def measure(workspace: Annotated[Path, typer.Argument(help="A workspace in which the demo has run.")]) -> None:
    """Writes the record that the picture is drawn from."""
    report = Workspace(workspace).report
    open_folder(report, "report")
    found = {row["series"]: row for row in _rows(report / "plots" / "score_by_size.csv")}
    times = {row["series"]: float(row["p50_ms"]) for row in _rows(report / "plots" / "score_by_latency.csv")}
    rows = [
        {
            "name": NAMES[name],
            **{key: float(found[name][key]) for key in ("score", "low", "high", "size_mb")},
            "p50_ms": times.get(name),
        }
        for name in NAMES
        if name in found
    ]
    machine = json.loads(Workspace(workspace).machine.read_text("utf-8"))
    record = {"rows": rows, "cpu": machine["cpu"], "isa": machine["isa"]}
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(RECORD, json.dumps(record, indent=1) + "\n")
    print(f"wrote {RECORD}")


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


@app.command()
def draw() -> None:
    """Draws the record."""
    write_atomically(PICTURE, plot(json.loads(RECORD.read_text("utf-8"))))
    print(f"wrote {PICTURE}")


def plot(record: Mapping[str, Any]) -> str:
    """The picture as SVG; the same record gives the same text."""
    rows = record["rows"]
    with mpl.rc_context({"svg.hashsalt": "demo", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(8.6, 0.34 * len(rows) + 1.1), facecolor=PAPER)
        left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(2.2, 1.2, 1.2))
        places = [len(rows) - 1 - i for i in range(len(rows))]
        _accuracy(left, rows, places)
        _bars(middle, [row["size_mb"] for row in rows], places, "size, MB", "{:.1f}")
        _bars(right, [row["p50_ms"] for row in rows], places, "median time of one text, ms", "{:.2f}")
        vnni = " with VNNI" if any("vnni" in flag for flag in record["isa"]) else ""
        figure.supxlabel(f"times on {record['cpu']}{vnni}", x=0.99, ha="right", fontsize=8, color=MUTED)
        figure.tight_layout()
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _accuracy(axes: Any, rows: Sequence[Mapping[str, Any]], places: Sequence[int]) -> None:
    for row, place in zip(rows, places, strict=True):
        axes.plot([100 * row["low"], 100 * row["high"]], [place, place], color=MARK, linewidth=2, alpha=0.4)
        axes.plot(100 * row["score"], place, "o", color=MARK, markersize=5)
        axes.annotate(f"{100 * row['score']:.1f}", (100 * row["score"], place), (0, 5), color=INK,
                      textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
    axes.set_yticks(places, [row["name"] for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.2)
    axes.set_title("test accuracy, %, with 95 % interval", fontsize=9, color=INK, loc="left")
    _quiet(axes)
    axes.tick_params(axis="y", labelcolor=INK)


def _bars(axes: Any, values: Sequence[float | None], places: Sequence[int], title: str, text: str) -> None:
    for value, place in zip(values, places, strict=True):
        if value is not None:
            axes.barh(place, value, height=0.5, color=MARK, alpha=0.75)
        shown = text.format(value) if value is not None else "not measured here"
        axes.annotate(shown, (value or 0, place), (3, 0), textcoords="offset points", va="center", fontsize=8,
                      color=INK if value is not None else MUTED)  # fmt: skip
    axes.set_xlim(0, 1.3 * max((value for value in values if value is not None), default=1.0))
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xticks([])
    _quiet(axes)


def _quiet(axes: Any) -> None:
    axes.tick_params(length=0, colors=MUTED, labelsize=8)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
