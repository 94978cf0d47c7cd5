"""The runtime answers as PyTorch in the stated precision and refuses what it should not load."""

import shutil

import numpy as np
import pytest
from fakes import named
from toy_models import toy_batch, toy_model

from eval.runtimes import openvino as runtime
from export import to_onnx, to_openvino
from pipeline.base import extras
from pipeline.base.errors import ModelError
from pipeline.models.checkpoints import save_classifier

pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")


@pytest.fixture(scope="module")
def model():
    """A toy BERT."""
    return toy_model()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """Format -> its folder and the record."""
    source = tmp_path_factory.mktemp("model")
    save_classifier(model, source)
    made = {}
    for name, exporter in (("openvino", to_openvino), ("onnx", to_onnx)):
        out = tmp_path_factory.mktemp(name)
        made[name] = out, exporter.convert(source, out, "fp32", exporter.Params(), 20, None)
    return made


@pytest.fixture
def copied(exported, tmp_path):
    """The OpenVINO files again, to be damaged: folder, record, graph, weights."""
    out, artefact = exported["openvino"]
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    return tmp_path, artefact, tmp_path / artefact.file / "model.xml", tmp_path / artefact.file / "model.bin"


def texts(length, rows=1, seed=0):
    """Random ids and a mask of ones."""
    ids = np.random.default_rng(seed).integers(2, 60, (rows, length))
    return ids, np.ones_like(ids)


@pytest.mark.parametrize("kind", ["openvino", "onnx"])
def test_it_answers_as_pytorch(model, exported, kind):
    """For a padded batch, in float32, whatever integer type comes in; its own files and those of ONNX."""
    out, artefact = exported[kind]
    batch = toy_batch()
    ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
    expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach().numpy()
    with runtime.open_session(out, artefact, threads=1) as session:
        assert set(session.input_names) == {"input_ids", "attention_mask"} and session.output_names == ("logits",)
        for dtype in (np.int64, np.int32):
            found = session.run(named(ids.astype(dtype), mask.astype(dtype)))["logits"]
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_computes_in_fp32_with_the_threads_it_is_given(exported):
    """Rather than in bfloat16, which is its own choice where the CPU has it."""
    out, artefact = exported["openvino"]
    with runtime.open_session(out, artefact, threads=2) as session:
        assert session._compiled.get_property("INFERENCE_NUM_THREADS") == 2
        assert session._compiled.get_property("NUM_STREAMS") == 1
        assert session._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
        kinds = {
            info["runtimePrecision"].astype(str)
            for info in (node.get_rt_info() for node in session._compiled.get_runtime_model().get_ops())
            if info["layerType"].astype(str) in {"FullyConnected", "MatMul"}
        }
        assert kinds == {"f32"}


def test_inputs_are_read_where_they_lie(exported):
    """A copy would be part of every latency."""
    out, artefact = exported["openvino"]
    ids, mask = texts(7)
    with runtime.open_session(out, artefact, threads=1) as session:
        session.run(named(ids, mask))["logits"]
        assert np.shares_memory(session._request.get_tensor("input_ids").data, ids)
        assert np.shares_memory(session._request.get_tensor("attention_mask").data, mask)


def test_an_answer_outlives_the_next_call(exported):
    """Over texts that grow and shrink, and arrays that cannot be shared, one request gives what a new one gives."""
    out, artefact = exported["openvino"]
    inputs = [texts(length, rows, seed=length) for length, rows in ((3, 1), (20, 4), (5, 2), (20, 1), (1, 1))]
    inputs += [tuple(np.asfortranarray(array) for array in texts(9, 3)), tuple(array[:, ::2] for array in texts(8))]
    locked = texts(12)
    for array in locked:
        array.flags.writeable = False
    inputs.append(locked)
    alone = []
    for given in inputs:
        with runtime.open_session(out, artefact, threads=1) as session:
            alone.append(session.run(named(*given))["logits"])
    with runtime.open_session(out, artefact, threads=1) as session:
        together = [session.run(named(*given))["logits"] for given in inputs * 2]
    for found, expected in zip(together, alone * 2, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_an_input_that_is_too_long_is_refused(exported):
    """Rather than answered with a position that was never trained."""
    out, artefact = exported["openvino"]
    with (
        runtime.open_session(out, artefact, threads=1) as session,
        pytest.raises(ModelError, match="an input of 21 tokens, expected at most 20"),
    ):
        session.run(named(*texts(21)))["logits"]


def test_truncated_weights_are_refused(copied):
    """Before OpenVINO maps them."""
    folder, artefact, _, weights = copied
    held = weights.read_bytes()
    weights.write_bytes(held[:-1])
    message = rf"model\.bin: found {len(held) - 1:,} bytes, expected at least {len(held):,}"
    with pytest.raises(ModelError, match=message):
        runtime.open_session(folder, artefact, threads=1)


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_a_missing_file_is_named(copied, name):
    """Whichever of the two it is."""
    folder, artefact, _, _ = copied
    (folder / artefact.file / name).unlink()
    with pytest.raises(ModelError, match=rf"{name}: no such file; export it again"):
        runtime.open_session(folder, artefact, threads=1)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused(copied, encoding):
    """Where they are declared, in whatever encoding, so that none is ever expanded."""
    folder, artefact, xml, _ = copied
    graph = xml.read_text().removeprefix('<?xml version="1.0"?>').replace("input_ids", "&name;")
    head = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE net [<!ENTITY name "input_ids">]>'
    xml.write_text(head + graph, encoding)
    with pytest.raises(ModelError, match=r"found a document type \(DOCTYPE\).*expected none"):
        runtime.open_session(folder, artefact, threads=1)


def test_a_graph_of_another_size_is_refused(copied, monkeypatch):
    """Empty, or larger than any that we write."""
    folder, artefact, xml, _ = copied
    size = xml.stat().st_size
    monkeypatch.setattr(runtime, "MAX_XML_BYTES", size - 1)
    with pytest.raises(ModelError, match=f"found {size:,} bytes, expected 1 to {size - 1:,}"):
        runtime.open_session(folder, artefact, threads=1)
    xml.write_bytes(b"")
    with pytest.raises(ModelError, match="found 0 bytes"):
        runtime.open_session(folder, artefact, threads=1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</net>", "", "not XML or damaged"),
        ('offset="0"', 'offset="-8"', r"a constant without a place in model\.bin: .*'offset': '-8'"),
        ('offset="0"', 'offset="x"', r"a constant without a place in model\.bin: .*'offset': 'x'"),
        ('offset="0"', 'offset="9000000000"', r"found [\d,]+ bytes, expected at least 9,0"),
        ('type="SoftMax"', 'type="SoftMin"', "openvino cannot load it: .*SoftMin.*; export it again"),
    ],
    ids=["cut", "negative", "no number", "beyond", "unknown operator"],
)
def test_a_damaged_graph_is_refused(copied, old, new, message):
    """By this project where it can be seen beforehand, else by OpenVINO, in one line."""
    folder, artefact, xml, _ = copied
    text = xml.read_text()
    assert old in text
    xml.write_text(text.replace(old, new))
    with pytest.raises(ModelError, match=message) as raised:
        runtime.open_session(folder, artefact, threads=1)
    assert "\n" not in str(raised.value)


def test_flipped_bits_give_a_message_or_a_session(copied):
    """No other exception and no crash; a flip in a weight is what the card's hash is for."""
    folder, artefact, xml, _ = copied
    data = bytearray(xml.read_bytes())
    rng = np.random.default_rng(0)
    refused = 0
    for bit in rng.integers(0, 8 * len(data), 40).tolist():
        data[bit // 8] ^= 1 << bit % 8
        xml.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        try:
            runtime.open_session(folder, artefact, threads=1).close()
        except ModelError:
            refused += 1
    assert 0 < refused < 40


def test_a_damaged_onnx_file_is_refused(exported, tmp_path):
    """By the same checks as in onnxruntime."""
    out, artefact = exported["onnx"]
    (tmp_path / artefact.file).write_bytes((out / artefact.file).read_bytes()[:-1000])
    with pytest.raises(ModelError, match="truncated by at least"):
        runtime.open_session(tmp_path, artefact, threads=1)


@pytest.mark.parametrize(
    ("side", "change"),
    [("inputs", {"name": "scores"}), ("inputs", {"dtype": "int32"}), ("outputs", {"name": "scores"})],
    ids=["input's name", "input's type", "output's name"],
)
def test_a_file_that_is_not_what_its_record_says_is_refused(exported, side, change):
    """Other names than the card's, or other types going in."""
    out, artefact = exported["openvino"]
    first, *others = getattr(artefact, side)
    other = artefact.model_copy(update={side: (first.model_copy(update=change), *others)})
    with pytest.raises(ModelError, match=r"found inputs .* expected .*(scores|int32).* as in its card"):
        runtime.open_session(out, other, threads=1)


def test_it_says_why_it_cannot_run(monkeypatch):
    """A missing package is a reason with a command, not an error; NNCF is not needed to run."""
    assert runtime.why_unusable() is None
    assert runtime.version().count(".") == 2
    monkeypatch.setattr(extras.util, "find_spec", lambda name: None)
    assert "not installed: openvino; run: pip install" in runtime.why_unusable()
