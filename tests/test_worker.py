"""What is timed, in which order, and which results are refused. Clocks are fakes here: no assert depends on speed."""

import json

import numpy as np
import pytest
from fakes import install_runtime, make_artefact, make_job, make_result
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import worker
from eval.worker import Job, Loadable, Turn, WorkerError, execute, parse_result

COSTS = {"student.fake": 2_000_000, "teacher.fake": 8_000_000}


@pytest.fixture
def runtime(monkeypatch, tmp_path):
    """The runtime 'fake' in this process."""
    return install_runtime(monkeypatch, tmp_path)


def calls(runtime):
    """Names of the artefacts in the order they were called."""
    return [call[0] for call in runtime.CALLS if call[1] != "closed"]


@pytest.mark.parametrize("candidate_first", [True, False])
def test_calls_alternate_a_b_b_a(runtime, candidate_first):
    """One inference a turn, of each file two sessions; the order of the first round is the job's."""
    result = execute(make_job(candidate_first=candidate_first))
    a, b = ("student.fake", "teacher.fake") if candidate_first else ("teacher.fake", "student.fake")
    assert calls(runtime) == [a, b, b, a] * 6
    first, second = ("candidate", "reference") if candidate_first else ("reference", "candidate")
    arms = [first, second, f"{second}_twin", f"{first}_twin"]
    order = {place: one.model for one in result.samples for place in one.order}
    assert [order[place] for place in range(16)] == [*arms, *reversed(arms), *arms, *reversed(arms)]


def test_no_session_finds_a_warmer_cache_than_its_twin(runtime):
    """Each follows its own model as often as the other one."""
    order = {place: one.model for one in execute(make_job()).samples for place in one.order}
    before = {arm: [] for arm in order.values()}
    for place in range(1, 24):
        before[order[place]].append(order[place - 1].removesuffix("_twin") == order[place].removesuffix("_twin"))
    assert all(found.count(True) in {2, 3} for found in before.values())


def test_a_model_that_runs_elsewhere_has_one_clock(runtime, monkeypatch):
    """Its own; nobody knows how much of it was CPU time."""
    monkeypatch.setattr(runtime.Session, "last_call_ns", 5_000, raising=False)
    for samples in execute(make_job()).samples:
        assert (set(samples.wall_ns), samples.cpu_ns) == ({5_000}, ())


def test_both_models_get_the_same_sequence_in_a_pair(runtime):
    """Each padded as its own artefact demands."""
    teacher = Loadable(folder="/nowhere", artefact=make_artefact("teacher.fake", lengths=(4, 8)))
    execute(make_job(reference=None).model_copy(update={"reference": teacher}))
    by_model = {name: [call for call in runtime.CALLS if call[0] == name and len(call) > 2] for name in COSTS}
    for (_, ids, mask, _), (_, other_ids, other_mask, _) in zip(*by_model.values(), strict=True):
        assert np.array(ids)[np.array(mask) == 1].tolist() == np.array(other_ids)[np.array(other_mask) == 1].tolist()
    assert {len(call[1][0]) for call in by_model["student.fake"]} == {1, 2, 3, 4, 5, 6}
    assert {len(call[1][0]) for call in by_model["teacher.fake"]} == {4, 8}


def test_every_call_is_kept_with_its_position(runtime):
    """Warm-ups too; positions run through all turns of the process."""
    turns = (
        Turn(lengths="data", warmup=1, sequences=((1, 2), (3,), (4,))),
        Turn(lengths="2", warmup=1, sequences=((1, 2), (3, 4))),
    )
    result = execute(make_job(turns=turns))
    order = {(one.model, one.lengths): one.order for one in result.samples}
    assert order == {
        ("candidate", "data"): (0, 7, 8),
        ("reference", "data"): (1, 6, 9),
        ("reference_twin", "data"): (2, 5, 10),
        ("candidate_twin", "data"): (3, 4, 11),
        ("candidate", "2"): (12, 19),
        ("reference", "2"): (13, 18),
        ("reference_twin", "2"): (14, 17),
        ("candidate_twin", "2"): (15, 16),
    }
    assert all(len(one.wall_ns) == len(one.cpu_ns) == len(one.order) for one in result.samples)


def test_clocks_are_read_around_each_call(runtime, monkeypatch):
    """A fake clock that only the models move: each sample is exactly its model's cost, on each clock."""
    now = {"wall": 0, "cpu": 0}
    original = runtime.Session.run

    def run(session, inputs):
        now["wall"] += COSTS[session.name]
        now["cpu"] += COSTS[session.name] // 2
        return original(session, inputs)

    monkeypatch.setattr(runtime.Session, "run", run)
    monkeypatch.setattr(worker.time, "perf_counter_ns", lambda: now["wall"])
    monkeypatch.setattr(worker.time, "process_time_ns", lambda: now["cpu"])
    for samples in execute(make_job()).samples:
        cost = COSTS["student.fake" if samples.model.startswith("candidate") else "teacher.fake"]
        assert (set(samples.wall_ns), set(samples.cpu_ns)) == ({cost}, {cost // 2})


def test_clock_that_stands_still_is_refused(runtime, monkeypatch):
    """A planted zero sample: never a latency of 0."""
    monkeypatch.setattr(worker.time, "perf_counter_ns", lambda: 0)
    with pytest.raises(ValueError, match="greater than 0"):
        execute(make_job())


def test_threads_are_set_before_the_runtime_is_called(runtime, monkeypatch):
    """Thread pools read the environment once."""
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    execute(make_job(threads=3))
    assert {call[3] for call in runtime.CALLS if call[1] != "closed"} == {"3"}


def test_load_job_gives_load_time_first_call_and_memory(runtime):
    """The session holds 16 MB; the memory found is at least that and the session is closed."""
    result = execute(make_job("load", reference=None))
    assert result.load_ms > 0
    assert result.first_call_ms > 0
    assert result.memory_bytes >= 15_000_000
    assert (calls(runtime), runtime.CALLS[-1]) == (["student.fake"], ("student.fake", "closed"))


def test_import_and_checks_are_left_out_of_the_load_where_the_runtime_offers_it(runtime, monkeypatch):
    """`prepare` comes first, then `open_prepared` in place of `open_session`."""
    seen = []
    monkeypatch.setattr(runtime, "prepare", lambda folder, artefact: seen.append("prepare"), raising=False)
    monkeypatch.setattr(
        runtime, "open_prepared", lambda *a: seen.append("open") or runtime.Session("student.fake"), raising=False
    )
    monkeypatch.setattr(runtime, "open_session", None)
    execute(make_job("load", reference=None))
    assert seen == ["prepare", "open"]


def test_sessions_are_closed_when_a_call_fails(runtime, monkeypatch):
    """And the error is the call's own."""
    monkeypatch.setattr(runtime.Session, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        execute(make_job())
    assert {call[0] for call in runtime.CALLS if call[1] == "closed"} == set(COSTS)


def test_unusable_runtime_is_said_to_be_so(runtime, monkeypatch):
    """With its reason; nothing is loaded."""
    monkeypatch.setenv("FAKE_UNUSABLE", "no AVX2 here")
    result = execute(make_job())
    assert (result.unusable, runtime.CALLS) == ("no AVX2 here", [])


def line_of(job, **changes):
    """A result as a worker prints it, with its first series of samples changed."""
    body = make_result(job, COSTS, np.random.default_rng(0)).model_dump(mode="json")
    body["samples"][0].update(changes)
    return json.dumps(body)


def test_good_line_is_taken():
    """Every sample comes through."""
    job = make_job()
    assert parse_result(line_of(job) + "\n", job) == make_result(job, COSTS, np.random.default_rng(0))


@pytest.mark.parametrize("bad", [0, -5, "7", 1.5, "1,5 ms", None, True, [1]])
def test_sample_that_is_no_positive_whole_number_is_refused(bad):
    """The message shows the line."""
    job = make_job()
    with pytest.raises(WorkerError, match=r"(?s)printed what cannot be used: samples\.0\.wall_ns\.1.*the line: '\{"):
        parse_result(line_of(job, wall_ns=[100, bad, 100, 100, 100, 100]), job)


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "-1.0", "0", '"1,5"', '"3.5"'])
def test_load_time_that_is_no_positive_number_is_refused(bad):
    """JSON has no NaN, but Python's reader would take it."""
    job = make_job("load", reference=None)
    line = '{"load_ms": %s, "first_call_ms": 2.0, "memory_bytes": 5}' % bad  # noqa: UP031 - braces in the text
    with pytest.raises(WorkerError, match=r"cannot be used: load_ms.*the line"):
        parse_result(line, job)


@pytest.mark.parametrize("text", ["", "hello\n", "1.5 ms\n", "[]\n", "null\n", "{}\n{}\n"])
def test_output_that_is_not_one_object_is_refused(text):
    """Shown as it was found."""
    with pytest.raises(WorkerError, match=r"found|the line"):
        parse_result(text, make_job())


def test_missing_samples_are_refused():
    """Fewer calls than asked for, a model left out, or a load without its memory."""
    job = make_job()
    with pytest.raises(WorkerError, match="incomplete result: found"):
        parse_result(line_of(job, wall_ns=[1], cpu_ns=[1], order=[0]), job)
    with pytest.raises(WorkerError, match="series of other lengths for the candidate"):
        parse_result(line_of(job, wall_ns=[1]), job)
    with pytest.raises(WorkerError, match="incomplete result: no memory_bytes"):
        parse_result('{"load_ms": 1.0, "first_call_ms": 2.0}', make_job("load", reference=None))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_truncated_or_altered_lines_never_pass_for_another_result(data):
    """Cut anywhere, or with one character changed to one that no number has: refused, never a crash."""
    job = make_job()
    line = line_of(job)
    at = data.draw(st.integers(0, len(line) - 1))
    for text in (line[:at], line[:at] + "\x01" + line[at + 1 :]):
        with pytest.raises(WorkerError):
            parse_result(text, job)


def test_job_survives_json():
    """As it does on the way to a worker."""
    job = make_job()
    assert Job.model_validate_json(job.model_dump_json()) == job
