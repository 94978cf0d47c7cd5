"""The Core ML session, on a stand-in for MLModel: it can only run on a Mac."""

import platform
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eval.runtimes import coreml
from pipeline.errors import ModelError, UnusableRuntimeError
from pipeline.records import Artefact, TensorFact

ARTEFACT = Artefact(
    format="coreml",
    precision="fp16",
    file="model.mlpackage",
    inputs=tuple(TensorFact(name=name, dtype="int32", shape=(1, "length")) for name in ("input_ids", "attention_mask")),
    outputs=(
        TensorFact(name="logits", dtype="float32", shape=(1, 2)),
        TensorFact(name="classLabel", dtype="string", shape=()),
    ),
    lengths=(4, 8),
    max_length=8,
    tools={},
)


class FakeModel:
    """Answers (sum of the ids that are not masked, number of tokens), and keeps what it was given."""

    outputs = ("classLabel", "logits")

    def __init__(self, path: str) -> None:
        self.path = path
        self.calls: list[dict[str, np.ndarray]] = []

    def get_spec(self) -> Any:
        inputs = [SimpleNamespace(name=name) for name in ("input_ids", "attention_mask")]
        outputs = [SimpleNamespace(name=name) for name in self.outputs]
        return SimpleNamespace(description=SimpleNamespace(input=inputs, output=outputs))

    def predict(self, given: dict[str, np.ndarray]) -> dict[str, Any]:
        self.calls.append(given)
        ids, mask = given["input_ids"], given["attention_mask"]
        return {"classLabel": "a", "logits": np.array([[(ids * mask).sum(), mask.sum()]], dtype=np.float32)}


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac whose coremltools is only `FakeModel`."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(coreml.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "coremltools", SimpleNamespace(models=SimpleNamespace(MLModel=FakeModel)))


def test_elsewhere_it_says_why_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another system is a reason, which opening a session repeats."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert coreml.why_unusable() == "Core ML runs on macOS only; this is Linux x86_64"
    with pytest.raises(UnusableRuntimeError, match="macOS only"):
        coreml.open_session(tmp_path, ARTEFACT, 1)


def test_a_missing_package_is_a_reason(mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac without coremltools the reason is coremltools."""
    monkeypatch.setattr(coreml.util, "find_spec", lambda name: None)
    assert coreml.why_unusable() == "the package 'coremltools' is not installed"


def test_version_names_the_system(mac: None) -> None:
    """Core ML is a part of macOS, so its version is in the record."""
    assert coreml.version().startswith("macOS 15.1, coremltools ")


def test_a_batch_is_one_call_for_each_text(mac: None) -> None:
    """Rows go in one by one, by name, as int32, padded with masked zeros to the shortest length that fits."""
    ids = np.array([[5, 6, 7, 8, 9], [1, 2, 3, 0, 0]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with coreml.open_session(Path("exported"), ARTEFACT, 1) as session:
        model = session._model
        logits = session.run(ids, mask)
    assert model.path == "exported/model.mlpackage"
    assert len(model.calls) == 2
    for call, row in zip(model.calls, range(2), strict=True):
        assert sorted(call) == ["attention_mask", "input_ids"]
        for name, given in (("input_ids", ids), ("attention_mask", mask)):
            assert call[name].dtype == np.int32 and call[name].shape == (1, 8)
            assert call[name][0].tolist() == [*given[row], 0, 0, 0]
    assert logits.dtype == np.float32
    assert logits.tolist() == [[35.0, 5.0], [6.0, 3.0]]


@pytest.mark.parametrize(("length", "padded"), [(1, 4), (4, 4), (5, 8), (8, 8)])
def test_the_shortest_length_is_picked(mac: None, length: int, padded: int) -> None:
    """An input of a listed length is not padded."""
    session = coreml.open_session(Path("exported"), ARTEFACT, 1)
    session.run(np.ones((1, length), dtype=np.int64), np.ones((1, length), dtype=np.int64))
    assert session._model.calls[0]["input_ids"].shape == (1, padded)


def test_a_longer_input_is_refused(mac: None) -> None:
    """Nothing is cut in silence."""
    session = coreml.open_session(Path("exported"), ARTEFACT, 1)
    with pytest.raises(ModelError, match="9 tokens, expected at most 8"):
        session.run(np.ones((1, 9), dtype=np.int64), np.ones((1, 9), dtype=np.int64))


def test_names_are_those_of_the_package(mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared with other formats is the logits; a package without what its card says is refused."""
    session = coreml.open_session(Path("exported"), ARTEFACT, 1)
    assert session.input_names == ("input_ids", "attention_mask")
    assert session.output_names == ("logits",)
    monkeypatch.setattr(FakeModel, "outputs", ("scores",))
    with pytest.raises(ModelError, match=r"outputs \['scores'\], expected .*logits.* as in its card"):
        coreml.open_session(Path("exported"), ARTEFACT, 1)


def test_a_package_that_core_ml_refuses_is_no_session(mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """coremltools only warns and would fail at the first call; the reason comes at once instead."""

    class Refused(FakeModel):
        def __init__(self, path: str) -> None:
            warnings.warn(
                "You will not be able to run predict() on this Core ML model. Underlying exception message was: "
                "unsupported version 9",
                RuntimeWarning,
                stacklevel=2,
            )

    monkeypatch.setattr(sys.modules["coremltools"].models, "MLModel", Refused)
    with pytest.raises(
        UnusableRuntimeError, match=r"macOS 15\.1 cannot load it: .*unsupported version 9; if the system"
    ):
        coreml.open_session(Path("exported"), ARTEFACT, 1)
