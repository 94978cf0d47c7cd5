"""What surrounds every command: one line for a user's mistake, exit statuses, locks, and no orphans."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.base import guard
from pipeline.base.errors import EnvironmentFault, IntegrityError, PipelineError, SettingsError, UnusableRuntimeError

ROOT = Path(__file__).resolve().parents[1]
STARTED_S = 30  # a fresh interpreter on a machine that trains beside the tests
# A stage that says when it is busy, and then works until it is ended.
STAGE = """
import sys, time
from pathlib import Path
from pipeline.base import guard
from pipeline.base.files import output_folder

def main():
    out = Path(sys.argv[1])
    with guard.lock(out), output_folder(out) as partial:
        (partial / "half").write_text("x")
        Path(sys.argv[2]).write_text("busy")
        while True:
            time.sleep(0.01)  # a signal just before one long sleep would wait for its end

guard.run(main)
"""


@contextlib.contextmanager
def started(command: list[str], **environment: str) -> Iterator[subprocess.Popen]:
    """A process of the tests' own, ended whatever happens."""
    clean = {key: value for key, value in os.environ.items() if key != "DVC_STAGE"}
    process = subprocess.Popen(
        command, env={**clean, "PYTHONPATH": str(ROOT), **environment}, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@contextlib.contextmanager
def busy_stage(tmp_path: Path) -> Iterator[subprocess.Popen]:
    with started([sys.executable, "-c", STAGE, str(tmp_path / "out"), str(tmp_path / "ready")]) as process:
        wait_for(tmp_path / "ready")
        yield process


def wait_for(path: Path) -> str:
    """A file's text, once it is there."""
    deadline = time.monotonic() + STARTED_S
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)
    return path.read_text()


def run_guarded(monkeypatch: pytest.MonkeyPatch, main: object) -> int:
    """The exit status of a main function under guard.run, without touching this process's handlers."""
    monkeypatch.setattr(guard.signal, "signal", lambda *args: None)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setenv("TQDM_DISABLE", "1")  # guard.run sets it; this puts it back
    with pytest.raises(SystemExit) as end:
        guard.run(main)
    return end.value.code


def raiser(error: BaseException) -> object:
    def main() -> None:
        raise error

    return main


# --- messages and exit statuses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (SettingsError("params.yaml:3: seed: wrong"), 2, "error: params.yaml:3: seed: wrong"),
        (PipelineError("no"), 1, "error: no"),
        (IntegrityError("damaged"), 4, "error: damaged"),
        (EnvironmentFault("locked"), 4, "error: locked"),
        (UnusableRuntimeError("no runtime"), 3, "error: no runtime"),
        (KeyboardInterrupt(), 130, "interrupted: nothing half-written was left; run the same command to go on"),
        (OSError(errno.ENOSPC, "No space left on device"), 4, "error: the disk is full; free some space and run"),
        (OSError(errno.ENOSPC, "No space left on device", "/a/b"), 4, "error: /a/b: the disk is full; free some"),
        (ValueError("I/O error: No space left on device (os error 28)"), 4, "error: the disk is full; free some"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), 4, "error: /a/b: no permission (Permission"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", b"/a/b"), 4, "error: /a/b: No such file"),
    ],
)
def test_a_known_error_is_one_line_on_stderr_and_its_exit_status(monkeypatch, capsys, error, status, line):
    """Nothing on stdout, no traceback."""
    assert run_guarded(monkeypatch, raiser(error)) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize(("value", "status"), [(None, 0), (0, 0), (3, 3)])
def test_the_main_functions_number_is_the_exit_status(monkeypatch, value, status):
    """The gate answers with it."""
    assert run_guarded(monkeypatch, lambda: value) == status


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), OSError("a library's words"), KeyError("x")])
def test_a_bug_keeps_its_traceback_and_has_a_status_of_its_own(monkeypatch, capsys, error):
    """A message without one would hide where it is; Python's 1 would say that a budget fails."""
    assert run_guarded(monkeypatch, raiser(error)) == 70
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and type(error).__name__ in err.splitlines()[-1]


def test_a_really_full_device_ends_with_4(tmp_path):
    """/dev/full gives ENOSPC on a write to an open file, which names no path."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    code = (
        "from pipeline.base import guard\ndef main():\n with open('/dev/full', 'w') as f: f.write('x')\nguard.run(main)"
    )
    with started([sys.executable, "-c", code]) as process:
        _, err = process.communicate(timeout=STARTED_S)
    assert process.returncode == 4
    assert err == "error: the disk is full; free some space and run again. Nothing half-written was left\n"


# --- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_its_status_and_leaves_no_partial_folder(tmp_path, number, status):
    """In the middle of writing an output."""
    with busy_stage(tmp_path) as process:
        assert any(path.name.endswith(".partial") for path in tmp_path.iterdir())
        process.send_signal(number)
        _, err = process.communicate(timeout=STARTED_S)
    assert process.returncode == status
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ready", "work"]


# --- the lock ------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_and_told_who_holds_the_lock(tmp_path):
    """The pid of the other process; its output is unharmed, and the lock is free once it is gone, kill -9 included."""
    out = tmp_path / "out"
    with busy_stage(tmp_path) as process:
        message = f"out: process {process.pid} is writing it; wait for that run to end, or end process {process.pid}"
        with pytest.raises(EnvironmentFault, match=message), guard.lock(out):
            raise AssertionError("two writers")
        partial = next(path for path in tmp_path.iterdir() if path.name.endswith(".partial"))
        assert (partial / "half").read_text() == "x"
        process.kill()
        process.wait()
    with guard.lock(out):
        assert (tmp_path / "work" / "locks" / "out.lock").read_text() == str(os.getpid())


def test_locks_of_two_outputs_are_independent_and_one_can_be_taken_again(tmp_path):
    """Two targets are exported side by side; a second stage follows a first."""
    for _ in range(2):
        with (
            guard.lock(tmp_path / "a"),
            guard.lock(tmp_path / "b"),
            pytest.raises(EnvironmentFault, match=f"a: process {os.getpid()} is writing it"),
            guard.lock(tmp_path / "a"),
        ):
            raise AssertionError("two writers")
    with pytest.raises(ValueError, match="inside"), guard.lock(tmp_path / "a"):
        raise ValueError("inside")
    with guard.lock(tmp_path / "a"):
        pass


# --- no orphans ----------------------------------------------------------------------------------------------------

DVC = """
import subprocess, sys
command = [sys.executable, "-c", {stage!r}, *sys.argv[1:3]]
if {shell}:
    # a shell that stays between, which the kernel's signal to a dead parent's children does not reach through
    import shlex
    subprocess.run(shlex.join(command) + "; true", shell=True)
else:
    subprocess.run(command)
"""
# As STAGE, and says its pid.
ORPHAN = STAGE.replace('write_text("busy")', 'write_text(str(__import__("os").getpid()))')


@pytest.mark.parametrize("shell", [False, True])
def test_a_stage_dies_with_a_killed_dvc(tmp_path, shell):
    """kill -9 of `dvc repro`: its stage must not go on writing beside the next one."""
    script = tmp_path / "bin" / "dvc"
    script.parent.mkdir()
    script.write_text(DVC.format(stage=ORPHAN, shell=shell))
    command = [sys.executable, str(script), str(tmp_path / "out"), str(tmp_path / "ready")]
    with started(command, DVC_STAGE="teach") as process:
        stage = psutil.Process(int(wait_for(tmp_path / "ready")))
        try:
            process.kill()
            process.wait()
            gone, _ = psutil.wait_procs([stage], timeout=2)
            assert gone or stage.status() == psutil.STATUS_ZOMBIE, "the stage outlived dvc by two seconds"
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                stage.kill()


def test_a_stage_run_by_hand_outlives_its_parent(tmp_path):
    """Without DVC_STAGE nothing is watched: a stage may be left running in a closed shell."""
    script = tmp_path / "dvc"
    script.write_text(DVC.format(stage=ORPHAN, shell=False))
    with started([sys.executable, str(script), str(tmp_path / "out"), str(tmp_path / "ready")]) as process:
        stage = psutil.Process(int(wait_for(tmp_path / "ready")))
        try:
            process.kill()
            process.wait()
            _, alive = psutil.wait_procs([stage], timeout=1.2)
            assert alive
        finally:
            stage.kill()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/usr/bin/python", "/x/bin/dvc", "repro"], True),
        (["python", "-m", "dvc", "repro"], True),
        (["dvc", "repro"], True),
        (["python", "-m", "stages.teach"], False),
        (["vim", "a", "b", "dvc"], False),
        ([], False),
    ],
)
def test_dvc_is_known_by_its_command_line(words, expected):
    """However it was started."""

    class Process:
        def cmdline(self) -> list[str]:
            return words

    assert guard._is_dvc(Process()) is expected


def test_a_failing_stage_tells_its_status_under_dvc_only(tmp_path, monkeypatch, capsys):
    """DVC gives 255 for everything; `decant run` reads what the stage gave."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(guard, "_end_with_dvc", lambda: None)

    def fail():
        raise EnvironmentFault("no room")

    monkeypatch.delenv("DVC_STAGE", raising=False)
    with pytest.raises(SystemExit):
        guard.run(fail)
    assert not guard.STATUS.exists()
    monkeypatch.setenv("DVC_STAGE", "distill")
    with pytest.raises(SystemExit):
        guard.run(fail)
    assert guard.STATUS.read_text() == "4"
