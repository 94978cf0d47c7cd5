"""Ten commits of a small project, and what the gate says of each.

    python -m benchmarks.commits run FOLDER --other-python OTHER/bin/python     about half an hour; goes on if ended
    python -m benchmarks.commits table                                         the table of docs/measuring.md

`run` makes a project with `decant new` on the bundled data, builds its first version, and then commits on top of that,
one change at a time: nothing, two regressions (one of speed, one of accuracy), a rounding while a neighbour loads a
core, an improvement, an accepted exception, a deleted record, one changed by hand, and another version of the runtime,
without and with its environment. OTHER is an environment with Decant and another version of onnxruntime. Every comment
is kept as a file in docs/results/commits.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from benchmarks.gate import neighbour
from benchmarks.pages import fill
from pipeline.base import guard, machine
from pipeline.base.errors import UnusableRuntimeError
from pipeline.base.files import write_atomically
from pipeline.settings import accepted
from stages.commands.run import dvc_environment
from stages.reporting.markdown import escape
from stages.reporting.markdown import table as markdown_table

BASE = "main"
BUNDLED, SMOKE = Path("data/assistant"), Path("recipes/smoke.yaml")
BUDGETS = {"agreement": 0.9, "size_mb": 5.0, "p90_ms": 10.0}
RESULTS, PAGE = Path("docs/results/commits"), Path("docs/measuring.md")
COMMAND = "python -m benchmarks.commits table"
HEADER = ("commit", "it should be", "exit status", "verdict", "seconds", "comment")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@dataclass(frozen=True)
class Project:
    """A user's repository."""

    folder: Path
    other_python: Path

    def decant(self, *words: str, python: Path | None = None) -> subprocess.CompletedProcess[str]:
        """A command of Decant's, in this environment or in another."""
        command = [str(python or sys.executable), "-m", "stages", *words]
        return _run(command, self.folder, check=False)

    def build(self, *stages: str) -> None:
        """What a comparison needs: the artefact, and the scores that name its runtime; or other stages."""
        _run([sys.executable, "-m", "dvc", "repro", *(stages or ("evaluate@cpu",))], self.folder)

    def commit(self, message: str) -> None:
        """Everything that git follows."""
        _git(self.folder, "add", "-A")
        _git(self.folder, "commit", "--quiet", "--allow-empty", "-m", message)

    def change(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Changes settings, and builds."""
        file = self.folder / "params.yaml"
        settings = yaml.safe_load(file.read_text("utf-8"))
        change(settings)
        file.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
        self.build()

    def compare(self, *words: str, python: Path | None = None) -> subprocess.CompletedProcess[str]:
        """`decant compare main`, every text of the last one gone."""
        shutil.rmtree(self.folder / "artifacts" / "compared", ignore_errors=True)
        return self.decant("compare", BASE, *words, python=python)


@dataclass(frozen=True)
class Commit:
    """A change, and what it should be called."""

    message: str
    expected: str
    make: Callable[[Project], subprocess.CompletedProcess[str]]


def _changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Project], subprocess.CompletedProcess[str]]:
    def make(project: Project) -> subprocess.CompletedProcess[str]:
        project.change(change)
        project.commit("settings")
        return project.compare()

    return make


def _nothing(project: Project) -> subprocess.CompletedProcess[str]:
    with (project.folder / "README.md").open("a", encoding="utf-8") as file:
        file.write("\nA sentence more.\n")
    project.commit("a sentence more")
    return project.compare()


def _deep(settings: dict[str, Any]) -> None:
    settings["student"]["layers"] += 1


def _brief(settings: dict[str, Any]) -> None:
    settings["distill"]["training"]["epochs"] /= 4


def _rounded(settings: dict[str, Any]) -> None:
    settings["quantize"]["calibration"]["percentile"] = 99.98


def _long(settings: dict[str, Any]) -> None:
    settings["distill"]["training"]["epochs"] *= 3


def _flaky(project: Project) -> subprocess.CompletedProcess[str]:
    project.change(_rounded)
    project.commit("a rounding")
    with neighbour(0):
        return project.compare()


def _accepted(project: Project) -> subprocess.CompletedProcess[str]:
    """The regression of speed again, then an exception of two weeks, then the same comparison."""
    _changed(_deep)(project)
    until = (accepted.today() + timedelta(days=14)).isoformat()
    project.decant("accept", "cpu", "--because", "the layer more is for the next set of intents", "--until", until)
    project.commit("an exception")
    return project.compare()


def _deleted(project: Project) -> subprocess.CompletedProcess[str]:
    (project.folder / "artifacts" / "exported" / "cpu" / "card.json").unlink()
    return project.compare()


def _tampered(project: Project) -> subprocess.CompletedProcess[str]:
    """A better figure, by hand, a report that is made of it, and the gate."""
    file = project.folder / "artifacts" / "scored" / "cpu.json"
    record = json.loads(file.read_text("utf-8"))
    record["record"]["primary"]["value"] = 0.99
    file.unlink()  # a link into the cache
    file.write_text(json.dumps(record), "utf-8")
    project.decant("stage", "report")
    return project.decant("stage", "gate")


def _newer(project: Project) -> subprocess.CompletedProcess[str]:
    return project.compare(python=project.other_python)


def _newer_beside(project: Project) -> subprocess.CompletedProcess[str]:
    return project.compare("--base-python", sys.executable, python=project.other_python)


COMMITS = (
    Commit("a sentence in the README", "no regression", _nothing),
    Commit("a layer more", "slower and larger", _changed(_deep)),
    Commit("a quarter of the training", "less accurate", _changed(_brief)),
    Commit("other ranges, a neighbour loads a core at random", "no regression", _flaky),
    Commit("three times the training", "better", _changed(_long)),
    Commit("the same, accepted for two weeks", "accepted", _accepted),
    Commit("the artefact's record deleted", "cannot compare", _deleted),
    Commit("a score changed by hand (`decant stage gate`)", "refused", _tampered),
    Commit("another version of onnxruntime", "not measured", _newer),
    Commit("the same, with --base-python", "measured", _newer_beside),
)


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(help="A folder to make.")],
    other_python: Annotated[Path, typer.Option(help="The Python of an environment with another onnxruntime.")],
) -> None:
    """Makes the project, and judges commit after commit."""
    project = Project(folder.absolute() / "project", other_python.absolute())
    if _git(project.folder, "rev-parse", "--verify", "--quiet", BASE, check=False):
        _make(project)
    facts = machine.facts()
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = folder / "commits.jsonl"
    done_before = len(lines.read_text("utf-8").splitlines()) if lines.is_file() else 0
    for number, commit in enumerate(COMMITS, start=1):
        if number <= done_before:
            continue
        _git(project.folder, "checkout", "--quiet", "--force", BASE)
        _run([sys.executable, "-m", "dvc", "checkout", "--force", "--quiet"], project.folder)
        _git(project.folder, "checkout", "--quiet", "-B", f"change-{number}")
        start = time.monotonic()
        done = commit.make(project)
        comment = project.folder / "artifacts" / "compared" / "comment.md"
        name = f"{number:02d}.md"
        is_commented = comment.is_file() and done.args[3] == "compare"
        if is_commented:
            write_atomically(RESULTS / name, comment.read_text("utf-8"))
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        line = {
            "commit": commit.message,
            "expected": commit.expected,
            "exit": done.returncode,
            "verdict": _verdict(comment) if is_commented else _said(said, project),
            "seconds": round(time.monotonic() - start),
            "comment": name if is_commented else None,
        }
        print(json.dumps(line), flush=True)
        (folder / f"{number:02d}.log").write_text("\n".join(said) + "\n", "utf-8")
        with lines.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
    commits = [json.loads(line) for line in lines.open(encoding="utf-8")]
    record = {"cpu": facts["cpu"], "isa": facts["isa"], "commits": commits}
    write_atomically(RESULTS / "commits.json", json.dumps(record, indent=1) + "\n")
    print(f"wrote {RESULTS / 'commits.json'}")


def _make(project: Project) -> None:
    """A first version, built and committed on main."""
    done = _run([sys.executable, "-m", "stages", "new", str(project.folder)], Path.cwd())
    print(done.stdout, end="", flush=True)
    for name in ("train", "test"):
        with (BUNDLED / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = [(row["text"], row["label"]) for row in csv.DictReader(file)]
        with (project.folder / "data" / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    mine = yaml.safe_load((project.folder / "params.yaml").read_text("utf-8"))
    settings = yaml.safe_load(SMOKE.read_text("utf-8"))
    settings |= {name: mine[name] for name in ("data", "report", "compare")}
    settings["targets"] = {"cpu": settings["targets"]["cpu"] | {"budgets": BUDGETS}}
    (project.folder / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    for key, value in (("user.name", "nobody"), ("user.email", "nobody@localhost")):
        _git(project.folder, "config", key, value)
    _git(project.folder, "checkout", "--quiet", "-B", BASE)
    project.build("report")
    project.commit("the first version")


def _verdict(comment: Path) -> str:
    """The comment's first sentence."""
    line = next(line for line in comment.read_text("utf-8").splitlines() if line.startswith("### "))
    return line.removeprefix("### ")


def _said(lines: list[str], project: Project) -> str:
    """What the gate gives as its reason, else the last line."""
    reasons = [line for line in lines if line.startswith(("cpu: ", "error"))]
    return (reasons or lines)[-1].replace(f"{project.folder}/", "")


def _run(command: list[str], cwd: Path, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    # where the project lies there is no Decant beside it: the one of this folder is meant
    environment = {
        **dvc_environment(),
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise UnusableRuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done


def _git(folder: Path, *words: str, check: bool = True) -> int:
    return _run(["git", *words], folder, check=check).returncode if folder.is_dir() else 1


@app.command()
def table() -> None:
    """Writes the table of docs/measuring.md from the record."""
    write_atomically(PAGE, with_table(PAGE.read_text("utf-8"), RESULTS))
    print(f"wrote the table into {PAGE}")


def with_table(text: str, folder: Path) -> str:
    """The page with its table made anew from the record in a folder."""
    file = folder / "commits.json"
    return fill(text, PAGE, "commits", COMMAND, render(json.loads(file.read_text("utf-8"))) if file.is_file() else "")


def render(record: dict[str, Any]) -> str:
    """The commits as a Markdown table."""
    rows = (
        (
            one["commit"],
            one["expected"],
            str(one["exit"]),
            one["verdict"] if one["comment"] is not None else escape(one["verdict"]),
            str(one["seconds"]),
            f"[{one['comment']}](results/commits/{one['comment']})" if one["comment"] is not None else "",
        )
        for one in record["commits"]
    )
    where = f"**{record['cpu']}** ({', '.join(record['isa']) or 'none of the instruction sets that matter'}):"
    return f"\n{where}\n\n{markdown_table(HEADER, rows)}\n\n"


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
