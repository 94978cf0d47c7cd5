"""The Core ML session, on a stand-in for MLModel: it can only run on a Mac."""

import platform
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import named

from eval.checks import Subject, compute_units
from eval.latency import Exported
from eval.runtimes import coreml
from pipeline.base.errors import ModelError, SettingsError, UnusableRuntimeError
from pipeline.base.records import Artefact, TensorFact
from stages.commands import mac as mac_command

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

    def __init__(self, path: str, compute_units: str) -> None:
        self.path, self.units = path, compute_units
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
    monkeypatch.setitem(
        sys.modules,
        "coremltools",
        SimpleNamespace(models=SimpleNamespace(MLModel=FakeModel), ComputeUnit={unit: unit for unit in coreml.UNITS}),
    )


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
        logits = session.run(named(ids, mask))["logits"]
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
    session.run(named(np.ones((1, length), dtype=np.int64), np.ones((1, length), dtype=np.int64)))["logits"]
    assert session._model.calls[0]["input_ids"].shape == (1, padded)


def test_a_longer_input_is_refused(mac: None) -> None:
    """Nothing is cut in silence."""
    session = coreml.open_session(Path("exported"), ARTEFACT, 1)
    with pytest.raises(ModelError, match="9 tokens, expected at most 8"):
        session.run(named(np.ones((1, 9), dtype=np.int64), np.ones((1, 9), dtype=np.int64)))["logits"]


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
        def __init__(self, path: str, compute_units: str) -> None:
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


# --- what only a Mac can say, on answers recorded in the form that Core ML gives them ----------------------------


class MLCPUComputeDevice:
    """By the name that coremltools has."""


class MLNeuralEngineComputeDevice:
    """By the name that coremltools has."""


class RecordedPlan:
    """Two operations on the Neural Engine, one on the CPU, and a constant that runs nowhere."""

    def __init__(self) -> None:
        names = ["ios18.const", "ios18.gather", "ios18.linear", "ios18.linear"]
        operations = [SimpleNamespace(operator_name=name) for name in names]
        self.devices = {"gather": MLCPUComputeDevice(), "linear": MLNeuralEngineComputeDevice(), "const": None}
        main = SimpleNamespace(block=SimpleNamespace(operations=operations))
        self.model_structure = SimpleNamespace(program=SimpleNamespace(functions={"main": main}))

    @classmethod
    def load_from_path(cls, path: str, compute_units: str) -> "RecordedPlan":
        assert (path, compute_units) == ("compiled.mlmodelc", "ALL")
        return cls()

    def get_compute_device_usage_for_mlprogram_operation(self, op: Any) -> Any:
        device = self.devices[op.operator_name.rpartition(".")[2]]
        return None if device is None else SimpleNamespace(preferred_compute_device=device)


def test_the_compute_plan_is_counted_by_device_and_kind(
    mac: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Constants, which Core ML places nowhere, are left out."""
    monkeypatch.setattr(FakeModel, "get_compiled_model_path", lambda self: "compiled.mlmodelc", raising=False)
    recorded = SimpleNamespace(MLComputePlan=RecordedPlan)
    monkeypatch.setitem(sys.modules, "coremltools.models", SimpleNamespace(compute_plan=recorded))
    monkeypatch.setitem(sys.modules, "coremltools.models.compute_plan", recorded)
    assert coreml.compute_plan(tmp_path, ARTEFACT) == {"CPU": {"gather": 1}, "Neural Engine": {"linear": 2}}


def test_a_plan_that_cannot_be_had_is_an_error_of_the_package(
    mac: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever coremltools raises where it has none."""
    recorded = SimpleNamespace(MLComputePlan=SimpleNamespace())
    monkeypatch.setattr(FakeModel, "get_compiled_model_path", lambda self: "compiled.mlmodelc", raising=False)
    monkeypatch.setitem(sys.modules, "coremltools.models", SimpleNamespace(compute_plan=recorded))
    monkeypatch.setitem(sys.modules, "coremltools.models.compute_plan", recorded)
    with pytest.raises(ModelError, match="gives no compute plan"):
        coreml.compute_plan(tmp_path, ARTEFACT)


def test_an_old_mac_has_no_compute_plan(mac: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Which is the machine's fault, not the package's."""
    monkeypatch.setattr(platform, "mac_ver", lambda: ("14.3.1", ("", "", ""), "arm64"))
    with pytest.raises(UnusableRuntimeError, match=r"compute plans need macOS 14\.4, this is 14\.3\.1"):
        coreml.compute_plan(tmp_path, ARTEFACT)


def test_compute_units_come_from_the_card(mac: None, tmp_path: Path) -> None:
    """All of them unless it says otherwise, the others as variants to time, and no unknown ones."""
    chosen = ARTEFACT.model_copy(update={"settings": {"compute_units": "CPU_AND_NE"}})
    assert coreml.open_session(tmp_path, ARTEFACT, 1)._model.units == "ALL"
    assert coreml.open_session(tmp_path, chosen, 1)._model.units == "CPU_AND_NE"
    assert set(coreml.variants(chosen)) == set(coreml.UNITS) - {"CPU_AND_NE"}
    with pytest.raises(ModelError, match="found compute_units 'NPU', known: ALL"):
        coreml.open_session(tmp_path, ARTEFACT.model_copy(update={"settings": {"compute_units": "NPU"}}), 1)


def test_the_check_of_compute_units_says_where_and_how_fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The plan in words, and load, first and warm time of each choice; a choice that cannot run says so."""
    asked = []

    def recorded(**given: Any) -> Any:
        units = given["candidate"].artefact.settings["compute_units"]
        asked.append(units)
        problem = "no GPU" if units == "CPU_AND_GPU" else None
        return SimpleNamespace(not_measured=problem, load_ms=(30.0, 10.0, 20.0), first_call_ms=(5.0, 4.0, 6.0))

    monkeypatch.setattr(compute_units, "measure", recorded)
    monkeypatch.setattr(compute_units.figures, "p50_ms", lambda timed: SimpleNamespace(value=1.25))
    monkeypatch.setattr(coreml, "compute_plan", lambda *given: {"CPU": {"gather": 1}, "Neural Engine": {"linear": 2}})
    exported = Exported(tmp_path, ARTEFACT, "0" * 64, 1)
    subject = Subject("ios", "coreml", "local", exported, None, tmp_path, tmp_path, 0, [[1, 2]], ["a"], 1e-2)
    assert compute_units.applies(subject)
    check = compute_units.check(subject)
    assert asked == list(coreml.UNITS)
    assert check.reason.startswith(
        "1 of 3 operations on the CPU, 2 of 3 operations on the Neural Engine; ALL: load 20 ms"
    )
    assert "first 5.0 ms, then 1.25 ms; CPU_ONLY" in check.reason and "CPU_AND_GPU: no GPU" in check.reason


def test_make_mac_elsewhere_says_where_to_run_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before it touches anything."""
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(UnusableRuntimeError, match="to a Mac and run `make mac` there"):
        mac_command.command(tmp_path)


def test_make_mac_measures_every_core_ml_target_and_judges(
    mac: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Forced, each by itself, then the gate; a project without such a target says so."""
    ran = []
    monkeypatch.setattr(mac_command, "dvc", lambda folder, *words, check=True: ran.append(words) or 7)
    targets = {"cpu": SimpleNamespace(runtime="onnxruntime"), "ios_device": SimpleNamespace(runtime="coreml")}
    monkeypatch.setattr(mac_command, "load", lambda path: SimpleNamespace(targets=targets))
    assert mac_command.command(tmp_path) == 7
    forced = ("repro", "--force", "--single-item", *(f"{s}@ios_device" for s in ("evaluate", "benchmark", "examine")))
    judged = [("repro", "--single-item", "report"), ("repro", "--force", "--single-item", "gate")]
    assert ran == [("repro", "--single-item", "machine"), forced, *judged]
    del targets["ios_device"]
    with pytest.raises(SettingsError, match="no target with runtime: coreml"):
        mac_command.command(tmp_path)
