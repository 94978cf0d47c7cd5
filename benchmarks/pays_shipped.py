"""What the students of benchmarks/pays.py are worth as the 8-bit files that ship, beside both teachers.

    python -m benchmarks.pays_shipped run ../shared/data --large FOLDER --work work    of each table the best on dev
    python -m benchmarks.pays_shipped table                                            the page, from the records

`run` takes weights that `python -m benchmarks.pays run` left in the folder `work`, so seeds that another machine
trained do not count, and writes one record for each kind of CPU: integer kernels and their times differ between kinds.
The files are those of `shipped` in benchmarks/pays.yaml.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import pays
from benchmarks.pages import fill
from eval import figures
from eval.statistics import drop_interval
from pipeline import tasks
from pipeline.base import guard, machine, records
from pipeline.base.errors import IntegrityError, UnusableRuntimeError
from pipeline.base.files import write_atomically
from pipeline.base.records import Interval, Measurement, Score, open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.prepared import TEST_ANSWERS, read_encoded
from pipeline.quantization.plan import Plans
from stages import benchmark, convert, evaluate, quantize, reference
from stages.targets import artefact_bytes, artefact_of

log = logging.getLogger(__name__)
RESULTS = Path("docs/results/pays/shipped")
COMMAND = "python -m benchmarks.pays_shipped table"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def run(
    data: Annotated[Path, typer.Argument(help="Folder with the sets.")],
    work: Annotated[Path, typer.Option(help="Folder in which benchmarks.pays trained.")],
    large: Annotated[Path, typer.Option(help="Folder of the large teacher's base model.")],
    only: Annotated[list[str] | None, typer.Option(help="A set; may be repeated.")] = None,
    student: Annotated[list[str] | None, typer.Option(help="A student; may be repeated.")] = None,
    labels: Annotated[list[str] | None, typer.Option(help="A number of labels; may be repeated.")] = None,
) -> None:
    """Exports, scores and times what no record of this kind of CPU has yet."""
    plan = pays.read_plan()
    pays.check_names(plan, sets=only or (), labels=labels or (), students=student or ())
    places = pays.Places(work.resolve(), data, large, work.resolve() / "general.txt")
    facts = machine.facts()
    path = RESULTS / f"{facts['cpu'].lower().replace(' ', '_')}_{'_'.join(facts['isa']) or 'plain'}.json"
    missing: list[str] = []
    for key, group in pays.groups_of(pays.RESULTS).items():
        row = pays.best_row(group)
        wanted = zip(key, (only, labels, student), strict=True)
        if row is None or any(names and name not in names for name, names in wanted):
            continue
        record = json.loads(path.read_text("utf-8")) if path.is_file() else {"shipped": {}}
        record |= {name: facts[name] for name in ("cpu", "isa", "cores")}
        best = winner_of([one for one in group[row] if _is_here(plan, pays.Cell(*key, row, one["seed"]), one, places)])
        if best is None:
            missing.append(f"{pays.said(key)}, {row}")
            continue
        if record["shipped"].get(pays.said(key), {}).get("weights") == best["weights"]:
            continue
        record["shipped"][pays.said(key)] = {
            **{name: best[name] for name in ("row", "seed", "weights", "dev_score", "test_score")},
            **_ship(plan, pays.Cell(*key, row, best["seed"]), places),
        }
        write_atomically(path, json.dumps(record, indent=1) + "\n")
        log.info("%s: wrote %s", pays.said(key), path)
    if missing:
        raise IntegrityError(
            f"{work} has the weights of no seed of: {'; '.join(missing)}; run `python -m benchmarks.pays run` again"
        )


def winner_of(seeds: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of a row's seeds the best on dev, as a recipe ships it; None where there are none."""
    return max(seeds, key=lambda one: (one["dev_score"], -one["seed"]), default=None)


def _is_here(plan: dict[str, Any], cell: pays.Cell, record: dict[str, Any], places: pays.Places) -> bool:
    """Whether the folder of work has the weights of a record, which another machine may have made."""
    try:
        card = open_folder(_trained(plan, cell, places), "student")
    except IntegrityError:
        return False
    return card.files["model.safetensors"].sha256 == record["weights"]


def _trained(plan: dict[str, Any], cell: pays.Cell, places: pays.Places) -> Path:
    return pays.folder_of(pays.settings_of(plan, cell, places), cell, places) / "model"


def _ship(plan: dict[str, Any], cell: pays.Cell, places: pays.Places) -> dict[str, Any]:
    """The figures of one student's files, and of both teachers beside them."""
    targets, timed = plan["shipped"]["targets"], plan["shipped"]["timed"]

    def settings_of(row: str) -> dict[str, Any]:
        settings = pays.settings_of(plan, replace(cell, row=row), places)
        return {**settings, "measure": settings["measure"] | plan["shipped"]["measure"], "targets": targets}

    trained = _trained(plan, cell, places)
    prepared, _ = pays.ready(pays.settings_of(plan, cell, places), cell, places)
    folder = places.root(cell.set, "shipped", trained.parent.name).root
    place = _beside(folder / "files", prepared, student=trained)
    params = pays.load_into(place, settings_of(cell.row))
    quantize.run(params, place)
    for name in targets:
        convert.run(params, place, name)
        evaluate.run(params, place, name)
    scores = {name: records.read(Score, place.scored(name)) for name in targets}
    found: dict[str, Any] = {"in_float": _in_float(place), "files": {}, "teachers": {}}
    for name, score in scores.items():
        if score.primary is None or score.agreement is None or score.drop_from_student is None:
            raise UnusableRuntimeError(f"{name}: not measured: {score.not_measured}")
        card = open_folder(place.exported(name), "artefact")
        found["files"][name] = {
            "bytes": artefact_bytes(card, artefact_of(card)),
            "runtime": f"{score.runtime} {score.runtime_version}",
            "stand_in": score.stand_in,
            "score": score.primary.value,
            "agreement": score.agreement.value,
            "drop_from_float": score.drop_from_student.model_dump(),
        }
    for size in pays.BOTH:
        row = pays.row_of(plan, size)
        prepared, _ = pays.ready(pays.settings_of(plan, replace(cell, row=row), places), cell, places)
        beside = _beside(folder / size, prepared, student=trained, exported=place.exported(""))
        params = pays.load_into(beside, settings_of(row))
        reference.run(params, beside)
        benchmark.run(params, beside, timed)
        task = tasks.of(params, beside.data)
        answers = json.loads((beside.teacher / TEST_ANSWERS).read_text("utf-8"))
        values = task.values(answers, read_encoded(beside, "test", params.data.max_length)[1].targets)
        found["teachers"][size] = {
            "score": float(np.mean(values)),
            "speedup": figures.speedup(records.read(Measurement, beside.measured(timed))).model_dump(),
        }
        for name, score in scores.items():
            drop = drop_interval(values, np.asarray(score.values), task.METRIC)
            found["files"][name][f"drop_from_{size}"] = drop.model_dump()
    return found


def _beside(root: Path, prepared: Workspace, **links: Path) -> Workspace:
    """A workspace with data and teacher of another, and further folders of artifacts by links."""
    place = Workspace(root)
    place.artifacts.mkdir(parents=True, exist_ok=True)
    for name, target in {"data": prepared.data, "teacher": prepared.teacher, **links}.items():
        link = place.artifacts / name
        link.unlink(missing_ok=True)
        link.symlink_to(target.resolve())
    write_atomically(place.machine, json.dumps(machine.facts()))
    return place


def _in_float(place: Workspace) -> dict[str, list[str]]:
    """Which modules each plan leaves in float."""
    plans = Plans.model_validate_json((place.quantized / "plan.json").read_text("utf-8"))
    return {name: list(plan.exclude) for name, plan in plans.entries.items()}


# --- the page -----------------------------------------------------------------------------------------------------


@app.command()
def table() -> None:
    """Writes the tables between the markers of docs/when-distillation-pays.md."""
    write_atomically(pays.PAGE, with_tables(pays.PAGE.read_text("utf-8"), RESULTS))
    print(f"wrote the results into {pays.PAGE}")


def with_tables(text: str, folder: Path) -> str:
    """The page with the tables of shipped files made anew from the records in a folder."""
    tables = [_table_of(json.loads(file.read_text("utf-8"))) for file in sorted(folder.glob("*.json"))]
    return fill(text, pays.PAGE, "shipped", COMMAND, "".join(tables) or "\nNot measured yet.\n")


def _table_of(record: dict[str, Any]) -> str:
    lines = []
    for name, one in record["shipped"].items():
        small, large = (one["teachers"][size] for size in pays.BOTH)
        lines.append(
            f"| **{name}**: {one['row']}, seed {one['seed']} | | {_percent(one['test_score'])} in float | | small "
            f"{_percent(small['score'])} | large {_percent(large['score'])} | {_times(small)}, {_times(large)} |\n"
        )
        for target, file in one["files"].items():
            gains = [_gain(file[f"drop_from_{of}"]) for of in ("float", *pays.BOTH)]
            lines.append(
                f"| {target}, {file['runtime']} | {file['bytes'] / 1e6:.1f} | {_percent(file['score'])} | "
                f"{' | '.join(gains)} | |\n"
            )
    return (
        f"\n**{pays.kind_of(record)}**:\n\n| file, 8 bits | MB | test | against float, points (95 %) | "
        "against the small teacher | against the large teacher | times as fast as small, large |\n"
        f"|---|---|---|---|---|---|---|\n{''.join(lines)}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _times(teacher: dict[str, Any]) -> str:
    found = Interval.model_validate(teacher["speedup"])
    return f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"


def _gain(drop: dict[str, Any]) -> str:
    lost = Interval.model_validate(drop)
    gain, low, high = (0.0 - points for points in (lost.value, lost.high, lost.low))  # 0 - 0 has no minus sign
    return f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
