"""Sessions in a child process: the same answers, and a crash or hang that stays in there."""

import time

import numpy as np
import psutil
import pytest
from fakes import install_runtime, make_artefact, named

from eval.isolated import open_session
from eval.runtimes import Session
from eval.worker import WorkerError
from pipeline.base.errors import ModelError

IDS, MASK = np.array([[1, 2, 3]]), np.ones((1, 3), dtype=np.int64)


@pytest.fixture(autouse=True)
def runtime(monkeypatch, tmp_path):
    """The runtime 'fake', here and in fresh processes."""
    return install_runtime(monkeypatch, tmp_path)


def opened(tmp_path, file, **limits):
    return open_session("fake", tmp_path, make_artefact(file), 1, **limits)


def test_answers_come_from_another_process(tmp_path, runtime):
    with opened(tmp_path, "plain") as session:
        assert isinstance(session, Session)
        assert np.array_equal(session.run(named(IDS, MASK))["logits"], np.zeros((1, 2), dtype=np.float32))
        assert np.array_equal(
            session.run(named(IDS.repeat(3, 0), MASK.repeat(3, 0)))["logits"], np.zeros((3, 2), dtype=np.float32)
        )
        names = (session.input_names, session.output_names, session.runtime_version)
    assert names == (("input_ids", "attention_mask"), ("logits",), "1.2")
    assert runtime.CALLS == []


def test_what_a_runtime_prints_is_no_answer(tmp_path):
    with opened(tmp_path, "chatty") as session:
        assert session.run(named(IDS, MASK))["logits"].shape == (1, 2)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("crash", r"^crashed \(SIGSEGV\)$"),
        ("raise", r"^failed \(exit status 1\): ValueError: cannot load this$"),
        ("greedy", r"^failed \(exit status 1\): .*MemoryError: Unable to allocate 20"),
    ],
)
def test_loader_that_fails_is_a_reason(tmp_path, file, message):
    """Planted faults: a segmentation fault, an exception, and 20 GiB of memory."""
    with pytest.raises(WorkerError, match=message):
        opened(tmp_path, file)


def test_loader_that_hangs_is_ended(tmp_path):
    started = time.monotonic()
    with pytest.raises(WorkerError, match=r"^timed out after 0.5 s$"):
        opened(tmp_path, "hang", open_timeout_s=0.5)
    assert time.monotonic() - started < 30
    assert not psutil.Process().children()


def test_crash_in_a_call_is_a_reason(tmp_path):
    with opened(tmp_path, "crash_later") as session, pytest.raises(WorkerError, match=r"^crashed \(SIGSEGV\)$"):
        session.run(named(IDS, MASK))["logits"]


def test_call_that_hangs_is_ended(tmp_path):
    with (
        opened(tmp_path, "hang_later", run_timeout_s=0.5) as session,
        pytest.raises(WorkerError, match=r"^timed out after 0.5 s$"),
    ):
        session.run(named(IDS, MASK))["logits"]


def test_refusal_of_a_file_arrives_as_it_was_raised(tmp_path):
    with pytest.raises(ModelError, match=r"^refuse: truncated by 3 bytes; export it again$"):
        opened(tmp_path, "refuse")


def test_session_outlives_a_refused_input(tmp_path):
    """The child has answered with an error, and listens on."""
    with opened(tmp_path, "refuse_later") as session:
        for _ in range(2):
            with pytest.raises(ModelError, match="an input of 9 tokens"):
                session.run(named(IDS, MASK))["logits"]
