"""LiteRT answers as PyTorch for any batch, and refuses what is not what its card says."""

import shutil

import numpy as np
import pytest
import torch
from fakes import named
from toy_models import toy_batch, toy_model

from eval.runtimes import Session, litert
from export.to_litert import FILE, Params, convert, read_flatbuffer
from pipeline.base.errors import ModelError
from pipeline.models.checkpoints import save_classifier

pytest.importorskip("litert_torch", reason="the extra 'litert' is not installed")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A toy model, its folder and its card."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    model = toy_model(attention="sdpa", num_hidden_layers=1)
    save_classifier(model, source)
    return model, out, convert(source, out, "fp32", Params(lengths=(8, 20)), 20, None)


@pytest.fixture
def copied(exported, tmp_path):
    """The same folder, to be damaged."""
    _, out, artefact = exported
    shutil.copy(out / FILE, tmp_path)
    return tmp_path, artefact


def expected_of(model, ids, mask):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()


def test_it_answers_as_pytorch(exported):
    """For a padded batch, in float32, whatever integer type comes in, in every signature."""
    model, out, artefact = exported
    batch = toy_batch()
    ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
    expected = expected_of(model, ids, mask)
    with litert.open_session(out, artefact, threads=1) as session:
        assert isinstance(session, Session)
        assert session.input_names == ("input_ids", "attention_mask") and session.output_names == ("logits",)
        for extra in (0, 1, 6):  # 7 tokens, 8, and 13 in the signature of 20
            wide = [np.pad(values, ((0, 0), (0, extra))) for values in (ids, mask)]
            for dtype in (np.int64, np.int32):
                found = session.run(named(*(values.astype(dtype) for values in wide)))["logits"]
                assert found.dtype == np.float32
                np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_does_not_change_an_answer(exported):
    """Neither what stands in it nor what a longer text before it left there."""
    _, out, artefact = exported
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 60, (1, 8))
    mask = (np.arange(8) < 5).astype(np.int64)[None]
    with litert.open_session(out, artefact, threads=1) as session:
        first = session.run(named(ids, mask))["logits"]
        garbage = np.where(mask == 1, ids, rng.integers(2, 60, ids.shape))
        np.testing.assert_array_equal(session.run(named(garbage, mask))["logits"], first)
        session.run(named(rng.integers(2, 60, (3, 8)), np.ones((3, 8), np.int64)))["logits"]
        np.testing.assert_array_equal(session.run(named(ids[:, :5], mask[:, :5]))["logits"], first)


def test_an_answer_stays_when_the_next_one_is_given(exported):
    """A view of the runtime's own memory would change."""
    _, out, artefact = exported
    ones = np.ones((1, 4), np.int64)
    with litert.open_session(out, artefact, threads=1) as session:
        first = session.run(named(5 * ones, ones))["logits"]
        kept = first.copy()
        assert not np.array_equal(session.run(named(6 * ones, ones))["logits"], kept)
        np.testing.assert_array_equal(first, kept)


def test_threads_are_passed_on(exported, monkeypatch):
    """And XNNPACK, the default, is not turned off."""
    from ai_edge_litert import interpreter

    _, out, artefact = exported
    asked = {}
    real = interpreter.Interpreter

    def spy(**options):
        asked.update(options)
        return real(**options)

    monkeypatch.setattr(interpreter, "Interpreter", spy)
    litert.open_session(out, artefact, threads=2).close()
    assert asked["num_threads"] == 2
    assert asked["experimental_op_resolver_type"] == interpreter.OpResolverType.AUTO


def test_an_input_beyond_the_longest_signature_is_refused(exported):
    """Rather than cut in silence."""
    _, out, artefact = exported
    ones = np.ones((1, 21), np.int64)
    with (
        litert.open_session(out, artefact, threads=1) as session,
        pytest.raises(ModelError, match="an input of 21 tokens, expected at most 20"),
    ):
        session.run(named(ones, ones))["logits"]


def test_a_token_beyond_the_vocabulary_is_a_message(exported):
    """Which says what the usual reason is."""
    _, out, artefact = exported
    ones = np.ones((1, 4), np.int64)
    with (
        litert.open_session(out, artefact, threads=1) as session,
        pytest.raises(ModelError, match="a token id beyond the vocabulary"),
    ):
        session.run(named(1000 * ones, ones))["logits"]


# --- damaged, or something else ----------------------------------------------------------------------------------


def test_a_truncated_file_is_refused(copied):
    """At any point, before LiteRT sees it."""
    folder, artefact = copied
    content = (folder / FILE).read_bytes()
    for kept in (0, 6, 8, 100, len(content) // 2, len(content) - 1000, len(content) - 1):
        (folder / FILE).write_bytes(content[:kept])
        with pytest.raises(ModelError, match=r"not a \.tflite file|damaged or cut short"):
            litert.prepare(folder, artefact)


def test_what_is_no_flatbuffer_is_refused(copied):
    """Or is not there."""
    folder, artefact = copied
    (folder / FILE).write_bytes(b"PK\x03\x04 another kind of file")
    with pytest.raises(ModelError, match=r"not a \.tflite file: found 25 bytes"):
        litert.prepare(folder, artefact)
    (folder / FILE).unlink()
    with pytest.raises(ModelError, match="no such file"):
        litert.prepare(folder, artefact)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda flat: setattr(flat.subgraphs[0].tensors[5], "buffer", 999), "cannot be read .*999 is out of bounds"),
        (lambda flat: setattr(flat.subgraphs[0].operators[3], "outputs", [4000]), "uses a tensor beyond"),
        (lambda flat: setattr(flat.subgraphs[1].operators[0], "opcodeIndex", 77), "an operation of kind 77"),
        (lambda flat: setattr(flat.signatureDefs[0], "subgraphIndex", 9), "of subgraph 9, which is not there"),
        (lambda flat: setattr(weight_of(flat), "shape", [6, 32]), "bytes, expected 768"),
    ],
)
def test_indices_and_sizes_that_do_not_fit_are_refused(copied, fault, message):
    """LiteRT would read or write beyond its memory."""
    from ai_edge_litert.tools import flatbuffer_utils

    folder, artefact = copied
    flat = read_flatbuffer((folder / FILE).read_bytes())
    fault(flat)
    (folder / FILE).write_bytes(flatbuffer_utils.convert_object_to_bytearray(flat))
    with pytest.raises(ModelError, match=message):
        litert.prepare(folder, artefact)


def test_what_litert_cannot_prepare_is_a_message(copied):
    """Indices and sizes fit, but an operation has an input too few."""
    from ai_edge_litert.tools import flatbuffer_utils

    folder, artefact = copied
    flat = read_flatbuffer((folder / FILE).read_bytes())
    flat.subgraphs[1].operators[4].inputs = flat.subgraphs[1].operators[4].inputs[:1]
    (folder / FILE).write_bytes(flatbuffer_utils.convert_object_to_bytearray(flat))
    with pytest.raises(ModelError, match=r"LiteRT cannot (prepare 'length_20'|load it)"):
        litert.open_session(folder, artefact, threads=1)


def weight_of(flat):
    return next(one for one in flat.subgraphs[0].tensors if one.name == b"length_8/classifier.weight")


def test_what_is_not_as_in_the_card_is_refused(exported):
    """Names, shapes, lengths."""
    _, out, artefact = exported
    logits = artefact.outputs[0]
    others = [
        ({"outputs": (logits.model_copy(update={"name": "scores"}),)}, r"found inputs .* expected .*'scores'"),
        ({"outputs": (logits.model_copy(update={"shape": (1, 4)}),)}, r"found inputs .* \(1, 4\)"),
        (
            {"inputs": tuple(one.model_copy(update={"name": f"x_{one.name}"}) for one in artefact.inputs)},
            "expected .*'x_input_ids'",
        ),
        ({"inputs": artefact.outputs, "outputs": artefact.inputs}, r"expected {'logits'.* and {'input_ids'"),
        ({"lengths": (8, 16, 20)}, "found signatures .* expected .*'length_16'"),
    ]
    for change, message in others:
        with pytest.raises(ModelError, match=message):
            litert.open_session(out, artefact.model_copy(update=change), threads=1)


def test_other_names_in_the_file_are_refused(copied):
    """Inputs go in by name."""
    folder, artefact = copied
    content = (folder / FILE).read_bytes()
    assert content.count(b"attention_mask") >= 2
    (folder / FILE).write_bytes(content.replace(b"attention_mask", b"attention_musk"))
    with pytest.raises(ModelError, match=r"found inputs .*attention_musk.* expected .*attention_mask"):
        litert.open_session(folder, artefact, threads=1)


def test_it_says_why_it_cannot_run(monkeypatch):
    """A missing package is a reason, not an error."""
    assert litert.why_unusable() is None
    assert litert.version().count(".") == 2
    monkeypatch.setattr("pipeline.base.extras.util.find_spec", lambda name: None)
    assert litert.why_unusable().startswith("not installed: ai_edge_litert; run: pip install")
