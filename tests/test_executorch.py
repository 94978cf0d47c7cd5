"""The runtime answers as PyTorch and refuses what it should not load."""

import shutil

import numpy as np
import pytest
import torch
from fakes import named
from toy_models import toy_batch, toy_model

from eval.runtimes import Session, executorch
from export.to_executorch import FILE, Params, convert
from pipeline.base.errors import ModelError, UnusableRuntimeError
from pipeline.models.checkpoints import save_classifier

pytest.importorskip("executorch", reason="the extra 'executorch' is not installed")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A toy model, its folder and the record."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    model = toy_model(attention="sdpa", num_hidden_layers=1)
    save_classifier(model, source)
    return model, out, convert(source, out, "fp32", Params(), 20, None)


@pytest.fixture
def copied(exported, tmp_path):
    """The same folder, to be damaged."""
    _, out, artefact = exported
    shutil.copy(out / FILE, tmp_path)
    return tmp_path, artefact


def test_it_answers_as_pytorch(exported):
    """For a padded batch, in float32, whatever integer type and layout comes in."""
    model, out, artefact = exported
    batch = toy_batch()
    ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy()
    with torch.no_grad():
        expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.numpy()
    with executorch.open_session(out, artefact, threads=1) as session:
        assert isinstance(session, Session)
        assert session.input_names == ("input_ids", "attention_mask") and session.output_names == ("logits",)
        for dtype, order in ((np.int64, "C"), (np.int32, "C"), (np.int32, "F")):
            found = session.run(named(ids.astype(dtype, order=order), mask.astype(dtype, order=order)))["logits"]
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_inputs_go_in_by_the_order_of_the_card(exported):
    """The format has no names, so a card with the two exchanged gives other answers."""
    _, out, artefact = exported
    exchanged = artefact.model_copy(update={"inputs": artefact.inputs[::-1]})
    ids, mask = np.array([[5, 6, 7]]), np.ones((1, 3), np.int64)
    with (
        executorch.open_session(out, artefact, threads=1) as right,
        executorch.open_session(out, exchanged, threads=1) as wrong,
    ):
        assert wrong.input_names == ("attention_mask", "input_ids")
        assert not np.allclose(right.run(named(ids, mask))["logits"], wrong.run(named(ids, mask))["logits"])


def test_an_answer_stays_when_the_next_one_is_given(exported):
    """A view of the runtime's own memory would change."""
    _, out, artefact = exported
    ones = np.ones((1, 4), np.int64)
    with executorch.open_session(out, artefact, threads=1) as session:
        first = session.run(named(5 * ones, ones))["logits"]
        kept = first.copy()
        assert not np.array_equal(session.run(named(6 * ones, ones))["logits"], kept)
        np.testing.assert_array_equal(first, kept)


def test_an_input_that_is_too_long_is_refused(exported):
    """And the session answers on."""
    _, out, artefact = exported
    ones = np.ones((1, 21), np.int64)
    with executorch.open_session(out, artefact, threads=1) as session:
        with pytest.raises(ModelError, match="an input of 21 tokens, expected at most 20; cut it"):
            session.run(named(ones, ones))["logits"]
        assert session.run(named(ones[:, :20], ones[:, :20]))["logits"].shape == (1, 3)


def test_threads_belong_to_the_process(exported):
    """They are set where no program is open, shared by all, and refused where a program would lose its pool."""
    from executorch.extension.pybindings import portable_lib

    _, out, artefact = exported
    for threads in (2, 1):
        with (
            executorch.open_session(out, artefact, threads) as session,
            executorch.open_session(out, artefact, threads),
        ):
            assert portable_lib._threadpool_get_thread_count() == threads
            with pytest.raises(
                UnusableRuntimeError,
                match=f"has {threads} threads in this process while 2 of its programs are open, asked for were 3",
            ):
                executorch.open_session(out, artefact, 3)
            assert session.run(named(np.ones((1, 4), np.int64), np.ones((1, 4), np.int64)))["logits"].shape == (1, 3)


def test_a_session_that_was_refused_holds_no_threads(copied):
    """Nor does one that nobody closed and nobody has."""
    folder, artefact = copied
    for threads in (2, 1):
        with pytest.raises(ModelError):
            executorch.open_session(folder, artefact.model_copy(update={"max_length": 19}), threads)
        executorch.open_session(folder, artefact, threads)


def test_a_pool_that_does_not_change_is_told(exported, monkeypatch):
    """A measurement with another number of threads than asked for would not be the one that was asked for."""
    from executorch.extension.pybindings import portable_lib

    _, out, artefact = exported
    monkeypatch.setattr(portable_lib, "_unsafe_reset_threadpool", lambda threads: None)
    found = portable_lib._threadpool_get_thread_count()
    with pytest.raises(UnusableRuntimeError, match=f"took {found} threads, asked for were 7; set threads to {found}"):
        executorch.open_session(out, artefact, 7)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1000], r"truncated by 1,000 bytes \(found [\d,]+, expected [\d,]+ as its header"),
        (lambda content: content[:20], "found no header of 32 bytes"),
        (lambda content: content[:5], "found b'E' where an ExecuTorch program has b'ET12'"),
        (lambda content: b"", "found b'' where"),
        (lambda content: content + b"more", "longer by 4 bytes"),
        (lambda content: content[:4] + b"ET13" + content[8:], "found b'ET13' where"),
        (lambda content: content[:8] + b"eh01" + content[12:], "found no header of 32 bytes that starts with b'eh00'"),
        (lambda content: content[:12] + b"\x18" + content[13:], "found no header of 32 bytes"),
        # the offset of its first table
        (lambda content: b"\xff\xff\xff\x7f" + content[4:], "ExecuTorch cannot load it: .*; export it again"),
    ],
)
def test_a_damaged_file_is_refused(copied, damage, message):
    """In one message, before the runtime would read beyond its end."""
    folder, artefact = copied
    path = folder / artefact.file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=message) as caught:
        executorch.open_session(folder, artefact, threads=1)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_what_its_record_says_is_refused(exported):
    """Other names, types, counts, classes or lengths than the card's."""
    _, out, artefact = exported
    inputs, (logits,) = artefact.inputs, artefact.outputs
    for change in (
        {"inputs": inputs[:1]},
        {"inputs": (inputs[0], inputs[1].model_copy(update={"name": "token_type_ids"}))},
        {"inputs": (inputs[0], inputs[1].model_copy(update={"dtype": "int64"}))},
        {"inputs": tuple(one.model_copy(update={"shape": ("batch", "length")}) for one in inputs)},
        {"outputs": (logits.model_copy(update={"shape": (1, 4)}),)},
        {"max_length": 16},
    ):
        with pytest.raises(ModelError, match=r"found inputs .*\(1, 20\).* expected .* as in its card; export it again"):
            executorch.open_session(out, artefact.model_copy(update=change), threads=1)


def test_the_kernels_of_8_bit_tables_are_there(exported):
    """The package has them in a library of their own, which it does not load by itself."""
    _, out, artefact = exported
    executorch.prepare(out, artefact)
    from executorch.extension.pybindings import portable_lib

    assert "quantized_decomposed::embedding_byte.dtype_out" in portable_lib._get_operator_names()


def test_it_says_why_it_cannot_run(exported, monkeypatch):
    """A missing package is a reason, with the command that installs it."""
    _, out, artefact = exported
    assert executorch.why_unusable() is None and executorch.STAND_IN is None
    assert executorch.version().count(".") == 2
    monkeypatch.setattr(executorch.extras.util, "find_spec", lambda name: None)
    reason = "not installed: executorch; run: pip install -c requirements.lock"
    assert executorch.why_unusable().startswith(reason)
    with pytest.raises(UnusableRuntimeError, match=reason):
        executorch.open_session(out, artefact, threads=1)
