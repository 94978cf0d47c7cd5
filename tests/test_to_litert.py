"""What is written answers as the model, has the bits that the plan says, and is the same bytes every time."""

import logging
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import named
from pydantic import ValidationError
from toy_models import FAMILIES, shallow_model, toy_batch, toy_model

from eval.runtimes import litert
from export import to_litert
from export.to_litert import FILE, PRECISIONS, TOLERANCES, Params, convert, read_flatbuffer, weighted_operations
from pipeline.base.errors import ExportError, SettingsError
from pipeline.models.checkpoints import save_classifier
from pipeline.models.students import build_student
from pipeline.quantization.plan import Plan, Scheme
from pipeline.settings.student import StudentSettings

pytest.importorskip("litert_torch", reason="the extra 'litert' is not installed")

LENGTHS = (8, 20)
PARAMS = Params(lengths=LENGTHS)
STATIC = Params(lengths=LENGTHS, activations="static")
KEPT = "bert.encoder.layer.1.attention.self.key"
ROWS = tuple(tuple(range(2 + i, 2 + i + 3 + i % 15)) for i in range(20))


def plan_of(**changes):
    facts = {"scheme": Scheme(activations="token"), "per_channel": True, "embeddings": True, "calibration_rows": ROWS}
    figures = {"sensitivity_rows": 1, "dev_rows": 1, "fp32_score": 1.0, "int8_score": 1.0}
    return Plan(**(facts | figures | changes))


@pytest.fixture(scope="module")
def model():
    return toy_model(attention="sdpa", num_hidden_layers=2, vocab_size=600)


@pytest.fixture(scope="module")
def source(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_classifier(model, folder)
    return folder


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    """(folder, artefact) of each kind, converted when first asked for."""
    kinds = {
        "fp32": ("fp32", PARAMS, None),
        "fp16": ("fp16", PARAMS, None),
        "int8": ("int8", PARAMS, plan_of(exclude=(KEPT,))),
        "static": ("int8", STATIC, plan_of()),
    }
    done = {}

    def get(kind):
        if kind not in done:
            out = tmp_path_factory.mktemp(kind)
            precision, params, plan = kinds[kind]
            done[kind] = out, convert(source, out, precision, params, 20, plan)
        return done[kind]

    return get


def logits_of(model, ids, mask):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()


def texts(count=12):
    """Single texts of every length that the file takes."""
    rng = np.random.default_rng(0)
    for length in rng.integers(1, 21, count):
        yield rng.integers(2, 60, (1, length)), np.ones((1, length), np.int64)


def types_of(folder):
    """Module -> type of its weight, in every signature."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = {number: kind for kind, number in vars(schema.TensorType).items()}
    flat = read_flatbuffer((folder / FILE).read_bytes())
    found = []
    for subgraph in flat.subgraphs:
        weights = [subgraph.tensors[op.inputs[1]] for op in weighted_operations(flat, subgraph)]
        found.append({re.sub(r"^.*/|\.weight(_dequant)?$", "", w.name.decode()): kinds[w.type] for w in weights})
    assert len(found) == len(LENGTHS) and all(one == found[0] for one in found)
    return found[0]


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8", "static"])
def test_it_answers_as_pytorch(model, written, kind):
    """Within the tolerance, as a share of the spread of the reference logits."""
    folder, artefact = written(kind)
    rows = list(texts())
    expected = np.concatenate([logits_of(model, *row) for row in rows])
    with litert.open_session(folder, artefact, threads=1) as session:
        found = np.concatenate([session.run(named(*row))["logits"] for row in rows])
    share = np.abs(found - expected).max() / (expected.max() - expected.min())
    assert share < (1e-5 if kind == "fp32" else TOLERANCES[artefact.precision])


@pytest.mark.parametrize("family", [*sorted({*FAMILIES} - {"bert"}), "factorised"])
def test_every_family_is_converted(family, tmp_path):
    """Also RoBERTa, whose positions are looked up, and a factorised embedding; every linear layer is recognised."""
    if family == "factorised":
        model = build_student(toy_model(), StudentSettings(layers=1, embedding=8), seed=0).eval()
    else:
        model = shallow_model(family)
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir(), out.mkdir()
    save_classifier(model, source)
    artefact = convert(source, out, "int8", Params(lengths=(20,)), 20, plan_of())
    batch = toy_batch()
    ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
    expected = logits_of(model, ids, mask)
    with litert.open_session(out, artefact, threads=1) as session:
        difference = np.abs(session.run(named(ids, mask))["logits"] - expected).max()
    assert difference / (expected.max() - expected.min()) < TOLERANCES["int8"]


def test_int8_has_8_bit_weights_but_for_what_the_plan_leaves_out(written):
    """In every signature; the module is found by its weight, not by the converter's name."""
    folder, artefact = written("int8")
    types = types_of(folder)
    assert types.pop(KEPT) == "FLOAT32"
    assert set(types.values()) == {"INT8"} and "bert.embeddings.word_embeddings" in types
    assert any(KEPT in note for note in artefact.notes)
    assert any("bert.embeddings.position_embeddings" in note for note in artefact.notes)


def test_weights_are_in_the_file_once(written):
    """A file is as small as its weights ask for, whatever the number of signatures."""
    sizes = {kind: (written(kind)[0] / FILE).stat().st_size for kind in ("fp32", "fp16", "int8", "static")}
    flat = read_flatbuffer((written("fp32")[0] / FILE).read_bytes())
    tables = sum(len(buffer.data) for buffer in flat.buffers if buffer.data is not None)
    assert 600 * 32 * 4 < tables < 2 * 600 * 32 * 4
    assert sizes["fp16"] < sizes["fp32"] - 600 * 32 * 2
    assert sizes["int8"] < sizes["fp16"] and sizes["static"] < sizes["fp16"]


def test_static_ranges_are_those_of_all_signatures(written):
    """A tensor has one range, whichever signature its calibration rows went through."""
    folder, _ = written("static")
    flat = read_flatbuffer((folder / FILE).read_bytes())
    ranges = []
    for subgraph in flat.subgraphs:
        inputs = [(subgraph.tensors[op.inputs[0]], subgraph.tensors[op.inputs[1]]) for op in _linear(flat, subgraph)]
        ranges.append({weight.name.decode().partition("/")[2]: value.quantization.scale for value, weight in inputs})
    assert ranges[0] and ranges[0] == ranges[1]


def _linear(flat, subgraph):
    return [op for op in weighted_operations(flat, subgraph) if subgraph.tensors[op.inputs[0]].quantization.scale]


def test_the_same_source_gives_the_same_bytes(source, written, tmp_path):
    """In another process too, and no name of this machine is among them."""
    folder, _ = written("static")
    (tmp_path / "plan.json").write_text(plan_of().model_dump_json())
    code = (
        "from pathlib import Path; from export.to_litert import Params, convert\n"
        "from pipeline.quantization.plan import Plan\n"
        f"out = Path({str(tmp_path)!r}); plan = Plan.model_validate_json((out / 'plan.json').read_text())\n"
        f"convert(Path({str(source)!r}), out, 'int8', Params(lengths={LENGTHS}, activations='static'), 20, plan)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    content = (folder / FILE).read_bytes()
    assert (tmp_path / FILE).read_bytes() == content
    assert not re.search(rb"/tmp|/home|__main__|site-packages|transformers", content)
    assert "START" not in done.stdout + done.stderr and "it/s" not in done.stderr


def test_the_card_says_what_was_written(written):
    """Names, types, shapes and lengths."""
    _, artefact = written("fp32")
    assert [(fact.name, fact.dtype, fact.shape) for fact in artefact.inputs] == [
        ("input_ids", "int32", (1, "length")),
        ("attention_mask", "int32", (1, "length")),
    ]
    assert [(fact.name, fact.shape) for fact in artefact.outputs] == [("logits", (1, 3))]
    assert artefact.lengths == LENGTHS and artefact.max_length == 20
    assert artefact.tools["litert-torch"] and set(TOLERANCES) == set(PRECISIONS)


# --- refused before anything is converted ------------------------------------------------------------------------


def test_lengths_that_do_not_fit_are_refused(source, tmp_path):
    """The last one is data.max_length."""
    with pytest.raises(SettingsError, match=r"goes up to 20, but data.max_length is 16"):
        convert(source, tmp_path, "fp32", PARAMS, 16, None)
    with pytest.raises(SettingsError, match=r"ends at 20, but data.max_length is 32"):
        convert(source, tmp_path, "fp32", PARAMS, 32, None)
    for lengths in ((20, 8), (1, 8), ()):
        with pytest.raises(ValidationError, match="must be ascending"):
            Params(lengths=lengths)


def test_what_does_not_belong_together_is_refused(source, tmp_path):
    """Precision, plan and activations."""
    with pytest.raises(ExportError, match="expected one of fp32, fp16, int8"):
        convert(source, tmp_path, "int4", PARAMS, 20, None)
    with pytest.raises(ExportError, match="needs a quantization plan"):
        convert(source, tmp_path, "int8", PARAMS, 20, None)
    with pytest.raises(SettingsError, match="precision is fp16, which has no 8-bit activations"):
        convert(source, tmp_path, "fp16", STATIC, 20, None)
    with pytest.raises(ExportError, match="no calibration rows to take ranges from"):
        convert(source, tmp_path, "int8", STATIC, 20, plan_of(calibration_rows=()))
    with pytest.raises(ExportError, match=r"names the module 'bert.nothing', which the model does not have"):
        convert(source, tmp_path, "int8", PARAMS, 20, plan_of(exclude=("bert.nothing",)))
    with pytest.raises(ExportError, match="has positions for 40 tokens"):
        convert(source, tmp_path, "fp32", Params(), 41, None)


def test_a_weight_of_no_module_is_refused():
    """Rather than left out of the plan in silence."""
    weight = np.ones((3, 2), np.float32)
    tensor = SimpleNamespace(buffer=0, shape=[3, 2], name=b"")
    op = SimpleNamespace(opcodeIndex=0, inputs=[0, 0], outputs=[0])
    flat = SimpleNamespace(
        signatureDefs=[SimpleNamespace(subgraphIndex=0, inputs=[], signatureKey=b"length_8")],
        subgraphs=[SimpleNamespace(operators=[op], tensors=[tensor])],
        operatorCodes=[SimpleNamespace(builtinCode=9)],  # FULLY_CONNECTED
        buffers=[SimpleNamespace(data=weight.tobytes())],
    )
    with pytest.raises(ExportError, match=r"a weight of \(3, 2\) that is no module's"):
        to_litert._name_tensors(flat, {"other": np.array([[1, 2], [2, 1], [0, 3]], np.float32)})
    assert to_litert._name_tensors(flat, {"dense": 2 * weight, "unused": weight}) == ["unused"]


def test_a_failed_conversion_names_the_tool(source, tmp_path, monkeypatch):
    """With the versions to install, and the settings it changed for quiet put back."""

    def fail(*_):
        raise RuntimeError("no such lowering\nand more")

    monkeypatch.setattr(to_litert, "_to_flatbuffer", fail)
    filters = list(logging.getLogger().filters)
    with pytest.raises(ExportError, match=r"litert-torch .* 'bert' to fp32: RuntimeError: no such lowering; try"):
        convert(source, tmp_path, "fp32", PARAMS, 20, None)
    assert logging.getLogger().filters == filters


def test_weights_beyond_fp16_are_refused(tmp_path):
    """They would be infinite."""
    model = toy_model(num_hidden_layers=1)
    with torch.no_grad():
        model.classifier.weight[0, 0] = 1e5
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir(), out.mkdir()
    save_classifier(model, source)
    with pytest.raises(ExportError, match=r"'classifier.weight' has values beyond the largest fp16"):
        convert(source, out, "fp16", Params(lengths=(8,)), 8, None)
    assert not list(out.iterdir())


def test_a_missing_package_is_a_reason(monkeypatch):
    """With the command that installs it."""
    assert to_litert.why_unusable() is None
    monkeypatch.setattr("pipeline.base.extras.util.find_spec", lambda name: None)
    assert "pip install" in to_litert.why_unusable() and "litert_torch" in to_litert.why_unusable()
