"""Core ML packages on Linux: every family executed, and planted faults that the checks must name."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import named, slow_but
from test_mil_interpreter import block_of, edit
from test_to_coreml import LABELS, PARAMS, ROWS, example, export, plan, run, save, torch_logits
from toy_models import FAMILIES, shallow_model

from eval import parity
from eval.checks import Subject, fp16_range, lengths, padding, weights
from eval.latency import Exported
from eval.runtimes import coreml_reference, pytorch
from export import fp16_lint, to_coreml
from export.channels_first import channels_first_graph
from export.mixed_bits import choose_bits
from export.to_coreml import TOLERANCES, LengthRange, Mixed, Params, convert
from pipeline.base.errors import ExportError, ModelError, SettingsError, ValuesDifferError
from pipeline.base.records import Artefact, Check, Status
from pipeline.families import _deployment, check_answers, layers_of
from pipeline.mil.interpreter import Interpreter
from pipeline.mil.package import WEIGHTS, Constant, Operation, read_package
from pipeline.mil.palettes import make_palette, through_palette
from pipeline.models.checkpoints import load_classifier

# What is marked slow here converts once more, in another family, precision or shape than a fast test of the same has.

CHOICES = {"precision": "fp16", "params": PARAMS}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy BERT of one layer."""
    return save(shallow_model("bert"), tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def exports(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Artefact]]:
    """It in fp16 and with palettes of 4 bits, folder and artefact."""
    root = tmp_path_factory.mktemp("exports")
    made = {name: (root / name, export(source, root / name, name)) for name in ("fp16", "palette4")}
    for folder, _ in made.values():
        (folder / "labels.json").write_text(json.dumps(LABELS), "utf-8")
    return made


@pytest.fixture
def broken(exports: dict[str, tuple[Path, Artefact]], tmp_path: Path) -> Callable[[str], tuple[Path, Artefact]]:
    """A copy to break."""
    return lambda name: (Path(shutil.copytree(exports[name][0], tmp_path / name)), exports[name][1])


def subject(folder: Path, artefact: Artefact, student: Path) -> Subject:
    """Under examination, with the calibration rows for dev rows."""
    exported = Exported(folder, artefact, "0" * 64, 1)
    tolerance = TOLERANCES[artefact.precision]
    return Subject("ios", "coreml_reference", "local", exported, None, student, student, 0, ROWS, ["a"], tolerance)


def checked(check: Any, found: tuple[Path, Artefact], student: Path) -> Check:
    one = subject(*found, student)
    assert check.applies(one)
    return check.check(one)


# --- right answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"lengths": (8, 16)}, id="list"),
        pytest.param({"lengths": LengthRange(min=2, max=16)}, id="range", marks=pytest.mark.slow),
    ],
)
def test_every_family_is_executed_as_pytorch_answers(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    """In fp32 to rounding, at a listed length and inside a range."""
    student = save(shallow_model(family), tmp_path / "model")
    artefact = export(student, tmp_path / "out", "fp32", Params(**options))
    for sizes in ({"length": 8, "real": 8}, {"length": 16, "real": 5}):
        ids, mask = example(**sizes)
        expected = torch_logits(student, ids, mask)
        assert np.abs(run(tmp_path / "out" / artefact.file, ids, mask) - expected).max() < 1e-5


def test_in_double_precision_only_the_constants_of_the_file_differ(tmp_path: Path) -> None:
    """So what remains in float32 is the order of its sums."""
    model = shallow_model("bert")
    artefact = export(save(model, tmp_path / "model"), tmp_path / "out", "fp32")
    ids, mask = (torch.tensor(part) for part in example())
    interpreter = Interpreter(read_package(tmp_path / "out" / artefact.file), exact=True, compute=torch.float64)
    found = interpreter.run({"input_ids": ids[None], "attention_mask": mask[None]})["logits"][0]
    with torch.no_grad():
        expected = model.double()(input_ids=ids.long(), attention_mask=mask.long()).logits
    # the sum of positions and type 0, and sqrt(d), are float32 in the file
    assert (found - expected).abs().max() < 2e-7


OTHERS = sorted({*FAMILIES} - {"bert", "modernbert"})  # that one is refused (tests/test_modernbert.py)


@pytest.mark.parametrize("family", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_channels_first_answers_as_the_plain_layout(family: str, tmp_path: Path) -> None:
    """The same weights as convolutions, in fp32 to rounding and in 8 bits within its tolerance."""
    student = save(shallow_model(family), tmp_path / "model")
    ids, mask = example()
    expected = torch_logits(student, ids, mask)
    options = Params(lengths=(8, 16), layout="channels_first")
    for precision, most in (("fp32", 1e-5), ("int8", TOLERANCES["int8"])):
        out = tmp_path / precision
        artefact = export(student, out, precision, options)
        assert np.abs(run(out / artefact.file, ids, mask) - expected).max() / np.ptp(expected) < most
        kinds = {op.kind for op in read_package(out / artefact.file).operations}
        assert {"conv", "einsum"} <= kinds and "matmul" not in kinds
        assert checked(weights, (out, artefact), student).status is Status.PASS


def test_a_session_answers_batches_and_refuses_what_is_too_long(exports: Any, source: Path) -> None:
    """Checks of every artefact pass on the interpreter as on a runtime."""
    folder, artefact = exports["fp16"]
    with coreml_reference.open_session(folder, artefact, 1) as session, pytorch.open_session(source, None, 1) as model:
        ids = np.stack([example()[0][0], np.roll(example()[0][0], 1)]).astype(np.int64)
        mask = np.ones_like(ids)
        np.testing.assert_allclose(
            session.run(named(ids, mask))["logits"], model.run(named(ids, mask))["logits"], atol=5e-3
        )
        with pytest.raises(ModelError, match="input of 17 tokens, expected at most 16"):
            session.run(named(np.ones((1, 17), np.int64), np.ones((1, 17), np.int64)))["logits"]
    assert checked(lengths, exports["fp16"], source).status is Status.PASS
    assert checked(padding, exports["fp16"], source).status is Status.PASS
    assert (
        checked(fp16_range, exports["fp16"], source).reason == "nothing overflows on 24 dev rows; the lint foretold 0"
    )
    for found in exports.values():
        assert checked(weights, found, source).status is Status.PASS


READ_ALONE = """
import sys
from pathlib import Path
from pipeline.mil.package import read_package
from pipeline.mil import quiet

assert len(read_package(Path(sys.argv[1])).operations) > 20
assert not {"coremltools", "executorch", "transformers"} & sys.modules.keys()
alone = quiet.import_specification().Model_pb2.Model
assert quiet.import_coremltools().proto.Model_pb2.Model is alone
assert "executorch" not in sys.modules
assert len(read_package(Path(sys.argv[1])).operations) > 20
"""


def test_a_package_is_read_without_the_rest_of_coremltools(exports: Any) -> None:
    """Which may still be imported behind it, without executorch, and has the same classes."""
    folder, artefact = exports["fp16"]
    command = [sys.executable, "-c", READ_ALONE, str(folder / artefact.file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- planted faults ----------------------------------------------------------------------------------------------


def planted_mask(monkeypatch: pytest.MonkeyPatch, source: Path, out: Path, precision: str) -> Artefact:
    monkeypatch.setattr(_deployment, "MASKED", -1.0e30)
    monkeypatch.setattr(to_coreml, "check_finite_constants", lambda path: None)
    return export(source, out, precision)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # the fault itself, as it happens
def test_a_mask_of_minus_1e30_is_caught(monkeypatch: pytest.MonkeyPatch, source: Path, tmp_path: Path) -> None:
    """By the constant that becomes infinite; the lint foretold it, and `auto` keeps it in fp32."""
    found = (tmp_path / "fp16", planted_mask(monkeypatch, source, tmp_path / "fp16", "fp16"))
    check = checked(fp16_range, found, source)
    assert check.status is Status.FAIL
    # coremltools keeps the constant in fp32, and casts its product
    assert "overflows in 24 of 24 dev rows" in check.reason and "did not foretell" not in check.reason
    foretold = json.loads((tmp_path / "fp16" / fp16_lint.FILE).read_text("utf-8"))["findings"]
    assert any(one["kind"] == "overflow" and "a constant of 1e+30, beyond 65,504" in one["reason"] for one in foretold)
    mended = (tmp_path / "auto", planted_mask(monkeypatch, source, tmp_path / "auto", "auto"))
    assert checked(fp16_range, mended, source).status is Status.PASS
    ids, mask = (part.astype(np.int64) for part in example())
    with coreml_reference.open_session(*mended, 1) as session, pytorch.open_session(source, None, 1) as model:
        assert parity.check(session, model, [named(ids, mask)], TOLERANCES["auto"]).same_label == 1


def test_a_mask_constant_that_is_infinite_in_the_file_is_caught(broken: Any, source: Path) -> None:
    """-1e30 where it is written in fp16: 0 x infinity, and every answer is NaN."""

    def overflow(spec: Any) -> None:
        halves = [np.float16(value).tobytes() for value in (_deployment.MASKED, -np.inf)]
        places = [
            op.attributes["val"].immediateValue.tensor.bytes for op in block_of(spec).operations if op.type == "const"
        ]
        (mask,) = (place for place in places if place.values == halves[0])
        mask.values = halves[1]

    folder, artefact = broken("fp16")
    edit(folder / artefact.file, overflow)
    check = checked(fp16_range, (folder, artefact), source)
    assert check.status is Status.FAIL
    assert "is not finite in fp16: export with precision auto or fp32" in check.reason
    ids, mask = (part.astype(np.int64) for part in example())
    with (
        coreml_reference.open_session(folder, artefact, 1) as session,
        pytorch.open_session(source, None, 1) as model,
        pytest.raises(ValuesDifferError, match="NaN or infinity"),
    ):
        parity.check(session, model, [named(ids, mask)], 1.0)


@pytest.fixture
def loud(tmp_path: Path) -> Path:
    """A student whose feed-forward layer reaches 100,000 inside and answers normally: its next weights are as small."""
    model = shallow_model("bert")
    layer = layers_of(model)[0]
    with torch.no_grad():
        layer.intermediate.dense.weight *= 3e4
        layer.output.dense.weight /= 3e4
    return save(model, tmp_path / "loud")


def test_an_activation_that_overflows_is_caught_and_auto_keeps_it_in_fp32(loud: Path, tmp_path: Path) -> None:
    """The check names operation and module, and the lint had named the same."""
    out = tmp_path / "fp16"
    check = checked(fp16_range, (out, export(loud, out, "fp16")), loud)
    assert check.status is Status.FAIL
    assert "bert.encoder.layer.0.intermediate.dense) overflows in 24 of 24 dev rows" in check.reason
    assert "the lint did not foretell it" not in check.reason
    out = tmp_path / "auto"
    artefact = export(loud, out, "auto")
    assert any(note.startswith("in fp32: ") for note in artefact.notes)
    assert checked(fp16_range, (out, artefact), loud).status is Status.PASS
    ids, mask = example()
    expected = torch_logits(loud, ids, mask)
    assert np.abs(run(out / artefact.file, ids, mask) - expected).max() / np.ptp(expected) < TOLERANCES["auto"]
    halves = sum(kind.dtype == "fp16" for op in read_package(out / artefact.file).operations for _, kind in op.outputs)
    assert halves > 40  # all but what had to stay


@pytest.mark.slow
def test_an_overflow_that_the_lint_did_not_foretell_is_said(loud: Path, tmp_path: Path) -> None:
    """Planted: a lint that saw nothing."""
    found = (tmp_path / "out", export(loud, tmp_path / "out", "fp16"))
    (tmp_path / "out" / fp16_lint.FILE).write_text('{"findings": []}', "utf-8")
    assert "; the lint did not foretell it" in checked(fp16_range, found, loud).reason


def flip(file: Path, place: int, mask: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= mask
    file.write_bytes(data)


def palette_of(op: Operation) -> Constant:
    """The palette that an operation reads."""
    (lut,) = op.inputs["lut"]
    assert isinstance(lut, Constant)
    return lut


def test_a_corrupted_weight_file_is_caught(broken: Any, source: Path) -> None:
    """One bit of one weight: by the weights; a bit of a blob's head: by the reader. (Both change the card's hash.)"""
    folder, artefact = broken("fp16")
    file = folder / artefact.file / WEIGHTS / "weight.bin"
    interpreter = Interpreter(read_package(folder / artefact.file))
    content = file.read_bytes()
    first = np.frombuffer(content, np.uint32, 16, 64)
    start = int(first[4])  # where the first blob's data begins
    flip(file, start + 1, 0x40)  # the highest bit of the exponent
    check = checked(weights, (folder, artefact), source)
    assert check.status is Status.FAIL and "times as far from the student's" in check.reason
    file.write_bytes(content)
    flip(file, 64, 0xFF)
    with pytest.raises(ModelError, match="expected a blob's mark"):
        coreml_reference.open_session(folder, artefact, 1)
    assert interpreter.operations


def test_a_palette_with_two_entries_swapped_is_caught(broken: Any, source: Path) -> None:
    """Even two that are neighbours, which move the answers less than the palette itself does."""
    folder, artefact = broken("palette4")
    package = read_package(folder / artefact.file)
    op = next(op for op in package.operations if op.kind == "constexpr_lut_to_dense" and "query" in op.outputs[0][0])
    values = palette_of(op).value.astype(np.float16).reshape(-1)
    file = folder / artefact.file / WEIGHTS / "weight.bin"
    content = file.read_bytes()
    assert content.count(values.tobytes()) == 1
    swapped = values.copy()
    swapped[[7, 8]] = swapped[[8, 7]]
    file.write_bytes(content.replace(values.tobytes(), swapped.tobytes()))
    check = checked(weights, (folder, artefact), source)
    assert check.status is Status.FAIL
    assert check.reason.startswith("bert.encoder.layer.0.attention.self.query.weight: the values in the file (palette)")


def test_a_palette_of_zeros_is_caught(broken: Any, source: Path) -> None:
    """Every weight has its nearest entry then; the palette itself is what is wrong."""
    folder, artefact = broken("palette4")
    package = read_package(folder / artefact.file)
    op = next(op for op in package.operations if op.kind == "constexpr_lut_to_dense" and "query" in op.outputs[0][0])
    values = palette_of(op).value.tobytes()
    file = folder / artefact.file / WEIGHTS / "weight.bin"
    file.write_bytes(file.read_bytes().replace(values, bytes(len(values))))
    check = checked(weights, (folder, artefact), source)
    assert check.status is Status.FAIL and "query.weight: the values in the file (palette)" in check.reason


@pytest.mark.parametrize(
    "weight",
    slow_but(
        ["bert.pooler.dense.weight", "bert.encoder.layer.0.output.LayerNorm.weight", "classifier.bias"],
        "bert.encoder.layer.0.output.LayerNorm.weight",
        "classifier.bias",
    ),
)
def test_weights_that_are_not_in_the_file_are_missed(weight: str, tmp_path: Path) -> None:
    """A check that looks at nothing must not pass: an exporter that lists less than the student answers with."""
    model = shallow_model("bert")
    with torch.no_grad():
        for parameter in model.parameters():  # vectors that are no other's
            parameter.add_(
                0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    exported = save(model, tmp_path / "exported")
    artefact = export(exported, tmp_path / "out", "fp16")
    assert checked(weights, (tmp_path / "out", artefact), exported).status is Status.PASS
    with torch.no_grad():
        model.get_parameter(weight).add_(0.3)
    student = save(model, tmp_path / "student")
    file = tmp_path / "out" / "weights.json"
    names = json.loads(file.read_text("utf-8"))["constants"]
    file.write_text(json.dumps({"constants": {k: v for k, v in names.items() if weight not in v}}), "utf-8")
    check = checked(weights, (tmp_path / "out", artefact), student)
    assert check.status is Status.FAIL and f"does not have {weight}" in check.reason


def test_names_of_weights_that_are_gone_or_of_nothing_are_no_pass(broken: Any, source: Path) -> None:
    folder, artefact = broken("fp16")
    (folder / "weights.json").write_text('{"constants": {"gone": ["bert.pooler.dense.weight"]}}', "utf-8")
    check = checked(weights, (folder, artefact), source)
    assert check.status is Status.FAIL and "as 'gone' is not in the file" in check.reason


def test_a_row_of_zeros_is_caught_beside_a_large_weight() -> None:
    """Scales by row allow half a step of the row; one for all allows half a step of the largest."""
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(64, 64)) * 0.1
    expected[0, 0], expected[3] = 2.0, expected[3] * 0.04
    stored = expected.copy()
    stored[3] = 0.0
    assert weights._distance(stored, expected, weights.Storage("8 bits", by_row=True)) > 1
    assert weights._distance(stored, expected, weights.Storage("8 bits", by_row=False)) > 1
    stored[3] = expected[3] + 0.004  # within half a step of 2 / 127
    assert weights._distance(stored, expected, weights.Storage("8 bits", by_row=False)) < 1


@pytest.mark.parametrize(("sparsity", "group"), [(0.3, 8), pytest.param(0.9, None, marks=pytest.mark.slow)])
def test_pruned_weights_are_those_that_were_small(
    sparsity: float, group: int | None, source: Path, tmp_path: Path
) -> None:
    """At any share, with palettes of groups too; dropping others is caught."""
    options = {"lengths": (8, 16), "sparsity": sparsity, "group_channels": group}
    artefact = export(source, tmp_path / "out", "palette4", Params(**options))
    assert checked(weights, (tmp_path / "out", artefact), source).status is Status.PASS
    expected = np.random.default_rng(1).normal(size=(8, 8))
    mask = np.abs(expected) > 0.5
    mask[np.unravel_index(np.abs(expected).argmax(), mask.shape)] = False
    assert weights._distance(expected * mask, expected, weights.Storage("pruned", mask=mask)) > 1


def test_a_label_that_does_not_follow_from_the_logits_is_caught(broken: Any, source: Path) -> None:
    """A softmax over the wrong axis: probabilities of 1 for all, and always the first label."""

    def turn(spec: Any) -> None:
        op = [op for op in block_of(spec).operations if op.type == "softmax"][-1]
        name = op.inputs["axis"].arguments[0].name
        (axis,) = (one for one in block_of(spec).operations if one.outputs and one.outputs[0].name == name)
        axis.attributes["val"].immediateValue.tensor.ints.values[0] = 0

    folder, artefact = broken("fp16")
    edit(folder / artefact.file, turn)
    ids, mask = (part.astype(np.int64) for part in example())
    with (
        coreml_reference.open_session(folder, artefact, 1) as session,
        pytest.raises(ModelError, match=r"do not follow from the logits.*name the wrong class"),
    ):
        session.run(named(ids, mask))["logits"]


def test_a_length_that_the_description_does_not_accept_is_caught(broken: Any) -> None:
    """A phone goes by the description, not by the card."""

    def drop(spec: Any) -> None:
        shapes = spec.description.input[0].type.multiArrayType.enumeratedShapes.shapes
        del shapes[next(i for i, shape in enumerate(shapes) if shape.shape[1] == 8)]

    folder, artefact = broken("fp16")
    edit(folder / artefact.file, drop)
    with pytest.raises(ModelError, match=r"the description accepts int32 of 16 tokens, expected int32 of 8, 16 tokens"):
        coreml_reference.open_session(folder, artefact, 1)


def test_8_bit_products_are_counted(source: Path, tmp_path: Path) -> None:
    """By their weights; for w8a8 by their inputs too; what the plan leaves out is named by its module."""
    for precision, quantized in (("int8", 0), ("w8a8", 7)):
        out = tmp_path / precision
        artefact = export(source, out, precision, exclude=("classifier",))
        kernels = coreml_reference.count_kernels(out, artefact)
        assert (kernels.integer, kernels.float_weights) == (7, ("classifier",))
        assert kernels.quantize == kernels.dequantize or precision == "w8a8"
        assert kernels.dequantize >= quantized
    plain = artefact.model_copy(update={"precision": "w8a8"})
    assert coreml_reference.count_kernels(tmp_path / "int8", plain).integer == 0


@pytest.mark.slow
def test_a_head_that_overflows_is_kept_in_fp32_by_itself(tmp_path: Path) -> None:
    """Channels first: the second part of a split is large, the first is not."""
    model = shallow_model("bert")
    attention = layers_of(model)[0].attention.self
    per_head = attention.attention_head_size
    with torch.no_grad():
        attention.query.weight[per_head : 2 * per_head] *= 3e4
        attention.query.bias[per_head : 2 * per_head] *= 3e4
        attention.key.weight[per_head : 2 * per_head] /= 3e4
        attention.key.bias[per_head : 2 * per_head] /= 3e4
    student = save(model, tmp_path / "model")
    out = tmp_path / "auto"
    artefact = export(student, out, "auto", Params(lengths=(8, 16), layout="channels_first"))
    assert checked(fp16_range, (out, artefact), student).status is Status.PASS
    assert json.loads((out / fp16_lint.FILE).read_text("utf-8"))["keep"]


def test_a_transposed_weight_is_caught(broken: Any, source: Path) -> None:
    """A square matrix, whose shape says nothing."""
    folder, artefact = broken("fp16")
    weight = load_classifier(source).state_dict()["bert.encoder.layer.0.attention.self.value.weight"].numpy()
    half = weight.astype(np.float16)
    file = folder / artefact.file / WEIGHTS / "weight.bin"
    content = file.read_bytes()
    assert content.count(half.tobytes()) == 1
    file.write_bytes(content.replace(half.tobytes(), half.T.copy().tobytes()))
    check = checked(weights, (folder, artefact), source)
    assert check.status is Status.FAIL
    assert check.reason.startswith("bert.encoder.layer.0.attention.self.value.weight: the values in the file (fp16)")


def test_a_missing_label_is_caught(broken: Any) -> None:
    """And two that changed places."""

    def drop(spec: Any) -> None:
        (op,) = (op for op in block_of(spec).operations if op.type == "classify")
        del op.inputs["classes"].arguments[0].value.immediateValue.list.values[1]

    folder, artefact = broken("fp16")
    edit(folder / artefact.file, drop)
    with pytest.raises(ModelError, match="found 2 labels for 3 logits; export it again"):
        coreml_reference.open_session(folder, artefact, 1)


def test_labels_in_another_order_are_caught(broken: Any) -> None:
    """An app would name the wrong class."""
    folder, artefact = broken("palette4")
    (folder / "labels.json").write_text(json.dumps(LABELS[::-1]), "utf-8")
    with pytest.raises(ModelError, match=f"label 0 is '{LABELS[0]}', expected '{LABELS[2]}' as in labels.json"):
        coreml_reference.open_session(folder, artefact, 1)


# --- palettes and bits -------------------------------------------------------------------------------------------


def test_a_palette_is_the_best_there_is() -> None:
    """Against every cut of a few numbers into two groups; few distinct values are kept as they are."""
    values = np.array([0.0, 0.1, 0.2, 1.0, 1.1, 5.0], np.float32)
    palette, places = make_palette(np.repeat(values, 40), 1)
    error = ((palette[places] - np.repeat(values, 40)) ** 2).sum()
    cuts = [(values[:i], values[i:]) for i in range(1, 6)]
    assert error == pytest.approx(40 * min(sum(part.var() * len(part) for part in cut) for cut in cuts), rel=1e-5)
    np.testing.assert_array_equal(
        through_palette(np.arange(12.0, dtype=np.float32).reshape(3, 4), 4).ravel(), np.arange(12)
    )


def test_bits_go_where_they_matter() -> None:
    """More bytes, less divergence; within the size; weights are put back; too small is refused with what it takes."""
    model = shallow_model("bert")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = [name for name, value in model.named_parameters() if value.dim() == 2 and value.numel() > 500]
    whole = sum(value.numel() for value in model.parameters())
    small, large = (choose_bits(model, names, ROWS, share * whole, 1.0) for share in (0.8, 2.0))
    assert large.mean_kl < small.mean_kl
    assert set(large.bits.values()) == {8} and min(small.bits.values()) < 8
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ExportError, match=r"with 4 bits everywhere it is .* MB: raise it"):
        choose_bits(model, names, ROWS, 0.2 * whole, 1.0)
    with pytest.raises(ExportError, match=r"% of the answers to 24 calibration rows .* raise size_mb or"):
        choose_bits(model, names, ROWS, 0.8 * whole, -1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_channels": 16, "deployment_target": "iOS17", "lengths": [16]}, "group_channels needs iOS18"),
        ({"sparsity": 0.5, "deployment_target": "iOS16", "lengths": [16]}, "sparsity needs iOS18"),
        ({"sparsity": 1.0}, "less than 1"),
        ({"embedding_bits": 5}, "4, 6 or 8"),
        ({"mixed": {"size_mb": 0, "changed_percent": 1}}, "greater than 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    """With the system that a variant would need."""
    with pytest.raises(ValueError, match=message):
        Params.model_validate_json(json.dumps(options))


@pytest.mark.parametrize(
    ("precision", "params", "message"),
    [
        ("w8a8", Params(lengths=(16,), deployment_target="iOS16"), "w8a8 needs iOS17"),
        ("mixed", PARAMS, r"goes with options\.mixed"),
        (
            "fp16",
            PARAMS.model_copy(update={"mixed": Mixed(size_mb=1, changed_percent=1)}),
            r"goes with options\.mixed",
        ),
        ("int8", PARAMS.model_copy(update={"sparsity": 0.5}), r"options\.sparsity is for palettes"),
        (
            "mixed",
            PARAMS.model_copy(update={"sparsity": 0.5, "mixed": Mixed(size_mb=1, changed_percent=1)}),
            r"options\.sparsity would change what options\.mixed has measured",
        ),
    ],
)
def test_options_that_do_not_belong_together_are_refused(
    precision: str, params: Params, message: str, source: Path, tmp_path: Path
) -> None:
    """Before anything is converted."""
    with pytest.raises(SettingsError, match=message):
        convert(source, tmp_path, precision, params, 16, plan())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "precision", "options"),
    [
        pytest.param("iOS16", "palette6", {}, marks=pytest.mark.slow),
        ("iOS16", "int8", {}),
        pytest.param("iOS17", "w8a8", {}, marks=pytest.mark.slow),
        ("iOS18", "palette4", {"group_channels": 8}),
    ],
)
def test_each_package_declares_the_oldest_system_that_runs_it(
    target: Any, precision: str, options: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    """And answers; a system that is too old for what was written is refused."""
    artefact = export(source, tmp_path / "out", precision, Params(lengths=(16,), deployment_target=target, **options))
    package = tmp_path / "out" / artefact.file
    assert read_package(package).system == target and f"{target} or later" in artefact.notes[0]
    ids, mask = example()
    expected = torch_logits(source, ids, mask)
    assert np.abs(run(package, ids, mask) - expected).max() / np.ptp(expected) < TOLERANCES[precision]
    if target != "iOS16":
        with pytest.raises(ExportError, match=f"runs from {target} on, expected iOS16"):
            to_coreml.check_system(package, "iOS16")


def test_the_word_embedding_has_bits_of_its_own(source: Path, tmp_path: Path) -> None:
    """The largest tensor by name; and pruned weights are stored as a mask."""
    options = {"lengths": (16,), "embedding_bits": 8, "sparsity": 0.5}
    artefact = export(source, tmp_path / "out", "palette4", Params(**options))
    package = read_package(tmp_path / "out" / artefact.file)
    entries = {
        op.outputs[1][0]: palette_of(op).type.shape[-2]
        for op in package.operations
        if op.kind == "constexpr_lut_to_sparse"
    }
    assert {size for name, size in entries.items() if "word_embeddings" in name} == {256}
    assert {size for name, size in entries.items() if "word_embeddings" not in name} == {16}
    interpreter = Interpreter(package)
    dense = [op.outputs[0][0] for op in package.operations if op.kind == "constexpr_sparse_to_dense"]
    assert all(0.4 < (interpreter.constant(name) == 0).float().mean() < 0.6 for name in dense)


def test_a_channels_first_graph_that_answers_otherwise_is_refused() -> None:
    """Its weights are copies of the model's: a change of one shows."""
    model = shallow_model("bert")
    graph = channels_first_graph(model)
    check_answers(model, graph, 16)
    with torch.no_grad():
        convolution: Any = next(iter(graph.convolutions.values()))
        # turned over, and apart from the model's, which it shares
        convolution.weight.data = convolution.weight.flip(0)
    with pytest.raises(ExportError, match="does not fit this version"):
        check_answers(model, graph, 16)
