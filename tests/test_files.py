"""Nothing half-written is ever read: faults are put between each step of a write, on a full disk among others."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.base import files
from pipeline.base.errors import EnvironmentFault, PipelineError
from pipeline.base.files import output_folder, require_space, sha256_of, translate_os_error, write_atomically

FULL = OSError(errno.ENOSPC, "No space left on device")


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones included, with its text."""
    return {f.relative_to(folder).as_posix(): f.read_text() for f in sorted(folder.rglob("*")) if f.is_file()}


def write_folder(path: Path, text: str) -> None:
    with output_folder(path) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "model.bin").write_text(text)
        (partial / "card.json").write_text(text)


def raises(error: BaseException) -> Callable:
    def fail(*args: object, **options: object) -> None:
        raise error

    return fail


def fails_on_call(function: Callable, number: int, error: BaseException) -> Callable:
    """The function, but call number `number` (from 1) raises."""
    calls = []

    def wrapped(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == number:
            raise error
        return function(*args, **options)

    return wrapped


# --- a folder ------------------------------------------------------------------------------------------------------


def test_a_folder_appears_all_at_once(tmp_path):
    """Nothing under the final name while the block runs, everything after it, and nothing beside it."""
    path = tmp_path / "deep" / "model"
    with output_folder(path) as partial:
        (partial / "a").write_text("1")
        assert not path.exists()
    assert tree(tmp_path) == {"deep/model/a": "1"}


def test_a_new_folder_takes_the_place_of_an_old_one(tmp_path):
    """Files of the old one are gone, not mixed in."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "stale").write_text("old")
    write_folder(path, "new")
    assert tree(tmp_path) == {"model/card.json": "new", "model/inner/model.bin": "new"}


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), SystemExit(143), PipelineError("no")])
def test_an_exception_in_the_block_leaves_what_was_there(tmp_path, error):
    """Any exception, ends of the process included; it comes out as it is."""
    path = tmp_path / "model"
    write_folder(path, "old")
    with pytest.raises(type(error)), output_folder(path) as partial:
        (partial / "half").write_text("new")
        raise error
    assert tree(tmp_path) == {"model/card.json": "old", "model/inner/model.bin": "old"}


@pytest.mark.parametrize(
    ("existing", "place", "name", "number"),
    [
        *((existing, os, "fsync", number) for existing in (True, False) for number in (1, 2)),  # either file
        *((existing, Path, "mkdir", 1) for existing in (True, False)),
        (False, Path, "rename", 1),  # the new folder in place
        (True, Path, "rename", 1),  # the old folder aside
        (True, Path, "rename", 2),  # the new folder in place, with the old one already aside
    ],
)
def test_a_fault_at_any_step_leaves_what_was_there(tmp_path, monkeypatch, existing, place, name, number):
    """ENOSPC at each call that can give it: the older version stays valid, the message names the path."""
    path = tmp_path / "model"
    before = {}
    if existing:
        write_folder(path, "old")
        before = tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, fails_on_call(getattr(place, name), number, FULL))
        with pytest.raises(EnvironmentFault, match=r"model: the disk is full \([\d,]+ bytes free\); free some space"):
            write_folder(path, "new")
    assert tree(tmp_path) == before
    write_folder(path, "new")
    assert tree(tmp_path) == {"model/card.json": "new", "model/inner/model.bin": "new"}


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.base import files
step, path = sys.argv[1], Path(sys.argv[2])

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

real = Path.rename
def rename(self, target):
    if step == "first rename" or (step == "second rename" and target == path):
        die()
    return real(self, target)

if step == "fsync":
    os.fsync = die
Path.rename, Path.replace = rename, die
if step == "replace":
    files.write_atomically(path / "card.json", "new")
else:
    with files.output_folder(path) as partial:
        (partial / "card.json").write_text("new")
        if step == "block":
            die()
"""


@pytest.mark.parametrize("step", ["block", "fsync", "first rename", "second rename", "replace"])
def test_a_process_killed_at_any_step_leaves_a_whole_folder_for_the_next(tmp_path, step):
    """A real kill -9. The next writer removes what is left, and never the only version there is."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "card.json").write_text("old")
    command = [sys.executable, "-c", KILLED, step, str(path)]
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, check=False)
    assert result.returncode == -9, result.stderr
    assert any(name.endswith(".partial") or ".partial/" in name for name in tree(tmp_path)) or step == "block"
    if step != "second rename":
        assert (path / "card.json").read_text() == "old"
    # A next run that fails as well must find the old version still there.
    target = path / "card.json" if step == "replace" else path
    with pytest.raises(EnvironmentFault, match="the disk is full"):
        fail_to_write(target)
    assert tree(tmp_path) == {"model/card.json": "old"}


def fail_to_write(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", raises(FULL))
        if path.suffix:
            write_atomically(path, "newer")
        else:
            write_folder(path, "newer")


def test_left_overs_of_a_killed_run_are_removed_and_other_names_are_not(tmp_path):
    """`model` must not clear up after `model2`, nor a name with glob characters after others."""
    for name in (".model.99999999.partial", ".model2.99999999.partial", ".a.99999999.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("")
    write_folder(tmp_path / "model", "new")
    write_folder(tmp_path / "[a]", "new")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".a.99999999.partial", ".model2.99999999.partial", "[a]", "model"]


# --- a single file -------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole(tmp_path):
    """Folders are made, the text is UTF-8 with plain line ends, nothing stays beside it."""
    path = tmp_path / "new" / "a.json"
    write_atomically(path, "one\ntwö\n")
    write_atomically(path, "three\n")
    assert path.read_bytes() == b"three\n"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("place", "name"), [(os, "fsync"), (Path, "replace"), (Path, "open")])
def test_a_file_stays_as_it_was_when_a_step_fails(tmp_path, monkeypatch, place, name):
    """The message names the file, not the temporary one."""
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(place, name, raises(FULL))
        with pytest.raises(EnvironmentFault, match=r"a.json: the disk is full .*What was there before is unchanged"):
            write_atomically(path, "new")
    assert tree(tmp_path) == {"a.json": "old"}


def test_a_partial_file_of_a_living_process_is_left_alone(tmp_path):
    """Only what a dead process left is cleared up."""
    (tmp_path / f".a.json.{os.getppid()}.partial").write_text("being written")
    (tmp_path / ".a.json.99999999.partial").write_text("left over")
    write_atomically(tmp_path / "a.json", "new")
    assert sorted(tree(tmp_path)) == [f".a.json.{os.getppid()}.partial", "a.json"]


# --- the disk ------------------------------------------------------------------------------------------------------


def test_too_little_space_is_refused_before_anything_is_written(tmp_path):
    """With the bytes needed and free."""
    with pytest.raises(EnvironmentFault, match=r"the disk has [\d,]+ bytes free, 1,000,000,000,000,000 are needed"):
        require_space(tmp_path, 10**15)
    with pytest.raises(EnvironmentFault, match="are needed"), output_folder(tmp_path / "a", 10**15):
        raise AssertionError("the block must not run")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_really_full_loses_nothing(small_disk):
    """While a folder is written, and while a file is; a smaller one fits again afterwards."""
    path = small_disk / "model"
    write_folder(path, "x" * 200_000)
    before = tree(small_disk)
    with pytest.raises(EnvironmentFault, match=r"model: the disk is full \([\d,]+ bytes free\)"):
        write_folder(path, "y" * 400_000)
    assert tree(small_disk) == before
    with pytest.raises(EnvironmentFault, match="bytes free, 900,000 are needed"):
        write_atomically(path / "card.json", "z" * 900_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "require_space", lambda folder, needed: None)
        with pytest.raises(EnvironmentFault, match=r"card.json: the disk is full"):
            write_atomically(path / "card.json", "z" * 900_000)
    assert tree(small_disk) == before
    write_folder(path, "small")
    assert tree(small_disk) == {"model/card.json": "small", "model/inner/model.bin": "small"}


def test_a_disk_that_is_read_only_is_named(small_disk):
    """Root may write to a folder without permission, so a mount stands in for it."""
    write_folder(small_disk / "model", "old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(
        EnvironmentFault, match=r"model: no permission \(Read-only file system\); check the permissions"
    ):
        write_folder(small_disk / "model", "new")
    with pytest.raises(EnvironmentFault, match=r"a.json: no permission \(Read-only file system\)"):
        write_atomically(small_disk / "a.json", "new")
    with pytest.raises(EnvironmentFault, match=r"deep: no permission"):
        write_atomically(small_disk / "deep" / "a.json", "new")
    assert set(tree(small_disk).values()) == {"old"}


# --- paths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with space", "дані-数据", "a'b\"c", "n" * 200])
def test_odd_paths_work(tmp_path, name):
    """Spaces, other scripts, quotes, 200 characters."""
    write_folder(tmp_path / name, "new")
    write_atomically(tmp_path / name / "card.json", "newer")
    assert tree(tmp_path)[f"{name}/card.json"] == "newer"


def test_a_name_too_long_and_a_file_in_place_of_a_folder_are_one_message(tmp_path):
    """250 characters leave no room for the temporary name; neither leaves anything behind."""
    for write in (write_folder, write_atomically):
        with pytest.raises(EnvironmentFault, match=r"n+: File name too long"):
            write(tmp_path / ("n" * 250), "new")
    (tmp_path / "file").write_text("a file")
    for write in (write_folder, write_atomically):
        with pytest.raises(EnvironmentFault, match=r"(File exists|Not a directory)"):
            write(tmp_path / "file" / "model", "new")
    assert tree(tmp_path) == {"file": "a file"}


def test_a_fault_of_another_file_is_not_blamed_on_the_output(tmp_path):
    """While a folder is written, a missing input is named itself; our own partial name means nothing to a reader."""
    with pytest.raises(EnvironmentFault, match=r"input.txt: No such file or directory"), output_folder(tmp_path / "m"):
        (tmp_path / "input.txt").read_text()
    with (
        pytest.raises(EnvironmentFault, match=rf"{tmp_path}/m: No such file"),
        output_folder(tmp_path / "m") as partial,
    ):
        (partial / "missing").read_text()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (OSError(errno.EACCES, "Permission denied", "/x"), "/x: no permission"),
        (OSError(errno.EIO, "Input/output error"), "a: Input/output error"),
        (OSError("a library's own words"), "a: a library's own words"),
    ],
)
def test_every_error_of_the_system_becomes_one_line(tmp_path, error, message):
    """With a path, and exit status 4."""
    fault = translate_os_error(error, tmp_path / "a")
    assert message in str(fault)
    assert "\n" not in str(fault)
    assert fault.exit_status == 4


def test_sha256_agrees_with_another_implementation(tmp_path):
    """sha256sum, over more bytes than one block."""
    (tmp_path / "a").write_bytes(bytes(range(256)) * 5_000)
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum on this machine")
    result = subprocess.run(["sha256sum", str(tmp_path / "a")], capture_output=True, text=True, check=True)
    assert sha256_of(tmp_path / "a") == result.stdout.split()[0]
