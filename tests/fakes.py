"""A runtime that needs no model: what it does is told by the name of the artefact's file. Also records made by hand."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

import eval.runtimes
from eval.worker import Job, Loadable, Result, Samples, Turn, arms_of
from pipeline.base import plugins
from pipeline.base.records import Artefact, Measurement, Series, TensorFact

ROOT = Path(__file__).resolve().parents[1]

# As a text, so that a fresh process can import it too.
RUNTIME = """
import os
import signal
import time

import numpy as np

FORMATS = ("fake",)
STAND_IN = None
CALLS = []


def why_unusable():
    return os.environ.get("FAKE_UNUSABLE")


def version():
    return "1.2"


def open_session(folder, artefact, threads):
    if artefact.file == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if artefact.file == "hang":
        time.sleep(60)
    if artefact.file == "chatty":
        os.write(1, b"hello from C++\\n")
    if artefact.file == "raise":
        raise ValueError("cannot load this")
    if artefact.file == "refuse":
        from pipeline.base.errors import ModelError

        raise ModelError("refuse: truncated by 3 bytes; export it again")
    if artefact.file == "greedy":
        np.ones(20 * 2**30 // 8)
    return Session(artefact.file)


class Session:
    input_names = ("input_ids", "attention_mask")
    output_names = ("logits",)

    def __init__(self, name):
        self.name, self.weights = name, np.ones(2_000_000)

    def run(self, inputs):
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if self.name == "crash_later":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.name == "hang_later":
            time.sleep(60)
        if self.name == "refuse_later":
            from pipeline.base.errors import ModelError

            raise ModelError("an input of 9 tokens, expected at most 8; cut it")
        CALLS.append((self.name, ids.tolist(), mask.tolist(), os.environ.get("OMP_NUM_THREADS")))
        return {"logits": np.zeros((len(ids), 2), dtype=np.float32) + 0 * sum(range(300))}

    def close(self):
        CALLS.append((self.name, "closed"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
"""


def slow_but(values, *fast):
    """Parameters of a test that takes seconds for each: `make test` has some, `make test-all` those like them, too."""
    assert all(value in values for value in fast)
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


def port_of(name):
    """A tokenizer of apps that can run here; else the test is skipped."""
    port = plugins.load("tokenizer", name)
    if (reason := port.why_unusable()) is not None:
        # Node.js, Java and Swift are no part of what `make test` promises; the reason says what to install
        pytest.skip(reason)
    return port


def named(ids, mask):
    """Inputs as a session takes them."""
    return {"input_ids": ids, "attention_mask": mask}


def install_runtime(monkeypatch, tmp_path):
    """Makes the runtime 'fake' known to this process and to the ones it starts; gives its module."""
    (tmp_path / "runtimes").mkdir()
    (tmp_path / "runtimes" / "fake.py").write_text(RUNTIME)
    (tmp_path / "sitecustomize.py").write_text(
        f"import eval.runtimes\neval.runtimes.__path__.append({str(tmp_path / 'runtimes')!r})\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = list(eval.runtimes.__path__)
    monkeypatch.setattr(eval.runtimes.__spec__, "submodule_search_locations", [*path, str(tmp_path / "runtimes")])
    monkeypatch.setattr(eval.runtimes, "__path__", [*path, str(tmp_path / "runtimes")])
    monkeypatch.delitem(sys.modules, "eval.runtimes.fake", raising=False)
    importlib.invalidate_caches()
    module = importlib.import_module("eval.runtimes.fake")
    monkeypatch.setitem(sys.modules, "eval.runtimes.fake", module)
    return module


def make_artefact(file="student.fake", *, lengths=None, max_length=64, batch="batch", precision="fp32"):
    """The record of an artefact that takes `input_ids`."""
    return Artefact(
        format="fake",
        precision=precision,
        file=file,
        inputs=(TensorFact(name="input_ids", dtype="int64", shape=(batch, "length")),),
        outputs=(TensorFact(name="logits", dtype="float32", shape=(batch, 2)),),
        lengths=lengths,
        max_length=max_length,
        tools={},
    )


def make_job(kind="time", file="student.fake", reference="teacher.fake", **changes):
    """A small job for the runtime 'fake': two warm-up pairs and four timed ones, on texts of 1 to 6 tokens."""
    sequences = tuple(tuple(range(1, length + 1)) for length in range(1, 7))
    values = {
        "kind": kind,
        "runtime": "fake",
        "threads": 1,
        "pad_id": 0,
        "candidate": Loadable(folder="/nowhere", artefact=make_artefact(file)),
        "reference": Loadable(folder="/nowhere", artefact=make_artefact(reference)) if reference else None,
        "turns": (Turn(lengths="data", warmup=2, sequences=sequences),),
    }
    return Job(**{**values, **changes})


def make_result(job, cost_ns, rng, *, noise=0.02, cpu_share=1.0, second_factor=1.0):
    """What a worker would find on a machine where a call of an artefact costs `cost_ns[file]`, give or take."""
    condition = {"when": "before", "steal_seconds_since_boot": 0.0, "elapsed_s": 1.0}
    facts = {"runtime_version": "1.2", "conditions": (condition, {**condition, "when": "after"})}
    if job.kind == "load":
        draw = rng.lognormal(0, noise, 3)
        return Result(load_ms=50 * draw[0], first_call_ms=9 * draw[1], memory_bytes=int(4e7 * draw[2]), **facts)
    samples = []
    for turn in job.turns:
        for arm, loadable in arms_of(job).items():
            factor = second_factor if arm.endswith("twin") else 1.0
            wall = cost_ns[loadable.artefact.file] * factor * rng.lognormal(0, noise, len(turn.sequences))
            order = tuple(range(len(wall)))
            cpu = tuple((wall * cpu_share).astype(int).tolist())
            samples.append(
                Samples(
                    model=arm, lengths=turn.lengths, wall_ns=tuple(wall.astype(int).tolist()), cpu_ns=cpu, order=order
                )
            )
    return Result(samples=tuple(samples), **facts)


def make_measurement(
    candidate_ms=2.0,
    reference_ms=8.0,
    *,
    n=200,
    noise=0.05,
    twins=1.0,
    cpu_share=1.0,
    processes=5,
    scatter=0.0,
    **changes,
):
    """A measurement with n pairs at the data's lengths over 5 processes, and 7 loads.

    The candidate is `twins` times as slow as its twin; a process is off by `scatter`, as a standard deviation of logs.
    """
    rng = np.random.default_rng(2)
    calls = n // processes // 2
    series = [
        Series(
            model=model,
            process=process,
            round=0,
            lengths="data",
            wall_ns=tuple(wall.astype(int).tolist()),
            cpu_ns=tuple((wall * cpu_share).astype(int).tolist()),
            order=tuple(range(calls)),
            warmup=0,
        )
        for process, middle in enumerate(rng.lognormal(0, scatter, processes))
        for model, milliseconds in (
            ("candidate", candidate_ms * twins**0.5),
            ("reference", reference_ms),
            ("reference_twin", reference_ms),
            ("candidate_twin", candidate_ms / twins**0.5),
        )
        for wall in [milliseconds * 1e6 * middle * rng.lognormal(0, noise, calls)]
    ]
    values = {
        "target": "cpu",
        "runtime": "fake",
        "device": "local",
        "artefact_digest": "a" * 64,
        "reference_digest": "b" * 64,
        "series": tuple(series),
        "load_ms": tuple(50 + i for i in range(7)),
        "first_call_ms": tuple(9.0 + i for i in range(7)),
        "memory_bytes": tuple(40_000_000 + i for i in range(7)),
        "size_bytes": 12_000_000,
    }
    return Measurement(**{**values, **changes})
