"""Two processes in earnest, with gloo between them: the steps and the end of one, one result, and after a kill."""

import json
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
from safetensors.torch import load_file
from test_kill import PATIENCE_S, ROOT, checkpoints, hashes, leftovers, run
from tiny_project import write_project

from pipeline.base import guard
from pipeline.base.records import open_folder
from pipeline.base.workspace import Workspace
from stages import distill, machine, prepare

# Trains one student for each set of losses on one thread, without dropout, and saves weights and logs.
TRAIN = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
sys.path.insert(0, "tests")
from test_training import DEV, make_student, settings, make_split
from toy_models import TASK, toy_model
from pipeline.data.prepared import EncodedSplit
from pipeline.training import processes
from pipeline.training.distiller import Distiller
from pipeline.training.judges import OnDev
from pipeline.training.loop import fit

torch.set_num_threads(1)
PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ROWS = make_split(81, seed=1)  # a last batch of one row, fewer than there are processes
ROWS = EncodedSplit(ROWS.names, ROWS.ids, tuple(l if i % 4 else -100 for i, l in enumerate(ROWS.targets)), 0)
LOSSES = {
    "rows": ({"cross_entropy": {}, "logit_kl": {}, "attention_kl_adaptive": {"map": "last_only"},
              "hidden_mse": {"map": "last_only", "decay": "linear"}}, {}),
    "batch": ({"dist": {}, "cka": {"map": "last_only"}, "cross_entropy": {"weight": 0.5}}, {}),
    "parts": ({"cross_entropy": {}, "minilm_v2": {"relation_heads": 2}}, {"micro_batches": 3}),
}
out = Path(sys.argv[1])
for name, (losses, changes) in LOSSES.items():
    student = make_student(hidden_size=16, intermediate_size=24, **PLAIN)
    distiller = Distiller(student, toy_model(seed=3), losses, targeted_share=0.75)
    judge, changed = OnDev(DEV, TASK), settings(epochs=4.0, **changes)
    run = fit(distiller, ROWS, judge, changed, out / name, "key", 0, "student", "last")
    if processes.rank() == 0:
        save_file(student.state_dict(), out / f"{name}.safetensors")
        (out / f"{name}.json").write_text(json.dumps(run.log))
"""


def environment(root=ROOT):
    """One thread, and the project's code."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PYTHONPATH": str(root), "PATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def launcher(count, *words):
    """The command that starts so many processes."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", *words]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of the same trainings in one process and in two."""
    folders = {}
    for count in (1, 2):
        folders[count] = tmp_path_factory.mktemp(f"processes-{count}")
        script = folders[count] / "train.py"
        script.write_text(TRAIN)
        subprocess.run(
            launcher(count, str(script), str(folders[count])),
            cwd=ROOT,
            env=environment(),
            check=True,
            capture_output=True,
            timeout=2 * PATIENCE_S,
        )
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows", "batch", "parts"])
def test_two_processes_take_the_steps_of_one(trained, name):
    """Losses, terms, gradient norms and shares of every step, and the weights at the end, but for rounding.

    For means over rows of which a quarter has no label, for losses over the batch, and with micro-batches. Averaging
    over ranks, or a batch statistic of each process's own rows, would be far off.
    """
    one, two = (json.loads((trained[count] / f"{name}.json").read_text()) for count in (1, 2))
    assert [entry["step"] for entry in one] == [entry["step"] for entry in two]
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    weights, others = (load_file(trained[count] / f"{name}.safetensors") for count in (1, 2))
    for key, weight in weights.items():
        # A constant on every score of a row changes no softmax: that gradient is rounding error, which AdamW enlarges.
        if not key.endswith("key.bias"):
            torch.testing.assert_close(weight, others[key], rtol=0, atol=1e-4)


# --- the stage ---------------------------------------------------------------------------------------------------


def start(workspace, count):
    """The stage in so many processes, its output in log.txt."""
    with (workspace.root / "log.txt").open("ab") as log:
        return subprocess.Popen(
            launcher(count, "-m", "stages.distill"), cwd=workspace.root, env=environment(), stdout=log, stderr=log
        )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A project with a teacher that two processes fine-tuned; controls and augmented text are asked for."""
    params, workspace = write_project(
        tmp_path_factory.mktemp("prepared"),
        student__dropout=0.0,
        distill__controls={"no_teacher": 1, "logits_only": 0},
        distill__augment={"methods": ["replace"], "copies": 1},
    )
    run(params, workspace, machine, prepare)
    command = launcher(2, "-m", "stages.teach")
    subprocess.run(command, cwd=workspace.root, env=environment(), check=True, timeout=2 * PATIENCE_S)
    return params, workspace


@pytest.fixture(scope="module")
def by_two(prepared, tmp_path_factory):
    """A copy in which two processes trained the students, undisturbed."""
    folder = tmp_path_factory.mktemp("by_two") / "project"
    shutil.copytree(prepared[1].root, folder)
    process = start(Workspace(folder), 2)
    assert process.wait(timeout=3 * PATIENCE_S) == 0, (folder / "log.txt").read_text()
    return Workspace(folder)


@pytest.mark.slow
def test_the_stage_in_two_processes_ends_with_one_result(prepared, by_two, tmp_path):
    """Told once, sealed, in as many steps, and the students that one process makes, but for rounding."""
    shutil.copytree(prepared[1].root, tmp_path / "project")
    alone = Workspace(tmp_path / "project")
    run(prepared[0], alone, distill)
    for folder in ("distilled-0", "no_teacher-0"):
        ours, theirs = (open_folder(place.variants / folder, "student").facts for place in (alone, by_two))
        assert ours["steps"] == theirs["steps"] > 0
        assert ours["dev_score"] == pytest.approx(theirs["dev_score"], abs=0.1)
    log = (by_two.root / "log.txt").read_text()
    assert log.count("distilled-0: step 8 of") == 1
    assert not leftovers(by_two)


@pytest.mark.slow
def test_two_processes_that_are_killed_go_on_to_the_same_end(prepared, by_two, tmp_path):
    """kill -9 of the launcher ends both; the same command then goes on."""
    shutil.copytree(prepared[1].root, tmp_path / "project")
    workspace = Workspace(tmp_path / "project")
    process = start(workspace, 2)
    deadline = time.monotonic() + 2 * PATIENCE_S
    while not checkpoints(workspace):
        assert process.poll() is None and time.monotonic() < deadline, (workspace.root / "log.txt").read_text()
        time.sleep(0.005)
    trainers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(trainers, timeout=5)
    assert not alive
    assert not workspace.student.exists()
    assert start(workspace, 2).wait(timeout=3 * PATIENCE_S) == 0, (workspace.root / "log.txt").read_text()
    assert "going on from step" in (workspace.root / "log.txt").read_text()
    assert hashes(workspace) == hashes(by_two)


# --- who may write -----------------------------------------------------------------------------------------------


def test_only_the_first_process_takes_the_lock(tmp_path, monkeypatch):
    """A past fault: the second one stopped, since the first was writing."""
    with guard.lock(tmp_path / "student"):
        monkeypatch.setenv("RANK", "1")
        with guard.lock(tmp_path / "student"):
            assert not guard.is_first()
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(guard.EnvironmentFault, match="is writing it"), guard.lock(tmp_path / "student"):
            pass
