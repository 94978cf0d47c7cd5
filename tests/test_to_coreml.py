"""The Core ML exporter: what is in the saved package, read back, and executed by the reference interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from toy_models import FAMILIES, shallow_model, toy_model

from export import mlpackage, to_coreml
from export.program import export_program
from export.to_coreml import (
    PLANNED,
    PRECISIONS,
    TOLERANCES,
    Answers,
    LengthRange,
    Mixed,
    Params,
    check_finite_constants,
    check_wide_ids,
    convert,
)
from pipeline.base.errors import ExportError, SettingsError
from pipeline.base.records import Artefact
from pipeline.families import check_answers, deployment_graph
from pipeline.mil.interpreter import Interpreter, output_of
from pipeline.mil.package import SPECIFICATION, WEIGHTS, read_package
from pipeline.mil.quiet import import_coremltools
from pipeline.models.checkpoints import FACTORISED, load_classifier, new_model, save_classifier
from pipeline.quantization.plan import Plan, Scheme

ROOT = Path(__file__).resolve().parents[1]
LABELS = ["allumer", "éteindre", "play music"]
LENGTHS = (8, 16)
PARAMS = Params(lengths=LENGTHS)
ROWS = tuple(tuple(np.random.default_rng(i).integers(2, 60, 4 + i % 12).tolist()) for i in range(24))


# The rest are written by `make test-all`: those of 8-bit activations and of chosen bits calibrate, which takes seconds.
EACH_PRECISION = [
    name if name in ("fp32", "fp16", "int8", "palette4") else pytest.param(name, marks=pytest.mark.slow)
    for name in PRECISIONS
]


def plan(**changes: Any) -> Plan:
    """Everything in 8 bits."""
    usual = {"scheme": Scheme(activations="float"), "per_channel": True, "embeddings": True, "calibration_rows": ROWS}
    return Plan(**(usual | changes))


def save(model: Any, folder: Path) -> Path:
    """A model folder with our labels."""
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {name: number for number, name in enumerate(LABELS)}
    save_classifier(model, folder)
    return folder


def export(source: Path, out: Path, precision: str = "fp16", params: Params = PARAMS, **changes: Any) -> Artefact:
    out.mkdir()
    if precision == "mixed":
        params = params.model_copy(update={"mixed": Mixed(size_mb=1.0, changed_percent=100.0)})
    return convert(source, out, precision, params, 16, plan(**changes) if precision in PLANNED else None)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy BERT."""
    return save(toy_model("bert", num_hidden_layers=2), tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def packages(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The toy BERT in each precision, written when a test first asks for it."""
    return Packages(source, tmp_path_factory.mktemp("packages"))


class Packages(dict[str, Path]):
    """Precision -> package."""

    def __init__(self, source: Path, root: Path) -> None:
        self.source, self.root = source, root

    def __missing__(self, precision: str) -> Path:
        folder = self.root / precision
        self[precision] = folder / export(self.source, folder, precision).file
        return self[precision]


def example(length: int = 16, real: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) of one text with padding; 1 is the padding id of RoBERTa."""
    ids = np.random.default_rng(0).integers(2, 60, (1, length))
    mask = (np.arange(length) < real).astype(np.int32)[None]
    return (ids * mask + (1 - mask)).astype(np.int32), mask


def torch_logits(source: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What the model itself answers."""
    model = load_classifier(source)
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long()).logits.numpy()


def run(package: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits of the saved package, by the reference interpreter."""
    given = {"input_ids": torch.tensor(ids)[:, None], "attention_mask": torch.tensor(mask)[:, None]}
    return output_of(Interpreter(read_package(package)).run(given), "logits", package)


def difference(package: Path, source: Path, **sizes: int) -> float:
    """Largest difference from the model itself, as a share of the spread of its logits."""
    ids, mask = example(**sizes)
    expected = torch_logits(source, ids, mask)
    return float(np.abs(run(package, ids, mask) - expected).max() / np.ptp(expected))


@pytest.mark.parametrize("precision", EACH_PRECISION)
@pytest.mark.parametrize("length", LENGTHS)
def test_the_package_answers_as_the_model(packages: dict[str, Path], source: Path, precision: str, length: int) -> None:
    """At every listed length, padding included, within the tolerance of its precision; fp32 to rounding."""
    found = difference(packages[precision], source, length=length)
    assert found < (1e-5 if precision == "fp32" else TOLERANCES[precision])


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in sorted({*FAMILIES} - {"bert", "distilbert"})]


@pytest.mark.parametrize("family", ["distilbert", *SLOW])
def test_every_family_converts(family: str, tmp_path: Path) -> None:
    """fp16, finite, and the same answer: each has its own positions, mask and classifier."""
    source = save(shallow_model(family), tmp_path / "model")
    artefact = export(source, tmp_path / "out")
    assert difference(tmp_path / "out" / artefact.file, source) < TOLERANCES["fp16"]


def test_a_factorised_embedding_converts(tmp_path: Path) -> None:
    """Its two factors are quantized apart: the table as an embedding, the projection as a linear layer."""
    config = toy_model("bert", num_hidden_layers=1).config
    setattr(config, FACTORISED, 8)
    torch.manual_seed(0)
    source = save(new_model(config), tmp_path / "model")
    artefact = export(source, tmp_path / "out", "int8", embeddings=False)
    package = tmp_path / "out" / artefact.file
    assert difference(package, source) < TOLERANCES["int8"]
    assert not any("word_embeddings_tokens" in name for name in quantized(package))
    assert any("word_embeddings_project" in name for name in quantized(package))


# --- what a phone app sees ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", EACH_PRECISION)
def test_names_types_and_lengths_are_in_the_spec(packages: dict[str, Path], precision: str) -> None:
    """int32 in, float32 logits out whatever the precision, and exactly the listed lengths."""
    spec = import_coremltools().models.MLModel(str(packages[precision]), skip_model_load=True).get_spec()
    inputs = {value.name: value.type.multiArrayType for value in spec.description.input}
    assert list(inputs) == ["input_ids", "attention_mask"]
    for array in inputs.values():
        assert array.dataType == array.INT32
        assert sorted(tuple(s.shape) for s in array.enumeratedShapes.shapes) == [(1, 8), (1, 16)]
    outputs = {value.name: value.type for value in spec.description.output}
    assert sorted(outputs) == ["classLabel", "classLabel_probs", "logits"]
    assert outputs["logits"].multiArrayType.dataType == outputs["logits"].multiArrayType.FLOAT32
    assert list(outputs["logits"].multiArrayType.shape) == [1, 3]
    assert outputs["classLabel"].WhichOneof("Type") == "stringType"


def test_labels_and_metadata_are_inside(packages: dict[str, Path]) -> None:
    """The package alone is enough: labels in the classifier and in the metadata, and where it came from."""
    spec = import_coremltools().utils.load_spec(str(packages["fp16"]))
    facts = dict(spec.description.metadata.userDefined)
    assert json.loads(facts["decant.labels"]) == LABELS
    assert facts["decant.max_length"] == "16" and json.loads(facts["decant.lengths"]) == [8, 16]
    assert len(facts["decant.source_sha256"]) == 64
    assert "com.github.apple.coremltools.conversion_date" not in facts
    assert spec.description.metadata.license == "not stated"
    assert read_package(packages["fp16"]).labels == tuple(LABELS)


def test_the_artefact_says_what_was_written(source: Path, tmp_path: Path) -> None:
    """A range is every length in it; the shortest and the longest are in the spec."""
    params = Params(lengths=LengthRange(min=4, max=16), deployment_target="iOS16")
    artefact = export(source, tmp_path / "out", "int8", params)
    assert artefact.lengths == tuple(range(4, 17)) and artefact.max_length == 16
    assert [fact.name for fact in artefact.outputs] == ["logits", "classLabel", "classLabel_probs"]
    package = tmp_path / "out" / artefact.file
    spec = import_coremltools().utils.load_spec(str(package))
    sizes = spec.description.input[0].type.multiArrayType.shapeRange.sizeRanges
    assert [(size.lowerBound, size.upperBound) for size in sizes] == [(1, 1), (4, 16)]
    assert difference(package, source, length=7) < TOLERANCES["int8"]


def test_one_length_runs_on_older_systems(source: Path, tmp_path: Path) -> None:
    """A fixed shape has no flexible input, so iOS 16 takes it."""
    params = Params(lengths=(16,), deployment_target="iOS16")
    package = tmp_path / "out" / export(source, tmp_path / "out", "fp32", params).file
    array = import_coremltools().utils.load_spec(str(package)).description.input[0].type.multiArrayType
    assert list(array.shape) == [1, 16] and array.WhichOneof("ShapeFlexibility") is None
    assert difference(package, source) < 1e-5


# --- the traps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", EACH_PRECISION)
def test_every_constant_is_finite(packages: dict[str, Path], precision: str) -> None:
    """Read back from the saved files."""
    check_finite_constants(packages[precision])


def test_the_mask_of_fp16_is_in_fp16(packages: dict[str, Path]) -> None:
    """At the value that stands for minus infinity."""
    halves = [value for _, kind, value in read_package(packages["fp16"]).constants() if kind.dtype == "fp16"]
    assert any((half == -1e4).any() for half in halves)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # the fault itself, as it happens
def test_the_plain_conversion_is_caught(tmp_path: Path) -> None:
    """Planted fault: Hugging Face's own forward in fp16, whose mask becomes infinite and whose answer is NaN."""
    ct = import_coremltools()
    model = toy_model("bert", num_hidden_layers=1)
    graph = deployment_graph(model)
    graph.forward = lambda input_ids, attention_mask: model(input_ids=input_ids, attention_mask=attention_mask).logits
    with mlpackage.quiet_conversion():
        program = export_program(Answers(graph, is_classifier=True), 16, any_length=False).run_decompositions({})
        params = Params(lengths=(16,))
        mil = to_coreml._to_mil(ct, program, ("logits", "probabilities"), (16,), "fp16", params)
        to_coreml._to_package(ct, mil, LABELS, params, ct.PassPipeline.EMPTY).save(str(tmp_path / "plain.mlpackage"))
    with pytest.raises(ExportError, match=r"constants are not finite.*beyond 65,504"):
        check_finite_constants(tmp_path / "plain.mlpackage")
    assert np.isnan(run(tmp_path / "plain.mlpackage", *example())).all()


def test_a_graph_that_answers_otherwise_is_refused() -> None:
    """If transformers changed a layer, the graph's own embedding sum would be wrong, and nothing is written."""
    model = toy_model("bert", num_hidden_layers=1)
    graph = deployment_graph(model)
    check_answers(model, graph, 16)
    graph.positions[0, 0] += 1.0  # one coordinate: LayerNorm would undo a shift of all
    with pytest.raises(ExportError, match="does not fit this version"):
        check_answers(model, graph, 16)


def test_large_vocabularies_keep_wide_ids(tmp_path: Path) -> None:
    """Id 40,000 of 40,100 wraps in 16 bits; the saved package finds its row."""
    source = save(toy_model("bert", num_hidden_layers=1, vocab_size=40_100), tmp_path / "model")
    package = tmp_path / "out" / export(source, tmp_path / "out").file
    ids, mask = example()
    ids[0, 1:4] = [40_000, 32_768, 40_099]
    expected = torch_logits(source, ids, mask)
    assert np.abs(run(package, ids, mask) - expected).max() / np.ptp(expected) < TOLERANCES["fp16"]


def test_narrow_ids_are_caught(tmp_path: Path) -> None:
    """Planted fault: ids through int16 into a table of 40,000 rows."""
    ct = import_coremltools()
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import types

    table = np.zeros((40_000, 2), dtype=np.float16)

    @Builder.program(input_specs=[Builder.TensorSpec((1, 4), types.int32)], opset_version=ct.target.iOS17)
    def narrow(ids: Any) -> Any:
        return Builder.gather(x=table, indices=Builder.cast(x=ids, dtype="int16"), axis=0)

    with mlpackage.quiet_conversion():
        package = ct.convert(
            narrow,
            convert_to="mlprogram",
            pass_pipeline=ct.PassPipeline.EMPTY,
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        )
        package.save(str(tmp_path / "narrow.mlpackage"))
    with pytest.raises(ExportError, match=r"40,000 rows.*16-bit"):
        check_wide_ids(tmp_path / "narrow.mlpackage")


# --- 8-bit weights -----------------------------------------------------------------------------------------------


def quantized(package: Path) -> list[str]:
    """Names of the 8-bit constants."""
    return [op.outputs[0][0] for op in read_package(package).operations if op.kind.startswith("constexpr_")]


def test_int8_has_8_bit_weights(packages: dict[str, Path]) -> None:
    """Every linear layer and table: 2 layers of 6, pooler, classifier, words and positions; about half the bytes."""
    names = quantized(packages["int8"])
    assert len(names) == 2 * 6 + 2 + 2
    package = read_package(packages["int8"])
    interpreter = Interpreter(package)
    for op in package.operations:
        if op.kind.startswith("constexpr_"):
            data, scale = op.inputs["data"][0].value, op.inputs["scale"][0].value
            assert data.dtype == np.int8 and np.abs(data.astype(int)).max() == 127
            assert scale.shape == (len(data), 1) and scale.dtype == np.float16
            if "word_embeddings" in op.outputs[0][0]:  # the padding row is zero, and stays so
                assert not interpreter.constant(op.outputs[0][0])[0].any()
    sizes = {name: (packages[name] / WEIGHTS / "weight.bin").stat().st_size for name in ("fp32", "fp16", "int8")}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert sizes["int8"] < 0.75 * sizes["fp16"]  # toy rows are short, so their scales and alignment weigh much


def test_the_plan_decides_what_stays(source: Path, tmp_path: Path) -> None:
    """Modules it leaves out, a whole layer among them, and embedding tables; one scale for all on request."""
    left_out = ("bert.encoder.layer.1", "classifier")
    artefact = export(source, tmp_path / "out", "int8", per_channel=False, embeddings=False, exclude=left_out)
    package = tmp_path / "out" / artefact.file
    names = quantized(package)
    assert len(names) == 6 + 1
    assert not any("layer_1_" in name or "embeddings" in name or "positions" in name for name in names)
    quantizers = [op for op in read_package(package).operations if op.kind.startswith("constexpr_")]
    assert all(op.inputs["scale"][0].value.size == 1 for op in quantizers)


def test_a_plan_for_another_model_is_refused(source: Path, tmp_path: Path) -> None:
    """Leaving out a module that is not there would quantize in silence what should have stayed."""
    with pytest.raises(ExportError, match=r"names the module 'bert\.encoder\.layer\.9'"):
        export(source, tmp_path / "out", "int8", exclude=("bert.encoder.layer.9",))


# --- settings ----------------------------------------------------------------------------------------------------


def test_lengths_default_to_powers_of_two() -> None:
    """And always end at data.max_length."""
    assert to_coreml._lengths(Params(), 64) == (16, 32, 64)
    assert to_coreml._lengths(Params(), 100) == (16, 32, 64, 100)
    assert to_coreml._lengths(Params(), 10) == (10,)


def test_lengths_that_do_not_fit_the_data_are_refused() -> None:
    """Beyond max_length is waste, short of it is texts without an answer."""
    with pytest.raises(SettingsError, match=r"up to 64, but data\.max_length is 32"):
        to_coreml._lengths(Params(lengths=(16, 64)), 32)
    with pytest.raises(SettingsError, match=r"ends at 16.*add 32"):
        to_coreml._lengths(Params(lengths=LengthRange(min=2, max=16)), 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": [32, 16]}, "ascending"),
        ({"lengths": [1, 16]}, "none below 2"),
        ({"lengths": []}, "ascending"),
        ({"lengths": {"min": 8, "max": 4}}, "min 8 is not below max 4"),
        ({"deployment_target": "iOS17"}, "for one input only"),
        ({"lengths": [16, 32], "deployment_target": "iOS16"}, "set it to iOS18"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    """As they stand in params.yaml."""
    with pytest.raises(ValueError, match=message):
        Params.model_validate_json(json.dumps(options))


def test_options_are_read_from_settings() -> None:
    """A list, a range, and nothing."""
    for text in ("{}", '{"lengths": [8, 16]}', '{"lengths": {"min": 2, "max": 8}, "deployment_target": "iOS17"}'):
        assert Params.model_validate_json(text)


def test_repeated_labels_are_refused(tmp_path: Path) -> None:
    """Probabilities are given by name."""
    model = toy_model("bert")
    save(model, tmp_path / "model")
    model.config.id2label = {0: "a", 1: "b", 2: "a"}
    save_classifier(model, tmp_path / "model")
    with pytest.raises(ExportError, match="label names repeat"):
        export(tmp_path / "model", tmp_path / "out")


# --- repeating it ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(packages: dict[str, Path], source: Path, tmp_path: Path) -> None:
    """A fresh process, another hash seed, another order: no date, no random identifier, no counter is left inside."""
    code = (
        "import sys; from pathlib import Path; from export.to_coreml import Params, convert;"
        f"convert(Path({str(source)!r}), Path({str(tmp_path)!r}), 'fp16', Params(lengths=(8, 16)), 16, None)"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
    )
    first, second = packages["fp16"], tmp_path / to_coreml.FILE_NAME
    files = sorted(file.relative_to(first) for file in first.rglob("*") if file.is_file())
    assert [str(file) for file in files] == [f"{SPECIFICATION}", f"{WEIGHTS}/weight.bin", "Manifest.json"]
    assert files == sorted(file.relative_to(second) for file in second.rglob("*") if file.is_file())
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_coremltools_without_its_native_part_is_said_to_be_unusable(tmp_path, monkeypatch):
    """Built from source on Linux for Arm it imports, and fails only when a package is written."""
    assert to_coreml.why_unusable() is None
    for origin, reason in (
        (str(tmp_path / "__init__.py"), "no native part here"),
        (None, "not installed: coremltools"),
    ):
        monkeypatch.setattr(to_coreml.util, "find_spec", lambda name, origin=origin: SimpleNamespace(origin=origin))
        assert reason in to_coreml.why_unusable()
