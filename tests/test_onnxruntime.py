"""The runtime answers as PyTorch and refuses what it should not load."""

import numpy as np
import onnx
import pytest
from fakes import named
from toy_models import toy_batch, toy_model

from eval.runtimes import onnxruntime
from export import to_ort
from export.to_onnx import Params, convert
from pipeline.base.errors import ModelError
from pipeline.models.checkpoints import save_classifier


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A toy model, its folder of one ONNX file, and the record."""
    source, out = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("out")
    model = toy_model()
    save_classifier(model, source)
    return model, out, convert(source, out, "fp32", Params(), 20, None)


@pytest.fixture
def copied(exported, tmp_path):
    """The same folder, to be damaged."""
    _, out, artefact = exported
    (tmp_path / artefact.file).write_bytes((out / artefact.file).read_bytes())
    return tmp_path, artefact


def test_it_answers_as_pytorch(exported):
    """For a padded batch, in float32, whatever integer type comes in."""
    model, out, artefact = exported
    batch = toy_batch()
    ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
    expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach().numpy()
    with onnxruntime.open_session(out, artefact, threads=1) as session:
        assert set(session.input_names) == {"input_ids", "attention_mask"} and session.output_names == ("logits",)
        for dtype in (np.int64, np.int32):
            found = session.run(named(ids.astype(dtype), mask.astype(dtype)))["logits"]
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_uses_the_threads_it_is_given(exported):
    """On the CPU only, without spinning, without the slower fused operator."""
    _, out, artefact = exported
    with onnxruntime.open_session(out, artefact, threads=2) as session:
        options = session._session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert session._session.get_providers() == ["CPUExecutionProvider"]


def test_the_slower_fusion_is_off(exported, monkeypatch):
    """It is asked for by name, which onnxruntime ignores when misspelt."""
    import onnxruntime as package

    _, out, artefact = exported
    asked = {}
    real = package.InferenceSession

    def spy(*args, **options):
        asked.update(options)
        return real(*args, **options)

    monkeypatch.setattr(package, "InferenceSession", spy)
    onnxruntime.open_session(out, artefact, threads=1).close()
    assert asked["disabled_optimizers"] == ["SkipLayerNormFusion"]


def test_an_input_that_is_too_long_is_refused(exported):
    """Rather than answered with a position that was never trained."""
    _, out, artefact = exported
    with (
        onnxruntime.open_session(out, artefact, threads=1) as session,
        pytest.raises(ModelError, match="an input of 21 tokens, expected at most 20"),
    ):
        session.run(named(np.ones((1, 21), dtype=np.int64), np.ones((1, 21), dtype=np.int64)))["logits"]


def test_a_token_beyond_the_vocabulary_is_refused(exported):
    """With one message, which names the file and the usual reason."""
    _, out, artefact = exported
    with (
        onnxruntime.open_session(out, artefact, threads=1) as session,
        pytest.raises(ModelError, match=r"model.onnx: onnxruntime cannot answer: .*a token id beyond the vocabulary"),
    ):
        session.run(named(np.full((1, 3), 10_000), np.ones((1, 3), dtype=np.int64)))


def test_an_input_that_is_missing_is_named(exported):
    """What the card lists has to be given."""
    _, out, artefact = exported
    with (
        onnxruntime.open_session(out, artefact, threads=1) as session,
        pytest.raises(ModelError, match="no input 'attention_mask', found input_ids; give what the card lists"),
    ):
        session.run({"input_ids": np.ones((1, 3), dtype=np.int64)})


def test_a_truncated_file_is_refused(copied):
    """Before onnxruntime sees it."""
    folder, artefact = copied
    path = folder / artefact.file
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="truncated by at least"):
        onnxruntime.open_session(folder, artefact, threads=1)


def test_flipped_bits_give_a_message_or_a_session(copied):
    """No other exception and no crash; a flip in a weight is what the card's hash is for."""
    folder, artefact = copied
    path = folder / artefact.file
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    refused = 0
    for bit in rng.integers(0, 8 * len(data), 150).tolist():
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        try:
            onnxruntime.open_session(folder, artefact, threads=1).close()
        except ModelError:
            refused += 1
    assert 0 < refused < 150


def test_external_data_is_refused(copied):
    """Also through a link beside the file."""
    folder, artefact = copied
    (folder / "weights.bin").symlink_to("/etc/passwd")
    onnx.save(
        onnx.load(folder / artefact.file),
        folder / artefact.file,
        save_as_external_data=True,
        location="inside.bin",
        size_threshold=0,
    )
    model = onnx.load(folder / artefact.file, load_external_data=False)
    for place in ("inside.bin", "weights.bin", "../../etc/passwd"):
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = place
        (folder / artefact.file).write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match=f"points to external data '{place}'"):
            onnxruntime.open_session(folder, artefact, threads=1)


def test_a_file_that_is_not_what_its_record_says_is_refused(exported):
    """Other names or types than the card's."""
    _, out, artefact = exported
    other = artefact.model_copy(update={"outputs": (artefact.outputs[0].model_copy(update={"name": "scores"}),)})
    with pytest.raises(ModelError, match=r"found inputs .* expected .*'scores'"):
        onnxruntime.open_session(out, other, threads=1)


def test_what_onnxruntime_cannot_load_is_a_message(copied):
    """A valid ONNX file whose types do not fit is refused by onnxruntime itself."""
    folder, artefact = copied
    model = onnx.load(folder / artefact.file)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    (folder / artefact.file).write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="onnxruntime cannot load it"):
        onnxruntime.open_session(folder, artefact, threads=1)


def test_it_says_why_it_cannot_run(monkeypatch):
    """A missing package is a reason, not an error."""
    assert onnxruntime.why_unusable() is None
    assert onnxruntime.version().count(".") == 2
    monkeypatch.setattr(onnxruntime.util, "find_spec", lambda name: None)
    assert onnxruntime.why_unusable() == "the package 'onnxruntime' is not installed"


@pytest.fixture
def ort_file(exported, tmp_path_factory, tmp_path):
    """The toy model as an .ort file in a folder of its own, to be damaged."""
    source = tmp_path_factory.mktemp("model")
    save_classifier(exported[0], source)
    return tmp_path, to_ort.convert(source, tmp_path, "fp32", to_ort.Params(), 20, None)


def test_an_ort_file_is_loaded_or_refused(ort_file, exported):
    """It answers as the .onnx file; missing, cut anywhere, or of another format it is a message."""
    folder, artefact = ort_file
    batch = toy_batch()
    ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
    with (
        onnxruntime.open_session(folder, artefact, threads=1) as ort,
        onnxruntime.open_session(exported[1], exported[2], threads=1) as onnx_session,
    ):
        assert ort.input_names == onnx_session.input_names and ort.output_names == ("logits",)
        np.testing.assert_allclose(
            ort.run(named(ids, mask))["logits"], onnx_session.run(named(ids, mask))["logits"], atol=1e-6
        )
    path = folder / artefact.file
    data = path.read_bytes()
    for count, message in ((0, "truncated"), (7, "truncated"), (len(data) - 1, "truncated")):
        path.write_bytes(data[:count])
        with pytest.raises(ModelError, match=message):
            onnxruntime.open_session(folder, artefact, threads=1)
    for count in (16, len(data) // 32 * 16, len(data) - 16):
        path.write_bytes(data[:count])
        with pytest.raises(ModelError, match="onnxruntime cannot load it"):
            onnxruntime.open_session(folder, artefact, threads=1)
    path.write_bytes((exported[1] / exported[2].file).read_bytes())
    with pytest.raises(ModelError, match=r"not an \.ort file: found .* at byte 4, expected b'ORTM'"):
        onnxruntime.open_session(folder, artefact, threads=1)
    path.unlink()
    with pytest.raises(ModelError, match="no such file"):
        onnxruntime.open_session(folder, artefact, threads=1)
