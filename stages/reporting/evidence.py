"""Reads and judges everything the report shows. What cannot be read becomes a reason in words, never an exception.

A missing or damaged record of a target is replaced by one that says "not measured" and why, so that judging, tables and
figures need no second path for it.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from eval.budgets import Facts, compare_with_floor, judge, why_strange
from eval.ledger import Answers, Ledger, follow
from eval.wording import first_line, say
from pipeline import tasks
from pipeline.base import records
from pipeline.base.errors import IntegrityError, PipelineError
from pipeline.base.errors import first_line as first_line_of
from pipeline.base.records import (
    Accepted,
    Artefact,
    BudgetVerdict,
    Card,
    Examination,
    Floors,
    Measurement,
    Metric,
    Parity,
    Score,
    Status,
)
from pipeline.base.workspace import Workspace
from pipeline.data.examples import Examples, read_prepared
from pipeline.data.prepared import TEST_ANSWERS
from pipeline.settings.accepted import Exemption, find
from pipeline.settings.params import Params
from pipeline.settings.targets import Target
from pipeline.tasks import Task
from stages.targets import artefact_bytes, artefact_of, no_measurement

# What reading a damaged file can raise: bytes that are no UTF-8, JSON of another shape, nesting without end.
UNREADABLE = (PipelineError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)

# The student's score on dev in the log of its training and on its card.
DEV_SCORE = "dev_score"

T = TypeVar("T")


# Where neither floors nor data can be read.
UNKNOWN = Metric(name="score", title="score", unit="", scale=1.0, is_greater_better=True)
NO_ROWS = Examples(ids=(), texts=(), numbers=())


@dataclass(frozen=True)
class Trained:
    """A teacher or a student: what its card says, how its training went, and what it answers."""

    card: Card
    log: tuple[dict[str, Any], ...]
    answers: tuple[Any, ...]
    # the metric on each answer; empty when nothing says which are right
    values: tuple[float, ...]

    @property
    def parameters(self) -> int | None:
        found = self.card.facts.get("parameters")
        return found if isinstance(found, int) else None

    @property
    def weights_bytes(self) -> int | None:
        fact = self.card.files.get("model.safetensors")
        return fact.bytes if fact else None


@dataclass(frozen=True)
class TargetEvidence:
    """All there is about one target, judged."""

    name: str
    target: Target
    score: Score
    measurement: Measurement
    size_bytes: int | None = None
    artefact: Artefact | None = None
    parity: Parity | None = None
    parity_not_measured: str | None = None
    examination: Examination | None = None
    verdicts: tuple[BudgetVerdict, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """Everything the report shows. What is None or empty could not be read; `problems` says why."""

    targets: tuple[TargetEvidence, ...]
    first_line: str
    ledger: Ledger
    # the test split, and what its answers are; the task is None when the data cannot be read
    rows: Examples
    task: Task | None = None
    data: Card | None = None
    floors: Floors | None = None
    teacher: Trained | None = None
    student: Trained | None = None
    # format -> bytes of the teacher in it
    reference_bytes: Mapping[str, int] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    # of targets that are no longer in params.yaml; shown nowhere else
    left_over: tuple[str, ...] = ()
    # whether texts of the data may be shown
    publishes_texts: bool = True
    # of all that was read: name as under artifacts/ -> digest
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """What the task is judged by."""
        return self.floors.metric if self.floors is not None else self.task.METRIC if self.task is not None else UNKNOWN

    @property
    def examples(self) -> int:
        """Rows of test."""
        return self.floors.examples if self.floors is not None else len(self.rows)

    def show(self, answer: Any) -> str:
        """An answer, or a target as the task numbers it, as people read it."""
        try:
            return self.task.show(answer, self.task.space) if self.task is not None else str(answer)
        except LookupError:  # records of another data set
            return str(answer)

    @property
    def cut_share(self) -> float | None:
        """Share of test texts that were longer than data.max_length, of which nobody saw the end."""
        try:
            cut = self.data.facts["tokens"]["test"]["cut"] if self.data is not None else None
        except (LookupError, TypeError):  # a card of another shape
            return None
        return cut / self.examples if isinstance(cut, int) and self.examples else None

    @property
    def slice_rows(self) -> dict[str, int]:
        """Slice -> its number of test rows, in sorted order; a row may be of none."""
        return dict(sorted(Counter(name for name in self.rows.slices if name).items()))

    @property
    def verdicts(self) -> tuple[BudgetVerdict, ...]:
        return tuple(verdict for target in self.targets for verdict in target.verdicts)

    @property
    def shipped(self) -> TargetEvidence | None:
        """The target that stands for what ships: the one with the worst score of the required ones, or of all.

        What answered in its own runtime goes before what a stand-in answered, which has no times.
        """
        answered = [one for one in self.targets if one.score.answers and one.score.primary is not None]
        required = [one for one in answered if one.target.required] or answered
        real = [one for one in required if one.score.stand_in is None]
        return min(real or required, key=_goodness, default=None)


def gather(params: Params, workspace: Workspace) -> Evidence:
    """Reads every record of a run and judges every budget."""
    problems: list[str] = []
    data = _attempt(problems, lambda: records.open_folder(workspace.data, "data"))
    rows = (_attempt(problems, lambda: read_prepared(workspace.data, "test")) if data is not None else None) or NO_ROWS
    task = _attempt(problems, lambda: tasks.of(params, workspace.data)) if data is not None else None
    sources = {"data": data.digest} if data is not None else {}
    floors = _attempt(problems, lambda: _read_floors(workspace, rows, sources))
    test = _Test(rows, task, floors.examples if floors is not None else len(rows))
    teacher = _attempt(problems, lambda: _read_trained(workspace.teacher, "teacher", test, sources))
    sources |= {"teacher": teacher.card.digest} if teacher is not None else {}
    student = _attempt(problems, lambda: _read_trained(workspace.student, "student", test, sources))
    sources |= {"student": student.card.digest} if student is not None else {}
    plan = _attempt(problems, lambda: records.open_folder(workspace.quantized, "quantized"))
    sources |= {"plan": plan.digest} if plan is not None else {}
    references = _read_references(params, workspace, problems, sources)
    targets = []
    for name, target in params.targets.items():
        reference = references.get(target.format)
        digest = reference.digest if reference is not None else None
        targets.append(_read_target(name, target, workspace, floors, test, digest, sources))
    digests = sources | {f"reference/{name}": card.digest for name, card in references.items()}
    digests |= {"floors": records.digest(floors)} if floors is not None else {}
    for one in targets:
        digests |= one.digests
    exempt = _attempt(problems, lambda: _read_accepted(workspace)) or []
    targets = [replace(one, verdicts=tuple(_accept(verdict, exempt) for verdict in one.verdicts)) for one in targets]
    evidence = Evidence(
        targets=tuple(targets),
        first_line="",
        ledger=_follow(test, teacher, student, tuple(targets)),
        rows=rows,
        task=task,
        data=data,
        floors=floors,
        teacher=teacher,
        student=student,
        reference_bytes={name: artefact_bytes(card, artefact_of(card)) for name, card in references.items()},
        plan=(_attempt(problems, lambda: _read_plan(workspace)) if plan is not None else None) or {},
        machine=_attempt(problems, lambda: _read_object(workspace.machine)) or {},
        problems=tuple(problems),
        left_over=tuple(str(path.relative_to(workspace.root)) for path in workspace.left_by_others(params.targets)),
        publishes_texts=params.report.publish_texts,
        digests=digests,
    )
    return replace(evidence, first_line=_first_line(evidence))


def _attempt(problems: list[str], read: Callable[[], T]) -> T | None:
    try:
        return read()
    except UNREADABLE as error:
        problems.append(describe(error))
        return None


def describe(error: BaseException) -> str:
    """An error in words; a message of the project's own stands as it is."""
    return str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {first_line_of(error)}"


def _read_accepted(workspace: Workspace) -> list[Exemption]:
    """The exceptions that were in force when the machine stage ran last."""
    if not workspace.accepted.is_file():
        return []
    return [Exemption.model_validate_json(json.dumps(one)) for one in json.loads(workspace.accepted.read_text("utf-8"))]


def _accept(verdict: BudgetVerdict, exempt: Sequence[Exemption]) -> BudgetVerdict:
    """The verdict with its exception, where there is one and it needs one."""
    found = find(exempt, verdict.target, verdict.budget)
    if found is None or verdict.status is Status.PASS:
        return verdict
    return verdict.model_copy(update={"accepted": Accepted(because=found.because, until=found.until)})


def _goodness(one: TargetEvidence) -> float:
    score = one.score
    assert score.primary is not None and score.metric is not None
    return score.primary.value if score.metric.is_greater_better else -score.primary.value


# --- reading -----------------------------------------------------------------------------------------------------


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise IntegrityError(f"{path}: missing; run `dvc repro` to make it") from None
    except ValueError as error:
        raise IntegrityError(f"{path}: not JSON or cut short; delete it and run `dvc repro`") from error
    if not isinstance(found, dict):
        raise IntegrityError(f"{path}: found {type(found).__name__}, expected a JSON object")
    return found


def _read_plan(workspace: Workspace) -> dict[str, Any]:
    # As plain JSON, since the plan's own model is defined beside code that imports torch.
    return _read_object(workspace.quantized / "plan.json").get("entries", {})


@dataclass(frozen=True)
class _Test:
    """The test split that every record must be of."""

    rows: Examples
    task: Task | None
    examples: int


def _read_floors(workspace: Workspace, rows: Examples, sources: Mapping[str, str]) -> Floors:
    floors = records.read(Floors, workspace.floors)
    _refuse_other_sources(workspace.floors, floors.sources, sources)
    if len(rows) and (floors.examples, floors.groups) != (len(rows), rows.groups):
        raise IntegrityError(f"{workspace.floors}: of another test split; run `dvc repro` to make it again")
    return floors


def _read_trained(folder: Path, kind: str, test: _Test, sources: Mapping[str, str]) -> Trained:
    card = records.open_folder(folder, kind)
    _refuse_other_sources(folder, card.sources, sources)
    log, _ = records.read_lines(folder / "log.jsonl")
    answers = tuple(json.loads((folder / TEST_ANSWERS).read_text("utf-8")))
    if test.examples and len(answers) != test.examples:
        raise IntegrityError(
            f"{folder}: found answers to {len(answers)} test rows, expected {test.examples}; "
            "run `dvc repro` to make it again"
        )
    values = tuple(test.task.values(answers, test.rows.numbers).tolist()) if test.task and len(test.rows) else ()
    return Trained(card, tuple(log), answers, values)


def _refuse_other_sources(path: Path, made_from: Mapping[str, str], sources: Mapping[str, str]) -> None:
    """Raises IntegrityError for what was made from something else than lies beside it now."""
    other = sorted(name for name, digest in made_from.items() if sources.get(name, digest) != digest)
    if other:
        raise IntegrityError(f"{path}: made from another {' and '.join(other)}; run `dvc repro` to make it again")


def _read_references(
    params: Params, workspace: Workspace, problems: list[str], sources: Mapping[str, str]
) -> dict[str, Card]:
    """Format -> card of the teacher exported to it, for the formats that targets use and the teacher has."""
    found = {}
    for name in dict.fromkeys(target.format for target in params.targets.values()):
        folder = workspace.reference / name
        if folder.is_dir():
            card = _attempt(problems, partial(_open_reference, folder, sources))
            if card is not None:
                found[name] = card
    return found


def _open_reference(folder: Path, sources: Mapping[str, str]) -> Card:
    card = records.open_folder(folder, "reference")
    _refuse_other_sources(folder, card.sources, sources)
    artefact_of(card)  # a card that says nothing of an artefact is as good as none
    return card


# --- one target --------------------------------------------------------------------------------------------------


def _read_target(
    name: str,
    target: Target,
    workspace: Workspace,
    floors: Floors | None,
    test: _Test,
    reference_digest: str | None,
    sources: Mapping[str, str],
) -> TargetEvidence:
    """A target with its verdicts. Nothing is believed of records whose artefact cannot be read."""
    try:
        card = records.open_folder(workspace.exported(name), "artefact")
        _refuse_other_sources(workspace.exported(name), card.sources, sources)
        found = _read_exported(name, target, card)
    except UNREADABLE as error:
        reason = describe(error)
        nothing = _without_records(name, target, reason)
        return replace(nothing, verdicts=tuple(judge(target, _facts(nothing, floors, no_artefact=reason))))

    def read_score() -> Score:
        score = records.read(Score, workspace.scored(name))
        if score.not_measured is None and test.examples and len(score.values) != test.examples:
            raise IntegrityError(f"{name}: found answers to {len(score.values)} test rows, expected {test.examples}")
        return score

    found = replace(
        found,
        examination=_or_reason(
            lambda: records.read(Examination, workspace.examined(name)), partial(_no_examination, name, target)
        ),
        score=_or_reason(read_score, partial(_no_score, name, target)),
        measurement=_or_reason(
            lambda: records.read(Measurement, workspace.measured(name)), partial(no_measurement, name, target)
        ),
    )
    facts = _facts(found, floors, artefact_digest=card.digest, reference_digest=reference_digest, sources=sources)
    believed = _believed(found, facts)
    kinds = {"scored": believed.score, "measured": believed.measurement, "examined": believed.examination}
    digests = {
        f"{kind}/{name}": records.digest(one) for kind, one in kinds.items() if one is not None and one.artefact_digest
    }
    digests[f"exported/{name}"] = card.digest
    return replace(believed, verdicts=tuple(judge(target, facts)), digests=digests)


def _facts(found: TargetEvidence, floors: Floors | None, **digests: Any) -> Facts:
    return Facts(
        found.name,
        score=found.score,
        measurement=found.measurement,
        examination=found.examination,
        floors=floors,
        size_bytes=found.size_bytes,
        **digests,
    )


def _believed(found: TargetEvidence, facts: Facts) -> TargetEvidence:
    """The target without the records that belong to something else, whose figures no table may show."""
    nothing = {"score": _no_score, "measurement": no_measurement, "examination": _no_examination}
    believed: dict[str, Any] = {}
    for kind, no_record in nothing.items():
        strange = why_strange(getattr(found, kind), facts)
        if strange is not None:
            believed[kind] = no_record(found.name, found.target, say(strange))
    return replace(found, **believed)


def _read_exported(name: str, target: Target, card: Card) -> TargetEvidence:
    """What the artefact's card says; score and measurement are still to be read."""
    artefact = artefact_of(card)
    parity = card.facts.get("parity")
    return replace(
        _without_records(name, target, ""),
        size_bytes=artefact_bytes(card, artefact),
        artefact=artefact,
        parity=Parity.model_validate(parity) if parity is not None else None,
        parity_not_measured=card.facts.get("parity_not_measured"),
    )


def _or_reason(read: Callable[[], T], otherwise: Callable[[str], T]) -> T:
    """What was read, or the record that says why there is none."""
    try:
        return read()
    except UNREADABLE as error:
        return otherwise(describe(error))


def _without_records(name: str, target: Target, reason: str) -> TargetEvidence:
    return TargetEvidence(
        name,
        target,
        _no_score(name, target, reason),
        no_measurement(name, target, reason),
        examination=_no_examination(name, target, reason),
    )


def _no_score(name: str, target: Target, reason: str) -> Score:
    return Score(target=name, runtime=target.runtime, device=target.device, artefact_digest="", not_measured=reason)


def _no_examination(name: str, target: Target, reason: str) -> Examination:
    return Examination(target=name, runtime=target.runtime, artefact_digest="", not_measured=reason)


# --- across targets ----------------------------------------------------------------------------------------------


def _follow(
    test: _Test,
    teacher: Trained | None,
    student: Trained | None,
    targets: tuple[TargetEvidence, ...],
) -> Ledger:
    """The ledger; without hops when an end of it could not be read."""
    if teacher is None or student is None or not teacher.values or not student.values:
        return Ledger(examples=test.examples, hops=())
    artefacts = {one.name: Answers(one.score.answers, one.score.values) for one in targets if one.score.values}
    assert test.task is not None  # who else would have judged the two
    ends = [Answers(one.answers, one.values) for one in (teacher, student)]
    return follow(test.rows.groups, test.task.METRIC, ends[0], ends[1], artefacts)


def _first_line(evidence: Evidence) -> str:
    """Of what ships; of the student in PyTorch only when no artefact answered."""
    if evidence.floors is None:
        return "Whether the student beats the linear floor is not known: the floors were not measured."
    if evidence.shipped is not None:
        name, values = f"the student as shipped to '{evidence.shipped.name}'", evidence.shipped.score.values
    elif evidence.student is not None:
        name, values = "the student, in PyTorch,", evidence.student.values
    else:
        return "Whether the student beats the linear floor is not known: no artefact answered and there is no student."
    return first_line(compare_with_floor(values, evidence.floors), name)
