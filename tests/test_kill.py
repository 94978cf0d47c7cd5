"""kill -9, for real: whatever moment it comes, the same command then ends with the weights of an undisturbed run."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from tiny_project import write_project

from pipeline.base.files import sha256_of
from pipeline.base.records import open_folder
from pipeline.base.workspace import Workspace
from stages import distill, machine, prepare, teach

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 120  # for a start of Python with torch on a busy machine


def run(params, workspace, *stages):
    """Runs stages in this process, from within the project's folder."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.root)
        for stage in stages:
            stage.run(params, workspace)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """(settings, workspace) with data and teacher; the student is still to be trained, with two seeds."""
    params, workspace = write_project(tmp_path_factory.mktemp("taught"), distill__seeds=2)
    run(params, workspace, machine, prepare, teach)
    return params, workspace


@pytest.fixture(scope="module")
def undisturbed(taught, tmp_path_factory):
    """Hashes of what an undisturbed run of the stage leaves."""
    folder = tmp_path_factory.mktemp("undisturbed") / "project"
    shutil.copytree(taught[1].root, folder)
    run(taught[0], Workspace(folder), distill)
    return hashes(Workspace(folder))


@pytest.fixture
def workspace(taught, tmp_path):
    """A copy to train in."""
    shutil.copytree(taught[1].root, tmp_path / "project")
    return Workspace(tmp_path / "project")


def hashes(workspace):
    """SHA-256 of every file of the student and the variants, logs and cards included, which must be whole."""
    open_folder(workspace.student, "student")
    open_folder(workspace.variants, "variants")
    folders = (workspace.student, workspace.variants)
    return {str(f.relative_to(workspace.root)): sha256_of(f) for d in folders for f in d.rglob("*") if f.is_file()}


def start(workspace, *words):
    """A process in the project's folder that finds the code, and has one thread."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "OMP_NUM_THREADS": "1"}
    environment |= {"DVC_NO_ANALYTICS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with (workspace.root / "log.txt").open("ab") as log:
        return subprocess.Popen([sys.executable, *words], cwd=workspace.root, env=environment, stdout=log, stderr=log)


def wait_for(happened, process, workspace):
    """Polls until something happened; fails with the log when the process ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert process.poll() is None, (workspace.root / "log.txt").read_text()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def kill(process):
    """kill -9 of this one process."""
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def finish(process, workspace):
    """Waits for the end, which must be a good one."""
    assert process.wait(timeout=PATIENCE_S) == 0, (workspace.root / "log.txt").read_text()


def checkpoints(workspace, variant="distilled-0"):
    """The checkpoints of a student in training, sealed ones only."""
    folder = workspace.work("distill") / variant / "main"
    return sorted(path.parent.name for path in folder.glob("checkpoint-*/card.json"))


def leftovers(workspace):
    """Half-written files and folders."""
    return list(workspace.artifacts.rglob("*.partial"))


def test_stage_killed_while_it_trains_goes_on_to_the_same_end(workspace, undisturbed):
    """Faults row 1, by hand: killed once a checkpoint is there, then started again."""
    process = start(workspace, "-m", "stages.distill")
    wait_for(lambda: checkpoints(workspace), process, workspace)
    kill(process)
    assert not workspace.student.exists()
    second = start(workspace, "-m", "stages.distill")
    finish(second, workspace)
    assert "going on from step" in (workspace.root / "log.txt").read_text()
    assert hashes(workspace) == undisturbed
    assert not leftovers(workspace)


# What stands still, and when: the process says so with a file and waits for its end.
HOLD = """
import pathlib, sys, time
import pipeline.base.files, pipeline.training.checkpoints, pipeline.training.steps, stages.distill
from pipeline.base import guard
from pipeline.base.workspace import Workspace

def hold():
    pathlib.Path("held").touch()
    time.sleep(600)

{plant}
sys.argv = ["stages.distill"]
guard.run(stages.distill.main)
"""
POINTS = {
    "while the teacher's answers are written": """
real = pipeline.training.answers.seal
answers = pipeline.training.answers
answers.seal = lambda folder, kind, *a, **k: hold() if kind == "teacher_outputs" else real(folder, kind)
""",
    "checkpoint written, card not yet": """
real = pipeline.training.checkpoints.seal
pipeline.training.checkpoints.seal = (
    lambda folder, kind, *a, **k: hold() if "checkpoint-24" in folder.name else real(folder, kind, *a, **k)
)
""",
    "checkpoint half written": """
real = pipeline.training.checkpoints.save_file
pipeline.training.checkpoints.save_file = (
    lambda tensors, path: hold() if "checkpoint-16" in str(path) and "random" in path.name else real(tensors, path)
)
""",
    "checkpoint sealed, not yet under its name": """
real = pipeline.base.files._swap
pipeline.base.files._swap = lambda partial, path: hold() if path.name == "checkpoint-24" else real(partial, path)
""",
    "older checkpoint half removed": """
import shutil
real = shutil.rmtree
def rmtree(path, *args, **kwargs):
    if path.name.startswith("checkpoint-"):
        next(pathlib.Path(path).glob("*.safetensors")).unlink()
        hold()
    return real(path, *args, **kwargs)
shutil.rmtree = rmtree
""",
    "after the last step of the first seed": """
real = pipeline.distillation.distil.predict
pipeline.distillation.distil.predict = lambda *a: hold()
""",
    "while the second seed trains": """
real = pipeline.training.steps.Steps.take
taken = []
def take(self, step, *args):
    taken.append(step)
    if step == 37 and taken.count(0) == 2:
        hold()
    return real(self, step, *args)
pipeline.training.steps.Steps.take = take
""",
    "while a finished model is written": """
real = pipeline.distillation.distil.save_tokenizer
pipeline.distillation.distil.save_tokenizer = lambda *a: hold()
""",
    "between variants and student": """
real = stages.distill.output_folder
stages.distill.output_folder = lambda path, **k: hold() if path.name == "student" else real(path, **k)
""",
    "student written, not yet under its name": """
real = pipeline.base.files._swap
pipeline.base.files._swap = lambda partial, path: hold() if path.name == "student" else real(partial, path)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_stage_killed_at_any_point_goes_on_to_the_same_end(taught, workspace, undisturbed, point):
    """Faults rows 1, 2 and 3: at the moments between two writes that a crash could tear apart."""
    process = start(workspace, "-c", HOLD.format(plant=POINTS[point]))
    wait_for((workspace.root / "held").exists, process, workspace)
    kill(process)
    assert not workspace.student.exists()
    run(taught[0], workspace, distill)
    assert hashes(workspace) == undisturbed
    assert not leftovers(workspace)


@pytest.mark.slow
def test_dvc_killed_while_the_student_trains_leaves_no_orphan_and_goes_on(workspace, undisturbed):
    """Faults row 1: kill -9 of `dvc repro`; its stage dies within two seconds, the next `dvc repro` ends the same."""
    stage = {
        "cmd": "python -m stages.distill",
        "deps": ["artifacts/data", "artifacts/teacher"],
        "params": ["seed", "threads", "student", "distill"],
        "outs": ["artifacts/student", "artifacts/variants"],
    }
    (workspace.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"distill": stage}}))
    finish(start(workspace, "-m", "dvc", "init", "--no-scm", "--quiet"), workspace)
    dvc = start(workspace, "-m", "dvc", "repro")
    wait_for(lambda: checkpoints(workspace), dvc, workspace)
    children = psutil.Process(dvc.pid).children(recursive=True)
    assert any("stages.distill" in child.cmdline() for child in children)
    kill(dvc)
    _, alive = psutil.wait_procs(children, timeout=2)
    assert not alive
    assert not workspace.student.exists()
    finish(start(workspace, "-m", "dvc", "repro"), workspace)
    assert "going on from step" in (workspace.root / "log.txt").read_text()
    assert hashes(workspace) == undisturbed
    assert not leftovers(workspace)
