"""Model folders from anywhere: a pickle is never opened, a damaged weight file is refused before a weight is read."""

import json
import pickle
import resource
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pipeline.base.errors import ModelError
from pipeline.models.model_files import MAX_HEADER_BYTES, PICKLE_SUFFIXES, check_folder, check_safetensors, find_model

MAX_SECONDS = 0.1


class Bomb:
    """A pickle of it leaves a file behind when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that is in order."""
    path = tmp_path / "model"
    path.mkdir()
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.int64)}, path / "model.safetensors")
    (path / "config.json").write_text("{}")
    (path / "tokenizer.json").write_text("{}")
    return path


def entry(start: int, end: int, shape: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write_raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with any header, and any length said of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def refused(path: Path, message: str) -> None:
    """Refused with the file's name and the message, in a tenth of a second.

    A slow refusal is slow each time; one that the collector of garbage interrupted is quick the next.
    """
    for last in (False, False, True):
        started = time.process_time()
        with pytest.raises(ModelError, match=message) as caught:
            check_safetensors(path)
        assert str(path) in str(caught.value)
        seconds = time.process_time() - started
        if seconds < MAX_SECONDS:
            return
        assert not last, f"took {seconds:.2f} s, three times"


def test_a_folder_in_order_passes(folder):
    """Also with metadata, no tensors, and tensors of no size."""
    check_folder(folder)
    assert find_model(str(folder)) == folder
    save_file({"a": torch.zeros(0, 3), "b": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    check_folder(folder)
    save_file({}, folder / "model.safetensors")
    check_folder(folder)


@pytest.mark.parametrize("suffix", sorted(PICKLE_SUFFIXES))
def test_a_pickle_by_its_name_is_refused(folder, suffix):
    """Beside good weights too: whoever loads the folder next may take it."""
    (folder / f"pytorch_model{suffix}").write_bytes(b"anything")
    with pytest.raises(
        ModelError, match=rf"pytorch_model\{suffix}: a pickle .*expected model.safetensors only; convert"
    ):
        check_folder(folder)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["model.safetensors", "training_args", "notes.txt", "model.onnx"])
def test_a_renamed_pickle_is_refused_by_its_first_bytes_and_never_opened(folder, tmp_path, protocol, name):
    """Whatever name it carries."""
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded"), protocol=protocol))
    with pytest.raises(ModelError, match=rf"{name}: a pickle or other file that can run code when opened"):
        check_folder(folder)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("protocol", [0, 1])
def test_an_old_pickle_named_safetensors_is_refused(folder, tmp_path, protocol):
    """These have no mark at their start; as weights they are no safetensors file."""
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded"), protocol=protocol))
    with pytest.raises(ModelError, match=r"model.safetensors: not a safetensors file or truncated"):
        check_folder(folder)
    assert not (tmp_path / "exploded").exists()


def test_a_torch_archive_is_refused(folder):
    """torch.save writes a zip with a pickle in it."""
    with zipfile.ZipFile(folder / "weights", "w") as archive:
        archive.writestr("data.pkl", "x")
    with pytest.raises(ModelError, match="weights: a pickle"):
        check_folder(folder)


def test_a_folder_without_weights_or_configuration_is_refused(folder):
    """With how to make them."""
    (folder / "config.json").rename(folder / "config.txt")
    with pytest.raises(ModelError, match=r"no config.json; expected a folder written by save_pretrained"):
        check_folder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no .safetensors file; save the model with safe_serialization=True"):
        check_folder(folder)


def test_what_is_neither_folder_nor_id_is_refused(tmp_path):
    """Without asking the hub."""
    (tmp_path / "file").write_text("")
    for source in (str(tmp_path / "file"), str(tmp_path / "nothing"), "a/b/c", "spaces in it"):
        with pytest.raises(ModelError, match="is no folder, no hub id and no pypi:PACKAGE/FOLDER"):
            find_model(source)


def test_a_truncated_file_is_refused_by_how_much(folder):
    """At every length: within the header it is no safetensors file, behind it the missing bytes are counted."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        missing = len(whole) - length
        refused(path, f"truncated by {missing} bytes" if length >= header else "not a safetensors file or truncated")
    path.write_bytes(whole + b"xyz")
    refused(path, "longer by 3 bytes")


@pytest.mark.parametrize("length", [4 * 2**30, 2**63, 2**64 - 1, MAX_HEADER_BYTES + 1, 200])
def test_a_header_longer_than_the_file_or_the_format_allows_is_refused(tmp_path, length):
    """4 GB, what would be negative as a signed number, and one that only this file is too short for."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(write_raw(tmp_path / "a.safetensors", {}, b"x" * 50, length), f"header of {length:,} bytes in a file of 60")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, "tensor 'b' spans bytes 4-12, which overlap, leave a hole"),
        ({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, "tensor 'b' spans bytes 0-8, which overlap"),
        ({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, "tensor 'b' spans bytes 12-20, which overlap, leave a hole"),
        ({"a": entry(4, 12, [2])}, "tensor 'a' spans bytes 4-12"),
        ({"a": entry(0, 8, [3])}, "tensor 'a' spans bytes 0-8, .* or misfit"),
        ({"a": entry(8, 0, [2])}, "tensor 'a' spans bytes 8-0"),
        ({"a": entry(-8, 0, [2])}, "tensor 'a' "),
        ({"a": entry(0, 2**64, [2**62])}, "truncated by 18,446,744,073,709,551,604 bytes|tensor 'a' "),
        ({"a": entry(0, 8, [2], "F33")}, "tensor 'a' spans bytes 0-8, .* or misfit"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}',
            "header is damaged: duplicate keys",
        ),
        (b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "duplicate keys"),
        (b"{", "header is damaged"),
        (b"[" * 5_000, "header is damaged"),
        (b"\xff\xfe", "header is damaged"),
        ([], "header is damaged"),
        ({"a": {}}, "header is damaged"),
        ({"a": None}, "header is damaged"),
    ],
)
def test_a_header_that_does_not_describe_the_file_is_refused(tmp_path, header, message):
    """Overlaps, holes, negative and endless offsets, unknown types, keys that stand twice."""
    refused(write_raw(tmp_path / "a.safetensors", header, b"x" * 12), message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "U8"]) | JSON,
        "shape": st.lists(st.integers(-2, 3), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-4, 24), min_size=2, max_size=2) | JSON,
    },
)


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRY | JSON, max_size=3) | JSON)
@example(header={"a": {"data_offsets": [0, 4], "dtype": "F32"}})
@example(header={"a": {"data_offsets": [0, 4], "shape": [1]}})
@example(header={"a": {"data_offsets": [0, 4, 8], "shape": [1], "dtype": "F32"}})
@example(header={"a": {"data_offsets": ["0", "4"], "shape": [1], "dtype": "F32"}})
@example(header={"a": {"data_offsets": [0, 4], "shape": None, "dtype": "F32"}})
@example(header={"a": {"data_offsets": [0, 4], "shape": [1], "dtype": []}})
@example(header={"a": {"data_offsets": [0, 16], "shape": [-2, -2], "dtype": "F32"}})
@example(header={"a": {"data_offsets": [0, 4], "shape": [10**9, "x"], "dtype": "F32"}})
def test_an_arbitrary_header_is_accepted_only_by_both_or_refused(tmp_path, header):
    """No other error than ours; and what we accept, the safetensors library accepts too."""
    from safetensors import SafetensorError, safe_open

    path = write_raw(tmp_path / "a.safetensors", header, b"x" * 16)
    started = time.process_time()
    try:
        check_safetensors(path)
    except ModelError:
        accepted = False
    else:
        accepted = True
    assert time.process_time() - started < 1
    if accepted:
        try:
            with safe_open(path, "pt") as file:
                list(file.keys())
        except SafetensorError as error:
            raise AssertionError(f"accepted here, refused there: {error}") from error
