"""The benchmark that compares the files of two versions: what it opens, what it times, what it says."""

import json

import pytest

from benchmarks import graphs


@pytest.fixture
def small(monkeypatch):
    """Two formats, one timed and one that is not, of students that are exported in a second."""
    monkeypatch.setattr(graphs, "VOCABULARY", 2000)
    monkeypatch.setattr(graphs, "LENGTHS", (8, 16))
    monkeypatch.setattr(graphs, "SIZES", {"tiny": (1, 16, 2)})
    coreml = {"lengths": (8, 16), "deployment_target": "iOS18"}
    monkeypatch.setattr(graphs, "FORMATS", {"onnx": {"fp32": ("fp32", {})}, "coreml": {"fp32": ("fp32", coreml)}})


@pytest.mark.slow  # two formats of two students, exported and timed
def test_a_larger_graph_is_seen_and_an_equal_one_is_not_timed(small, monkeypatch, tmp_path, capsys):
    """Planted: a version whose graph has a second layer."""
    for name, layers in (("old", 1), ("same", 1), ("new", 2)):
        monkeypatch.setattr(graphs, "SIZES", {"tiny": (layers, 16, 2)})
        graphs.write(tmp_path / name, "onnx,coreml")
    capsys.readouterr()
    graphs.compare(tmp_path / "old", tmp_path / "same", 2, 10, "")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["coreml tiny fp32: the same bytes", "onnx tiny fp32: the same bytes"]
    assert json.loads(lines[-1])["files"] == {}

    graphs.compare(tmp_path / "old", tmp_path / "new", 2, 10, "")
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert found["cpu"] and found["isa"]
    onnx, coreml = found["files"]["onnx tiny fp32"], found["files"]["coreml tiny fp32"]
    assert coreml["new_operations"] > coreml["old_operations"] > 0 and "lengths" in lines[-1]
    for one in (onnx, coreml):
        assert one["new_bytes"] > one["old_bytes"]
    for length in ("8", "16"):
        times = onnx["lengths"][length]
        assert times["low"] <= times["ratio"] <= times["high"]
        assert times["ratio"] == pytest.approx(times["new_ms"] / times["old_ms"], rel=0.5)


def test_only_the_files_asked_for_are_compared(small, tmp_path, capsys):
    for name in ("old", "new"):
        graphs.write(tmp_path / name, "onnx")
    capsys.readouterr()
    graphs.compare(tmp_path / "old", tmp_path / "new", 2, 10, "litert")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["files"] == {}
