"""A real headless browser answers as PyTorch, on the page's own clock, and what it cannot do is a plain error."""

import time
import urllib.error
import urllib.request

import numpy as np
import psutil
import pytest
from fakes import make_job, named
from toy_models import toy_batch, toy_model

from eval.devices import local
from eval.isolated import open_session
from eval.runtimes import Session, browser
from eval.worker import Loadable, WorkerError
from export import to_onnx, to_ort
from pipeline.base.errors import ModelError
from pipeline.models.checkpoints import save_classifier

# Chromium and onnxruntime-web come with `make browser`, which `make test` does not promise; the reason says so.
pytestmark = pytest.mark.skipif(browser.why_unusable() is not None, reason=str(browser.why_unusable()))
FORMATS = {"onnx": to_onnx, "ort": to_ort}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    model = toy_model()
    save_classifier(model, folder)
    return model, folder


@pytest.fixture(scope="module", params=[("onnx", "int64"), ("onnx", "int32"), ("ort", "int64")], ids=str)
def exported(request, source, tmp_path_factory):
    """(model, folder, artefact) in each format that it takes."""
    name, inputs = request.param
    out = tmp_path_factory.mktemp(name)
    exporter = FORMATS[name]
    return source[0], out, exporter.convert(source[1], out, "fp32", exporter.Params(inputs=inputs), 20, None)


@pytest.fixture(scope="module", autouse=True)
def pages():
    """Ends the browsers that the module started."""
    yield
    for page in browser._pages.values():
        page.close()
    browser._pages.clear()


def test_it_answers_as_pytorch(exported):
    """For a padded batch, in float32."""
    model, out, artefact = exported
    batch = toy_batch()
    expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach().numpy()
    with browser.open_session(out, artefact, threads=1) as session:
        assert isinstance(session, Session)
        assert session.input_names == ("input_ids", "attention_mask") and session.output_names == ("logits",)
        found = session.run(named(batch["input_ids"].numpy(), batch["attention_mask"].numpy()))["logits"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)
        # a twentieth of a millisecond and less would be a clock that stands still
        assert 50_000 < session.last_call_ns < 1e9


def test_two_threads_are_isolated_and_give_the_same(exported):
    _, out, artefact = exported
    ids = np.arange(1, 13).reshape(1, 12)
    answers = []
    for threads in (1, 2):
        with browser.open_session(out, artefact, threads=threads) as session:
            answers.append(session.run(named(ids, np.ones_like(ids)))["logits"])
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-6)


def test_too_long_an_input_is_an_error(exported):
    _, out, artefact = exported
    ids = np.ones((1, 21), dtype=np.int64)
    with browser.open_session(out, artefact, threads=1) as session:
        with pytest.raises(ModelError, match="21 tokens, expected at most 20"):
            session.run(named(ids, ids))["logits"]
        assert session.run(named(ids[:, :20], ids[:, :20]))["logits"].shape[0] == 1  # and the next call is answered


def test_file_that_is_not_its_card_is_refused(source, tmp_path):
    artefact = to_onnx.convert(source[1], tmp_path, "fp32", to_onnx.Params(), 20, None)
    swapped = artefact.model_copy(update={"inputs": artefact.inputs[::-1]})
    with pytest.raises(
        ModelError, match=r"found inputs \['input_ids', 'attention_mask'\].*expected \['attention_mask'"
    ):
        browser.open_session(tmp_path, swapped, threads=1)
    with pytest.raises(ModelError, match="setting 'spinning'"):
        browser.open_session(tmp_path, artefact.model_copy(update={"settings": {"spinning": "1"}}), threads=1)


def test_what_the_page_says_of_a_bad_file_is_the_error(source, tmp_path, monkeypatch):
    artefact = to_onnx.convert(source[1], tmp_path, "fp32", to_onnx.Params(), 20, None)
    monkeypatch.setattr(browser, "check_file", lambda _: None)
    (tmp_path / artefact.file).write_bytes(b"not a model")
    with pytest.raises(ModelError, match="onnxruntime-web says: "):
        browser.open_session(tmp_path, artefact, threads=1)


def test_worker_times_it_on_the_page_s_clock(exported):
    """Load time, memory of the page's process, and rounds of calls; how much of a call was CPU time nobody knows."""
    _, out, artefact = exported
    one = Loadable(folder=str(out), artefact=artefact)
    job = make_job("load").model_copy(update={"runtime": "browser", "candidate": one, "reference": None})
    result = local.run_worker(job, 120)
    assert result.runtime_version == browser.version() and result.library_bytes > 10e6
    assert result.load_ms > 0 and result.first_call_ms > 0 and 0 < result.memory_bytes < 1e9
    timed = local.run_worker(job.model_copy(update={"kind": "time", "reference": one}), 120)
    for series in timed.samples:
        assert series.cpu_ns == () and len(series.wall_ns) == len(job.turns[0].sequences)


def test_browser_ends_with_its_process(exported):
    """No browser is left behind by a session in a child process, whether it is closed or killed."""
    _, out, artefact = exported
    ids = np.ones((1, 5), dtype=np.int64)
    for end in ("close", "kill"):
        session = open_session("browser", out, artefact, 1)
        session.run(named(ids, ids))["logits"]
        started = psutil.Process(session._process.pid).children(recursive=True)
        assert any("chrom" in child.name() for child in started)
        if end == "kill":
            session._process.kill()
        session.close()
        _, alive = psutil.wait_procs(started, timeout=20)
        assert not alive, f"{end}: {alive}"


def test_browser_that_dies_is_an_error(exported):
    _, out, artefact = exported
    ids = np.ones((1, 5), dtype=np.int64)
    with open_session("browser", out, artefact, 1) as session:
        session.run(named(ids, ids))["logits"]
        main = next(child for child in psutil.Process(session._process.pid).children() if child.name() == "chromium")
        main.kill()
        with pytest.raises((ModelError, WorkerError), match="browser ended"):
            for _ in range(100):  # the page outlives the browser by a moment
                session.run(named(ids, ids))["logits"]
                time.sleep(0.05)


def test_nobody_else_can_read_the_model(exported):
    """Without the secret part of the address the server says nothing."""
    _, out, artefact = exported
    with browser.open_session(out, artefact, threads=1) as session:
        port = session._page._server.server_port
        for path in ("", "model-1", "guess/model-1", f"{session._page.secret}/../{artefact.file}"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10)


@pytest.mark.parametrize("missing", ["library", "browser"])
def test_reason_names_the_command(monkeypatch, tmp_path, missing):
    if missing == "library":
        monkeypatch.setattr(browser, "LIBRARY", tmp_path)
        assert "make browser" in browser.why_unusable()
    else:
        monkeypatch.setenv("CHROME", "no-such-browser")
        assert "$CHROME" in browser.why_unusable()
