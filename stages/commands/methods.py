"""Compares distillation methods on a recipe: same student, same steps, several seeds, controls and floors.

    decant methods banking77 --files ../shared/banking77          every method of recipes/methods/banking77.yaml
    decant methods banking77 --only a2d --only shd                two of them, and the controls
    decant methods banking77 --show                               the table so far, training nothing

Every method gets one seed first; the best on dev and the controls then get the others. The same command goes on where
an earlier one stopped.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.markdown import Markdown

from pipeline.architectures import Shape, shape_of
from pipeline.errors import EnvironmentFault, PipelineError, SettingsError
from pipeline.files import write_atomically
from pipeline.model_files import find_model
from pipeline.models import read_config
from pipeline.params import Params, load, read_values
from pipeline.prepared import open_data
from pipeline.students import student_config
from pipeline.training import check_fit, loss_params
from pipeline.workspace import Workspace
from stages import prepare
from stages.commands.run import PROJECT, find_recipe, prepare_workspace, reproduce
from stages.comparing import results
from stages.comparing.methods_file import CONTROLS, Job, MethodsFile, read_methods, settings_of
from stages.comparing.places import Places


def command(
    recipe: Annotated[str, typer.Argument(help="A name under recipes/, or a settings file.")],
    files: Annotated[Path | None, typer.Option(help="Folder with the data files, in place of the hub.")] = None,
    methods: Annotated[
        Path | None, typer.Option(help="The list of methods. Default: recipes/methods/<recipe>.yaml.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A method to compare with the controls; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds for the controls and the best methods.")] = 3,
    best: Annotated[int, typer.Option(min=0, help="How many methods get all seeds; the others get one.")] = 5,
    jobs: Annotated[int, typer.Option(min=0, help="Trainings at a time; 0: as many as cores allow.")] = 0,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE for the recipe, as in decant run.")
    ] = None,
    workspace: Annotated[Path | None, typer.Option(help="Default: workspaces/<recipe>-methods.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the table so far and stop.")] = False,
) -> int:
    source = find_recipe(recipe)
    places = Places((workspace or Path("workspaces") / f"{source.stem}-methods").resolve())
    if show:
        _print(results.read(places.record), places)
        return 0
    wanted = read_methods(methods or PROJECT / "recipes" / "methods" / f"{source.stem}.yaml", only or [])
    prepare_workspace(source, places.workspace, files, changes or [])
    if (status := reproduce(places.workspace, "prepare")) != 0:
        return status
    settings = write_settings(wanted, places, open_data(Workspace(places.workspace)).facts["classes"])
    for stage in ("floors", "teach"):
        if (status := reproduce(places.workspace, stage)) != 0:
            return status
    _prepare_data(settings, places)
    return _compare(source.stem, wanted, settings, places, seeds, best, jobs)


def write_settings(methods: MethodsFile, places: Places, classes: int) -> dict[str, Params]:
    """Checks every method before the first one trains, the teacher included, and writes its settings.

    Raises:
        SettingsError: settings that are wrong, or losses that do not fit the two models, of any method.
    """
    base, found, problems = read_values(places.workspace / "params.yaml"), {}, []
    for name in methods.methods:
        path = places.settings(name)
        write_atomically(path, yaml.safe_dump(settings_of(base, methods, name), sort_keys=False))
        try:
            found[name] = load(path)
            student, teacher = _shapes(found[name], classes)
            check_fit(loss_params(found[name].distill.losses), student, teacher)
        except PipelineError as error:
            problems.append(f"method {name}: {error}")
    if problems:
        raise SettingsError("\n".join(problems))
    return found


def _shapes(params: Params, classes: int) -> tuple[Shape, Shape]:
    """Student and teacher as they will be."""
    config = read_config(find_model(params.teacher.model, params.teacher.revision))
    config.num_labels = classes
    return shape_of(student_config(config, params.student)), shape_of(config)


def _prepare_data(settings: dict[str, Params], places: Places) -> None:
    """Prepared data for each kind of student, beside a link to the one teacher."""
    for params in settings.values():
        place = Workspace(places.data(params))
        if not place.data.is_dir():
            prepare.run(params, place)
        place.teacher.unlink(missing_ok=True)
        place.teacher.symlink_to(Workspace(places.workspace).teacher.resolve())


def _compare(
    recipe: str, methods: MethodsFile, settings: dict[str, Params], places: Places, seeds: int, best: int, jobs: int
) -> int:
    first = next(iter(settings.values()))
    start = first.seed
    at_a_time = jobs or max(1, (os.cpu_count() or 1) // first.threads)
    ones = [Job(name, start) for name in [*CONTROLS, *(n for n in methods.methods if n not in CONTROLS)]]
    done = _train(recipe, methods, ones, [], settings, places, at_a_time)
    found = results.collect(recipe, methods, done, places, settings[CONTROLS[0]])
    dev = {name: result.dev_accuracy[0] for name, result in found.methods.items() if name not in CONTROLS}
    more = [Job(name, start + i) for i in range(1, seeds) for name in [*CONTROLS, *results.best(dev, best)]]
    done = _train(recipe, methods, more, done, settings, places, at_a_time)
    _print(results.collect(recipe, methods, done, places, settings[CONTROLS[0]]), places)
    return 0


def _train(
    recipe: str,
    methods: MethodsFile,
    jobs: Sequence[Job],
    done: Sequence[Job],
    settings: dict[str, Params],
    places: Places,
    at_a_time: int,
) -> list[Job]:
    """Runs the jobs, each in a process of its own, and brings the table up to date after each."""
    finished = list(done)
    with ThreadPoolExecutor(at_a_time) as pool:
        for job, status in zip(jobs, pool.map(lambda job: _run(job, places), jobs), strict=True):
            if status != 0:
                pool.shutdown(cancel_futures=True)
                raise EnvironmentFault(
                    f"method {job.method}, seed {job.seed} stopped with exit status {status}; its message is above. "
                    "Mend it, or leave the method out with --only, and run the command again: what is trained stays."
                )
            finished.append(job)
            results.write(results.collect(recipe, methods, finished, places, settings[CONTROLS[0]]), places)
    return finished


def _run(job: Job, places: Places) -> int:
    environment = {**os.environ, "PYTHONPATH": str(places.workspace)}
    command = [sys.executable, "-m", "stages.comparing.train", job.method, str(job.seed)]
    return subprocess.run(command, cwd=places.workspace, env=environment, check=False).returncode


def _print(comparison: results.Comparison, places: Places) -> None:
    width = shutil.get_terminal_size((160, 24)).columns
    Console(width=max(width, 120)).print(Markdown(results.table(comparison)))
    print(f"record: {places.record}\ntable: {places.table}\nplot: {places.plot}")
