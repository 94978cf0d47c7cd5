"""A change against its base: what is surely worse fails, what is surely not passes, and otherwise nobody knows."""

import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from fakes import make_measurement

from eval import changes, figures
from eval.statistics import TooFewError, contrast_interval, holm
from eval.wording import compared_headline, is_moved, say_change, show_harm
from pipeline.base.records import Accepted, Change, Comparison, Measurement, ReasonKind, Status, Verdict
from pipeline.settings.compare import CompareSettings, Zone
from pipeline.tasks import single_label
from stages.gating import annotations, comment, junit

TIME, SCORE = CompareSettings().time, CompareSettings().score
ROWS = 3080


def timed(ratio: float, **changes_: object) -> Change:
    """The time of a head that is so many times as slow as its base of 2 ms."""
    return changes.judge_time(make_measurement(2.0 * ratio, 2.0, **{"noise": 0.02, "scatter": 0.05, **changes_}), TIME)


# --- the interval of a ratio --------------------------------------------------------------------------------------


def simulated(rng: np.random.Generator, processes: int, session: float, process: float) -> tuple[float, float]:
    """(lower, upper) end at 98 % for two models that are alike, whose sessions and processes scatter so much."""
    a, b, b2, a2 = rng.normal(0, session, (4, processes))
    effects = (b + b2 - a - a2) / 2 + rng.normal(0, process, processes)
    found = contrast_interval(effects, np.concatenate([a - a2, b - b2]), 0.98)
    return found.low, found.high


@pytest.mark.parametrize("processes", [3, 5, 15])
@pytest.mark.parametrize("process", [0.0, 0.03], ids=["processes alike", "processes differ"])
def test_the_interval_of_a_ratio_holds_what_it_promises(processes: int, process: float) -> None:
    """1 % beyond each end; up to 3 % where few processes differ by more than the test of that can tell."""
    rng = np.random.default_rng([processes, int(1000 * process)])
    ends = np.array([simulated(rng, processes, 0.01, process) for _ in range(4000)])
    outside = float((ends[:, 0] > 1).mean()), float((ends[:, 1] < 1).mean())
    # three standard deviations of 1 % in 4,000, and what the preliminary test costs with few processes
    assert max(outside) <= (0.0148 if process == 0 else 0.033), outside
    width = np.median(np.log(ends[:, 1] / ends[:, 0]))
    if process == 0 and processes == 5:  # Student's over five processes alone would be half as wide again
        assert width < 2 * 2.8 * 0.01 / math.sqrt(5)


def test_the_interval_needs_two_processes_and_twins() -> None:
    with pytest.raises(TooFewError, match="found 1 with 2 twins"):
        contrast_interval([0.1], [0.0, 0.1])
    with pytest.raises(TooFewError, match="found 2 with 0 twins"):
        contrast_interval([0.1, 0.2], [])
    alike = contrast_interval([0.1, 0.2], [0.0, 0.0])  # a clock too coarse to see any noise
    assert alike.low < math.exp(0.1) < alike.high


def test_holm_adjusts_as_its_paper_does() -> None:
    """Worked by hand: 0.01 x 4, 0.02 x 3 = 0.06, 0.03 x 2 = 0.06, 0.5 x 1; never falling, never above 1."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


# --- time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "status"), [(1.0, Status.PASS), (0.7, Status.PASS), (1.1, Status.FAIL), (1.06, Status.FAIL)]
)
def test_a_slowdown_is_judged(ratio: float, status: Status) -> None:
    found = timed(ratio)
    assert found.status is status, say_change(found)
    assert found.harm is not None and found.harm.value == pytest.approx(100 * (ratio - 1), abs=1.0)
    assert (found.base, found.head) == (pytest.approx(2.0, rel=0.1), pytest.approx(2.0 * ratio, rel=0.1))
    assert found.noise is not None and found.noise < 1
    assert found.could_see is not None and 2 < found.could_see < 5


def test_between_what_is_tolerated_and_what_must_be_seen_nobody_knows() -> None:
    """With noise; it says from where on it sees, and how many seconds would do."""
    moment = {"elapsed_s": 4.0}
    found = timed(1.035, noise=0.15, n=60, conditions=(moment,) * 10)
    assert found.status is Status.INCONCLUSIVE
    said = say_change(found)
    assert "would be seen from " in said and "asked were 5.0 %" in said and "s of measuring would do" in said
    assert found.seconds == 40.0
    assert found.could_see is not None and found.seconds_needed is not None
    assert found.seconds_needed == pytest.approx(40 * ((found.could_see - 2) / 3) ** 2)


def test_a_noisy_runner_decides_only_what_is_clear() -> None:
    """Twins that differ by 4 % leave 3 % undecided, and 40 % stands."""
    assert timed(1.03, twins=1.04).status is Status.INCONCLUSIVE
    found = timed(1.4, twins=1.04)
    assert (found.status, [reason.kind for reason in found.reasons]) == (Status.FAIL, [ReasonKind.NOISY_RUNNER])
    assert found.noise == pytest.approx(4, abs=1)


def test_what_is_slow_on_the_wall_clock_alone_is_no_pass() -> None:
    """A lock that waits takes no CPU time."""
    measurement = make_measurement(2.0, 2.0, noise=0.01)
    slow = tuple(
        one.model_copy(update={"wall_ns": tuple(int(1.3 * ns) for ns in one.wall_ns)})
        if one.model.startswith("candidate")
        else one
        for one in measurement.series
    )
    found = changes.judge_time(measurement.model_copy(update={"series": slow}), TIME)
    assert figures.primary_clock(measurement) == "cpu"
    assert found.status is Status.INCONCLUSIVE and "on the wall clock" in say_change(found)


@pytest.mark.parametrize(
    ("measurement", "status"),
    [
        (make_measurement(not_measured="only on macOS", series=()), Status.NOT_MEASURED),
        (make_measurement(processes=1), Status.INCONCLUSIVE),
        (make_measurement(series=()), Status.INCONCLUSIVE),
    ],
)
def test_without_samples_nothing_is_green(measurement: Measurement, status: Status) -> None:
    assert changes.judge_time(measurement, TIME).status is status


# --- answers ------------------------------------------------------------------------------------------------------


def values(wrong: range | list[int], rows: int = ROWS) -> np.ndarray:
    found = np.ones(rows)
    found[list(wrong)] = 0
    return found


def test_a_loss_of_one_point_is_seen_on_3080_rows() -> None:
    base = values(range(220))
    assert changes.judge_score("cpu", base, base, single_label.METRIC, SCORE).status is Status.PASS
    found = changes.judge_score("cpu", base, values(range(251)), single_label.METRIC, SCORE)
    assert found.status is Status.FAIL
    assert found.harm is not None and found.harm.value == pytest.approx(1.006, abs=0.001)
    assert say_change(found).startswith("cpu: accuracy 92.9 % to 91.9 %, 1.01 points worse [")


def test_a_student_trained_again_with_as_many_other_errors_is_undecided_or_passes() -> None:
    """150 rows that changed hands each way are no loss; how large a one they could hide is said."""
    found = changes.judge_score("cpu", values(range(150)), values(range(150, 300)), single_label.METRIC, SCORE)
    assert found.status is Status.PASS
    assert found.could_see is not None and 2 < found.could_see < 2.5
    few = changes.judge_score("cpu", values(range(15), 300), values(range(15, 30), 300), single_label.METRIC, SCORE)
    assert few.status is Status.INCONCLUSIVE


def test_a_class_that_lost_11_of_40_rows_is_seen_among_77() -> None:
    """Whose loss is 0.36 points of all rows, which passes."""
    classes = [str(row % 77) for row in range(ROWS)]
    base = values(range(77 * 2))
    head = base.copy()
    head[[row for row in range(77 * 2, ROWS) if row % 77 == 5][:11]] = 0
    found = changes.judge_slices("cpu", {"class": classes}, base, head, single_label.METRIC, 0.05)
    assert found is not None and found.status is Status.FAIL
    (reason,) = found.reasons
    assert (reason.kind, reason.evidence, reason.found) == (ReasonKind.SLICE_LOST, "class 5", pytest.approx(27.5))
    assert "class 5 lost 27.5 points (p = " in say_change(found)
    assert changes.judge_score("cpu", base, head, single_label.METRIC, SCORE).status is Status.PASS


def test_slices_rarely_cry_wolf() -> None:
    """Answers that changed hands at random: 5 % of comparisons at most, for all slices together."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        base, head = (rng.random((2, 1000)) < 0.9).astype(float)
        slices = {"class": [str(i) for i in rng.integers(20, size=1000)]}
        found = changes.judge_slices("cpu", slices, base, head, single_label.METRIC, 0.05)
        alarms += found is not None and found.status is Status.FAIL
    assert alarms <= 200 * 0.05 + 3 * math.sqrt(200 * 0.05 * 0.95)


def test_without_slices_there_is_nothing_to_say() -> None:
    assert changes.judge_slices("cpu", {}, values([]), values([]), single_label.METRIC, 0.05) is None
    assert changes.judge_slices("cpu", {"slice": [""] * 5}, np.ones(5), np.ones(5), single_label.METRIC, 0.05) is None


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "most", "status"),
    [(1020, 0.02, Status.PASS), (1021, 0.02, Status.FAIL), (900, 0.0, Status.PASS), (2000, None, None)],
)
def test_a_file_may_grow_by_so_much(head: int, most: float | None, status: Status | None) -> None:
    assert changes.judge_size("cpu", 1000, head, most).status is status


def test_what_has_no_zone_is_told_and_decides_nothing() -> None:
    told = changes.tell("cpu", "load", "load time", "ms", [50.0] * 7, [100.0 + i for i in range(7)])
    assert told is not None and told.status is None and show_harm(told).endswith("slower")
    assert changes.overall([told], []) is Status.NOT_MEASURED
    assert changes.tell("cpu", "load", "load time", "ms", [50.0], [60.0]) is None


def test_zones_leave_room_between_their_ends() -> None:
    with pytest.raises(ValueError, match="expected more than tolerated"):
        Zone(tolerated=0.05, seen=0.05)


# --- together, and as people see it -------------------------------------------------------------------------------


def comparison(*found: Change, **facts: object) -> Comparison:
    required = facts.get("required_not_compared", ())
    assert isinstance(required, tuple)
    status = changes.overall(found, required)
    return Comparison(**{"base": "main", "base_version": "a" * 40, "changes": found, "status": status, **facts})


REGRESSED, SAME = timed(1.1), changes.same_file("ios")
OPTIONAL = REGRESSED.model_copy(update={"required": False, "target": "browser"})
EXCEPTED = REGRESSED.model_copy(update={"accepted": Accepted(because="it pays for itself", until="2999-01-01")})
LOST = {"not_compared": {"ios": "its artefact is in none of: the DVC cache"}, "required_not_compared": ("ios",)}


@pytest.mark.parametrize(
    ("found", "facts", "status", "said"),
    [
        ((SAME,), {}, Status.PASS, "No regression against main"),
        ((REGRESSED, SAME), {}, Status.FAIL, "1 regression against main"),
        ((OPTIONAL, SAME), {}, Status.PASS, "No regression against main"),
        ((EXCEPTED,), {}, Status.PASS, "No regression against main but the 1 that are accepted for now"),
        ((EXCEPTED, REGRESSED), {}, Status.FAIL, "1 regression against main"),
        ((SAME,), LOST, Status.NOT_MEASURED, "Cannot compare 1 required target against main"),
        ((), {}, Status.NOT_MEASURED, "Nothing was compared against main"),
        ((timed(1.035, noise=0.15, n=60),), {}, Status.INCONCLUSIVE, "Undecided against main: 1 of 1"),
    ],
)
def test_targets_stand_together(found: tuple, facts: dict, status: Status, said: str) -> None:
    one = comparison(*found, **facts)
    assert one.status is status
    assert compared_headline(one).startswith(said)


def test_a_comment_opens_what_moved_and_folds_the_rest() -> None:
    text = comment.render(comparison(REGRESSED, SAME, timed(0.8), **LOST))
    head, _, folded = text.partition("<details>")
    assert text.startswith(f"{comment.MARKER}\n\n### ✗ Decant: 1 regression against main")
    assert "✗ regression" in head and "✓ better" in head and "ios" not in head.partition("| target |")[2]
    assert "**Could not be compared:**" in head and "- **ios**: its artefact" in head
    assert "same file" in folded or "model file" in folded
    assert "main (aaaaaaaaaaaa)" in text


def test_a_comment_of_nothing_compared_is_not_no_change() -> None:
    text = comment.render(comparison(**LOST))
    assert "Cannot compare 1 required target" in text and "without a change" not in text


def test_a_comment_cannot_call_people_or_break_its_table() -> None:
    """Names of classes come from data."""
    bad = {"not_compared": {"cpu": "@everyone | <script>\nx"}}
    text = comment.render(comparison(SAME, **bad))
    assert "@everyone" not in text and "<script>" not in text and "\\|" in text


def test_junit_has_a_failure_for_a_regression_and_an_error_for_what_is_not_known() -> None:
    root = ElementTree.fromstring(junit.of_comparison(comparison(REGRESSED, OPTIONAL, SAME, **LOST)))
    kinds = {(case.get("classname"), case.get("name")): [child.tag for child in case] for case in root}
    assert kinds == {
        ("decant.compare.cpu", "time"): ["failure"],
        ("decant.compare.browser", "time"): ["skipped"],
        ("decant.compare.ios", "file"): [],
        ("decant.compare.ios", "compared"): ["error"],
    }
    assert {key: root.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "4", "failures": "1", "errors": "1", "skipped": "1",
    }  # fmt: skip


def test_junit_takes_any_text() -> None:
    verdict = Verdict(status=Status.NOT_MEASURED, first_line="", budgets=(), problems=("a\x00<b>&\ud800",))
    root = ElementTree.fromstring(junit.of_verdict(verdict))
    assert root[0][0].tag == "error" and root[0][0].get("message") == "a?<b>&?"


def test_annotations_are_one_line_each_and_only_on_github(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = annotations.of_changes([REGRESSED, OPTIONAL, SAME])
    assert len(lines) == 1 and lines[0].startswith("::error title=cpu%3A median time of a call::cpu: median time")
    assert "10." in lines[0] and " %25 slower" in lines[0]
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    annotations.show(lines)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    annotations.show(["::error title=a::b"])
    assert capsys.readouterr().out == "::error title=a::b\n"


def test_a_gain_moved_and_noise_did_not() -> None:
    assert is_moved(timed(0.8)) and is_moved(REGRESSED) and not is_moved(timed(1.0)) and not is_moved(SAME)
    assert show_harm(changes.judge_size("cpu", 1000, 1000, 0.02)) == "no change"


def test_records_of_a_comparison_are_plain_json() -> None:
    one = comparison(REGRESSED, SAME)
    assert Comparison.model_validate(json.loads(one.model_dump_json())) == one
