"""Runs a comparison: every method checked first, then one process a training, and the table after each."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import psutil
import torch
import yaml

from pipeline.base import guard
from pipeline.base.errors import EnvironmentFault, IntegrityError, PipelineError, SettingsError
from pipeline.base.files import write_atomically
from pipeline.base.workspace import Workspace
from pipeline.data.prepared import open_data
from pipeline.families import CHOICES, Shape, shape_of
from pipeline.models.checkpoints import read_config, set_attributes
from pipeline.models.model_files import find_model
from pipeline.models.students import student_config
from pipeline.settings.params import Params, load, read_values
from pipeline.training.distiller import check_fit, loss_params
from stages import prepare
from stages.comparing import results
from stages.comparing.methods_file import CONTROLS, Job, MethodsFile, settings_of
from stages.comparing.places import Places


def write_settings(methods: MethodsFile, places: Places, classes: int) -> dict[str, Params]:
    """Checks every method before the first one trains, the teacher included, and writes its settings.

    Raises:
        SettingsError: settings that are wrong, or losses that do not fit the two models, of any method.
    """
    base, found, problems = read_values(places.workspace / "params.yaml"), {}, []
    for name in methods.methods:
        path = places.settings(name)
        try:
            write_atomically(path, yaml.safe_dump(settings_of(base, methods, name), sort_keys=False))
            found[name] = load(path)
            if found[name].is_general:
                raise SettingsError(
                    "student.init.from is 'general', which a comparison has no stage for; name the folder of a general "
                    "student, such as artifacts/general of a project"
                )
            student, teacher = _shapes(found[name], classes)
            check_fit(loss_params(found[name].distill.losses), student, teacher)
        except PipelineError as error:
            problems.append(f"method {name}: {error}")
    if problems:
        raise SettingsError("\n".join(problems))
    return found


def _shapes(params: Params, classes: int) -> tuple[Shape, Shape]:
    """Student and teacher as they will be."""
    models = (params.origin, (params.teacher.model, params.teacher.revision))
    configs = [read_config(find_model(*model)) for model in models]
    for config in configs:
        config.num_labels = classes
        set_attributes(config, {CHOICES: classes})  # a general student says 1
    return shape_of(student_config(configs[0], params.student)), shape_of(configs[1])


def prepare_data(settings: dict[str, Params], places: Places) -> None:
    """Prepared data for each kind of student, beside a link to the one teacher."""
    for params in settings.values():
        place = Workspace(places.data(params))
        try:
            open_data(place)
        except IntegrityError:
            prepare.run(params, place, places.workspace)
        place.teacher.unlink(missing_ok=True)
        place.teacher.symlink_to(Workspace(places.workspace).teacher.resolve())


def compare(
    recipe: str, methods: MethodsFile, settings: dict[str, Params], places: Places, seeds: int, best: int, jobs: int
) -> results.Comparison:
    """Trains one seed of each method, then the other seeds of the controls and of the best on dev."""
    first = next(iter(settings.values()))
    start = first.seed
    # Trainings on one GPU would wait for each other.
    at_a_time = jobs or (1 if torch.cuda.is_available() else max(1, (os.cpu_count() or 1) // first.threads))
    ones = [Job(name, start) for name in [*CONTROLS, *(n for n in methods.methods if n not in CONTROLS)]]
    done = _train(recipe, methods, ones, [], settings, places, at_a_time)
    found = results.collect(recipe, methods, done, places, settings[CONTROLS[0]])
    dev = {name: result.dev_score[0] for name, result in found.methods.items() if name not in CONTROLS}
    more = [
        Job(name, start + i) for i in range(1, seeds) for name in [*CONTROLS, *results.best(dev, best, found.metric)]
    ]
    done = _train(recipe, methods, more, done, settings, places, at_a_time)
    return results.collect(recipe, methods, done, places, settings[CONTROLS[0]])


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
    finished, failed = list(done), []
    with ThreadPoolExecutor(at_a_time) as pool:
        try:
            for job, status in zip(jobs, pool.map(lambda job: _run(job, places), jobs), strict=True):
                if status != 0:
                    failed.append(f"{job.name} (exit status {status})")
                    continue
                finished.append(job)
                if any(job.method == CONTROLS[0] for job in finished):
                    results.write(results.collect(recipe, methods, finished, places, settings[CONTROLS[0]]), places)
        except BaseException:
            # Told to stop. The pool would wait for its trainings, which go on from their checkpoints another time.
            pool.shutdown(wait=False, cancel_futures=True)
            for training in psutil.Process().children():
                training.terminate()
            raise
    if failed:
        raise EnvironmentFault(
            f"these trainings stopped: {', '.join(failed)}; their messages are above. Mend them and run the command "
            "again: what is trained stays, and the table shows the others"
        )
    return finished


def _run(job: Job, places: Places) -> int:
    environment = {**os.environ, "PYTHONPATH": str(places.workspace), guard.DIES_WITH_PARENT: "1"}
    command = [sys.executable, "-m", "stages.comparing.train", job.method, str(job.seed)]
    return subprocess.run(command, cwd=places.workspace, env=environment, check=False).returncode
