"""Facts about the machine: the same from call to call, and nothing in them that changes from minute to minute."""

import json
import os
import platform
from pathlib import Path

import pytest

from pipeline.base import machine
from pipeline.base.errors import DataError
from pipeline.base.workspace import Workspace
from pipeline.settings.params import Params, load
from stages.machine import input_digests, run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def params() -> Params:
    return load(ROOT / "params.yaml", with_plugins=False)


def with_data(params: Params, **changes: object) -> Params:
    return params.model_copy(update={"data": params.data.model_copy(update=changes)})


def test_facts_are_the_same_from_call_to_call():
    """DVC re-runs every benchmark when they change."""
    assert machine.facts() == machine.facts()
    json.dumps(machine.facts(), allow_nan=False)


def test_facts_name_what_a_timing_depends_on():
    """CPU, cores, memory, system, Python and the packages that run models."""
    facts = machine.facts()
    assert facts["cpu"] and facts["architecture"] == platform.machine()
    assert facts["cores"] == os.cpu_count()
    assert facts["memory_gib"] > 0
    assert facts["python"] == platform.python_version()
    assert set(facts["packages"]) == set(machine.PACKAGES)
    assert facts["packages"]["torch"] and "+" not in facts["packages"]["torch"]
    assert set(facts["isa"]) <= set(machine.ISA_FLAGS)
    assert str(Path.home()) not in json.dumps(facts)


def test_facts_of_a_machine_without_proc_or_governor(monkeypatch):
    """As on macOS: what cannot be known is absent or None, never a guess."""
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    monkeypatch.setattr(machine, "_read", lambda path: None)
    facts = machine.facts()
    assert facts["isa"] == []
    assert facts["governor"] is None
    assert facts["cpu"]


def test_instruction_sets_are_read_from_either_spelling(monkeypatch):
    """x86 says flags, ARM says Features; a flag that only starts alike does not count."""
    for key, words, expected in (
        ("flags", "fpu avx2 avx512f_x avx512_vnni", ["avx2", "avx512_vnni"]),
        ("Features", "fp asimddp sve2 i8mm", ["asimddp", "i8mm"]),
    ):
        monkeypatch.setattr(machine, "_cpu_info", lambda key=key, words=words: {key: words})
        assert machine.facts()["isa"] == expected


@pytest.mark.parametrize(
    ("system", "architecture", "isa", "kind", "meaning"),
    [
        ("Linux 6.8", "x86_64", ["avx2", "avx512f", "avx512_vnni"], "VNNI", "summed in 32 bits"),
        ("Linux 6.8", "x86_64", ["avx2", "avx_vnni"], "VNNI", "int8 pays most"),
        ("Linux 6.8", "x86_64", ["avx2", "avx512f", "avx512_bf16"], "AVX-512 without VNNI", "pairs in 16 bits"),
        ("Linux 6.8", "x86_64", ["avx2"], "AVX2", "about 1.7 times fp32 in onnxruntime"),
        ("Linux 6.8", "x86_64", [], "unknown", "only a measurement"),
        ("Linux 6.8", "riscv64", [], "unknown", "only a measurement"),
        ("Linux 6.8", "aarch64", ["asimddp"], "Arm dot products", "nothing saturates"),
        ("Linux 6.8", "aarch64", ["i8mm", "bf16"], "Arm dot products", "nothing saturates"),
        ("Linux 6.8", "aarch64", [], "Arm without dot products", "nothing saturates"),
        ("Darwin 24.1.0", "arm64", [], "Arm dot products", "nothing saturates"),
        ("Darwin 24.1.0", "x86_64", [], "unknown", "only a measurement"),
        ("Windows 11", "AMD64", [], "unknown", "only a measurement"),
        ("Windows 11", "ARM64", [], "unknown", "only a measurement"),
    ],
)
def test_the_cpu_s_kind_for_int8_is_named(system, architecture, isa, kind, meaning):
    """A system without /proc/cpuinfo has no instruction sets to show: known for a Mac, unknown for the others."""
    found, sentence = machine.int8_kernels({"os": system, "architecture": architecture, "isa": isa})
    assert found == kind
    assert meaning in sentence


def test_the_kind_for_int8_is_named_for_this_machine():
    """From its own facts, of whichever kind they are."""
    assert all(machine.int8_kernels(machine.facts()))


def test_an_absent_package_has_no_version():
    """None, so that a record says so."""
    assert machine.version_of("no-such-package-of-ours") is None
    assert machine.version_of("pytest") == pytest.__version__


def test_conditions_are_taken_now(monkeypatch):
    """Load and threads at the time of measuring."""
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (1.234, 0.0, 0.0))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = machine.conditions()
    assert found["load_1min"] == 1.23
    assert found["omp_num_threads"] == "7"
    assert found["steal_seconds_since_boot"] >= 0


def test_the_stage_writes_the_same_bytes_twice(tmp_path, params):
    """It always runs, so anything that changed by itself would re-run everything behind it."""
    for name in ("one", "two"):
        workspace = Workspace(tmp_path / name)
        (workspace.root / "data").mkdir(parents=True)
        (workspace.root / "data" / "assistant").symlink_to(ROOT / "data" / "assistant")
        run(params, workspace)
    made = [f for f in (tmp_path / "one" / "artifacts").rglob("*.json") if "work" not in f.parts]
    files = {f.relative_to(tmp_path / "one"): f.read_bytes() for f in made}
    names = {str(file).removeprefix("artifacts/") for file in files}
    assert {"inputs.json", "machine.json", "depends/distill.json", "depends/benchmark/cpu.json"} <= names
    for file, content in files.items():
        assert (tmp_path / "two" / file).read_bytes() == content
        assert str(tmp_path).encode() not in content


def test_a_changed_data_file_changes_its_digest(tmp_path, params):
    """And only its own; a missing one is named."""
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("text,label\na,b\n")
    files = params.data.files.model_copy(update={"root": str(tmp_path)})
    mine = with_data(params, source="files", files=files)
    before = input_digests(mine, Path())["data"]
    (tmp_path / "train.csv").write_text("text,label\na,c\n")
    after = input_digests(mine, Path())["data"]
    assert before["test"] == after["test"]
    assert before["train"] != after["train"]
    (tmp_path / "test.csv").unlink()
    with pytest.raises(DataError, match=r"test.csv: no such file; check data.files in params.yaml"):
        input_digests(mine, Path())


def test_a_hub_data_set_is_known_by_name_and_revision(params):
    """Nothing local to digest."""
    hub = params.data.hub.model_copy(update={"dataset": "some/set", "revision": "abc"})
    found = input_digests(with_data(params, source="hub", hub=hub), ROOT)["data"]
    assert found == {"dataset": "some/set", "config": None, "revision": "abc"}
