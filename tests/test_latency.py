"""How often and in which order is timed, and what becomes of it; workers are simulated."""

import dataclasses
from functools import partial

import numpy as np
import pytest
from fakes import install_runtime, make_artefact, make_result

from eval import figures
from eval.devices import local
from eval.latency import Exported, leaves_undecided, measure, time_tokenizer
from eval.worker import Result, WorkerError
from pipeline.base.errors import IntegrityError
from pipeline.base.records import Measurement, ReasonKind, read, write
from pipeline.settings.budgets import Budgets
from pipeline.settings.measure import MeasureSettings

COSTS = {"student.fake": 2e6, "teacher.fake": 8e6}
SETTINGS = MeasureSettings(processes=3, pairs=20, max_rounds=3, warmup=2, threads=1, lengths=(4, 8, 128))
SEQUENCES = [[1, 5, 2], [1, 6, 7, 2], [1, 2]]


@pytest.fixture
def jobs(monkeypatch):
    """Every job that a simulated, quiet machine is given; `jobs.noise` and the like change the machine."""

    class Machine(list):
        rng = np.random.default_rng(0)
        options = {"noise": 0.02}  # noqa: RUF012 - each test has its own class

        def run(self, job, timeout_s):
            self.append(job)
            return make_result(job, COSTS, self.rng, **self.options)

    machine = Machine()
    monkeypatch.setattr(local, "run_worker", machine.run)
    return machine


@pytest.fixture
def exported(tmp_path):
    """A student and a teacher on disk."""
    out = []
    for name, size in (("student.fake", 100), ("teacher.fake", 900)):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_bytes(name.encode() * size)
        out.append(Exported(folder, make_artefact(name), digest=name[0] * 64, size_bytes=size * len(name)))
    return out


def run(exported, **changes):
    """A measurement of the student against the teacher; with `budgets`, until they are decided."""
    if (budgets := changes.pop("budgets", None)) is not None:
        changes["undecided"] = partial(leaves_undecided, budgets)
    values = {
        "target": "cpu",
        "runtime": "fake",
        "device": "local",
        "candidate": exported[0],
        "reference": exported[1],
        "sequences": SEQUENCES,
        "pad_id": 0,
        "settings": SETTINGS,
        "seed": 0,
    }
    return measure(**{**values, **changes})


def test_processes_of_one_round(jobs, exported):
    """Seven loads for an interval of their median, then timing."""
    run(exported)
    timed = [job for job in jobs if job.kind == "time"]
    assert [job.kind for job in jobs] == ["load"] * 7 + ["time"] * 3
    assert {job.reference.artefact.file for job in timed} == {"teacher.fake"}
    assert all(job.reference is None for job in jobs if job.kind == "load")


def test_two_environments_take_turns_in_processes_of_their_own(jobs, exported):
    """Four for each of a shared process's sessions, each with one file in its own Python: A B B' A', then B A A' B'."""
    other = dataclasses.replace(exported[1], python="/other/python")
    found = run([exported[0], other], reference=other, with_loads=False)
    files = [job.candidate.artefact.file for job in jobs]
    ours, theirs = "student.fake", "teacher.fake"
    assert files == [ours, theirs, theirs, ours, theirs, ours, ours, theirs, ours, theirs, theirs, ours]
    assert all((job.python == "/other/python") == (job.candidate.artefact.file == theirs) for job in jobs)
    assert all(job.reference is None for job in jobs)
    shared = run(exported, with_loads=False)
    for measurement, calls in ((found, 20), (shared, 10)):
        data = [series for series in measurement.series if series.lengths == "data"]
        assert {len(series.wall_ns[series.warmup :]) for series in data} == {calls}
        assert [series.model for series in data].count("reference_twin") == 3
    ratio = figures.slowdown(found)
    assert ratio.low < 0.25 < ratio.high and ratio.value == pytest.approx(0.25, rel=0.05)


def test_who_goes_first_alternates_from_process_to_process(jobs, exported):
    """So that neither model is always the one that finds a cold cache."""
    run(exported)
    firsts = [job.candidate_first for job in jobs if job.kind == "time"]
    assert firsts == [i % 2 == 0 for i, job in enumerate(jobs) if job.kind == "time"]


@pytest.mark.parametrize(("pairs", "rounds"), [(20, 10), (3, 2), (1, 1)])
def test_a_round_of_calls_has_two_pairs(jobs, exported, pairs, rounds):
    """The two models', and their twins'; warm-ups on top."""
    run(exported, settings=SETTINGS.model_copy(update={"pairs": pairs}))
    assert {len(turn.sequences) for job in jobs if job.kind == "time" for turn in job.turns} == {2 + rounds}


def test_every_process_times_texts_of_all_lengths(jobs, exported):
    """One of each tenth of the data, by length: processes do not differ by the luck of the draw."""
    sequences = [[1] * length for length in np.random.default_rng(0).permutation(np.arange(1, 1001) % 60 + 2)]
    run(exported, sequences=sequences)
    means = []
    for job in jobs:
        if job.kind == "time":
            lengths = sorted(map(len, job.turns[0].sequences[2:]))
            tenths = np.sort([len(one) for one in sequences]).reshape(10, -1)
            assert all(part[0] <= length <= part[-1] for length, part in zip(lengths, tenths, strict=True))
            assert list(map(len, job.turns[0].sequences[2:])) != lengths
            means.append(np.mean(lengths))
    assert np.std(means) < 1.5  # of free draws 17.3 / sqrt(10) = 5.5


def test_lengths_are_the_datas_own_and_the_fixed_ones_that_fit(jobs, exported):
    """128 tokens are more than the artefact takes; fixed lengths are made of real tokens, their last one kept."""
    run(exported)
    turns = next(job for job in jobs if job.kind == "time").turns
    assert [turn.lengths for turn in turns] == ["data", "4", "8"]
    assert all(list(sequence) in SEQUENCES for sequence in turns[0].sequences)
    assert {len(sequence) for sequence in turns[2].sequences} == {8}
    assert {sequence[0] for sequence in turns[2].sequences} == {1}
    assert {sequence[-1] for sequence in turns[2].sequences} == {2}


def test_draws_repeat_with_the_seed_and_differ_between_processes(jobs, exported):
    """Same seed, same calls."""
    run(exported)
    run(exported)
    run(exported, seed=1)
    third = len(jobs) // 3
    assert jobs[:third] == jobs[third : 2 * third] != jobs[2 * third :]
    first, second = [job.turns[0].sequences for job in jobs[:third] if job.kind == "time"][:2]
    assert first != second


def test_record_keeps_every_sample_and_says_what_was_measured(jobs, exported, tmp_path):
    """And survives the disk."""
    found = run(exported, machine={"cpu": "simulated"}, tokenize_us=53.0)
    assert {(one.model, one.lengths): len(one.wall_ns) for one in found.series} == {
        (model + twin, lengths): 12
        for model in ("candidate", "reference")
        for twin in ("", "_twin")
        for lengths in ("data", "4", "8")
    }
    assert len(found.load_ms) == len(found.first_call_ms) == len(found.memory_bytes) == 7
    assert (found.runtime_version, found.tokenize_us, found.machine) == ("1.2", 53.0, {"cpu": "simulated"})
    assert (found.size_bytes, found.reference_size_bytes) == (1200, 10800)
    assert [moment["when"] for moment in found.conditions] == ["before", "after"] * len(jobs)
    assert {(moment["round"], moment["process"]) for moment in found.conditions} == {(0, i) for i in range(10)}
    write(found, tmp_path / "measured.json")
    assert read(Measurement, tmp_path / "measured.json") == found


def test_speedup_of_the_simulated_machine_is_found(jobs, exported):
    """8 ms against 2 ms, and a runner that is fit."""
    found = run(exported)
    interval = figures.speedup(found)
    assert interval.low < 4.0 < interval.high
    assert figures.why_unfit(found) is None


def test_runner_that_tells_a_model_from_itself_is_unfit(jobs, exported):
    """A planted fault: whatever session comes second is 5 % slower."""
    jobs.options = {"noise": 0.02, "second_factor": 1.05}
    assert figures.why_unfit(run(exported)).kind is ReasonKind.NOISY_RUNNER


def rounds(measurement):
    """How many rounds a measurement has."""
    return len({one.round for one in measurement.series})


def test_rounds_are_added_only_while_a_budget_is_undecided(jobs, exported):
    """Clear budgets need one round, one at the very figure takes all three, none asks for none."""
    assert rounds(run(exported, budgets=None)) == 1
    assert rounds(run(exported, budgets=Budgets(speedup_vs_teacher=2.0, p90_ms=5.0))) == 1
    assert rounds(run(exported, budgets=Budgets(speedup_vs_teacher=9.0))) == 1
    assert rounds(run(exported, budgets=Budgets(speedup_vs_teacher=4.0))) == 3


def test_samples_are_added_to_earlier_ones_while_a_budget_is_undecided(jobs, exported):
    """Finding C14: a budget that was tightened asks for more, and every sample that was taken counts."""
    first = run(exported, budgets=Budgets(speedup_vs_teacher=2.0))
    taken = len(jobs)
    again = run(exported, budgets=Budgets(speedup_vs_teacher=4.0), earlier=first)
    assert rounds(again) == 1 + SETTINGS.max_rounds and again.series[: len(first.series)] == first.series
    assert again.load_ms[: len(first.load_ms)] == first.load_ms and len(again.conditions) > len(first.conditions)
    assert sorted({one.round for one in again.series}) == [0, 1, 2, 3]
    before = len(jobs)
    assert before > taken and run(exported, budgets=Budgets(speedup_vs_teacher=2.0), earlier=first) == first
    assert len(jobs) == before


@pytest.mark.parametrize("field", ["artefact_digest", "machine", "threads"])
def test_samples_of_another_artefact_or_machine_are_not_added_to(jobs, exported, field):
    """They would be no series."""
    first = run(exported)
    other = {"artefact_digest": "x" * 64, "machine": {"cpu": "another"}, "threads": 7}[field]
    with pytest.raises(IntegrityError, match=f"the samples so far have another {field}"):
        run(exported, budgets=Budgets(speedup_vs_teacher=4.0), earlier=first.model_copy(update={field: other}))


def test_unfit_runner_is_given_another_chance(jobs, exported):
    """Until the rounds are used up."""
    jobs.options = {"noise": 0.02, "second_factor": 1.4}
    assert rounds(run(exported, budgets=Budgets(p90_ms=50.0))) == 3


def test_budgets_that_time_cannot_decide_add_no_rounds(jobs, exported):
    """Accuracy and size are not here to judge."""
    found = run(exported)
    assert not leaves_undecided(Budgets(score=0.9, size_mb=1.0), found)


def test_without_a_reference_only_the_candidate_is_timed(jobs, exported):
    """Beside its twin."""
    found = run(exported, reference=None)
    assert {one.model for one in found.series} == {"candidate", "candidate_twin"}
    assert figures.twin_ratio(found).low < 1 < figures.twin_ratio(found).high
    assert (found.reference_digest, found.reference_size_bytes) == (None, None)


@pytest.mark.parametrize("what", ["same folder", "same digest", "same bytes"])
def test_candidate_and_reference_must_differ(jobs, exported, what):
    """A speed-up over oneself is 1 whatever the model; found by hash, before anything runs."""
    student, teacher = exported
    if what == "same folder":
        teacher = student
    elif what == "same digest":
        teacher = Exported(teacher.folder, teacher.artefact, student.digest, teacher.size_bytes)
    else:
        (teacher.folder / "teacher.fake").write_bytes((student.folder / "student.fake").read_bytes())
    with pytest.raises(IntegrityError, match="are the same artefact"):
        run([student, teacher])
    assert jobs == []


def test_artefact_of_many_files_is_compared_by_all_of_them(jobs, exported):
    """Like .mlpackage: a folder whose weights differ is another model."""
    for one, weights in zip(exported, (b"small", b"large"), strict=True):
        path = one.folder / one.artefact.file
        path.unlink()
        (path / "data").mkdir(parents=True)
        (path / "data" / "weights.bin").write_bytes(weights)
    assert run(exported).not_measured is None
    (exported[1].folder / "teacher.fake" / "data" / "weights.bin").write_bytes(b"small")
    with pytest.raises(IntegrityError, match="are the same artefact"):
        run(exported)


def test_crash_leaves_a_record_that_says_so(exported, monkeypatch):
    """Other targets go on; no half measurement is kept."""

    def crash(job, timeout_s):
        raise WorkerError("crashed (SIGSEGV)")

    monkeypatch.setattr(local, "run_worker", crash)
    found = run(exported)
    assert (found.not_measured, found.series, found.size_bytes) == ("crashed (SIGSEGV)", (), 1200)
    assert not leaves_undecided(Budgets(p90_ms=5.0), found)


def test_unusable_runtime_or_device_is_not_measured(exported, monkeypatch):
    """With the reason."""
    monkeypatch.setattr(local, "run_worker", lambda job, timeout_s: Result(unusable="needs macOS"))
    assert run(exported).not_measured == "needs macOS"
    monkeypatch.setattr(local, "why_unusable", lambda: "no such phone")
    assert run(exported).not_measured == "no such phone"


def test_tokenizer_is_timed_on_its_own(monkeypatch):
    """The median of single texts, in microseconds, on a clock that the tokenizer moves."""
    now = [0]
    monkeypatch.setattr("eval.latency.time.perf_counter_ns", lambda: now[0])

    def tokenize(text):
        now[0] += 1000 * len(text)

    assert time_tokenizer(tokenize, ["ab", "abcd", "abcdefghi"]) == 4.0


def test_whole_way_through_real_processes(exported, monkeypatch, tmp_path):
    """One small round with the runtime 'fake' in processes of its own; only that it comes out whole is asserted."""
    (tmp_path / "site").mkdir()
    install_runtime(monkeypatch, tmp_path / "site")
    monkeypatch.setattr("eval.latency.LOAD_PROCESSES", 1)
    settings = MeasureSettings(processes=1, pairs=3, max_rounds=1, warmup=1, threads=1, lengths=())
    found = run(exported, settings=settings)
    assert found.not_measured is None
    models = ("candidate", "candidate_twin", "reference", "reference_twin")
    assert {(one.model, len(one.wall_ns)) for one in found.series} == {(model, 3) for model in models}
