"""Workers in processes of their own: what comes back, and what is said when nothing does."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from fakes import install_runtime, make_job

import eval
from eval import dying
from eval.devices import local
from eval.worker import WorkerError


@pytest.fixture(autouse=True)
def runtime(monkeypatch, tmp_path):
    """The runtime 'fake', here and in fresh processes."""
    return install_runtime(monkeypatch, tmp_path)


def test_local_machine_is_always_at_hand():
    """No reason why not."""
    assert local.why_unusable() is None


def test_timing_job_comes_back_whole(runtime):
    """Nothing runs in this process; the threads are those of the job."""
    result = local.run_worker(make_job(threads=2), timeout_s=60.0)
    sessions = ["candidate", "reference", "reference_twin", "candidate_twin"]
    assert [(one.model, len(one.wall_ns)) for one in result.samples] == [(session, 6) for session in sessions]
    assert [moment["when"] for moment in result.conditions] == ["before", "after"]
    assert {moment["omp_num_threads"] for moment in result.conditions} == {"2"}
    assert (result.runtime_version, runtime.CALLS) == ("1.2", [])


def test_what_a_runtime_prints_by_itself_does_no_harm():
    """C++ libraries write to file descriptor 1."""
    assert local.run_worker(make_job("load", "chatty", reference=None), timeout_s=60.0).load_ms > 0


def test_crash_is_named_by_its_signal():
    """A loader that segfaults takes only its own process with it."""
    with pytest.raises(WorkerError, match=r"^crashed \(SIGSEGV\)$"):
        local.run_worker(make_job("load", "crash", reference=None), timeout_s=60.0)


def test_hang_is_ended():
    """The message says how long was waited."""
    with pytest.raises(WorkerError, match=r"^timed out after 1 s$"):
        local.run_worker(make_job("load", "hang", reference=None), timeout_s=1.0)


def test_error_of_the_runtime_is_passed_on():
    """Its last line is enough to search for."""
    with pytest.raises(WorkerError, match=r"failed \(exit status 1\): ValueError: cannot load this"):
        local.run_worker(make_job("load", "raise", reference=None), timeout_s=60.0)


def test_unusable_runtime_gives_its_reason(monkeypatch):
    """Which is a result, not an error."""
    monkeypatch.setenv("FAKE_UNUSABLE", "needs macOS")
    assert local.run_worker(make_job(), timeout_s=60.0).unusable == "needs macOS"


def test_another_python_has_its_own_libraries_and_this_code(tmp_path, monkeypatch):
    """Planted: Decant is installed beside this environment's libraries, which a child started there would import."""
    installed = tmp_path / "site-packages"
    installed.mkdir()
    for package in ("eval", "pipeline"):
        (installed / package).symlink_to(dying.ROOT / package, target_is_directory=True)
    (installed / "psutil.py").write_text("")
    monkeypatch.setattr(dying, "ROOT", installed)
    dying._alone.cache_clear()
    for python, library in ((None, installed), (sys.executable, Path(psutil.__file__).parents[1])):
        code = "import eval, psutil; print(eval.__file__); print(psutil.__file__)"
        command = [sys.executable, "-c", code]
        environment = dying.environment_of(python)
        assert ("PYTHONPATH" in environment) == (python is None)
        if python is None:
            del environment["PYTHONPATH"]  # of the fake runtime
        done = subprocess.run(
            command, cwd=dying.folder_of(python), env=environment, capture_output=True, text=True, check=True
        )
        ours, theirs = map(Path, done.stdout.split())
        assert ours.resolve() == Path(eval.__file__).resolve()
        assert theirs.is_relative_to(library)
    dying._alone().cleanup()
    dying._alone.cache_clear()
