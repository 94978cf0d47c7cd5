"""Records: what is damaged, cut, changed or of another kind is refused with its file, never read."""

import json
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.base.errors import IntegrityError, PipelineError
from pipeline.base.records import (
    SCHEMA_VERSION,
    Artefact,
    Card,
    FileFact,
    Floor,
    Floors,
    Interval,
    Parity,
    digest,
    open_folder,
    read,
    read_lines,
    seal,
    write,
)
from pipeline.tasks.single_label import METRIC

PARITY = Parity(examples=32, tolerance=1e-4, worst_difference=3e-6, mean_difference=1e-6, same_label=1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed folder of three files, one of them in a folder of its own."""
    path = tmp_path / "student"
    (path / "tokenizer").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(random.Random(0).randbytes(2_000))
    (path / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    (path / "empty.txt").write_text("")
    seal(path, "student", {"data": "d" * 64}, {"accuracy": 0.91})
    return path


def rewrite(path: Path, change: object) -> None:
    """Changes a record's JSON by a function of the whole document, without renewing its hash."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


# --- folders -------------------------------------------------------------------------------------------------------


def test_a_sealed_folder_opens_with_what_was_said(folder):
    """Every file is listed with its size, whatever folder it lies in; the card does not list itself."""
    card = open_folder(folder, "student")
    assert sorted(card.files) == ["empty.txt", "model.safetensors", "tokenizer/vocab.txt"]
    assert card.files["model.safetensors"].bytes == 2_000
    assert (card.sources, card.facts) == ({"data": "d" * 64}, {"accuracy": 0.91})


def test_sealing_is_repeatable_and_the_digest_follows_the_files(folder, tmp_path):
    """The same files in another folder give the same bytes; one other byte gives another digest."""
    twin = tmp_path / "elsewhere" / "twin"
    shutil.copytree(folder, twin)
    (twin / "card.json").unlink()
    first, second = open_folder(folder, "student"), seal(twin, "student", {"data": "d" * 64}, {"accuracy": 0.91})
    assert (folder / "card.json").read_bytes() == (twin / "card.json").read_bytes()
    assert first.digest == second.digest
    (twin / "empty.txt").write_text("x")
    assert seal(twin, "student").digest != first.digest


def test_every_bit_flip_in_a_file_is_found(folder):
    """A sweep: any bit of the weights. Flipped weights load and run, so only the hash can tell."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for seed in range(64):
        place = random.Random(seed).randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(
            IntegrityError,
            match=r"model.safetensors: damaged: found SHA-256 [0-9a-f]{16}…, expected .*dvc repro --force",
        ):
            open_folder(folder, "student")
    path.write_bytes(whole)
    open_folder(folder, "student")


def test_every_damaged_byte_of_a_card_is_found(folder):
    """The card's own numbers are judged too, so a changed accuracy may not pass; white space may."""
    path = folder / "card.json"
    whole = path.read_bytes()
    expected = open_folder(folder, "student")
    for place in range(len(whole)):
        for bit in (0, 3, 7):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                assert open_folder(folder, "student") == expected
            except IntegrityError as error:
                assert "card.json" in str(error)


def test_a_cut_card_is_found_at_every_length(folder):
    """A cut JSON document is never taken for a shorter one."""
    path = folder / "card.json"
    whole = path.read_bytes()
    for length in range(len(whole.rstrip())):
        path.write_bytes(whole[:length])
        with pytest.raises(IntegrityError, match=r"card.json: not a Decant record or cut short"):
            open_folder(folder, "student")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "card.json").unlink(), r"student: no card.json, so it was never finished; run `dvc repro`"),
        (lambda f: shutil.rmtree(f), r"student: no card.json"),
        (lambda f: (f / "empty.txt").unlink(), r"empty.txt: missing, but listed in the card beside it; delete"),
        (lambda f: (f / "tokenizer" / "vocab.txt").rename(f / "vocab.txt"), r"tokenizer/vocab.txt: missing"),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"x" * 1_500),
            r"model.safetensors: truncated by 500 bytes \(found 1,500, expected 2,000\)",
        ),
        (lambda f: (f / "empty.txt").write_text("more"), r"empty.txt: longer by 4 bytes"),
        (lambda f: (f / "tokenizer" / "extra.bin").write_bytes(b"x"), r"tokenizer/extra.bin: not listed in the card"),
        (lambda f: (f / "tokenizer" / "card.json").write_text("{}"), r"tokenizer/card.json: not listed in the card"),
        (
            lambda f: rewrite(f / "card.json", lambda card: card | {"record": card["record"] | {"facts": {}}}),
            r"card.json: changed since it was written: content has SHA-256 .*; delete it and run `dvc repro`",
        ),
    ],
)
def test_a_folder_that_is_not_as_it_was_is_refused(folder, change, message):
    """With the file, what was found and what to do; exit status 4."""
    change(folder)
    with pytest.raises(IntegrityError, match=message) as caught:
        open_folder(folder, "student")
    assert caught.value.exit_status == 4


def test_what_a_desktop_leaves_in_a_folder_is_no_change(folder):
    """Who looks at a folder on a Mac has not changed it."""
    (folder / ".DS_Store").write_bytes(b"x")
    assert open_folder(folder, "student").kind == "student"


@pytest.mark.parametrize("file", ["../outside.onnx", "/etc/passwd", "", "..", ".", "deep/model.onnx", "a\\b.onnx"])
def test_an_artefact_is_a_file_of_its_folder(file):
    """A sealed card may still say what it likes: what it names must lie beside it."""
    with pytest.raises(ValidationError, match="expected a name without a folder"):
        Artefact(format="onnx", precision="fp32", file=file, inputs=(), outputs=(), max_length=8, tools={})


def test_a_folder_of_another_kind_is_refused(folder):
    """A teacher in the place of a student would be measured as one."""
    with pytest.raises(IntegrityError, match="student: found a 'student', expected a 'teacher'"):
        open_folder(folder, "teacher")


# --- records -------------------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was(tmp_path):
    """Nested ones and tuples too; two writings give the same bytes, without a date."""
    floor = Floor(
        name="majority",
        primary=Interval(value=0.1, low=0.05, high=0.2),
        further={"macro F1": 0.01},
        size_bytes=1,
        latency_ms=None,
        answers=(0, 0),
        values=(1.0, 0.0),
    )
    record = Floors(examples=2, metric=METRIC, groups=("a", "b"), known_groups=("a", "b"), floors=(floor,))
    write(record, tmp_path / "a.json")
    write(record, tmp_path / "b.json")
    assert read(Floors, tmp_path / "a.json") == record
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text())["sha256"] == digest(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda outer: outer | {"record": outer["record"] | {"tolerance": 1.0}}, "changed since it was written"),
        (lambda outer: outer | {"sha256": "0" * 64}, "changed since it was written: .* expected 0000000000000000…"),
        (lambda outer: outer | {"sha256": 5}, "changed since it was written"),
        (lambda outer: outer["record"], "not a Decant record or cut short; delete it and run `dvc repro`"),
        (lambda outer: [outer], "not a Decant record"),
        (lambda outer: None, "not a Decant record"),
    ],
)
def test_a_record_changed_by_hand_is_refused(tmp_path, change, message):
    """So that a verdict rests on what was measured."""
    path = tmp_path / "parity.json"
    write(PARITY, path)
    rewrite(path, change)
    with pytest.raises(IntegrityError, match=message):
        read(Parity, path)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"record": 1' + b"0" * 5_000, b"null"])
def test_a_file_that_is_no_record_is_refused(tmp_path, content):
    """Cut short, deep, not UTF-8, or too long a number."""
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(IntegrityError, match="not a Decant record or cut short"):
        read(Parity, tmp_path / "a.json")
    with pytest.raises(IntegrityError, match="missing; run `dvc repro` to make it"):
        read(Parity, tmp_path / "b.json")


@pytest.mark.parametrize(("version", "writer"), [(SCHEMA_VERSION - 1, "an earlier"), (SCHEMA_VERSION + 1, "a later")])
def test_another_kind_or_schema_version_is_refused(tmp_path, version, writer):
    """Even with the right hash: fields that mean something else must not be taken for ours."""
    write(Interval(value=1.0, low=0.0, high=2.0), tmp_path / "a.json")
    with pytest.raises(IntegrityError, match=f"not a Parity of schema version {SCHEMA_VERSION}: "):
        read(Parity, tmp_path / "a.json")
    other = Parity.model_construct(**PARITY.model_dump() | {"schema_version": version})
    write(other, tmp_path / "b.json")
    with pytest.raises(IntegrityError, match=f"version {version}, which {writer} Decant writes.*dvc repro --force"):
        read(Parity, tmp_path / "b.json")


def test_records_take_no_nan_no_unknown_field_and_no_change():
    """A NaN in a record would pass every comparison it is in."""
    with pytest.raises(ValidationError, match="finite number"):
        Interval(value=float("nan"), low=0.0, high=1.0)
    with pytest.raises(ValidationError, match="Extra inputs"):
        Interval(value=0.0, low=0.0, high=1.0, unit="ms")
    with pytest.raises(ValidationError, match="frozen"):
        PARITY.examples = 1


@pytest.mark.parametrize(
    "change", [{"kind": "y"}, {"facts": {"lengths": [64]}}, {"sources": {"data": "e" * 64}}, {"files": {}}], ids=str
)
def test_a_cards_digest_is_of_all_that_it_says(change):
    """The lengths that a card declares decide what a runtime is asked, so they are part of what was measured."""
    files = {"a": FileFact(bytes=1, sha256="1" * 64), "b": FileFact(bytes=2, sha256="2" * 64)}
    one = Card(kind="x", files=files, facts={"lengths": [32]})
    assert one.model_copy(update={"files": dict(reversed(files.items()))}).digest == one.digest
    assert one.model_copy(update=change).digest != one.digest


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=200) | st.text(alphabet='{}[]":,record sha256 0e\\', max_size=60).map(str.encode))
def test_arbitrary_bytes_are_never_a_record_and_never_a_traceback(tmp_path, content):
    """As a record, and as a card."""
    (tmp_path / "card.json").write_bytes(content)
    for attempt in (lambda: read(Parity, tmp_path / "card.json"), lambda: open_folder(tmp_path, "student")):
        with pytest.raises(PipelineError):
            attempt()


# --- logs ----------------------------------------------------------------------------------------------------------


def test_a_log_whose_last_line_was_cut_keeps_its_other_lines(tmp_path):
    """At every length of the cut, in the middle of a letter of two bytes too; what is ignored is said."""
    path = tmp_path / "log.jsonl"
    first, last = '{"step": 1}\n{"step": 2}\n', '{"step": 3, "note": "é"}\n'.encode()
    for length in range(1, len(last) - 1):
        path.write_bytes(first.encode() + last[:length])
        lines, ignored = read_lines(path)
        assert lines == [{"step": 1}, {"step": 2}]
        assert ignored == f"{path}:3: the last line was cut by a crash and is ignored"
    path.write_bytes(first.encode() + last)
    assert read_lines(path) == ([{"step": 1}, {"step": 2}, {"step": 3, "note": "é"}], None)


def test_a_log_damaged_elsewhere_is_refused_and_a_missing_one_is_empty(tmp_path):
    """A crash cuts the end; damage in the middle has another cause."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(IntegrityError, match=r"log.jsonl:2: not JSON; the log is damaged"):
        read_lines(path)
    assert read_lines(tmp_path / "none.jsonl") == ([], None)
