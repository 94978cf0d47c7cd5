"""Do intervals of times hold what they promise? Simulated, and measured over many processes of a real file.

    python -m benchmarks.coverage simulate                  coverage of each figure under several kinds of noise
    python -m benchmarks.coverage measure --processes 60    the same of real files, by drawing some of many processes
    python -m benchmarks.coverage table                     docs/measuring.md from the records of both

Each end of an interval is said to be a bound at 99 %, so a truth lies below the lower end, and above the upper end, in
at most 1 % of runs: that is what a budget at the very limit would pass or fail by. "pooled" is what was done before:
order statistics of all calls, as if those of one process were independent of each other. Records are written to
docs/results/coverage.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from jaxtyping import Float

from benchmarks.graphs import make_texts, open_exported, write
from benchmarks.pages import fill
from eval import figures
from eval.latency import measure as take_times
from eval.statistics import median_ratio_interval, quantile_interval
from pipeline.base import guard, machine
from pipeline.base.errors import UnusableRuntimeError
from pipeline.base.files import write_atomically
from pipeline.base.records import Interval, Measurement, Series
from pipeline.settings.measure import MeasureSettings

CALLS = 20  # of each session in a process, as `measure.pairs: 40` has it
NOISE = 0.05  # of a call, as a standard deviation of logarithms
CANDIDATE_MS, REFERENCE_MS = 2.0, 8.0
SESSIONS: dict[str, float] = {
    "candidate": CANDIDATE_MS,
    "candidate_twin": CANDIDATE_MS,
    "reference": REFERENCE_MS,
    "reference_twin": REFERENCE_MS,
}
P90 = float(np.exp(NOISE * 1.2815515655446004))
MADE_UP = Measurement(target="coverage", runtime="none", device="local", artefact_digest="", size_bytes=1)
# What processes have of their own, as a factor on both models' times, and one on their ratio.
Scatter = Callable[[np.random.Generator, int], tuple[Float[np.ndarray, " processes"], Float[np.ndarray, " processes"]]]
RESULTS, PAGE = Path("docs/results/coverage"), Path("docs/measuring.md")
COMMAND = "python -m benchmarks.coverage table"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def _even(both: float, ratio: float) -> Scatter:
    """Every process is off by some per cent."""
    return lambda rng, n: (rng.lognormal(0, both, n), rng.lognormal(0, ratio, n))


def _neighbour(share: float, slower: float) -> Scatter:
    """Some processes have a neighbour who makes everything slower, and one model more than the other."""

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        hit = rng.random(n) < share
        return np.where(hit, slower, 1.0) * rng.lognormal(0, 0.01, n), np.where(hit, slower**0.2, 1.0)

    return draw


MACHINES: dict[str, Scatter] = {
    "processes alike": _even(0.0, 0.0),
    "processes differ by 2 %, ratios by 1 %": _even(0.02, 0.01),
    "processes differ by 8 %, ratios by 4.1 %": _even(0.08, 0.041),
    "one process in five 30 % slower": _neighbour(0.2, 1.3),
}


@app.command()
def simulate(
    runs: Annotated[int, typer.Option(min=100, help="Measurements for each row.")] = 2000,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Prints, for each kind of machine and number of processes, how often the truth is outside, at each end."""
    found: dict[str, Any] = {"runs": runs, "seed": seed, "rows": []}
    for title, scatter in MACHINES.items():
        # what the middle of infinitely many processes is, on the scale that intervals have: the mean logarithm
        both, ratio = (np.exp(np.log(part).mean()) for part in scatter(np.random.default_rng(seed + 1), 1_000_000))
        for processes in (5, 10, 15):
            rng = np.random.default_rng([seed, processes])
            taken = [_measurement(rng, scatter, processes) for _ in range(runs)]
            truths = {
                "p50": CANDIDATE_MS * both / ratio**0.5,
                "p90": CANDIDATE_MS * P90 * both / ratio**0.5,
                "speed-up": REFERENCE_MS / CANDIDATE_MS * ratio,
            }
            row = {"machine": title, "processes": processes, **_outside(taken, truths)}
            found["rows"].append(row)
            print(_line(row), flush=True)
    _write(found, "simulated")


@app.command()
def measure(
    processes: Annotated[int, typer.Option(min=20, help="Fresh processes to time.")] = 60,
    runs: Annotated[int, typer.Option(min=100, help="Draws of some of them.")] = 2000,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Times int8 beside fp32 in many processes; takes their mean for the truth, and draws 5 and 10 of them again."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "files", "onnx")
        ours, theirs = (
            open_exported(Path(folder) / "files" / f"onnx 2x192 {kind}") for kind in ("int8 dynamic", "fp32")
        )
        whole = take_times(
            target="coverage",
            runtime="onnxruntime",
            device="local",
            candidate=ours,
            reference=theirs,
            sequences=make_texts(200).ids,
            pad_id=0,
            settings=MeasureSettings(processes=processes, max_rounds=1, lengths=()),
            seed=seed,
            with_loads=False,
        )
    if whole.not_measured is not None:
        raise UnusableRuntimeError(whole.not_measured)
    facts = machine.facts()
    ratios = np.log(figures.speedups(whole))
    found: dict[str, Any] = {"cpu": facts["cpu"], "isa": facts["isa"], "packages": facts["packages"], "runs": runs}
    found |= {"processes": processes, "scatter_of_ratios": float(ratios.std(ddof=1)), "rows": []}
    print(f"medians of ratios of {processes} processes scatter by {ratios.std(ddof=1):.1%}")
    truths = {name: figure.value for name, figure in _figures(whole).items()}
    by_process: dict[int, list[Series]] = {}
    for series in whole.series:
        by_process.setdefault(series.process, []).append(series)
    for count in (5, 10):
        rng = np.random.default_rng([seed, count])
        row = {
            "machine": "measured",
            "processes": count,
            **_outside(_draws(whole, by_process, rng, count, runs), truths),
        }
        found["rows"].append(row)
        print(_line(row), flush=True)
    _write(found, f"{facts['cpu'].lower().replace(' ', '_')}_{'_'.join(facts['isa']) or 'plain'}")


@app.command()
def table() -> None:
    """Writes the table of coverage into docs/measuring.md."""
    write_atomically(PAGE, with_table(PAGE.read_text("utf-8"), RESULTS))
    print(f"wrote the table into {PAGE}")


def with_table(text: str, folder: Path) -> str:
    """The page with its table made anew from the records in a folder."""
    records = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    return fill(text, PAGE, "coverage", COMMAND, "".join(f"\n{render(record)}\n" for record in records))


def render(record: dict[str, Any]) -> str:
    """One record as a Markdown table: per cent of runs whose truth lies below and above the interval."""
    names = [name for name, value in record["rows"][0].items() if isinstance(value, dict)]
    head = (
        f"{record['runs']:,} draws of so many processes, of {record['processes']} in all"
        if "cpu" in record
        else (f"{record['runs']:,} simulated runs a row, seed {record['seed']}")
    )
    where = f"**{record['cpu']}**, ratios scatter by {record['scatter_of_ratios']:.1%}: " if "cpu" in record else ""
    rows = "".join(
        f"| {row['machine']} | {row['processes']} | "
        + " | ".join(f"{100 * row[name]['below']:.1f} / {100 * row[name]['above']:.1f}" for name in names)
        + f" | {row['speed-up']['width']:.0%} |\n"
        for row in record["rows"]
    )
    return (
        f"{where}{head}:\n\n| machine | processes | {' | '.join(names)} | width of the speed-up's |\n"
        f"|---|---|{'---|' * len(names)}---|\n{rows}"
    )


def _write(record: dict[str, Any], name: str) -> None:
    path = RESULTS / f"{name}.json"
    write_atomically(path, json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")


def _draws(
    whole: Measurement, by_process: dict[int, list[Series]], rng: np.random.Generator, count: int, runs: int
) -> Iterator[Measurement]:
    """So many processes each time, with replacement, as if they were all there are."""
    known = sorted(by_process)
    for _ in range(runs):
        chosen = [
            series.model_copy(update={"process": place})
            for place, process in enumerate(rng.choice(known, count))
            for series in by_process[int(process)]
        ]
        yield whole.model_copy(update={"series": tuple(chosen)})


def _measurement(rng: np.random.Generator, scatter: Scatter, processes: int) -> Measurement:
    """A run on such a machine; half of what is of the ratio goes to each model."""
    both, ratio = scatter(rng, processes)
    series = []
    for process in range(processes):
        for session, milliseconds in SESSIONS.items():
            lean = ratio[process] ** (0.5 if session.startswith("reference") else -0.5)
            ns = (1e6 * milliseconds * both[process] * lean * rng.lognormal(0, NOISE, CALLS)).astype(int).tolist()
            facts: dict[str, Any] = {
                "model": session,
                "process": process,
                "round": 0,
                "lengths": "data",
                "order": (),
                "warmup": 0,
            }
            # without the checks of pydantic, which take most of the time
            series.append(Series.model_construct(wall_ns=ns, cpu_ns=ns, **facts))
    return MADE_UP.model_copy(update={"series": tuple(series)})


def _figures(measurement: Measurement) -> dict[str, Interval]:
    return {
        "p50": figures.p50_ms(measurement),
        "p90": figures.p90_ms(measurement),
        "speed-up": figures.speedup(measurement),
    }


def _pooled(measurement: Measurement) -> dict[str, Interval]:
    """As before: all calls in one."""
    ours, theirs = (np.concatenate(figures.calls_ms(measurement, one)) for one in ("candidate", "reference"))
    confidence = figures.LATENCY_CONFIDENCE
    return {
        "p50 pooled": quantile_interval(ours, 0.5, confidence),
        "p90 pooled": quantile_interval(ours, 0.9, confidence),
        "speed-up pooled": median_ratio_interval(theirs, ours, confidence),
    }


def _outside(taken: Sequence[Measurement] | Iterator[Measurement], truths: dict[str, float]) -> dict[str, Any]:
    """Figure -> shares of runs in which the truth is below its interval, and above."""
    sides: dict[str, list[tuple[bool, bool, float]]] = {}
    for one in taken:
        for name, figure in {**_figures(one), **_pooled(one)}.items():
            truth = truths[name.removesuffix(" pooled")]
            sides.setdefault(name, []).append((truth < figure.low, truth > figure.high, figure.high / figure.low))
    return {
        name: {
            "below": float(np.mean([below for below, _, _ in found])),
            "above": float(np.mean([above for _, above, _ in found])),
            "width": float(np.median([width for _, _, width in found])) - 1,
        }
        for name, found in sides.items()
    }


def _line(row: dict[str, Any]) -> str:
    shown = ", ".join(
        f"{name} {found['below']:.1%} below {found['above']:.1%} above (width {found['width']:.1%})"
        for name, found in row.items()
        if isinstance(found, dict)
    )
    return f"{row['machine']}, {row['processes']} processes: {shown}"


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
