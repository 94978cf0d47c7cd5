"""What a Python that cannot run Decant is told: one sentence and exit status 4, not a traceback."""

import platform
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import stages
from pipeline.base import extras

ROOT = Path(__file__).resolve().parents[1]
STAGE = "import runpy, sys; sys.path.insert(0, {root!r}); runpy.run_module('stages.machine', run_name='__main__')"
HERE = ("linux", (3, 11, 9))


def run_python(*options: str, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False, timeout=60)


def test_the_collector_rests_only_while_a_stage_is_imported(tmp_path):
    """Not in a program that imports the package, such as these tests; and not while a stage works."""
    code = """
import gc, sys
sys.path.insert(0, {root!r})
sys.argv[0] = {argument!r}
import stages
from pipeline.base import guard
print(gc.isenabled())
guard.run(lambda: print(gc.isenabled()))
"""
    for argument, imported in (("-m", "False"), ("pytest", "True")):
        done = run_python(code=code.format(root=str(ROOT), argument=argument), folder=tmp_path)
        assert (done.returncode, done.stdout.split()) == (0, [imported, "True"]), done.stderr


def test_a_stage_in_a_bare_python_says_which_it_is_and_what_to_do(tmp_path):
    """As under `dvc repro` when the environment is not activated: -I -S leaves the standard library alone."""
    done = run_python("-I", "-S", code=STAGE.format(root=str(ROOT)), folder=tmp_path)
    assert done.returncode == 4
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: 'python' is {sys.executable} (Python 3.1")
    assert "it has no pydantic, psutil, yaml, so it is not the project's environment" in done.stderr
    assert "source .venv/bin/activate" in done.stderr and ".venv/bin/decant run" in done.stderr


def test_a_stage_whose_imports_begin_with_transformers_prints_nothing():
    """transformers imports torchao, which would name the CUDA libraries it did not find."""
    pytest.importorskip("torchao", reason="the extra executorch is not installed")
    done = run_python(code="import stages.teach, sys; assert 'torchao' in sys.modules", folder=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_project_s_environment_is_told_nothing(tmp_path):
    """Nothing is printed, and looking takes no time a person would notice."""
    done = run_python(code=f"import sys; sys.path.insert(0, {str(ROOT)!r}); import stages", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stages.why_broken(*HERE) == ""
    started = time.perf_counter()
    for _ in range(100):
        stages.why_broken(*HERE)
    assert time.perf_counter() - started < 1.0  # 2 ms a call would be 0.2 s; a busy machine gets five times that


def test_only_what_is_missing_is_named(monkeypatch):
    """The rest of the environment may well be there."""
    real = stages.util.find_spec
    monkeypatch.setattr(stages.util, "find_spec", lambda name: None if name == "psutil" else real(name))
    assert "it has no psutil, so it is not" in stages.why_broken(*HERE)


@pytest.mark.parametrize("version", [(3, 9, 6), (3, 10, 1)])
def test_an_old_python_is_told_its_version_and_the_one_expected(version):
    """The `python3` of macOS is 3.9."""
    found = stages.why_broken("darwin", version)
    assert f"it is Python 3.{version[1]}, where 3.11 or 3.12 is expected, so" in found


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 7)])
def test_both_versions_of_the_project_pass(version):
    """As requires-python in pyproject.toml has it."""
    assert stages.why_broken("linux", version) == ""


def test_windows_is_told_what_to_use_instead():
    """Locks and process ends need a POSIX system; a traceback about fcntl would say nothing."""
    assert stages.why_broken("win32", (3, 11, 9)) == "Decant runs on Linux and macOS; on Windows use WSL 2"


def test_windows_ends_with_the_sentence(tmp_path):
    """Before anything of the project is imported."""
    code = f"import sys; sys.platform = 'win32'; sys.path.insert(0, {str(ROOT)!r}); import stages"
    done = run_python("-I", "-S", code=code, folder=tmp_path)
    assert done.returncode == 4
    assert done.stderr == "error: Decant runs on Linux and macOS; on Windows use WSL 2\n"


@pytest.mark.parametrize("excluded", [True, False])
def test_a_package_without_a_wheel_here_is_not_asked_to_be_installed(excluded, monkeypatch):
    """A command that cannot work would only waste a person's time; what has a wheel is still offered."""
    here = platform.machine()
    marker = f'platform_machine {"!=" if excluded else "=="} "{here}" and extra'
    lines = ["numpy", 'runner-of-ours==1; extra == "some"', f'maker-of-ours==3; {marker} == "some"']
    lines += [f'runner-of-ours==2; {marker} == "other"']
    monkeypatch.setattr(extras.metadata, "requires", lambda name: lines)
    found = str(extras.why_missing("some", "runner_of_ours", "maker_of_ours"))
    if excluded:
        assert found == f"no wheel for this platform ({platform.system()} {here}): maker-of-ours"
    else:
        assert found.startswith("not installed: runner_of_ours, maker_of_ours; run: pip install")
    assert str(extras.why_missing("some", "runner_of_ours")).startswith("not installed: runner_of_ours; run: pip")
    assert extras.why_missing("some", "pytest") is None


def test_without_the_project_s_metadata_nothing_is_excluded(monkeypatch):
    """A workspace's code can be run from its folder alone."""

    def absent(name: str) -> list[str]:
        raise extras.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras.metadata, "requires", absent)
    assert str(extras.why_missing("some", "maker_of_ours")).startswith("not installed: maker_of_ours; run: pip")


def test_every_package_the_lock_keeps_from_a_platform_is_kept_by_pyproject_too():
    """Else `make lock` would drop the marker, and `decant doctor` would offer what cannot be installed."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines()]
    locked = {one.name: str(one.marker) for one in map(Requirement, filter(None, lines)) if one.marker}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = [settings["dependencies"], *settings["optional-dependencies"].values()]
    named = {one.name: str(one.marker) for group in groups for one in map(Requirement, group) if one.marker}
    assert locked == named
