"""Which losses of accuracy does `decant compare` see? Right rows of real answers, turned wrong.

    python -m benchmarks.losses plant PROJECT --name banking77    of a project that was built; docs/results/losses
    python -m benchmarks.losses table                         the table of docs/measuring.md from the records

Base is what the target's file answered to the test split; head is the same with rows turned from right to wrong, and
as many more turned each way as two versions of a model differ by without being better or worse. Judged by the command's
own functions with its default settings. Texts are not kept, the counts are.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from jaxtyping import Float

from benchmarks.pages import fill
from eval import changes
from pipeline import tasks
from pipeline.base import guard, records
from pipeline.base.errors import SettingsError
from pipeline.base.files import write_atomically
from pipeline.base.records import Metric, Score, Status
from pipeline.base.workspace import Workspace
from pipeline.data.examples import read_prepared
from pipeline.settings.compare import CompareSettings
from pipeline.settings.params import load
from stages.gating.sides import Side, slices_of

POINTS = 1.0  # of the whole split
ROWS_OF_CLASS = 11
CHURNS = (0.0, 0.01, 0.02)  # share of rows that change sides besides, half of them each way
RESULTS, PAGE = Path("docs/results/losses"), Path("docs/measuring.md")
COMMAND = "python -m benchmarks.losses table"
HEADS = {"nothing": "no row lost", "points": "1 point lost", "class": f"{ROWS_OF_CLASS} rows of one class lost"}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Values = Float[np.ndarray, " rows"]


@app.command()
def plant(
    project: Annotated[Path, typer.Argument(help="A project whose target was evaluated.")],
    name: Annotated[str, typer.Option(help="Of the record, such as the data set's.")],
    target: Annotated[str, typer.Option(help="A name under targets: of its params.yaml.")] = "cpu",
    runs: Annotated[int, typer.Option(min=10, help="Draws of each row of the table.")] = 500,
) -> None:
    """Judges each kind of loss so often, and writes the record."""
    workspace = Workspace(project)
    params = load(workspace.params)
    rows = read_prepared(workspace.data, "test")
    score = records.read(Score, workspace.scored(target))
    if not score.values or not rows.groups:
        raise SettingsError(f"{workspace.scored(target)}: found no value of each row, or no classes to lose rows of")
    side = Side.open(workspace.exported(target), rows.texts)
    space = tasks.Space.model_validate(side.card.facts["task"]["space"])
    metric = tasks.load(params.task.name, params.task.options, space).METRIC
    base = np.array(score.values)
    most = round(max(CHURNS) * len(base) / 2)
    if (base == 0).sum() < most or base.sum() < ROWS_OF_CLASS:
        raise SettingsError(f"{workspace.scored(target)}: found {int((base == 0).sum())} wrong rows, expected {most}")
    slices = slices_of(side, rows)
    lost: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
        "nothing": lambda rng: np.empty(0, int),
        "points": lambda rng: _some(rng, base, np.ones(len(base), bool), math.ceil(POINTS / metric.scale * len(base))),
        "class": lambda rng: _of_a_class(rng, base, np.array(rows.groups)),
    }
    record: dict[str, Any] = {"rows": len(base), "score": metric.scale * float(base.mean()), "runs": runs}
    record |= {"file": f"{side.exported.artefact.format} {side.exported.artefact.precision}", "found": []}
    for kind, choose in lost.items():
        for churn in CHURNS:
            rng = np.random.default_rng([len(record["found"])])
            heads = (_turned(rng, base, choose(rng), churn) for _ in range(runs))
            counts = Counter(status for head in heads for status in _judged(base, head, slices, metric))
            record["found"].append({"kind": kind, "churn": churn, **{k: counts[k] for k in _KEYS}})
            print(json.dumps(record["found"][-1]), flush=True)
    write_atomically(RESULTS / f"{name}.json", json.dumps(record, indent=1) + "\n")
    print(f"wrote {RESULTS / name}.json")


_KEYS = ("score fail", "score inconclusive", "slices fail", "either fail", "pass")


def _judged(base: Values, head: Values, slices: Mapping[str, Sequence[str]], metric: Metric) -> list[str]:
    """Which of `_KEYS` hold."""
    settings = CompareSettings()
    assert settings.slices is not None, "slices are judged unless settings say otherwise"
    score = changes.judge_score("cpu", base, head, metric, settings.score).status
    parts = changes.judge_slices("cpu", slices, base, head, metric, settings.slices)
    assert parts is not None, "there are slices"
    found = [f"score {score}"] if score is not Status.PASS else []
    found += ["slices fail"] if parts.status is Status.FAIL else []
    if Status.FAIL in (score, parts.status):
        found.append("either fail")
    return found or ["pass"]


def _some(rng: np.random.Generator, values: Values, among: np.ndarray, count: int) -> np.ndarray:
    return rng.choice(np.flatnonzero((values == 1) & among), count, replace=False)


def _of_a_class(rng: np.random.Generator, base: Values, classes: np.ndarray) -> np.ndarray:
    """Rows of a class that has so many right ones."""
    able = [name for name in np.unique(classes) if base[classes == name].sum() >= ROWS_OF_CLASS]
    if not able:
        raise SettingsError(f"no class has {ROWS_OF_CLASS} rows that are right")
    return _some(rng, base, classes == rng.choice(able), ROWS_OF_CLASS)


def _turned(rng: np.random.Generator, base: Values, lost: np.ndarray, churn: float) -> Values:
    """The base's values, those rows wrong, and as many others turned each way."""
    head = base.copy()
    head[lost] = 0
    each = round(churn * len(base) / 2)
    gained = rng.choice(np.flatnonzero(base == 0), each, replace=False)
    also = rng.choice(np.flatnonzero(head == 1), each, replace=False)
    head[gained], head[also] = 1, 0
    return head


@app.command()
def table() -> None:
    """Writes the table of docs/measuring.md from all records."""
    write_atomically(PAGE, with_table(PAGE.read_text("utf-8"), RESULTS))
    print(f"wrote the table into {PAGE}")


def with_table(text: str, folder: Path) -> str:
    """The page with its table made anew from the records in a folder."""
    files = sorted(folder.glob("*.json"))
    tables = (f"\n{render(file.stem, json.loads(file.read_text('utf-8')))}\n" for file in files)
    return fill(text, PAGE, "losses", COMMAND, "".join(tables))


def render(name: str, record: dict[str, Any]) -> str:
    """One data set's losses as a Markdown table, in per cent of the runs."""
    rows = []
    for one in record["found"]:
        shares = (f"{100 * one[key] / record['runs']:.1f} %" for key in _KEYS)
        rows.append(f"| {HEADS[one['kind']]} | {100 * one['churn']:.0f} % | {' | '.join(shares)} |\n")
    return (
        f"**{name}**, {record['rows']:,} test rows, {record['file']} with {record['score']:.2f} % right, "
        f"{record['runs']} draws a row:\n\n"
        "| planted | rows that change sides besides | regression of the score | undecided | of a slice | of either | "
        "passed |\n|---|---|---|---|---|---|---|\n" + "".join(rows)
    )


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
