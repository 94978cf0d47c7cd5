"""What stages hand over on disk: versioned JSON that a later stage can trust.

A folder carries `card.json` with the SHA-256 of every file in it, written last; `open_folder` re-hashes all of them,
since DVC restores a damaged cache file without a word. A record, the card included, carries the hash of its content.
Nothing here holds a date: the same inputs give the same bytes.
"""

import hashlib
import json
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.base.errors import IntegrityError
from pipeline.base.files import CARD_NAME, sha256_of, write_atomically

SCHEMA_VERSION = 3  # of every record; a change that old readers cannot take raises it
# Names of the floors.
MAJORITY, LINEAR = "majority", "linear"


class Record(BaseModel):
    """Base of everything on disk."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[3] = 3


class FileFact(Record):
    """One file of a sealed folder."""

    bytes: int
    sha256: str


class Card(Record):
    """What a folder of files is and what it was made from."""

    kind: str
    # input name -> digest of the card or record it was made from
    sources: dict[str, str] = {}
    # what a reader wants to know: parameters, scores, settings
    facts: dict[str, Any] = {}
    files: dict[str, FileFact] = {}

    @property
    def digest(self) -> str:
        """One hash for the whole folder: its files, what it was made from, and what its card says of them."""
        return digest(self)


class TensorFact(Record):
    """One input or output of an artefact. A text in `shape` names a free dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Artefact(Record):
    """What an exporter says of the file it made; becomes the `artefact` part of the card."""

    format: str
    precision: str
    file: str
    inputs: tuple[TensorFact, ...]
    outputs: tuple[TensorFact, ...]
    # Lengths an input may have: a range or a list; calls must use one of them.
    lengths: tuple[int, ...] | None = None
    max_length: int
    # How its runtime shall open it, in that runtime's own words; what is not named is left to the runtime.
    settings: dict[str, str] = {}
    tools: dict[str, str | None]
    # Modules that the exporter kept in float though the quantization plan makes them 8-bit; notes say why.
    kept_in_float: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @field_validator("file")
    @classmethod
    def _lies_in_its_folder(cls, file: str) -> str:
        if Path(file).name != file or file in ("", "..") or "\\" in file:
            raise ValueError(f"found the file '{file}', expected a name without a folder")
        return file

    @property
    def fixed_batch(self) -> int | None:
        """The only number of texts that a call may have; None for any."""
        first = self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else None
        return first if isinstance(first, int) else None

    @property
    def number_outputs(self) -> tuple[str, ...]:
        """Names of the outputs that are numbers, in order: those that every format has."""
        return tuple(fact.name for fact in self.outputs if fact.dtype == "float32")

    @property
    def token_outputs(self) -> frozenset[str]:
        """Names of the outputs with a value for each token; that axis is named, whatever lengths it may have."""
        return frozenset(fact.name for fact in self.outputs if fact.shape[1:2] == ("length",))


class Parity(Record):
    """Worst difference between an artefact's outputs and those of the model it was made from, on reference inputs."""

    examples: int
    tolerance: float
    worst_difference: float
    mean_difference: float
    same_label: float = Field(ge=0, le=1)
    # what executed it in place of the real runtime, if so
    stand_in: str | None = None


class Status(StrEnum):
    """How a budget stands. `not measured` is neither a pass nor a fail."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_MEASURED = "not measured"


class Interval(Record):
    """An estimate with its two-sided interval at the stated confidence."""

    value: float
    low: float
    high: float
    confidence: float = 0.95


class Metric(Record):
    """What a task is judged by: a value for each example, of which the mean is the figure."""

    # as in metrics.json, and as people say it
    name: str
    title: str
    # of what is shown, which is the value times `scale`
    unit: str
    scale: float
    is_greater_better: bool

    @property
    def unit_of_differences(self) -> str:
        """Two percentages differ by points."""
        return "points" if self.unit == "%" else self.unit

    def is_better(self, value: float, other: float) -> bool:
        """Whether a value is strictly better than another."""
        return value > other if self.is_greater_better else value < other

    def drop(self, before: float, after: float) -> float:
        """How much worse the second value is, in the unit of differences; below 0 is a gain."""
        return self.scale * (before - after if self.is_greater_better else after - before)

    def dropped(self, before: float, drop: float) -> float:
        """The value that is worse by a drop."""
        return before - drop / self.scale if self.is_greater_better else before + drop / self.scale

    def say(self, value: float) -> str:
        """A value with name and unit, for a line of a log."""
        return f"{self.title} {self.scale * value:.4g} {self.unit}".rstrip()


class Calibration(Record):
    """How sure a model is of its answers, and how far that is from how often it is right; both shares of 1."""

    error: float
    confidence: float


class Flips(Record):
    """Examples whose value changed from one model to another: of right and wrong answers, those that turned."""

    worse: int
    better: int


class Score(Record):
    """What an artefact answered in its runtime on the whole test split."""

    target: str
    runtime: str
    device: str
    artefact_digest: str
    # name of another folder it was made from -> digest of its card: data, teacher, student
    sources: dict[str, str] = {}
    # Why there are no answers; then nothing below is set.
    not_measured: str | None = None
    # A stand-in (interpreter, emulator) executed it in place of the real runtime.
    stand_in: str | None = None
    runtime_version: str | None = None
    metric: Metric | None = None
    primary: Interval | None = None
    # other figures of the whole split, by the name that people call them
    further: dict[str, float] = {}
    # The same rows, answered by the model it was exported from, in PyTorch.
    agreement: Interval | None = None
    # how much worse than the others, in the metric's unit: points for percentages; below 0 is a gain
    drop_from_student: Interval | None = None
    drop_from_teacher: Interval | None = None
    flips_from_student: Flips | None = None
    flips_from_teacher: Flips | None = None
    worst_output_difference: float | None = None
    # of tasks that say how sure an answer is: before and after the export
    calibration: Calibration | None = None
    student_calibration: Calibration | None = None
    # of each row, in the task's words
    answers: tuple[Any, ...] = ()
    # the metric on each row: verdicts take other confidences from them
    values: tuple[float, ...] = ()
    student_values: tuple[float, ...] = ()
    teacher_values: tuple[float, ...] = ()


# The sessions that are timed. A twin is a second one of the same file in the same process: the two must come out equal.
Arm = Literal["candidate", "candidate_twin", "reference", "reference_twin"]
TWINS: dict[Arm, Arm] = {"candidate": "candidate_twin", "reference": "reference_twin"}


class Series(Record):
    """Raw latency samples of one model in one process, in the order taken."""

    model: Arm
    process: int
    round: int
    # "data" for the data's own lengths, or a fixed number of tokens
    lengths: str
    wall_ns: tuple[int, ...]
    # empty where nobody can tell: the model runs in another process
    cpu_ns: tuple[int, ...]
    # position of each call in the process, so that the A B B A order can be read back
    order: tuple[int, ...]
    warmup: int


class Measurement(Record):
    """Latency, load time, memory and size of one target on one machine."""

    target: str
    runtime: str
    device: str
    artefact_digest: str
    reference_digest: str | None = None
    sources: dict[str, str] = {}
    not_measured: str | None = None
    stand_in: str | None = None
    runtime_version: str | None = None
    machine: dict[str, Any] = {}
    conditions: tuple[dict[str, Any], ...] = ()
    threads: int = 1
    series: tuple[Series, ...] = ()
    load_ms: tuple[float, ...] = ()
    first_call_ms: tuple[float, ...] = ()
    memory_bytes: tuple[int, ...] = ()
    tokenize_us: float | None = None
    # what an app adds to run it: the runtime's libraries, as built for the machine that measured
    library_bytes: int | None = None
    size_bytes: int
    reference_size_bytes: int | None = None


class Check(Record):
    """One thing that an artefact must be, whatever its budgets: see eval/checks."""

    # of its file
    name: str = ""
    title: str
    status: Status
    # what was found, in words
    reason: str
    facts: dict[str, Any] = {}


class Examination(Record):
    """Every check of one artefact."""

    target: str
    runtime: str
    artefact_digest: str
    sources: dict[str, str] = {}
    # what executed it in place of the real runtime, if so
    stand_in: str | None = None
    not_measured: str | None = None
    checks: tuple[Check, ...] = ()


class TokenizerFacts(Record):
    """One implementation of the tokenizer, held against that of training."""

    title: str
    version: str | None = None
    # why there is no comparison; then nothing below is set
    not_compared: str | None = None
    texts: int = 0
    different: int = 0
    # some of the texts that differ, with what it made of them, and what training makes of them
    shown: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    @property
    def said(self) -> str:
        """The outcome in words."""
        if self.not_compared is not None:
            return f"not compared here: {self.not_compared}"
        return (
            f"{self.different:,} of {self.texts:,} texts differ"
            if self.different
            else f"the same on {self.texts:,} texts"
        )


class Tokenizers(Record):
    """Every implementation that apps may use."""

    sources: dict[str, str] = {}
    # name of its file in eval/tokenizers -> what was found
    found: dict[str, TokenizerFacts]


class Trial(Record):
    """A bundle as an app would use it: its own code, read back from its zip, on the whole test split."""

    platform: str
    target: str
    # SHA-256 of the bundle's manifest
    manifest_digest: str
    sources: dict[str, str] = {}
    # why its code was not run here; then nothing below is set
    not_tried: str | None = None
    engine: str | None = None
    examples: int = 0
    primary: Interval | None = None
    # rows that the bundle's code answers otherwise than the target's runtime did
    different: int = 0
    cold_ms: float | None = None
    warm_ms: float | None = None
    first_bytes: int | None = None
    # from recorded outputs: its tokenizer and its code ran here, its runtime did not
    is_recorded: bool = False


class Floor(Record):
    """A model that a student must beat to be worth shipping."""

    name: str
    primary: Interval
    further: dict[str, float] = {}
    size_bytes: int
    latency_ms: float | None
    answers: tuple[Any, ...]
    # the metric on each test row
    values: tuple[float, ...]


class Floors(Record):
    """What a student must beat, and what the rows are grouped by, so that verdicts need no data set."""

    examples: int
    metric: Metric
    sources: dict[str, str] = {}
    # the task's group of each test row, and all that train has; empty where the task has no groups
    groups: tuple[str, ...] = ()
    known_groups: tuple[str, ...] = ()
    # the data's own slice of each test row, empty for a row of none; empty for data without slices
    slices: tuple[str, ...] = ()
    floors: tuple[Floor, ...]


class ReasonKind(StrEnum):
    """Why a verdict, or a timing, stands as it does. `eval/wording.py` says each in a sentence."""

    MISSING = "missing evidence"
    ANOTHER_TARGET = "another target"
    ANOTHER_ARTEFACT = "another artefact"
    ANOTHER_REFERENCE = "another reference"
    ANOTHER_SPLIT = "another test split"
    ANOTHER_SOURCE = "another source"
    STAND_IN = "stand-in"
    TOO_FEW_EXAMPLES = "too few examples"
    CLASSES_WITHOUT_ROWS = "classes without rows"
    TOO_FEW_SAMPLES = "too few samples"
    NO_TWINS = "no twins"
    NOISY_RUNNER = "noisy runner"
    WIDENED = "interval widened"
    STRADDLES = "interval straddles"
    SLOW_ON_THE_WALL = "slow on the wall clock"
    DOES_NOT_BITE = "does not bite"
    WORST_SLICE = "worst slice"
    SAME_FILE = "same file"
    OTHER_RUNTIME = "another version of the runtime"
    NO_RUNTIME_ON_RECORD = "no runtime on record"
    RUNTIMES_APART = "each in its own version of the runtime"
    SLICE_LOST = "slice lost"
    CHECK = "check"
    CHECK_NOT_MADE = "check not made"
    # these decide nothing; they say that timings want to be read with care
    TWINS_DIFFER = "twins differ"
    CLOCKS_DISAGREE = "clocks disagree"
    CPU_STOLEN = "CPU stolen"


class Reason(Record):
    """One reason, in values; which of them are set depends on the kind."""

    kind: ReasonKind
    # what is missing or strange: score, floors, measurement, reference, artefact, examination; of a check, its title
    evidence: str | None = None
    # in the words of a runtime, a check, or what could not be read
    detail: str | None = None
    found: str | float | None = None
    expected: str | float | None = None
    figure: Interval | None = None


class Accepted(Record):
    """A reviewed exception: what is judged beside it may fail until its last day, in UTC."""

    because: str
    until: str


class BudgetVerdict(Record):
    """One budget of one target, judged. `limit` and `figure` times `scale` have the unit."""

    target: str
    budget: str
    title: str
    limit: float
    side: Literal["at least", "at most"]
    unit: str
    scale: float
    required: bool
    status: Status
    figure: Interval | None = None
    reasons: tuple[Reason, ...] = ()
    accepted: Accepted | None = None

    def decides(self, day: str = "") -> bool:
        """Whether the verdict on the whole follows from it on that day, as 2027-01-31; without one: while excepted."""
        return self.required and (self.accepted is None or self.accepted.until < day)


class Verdict(Record):
    """Every budget judged. `status` is that of the required ones together, and of the evidence."""

    status: Status
    first_line: str
    budgets: tuple[BudgetVerdict, ...]
    # what could not be read, damaged or missing; with any the status is no pass
    problems: tuple[str, ...] = ()
    # what was read: name of a folder or record, as under artifacts/ -> digest
    evidence: dict[str, str] = {}


class Change(Record):
    """One thing about a target beside the same thing of its base. All figures are in the units that people read."""

    target: str
    # file, time, score, slices, size, instructions, runtime, and what is only told: load, first_call, memory, library,
    # operations, calibration
    what: str
    title: str
    unit: str
    base: float | None = None
    head: float | None = None
    # how much worse than the base; below 0 it is better
    harm: Interval | None = None
    unit_of_harm: str
    # how far the same files were from themselves in this very run, in the unit of harm
    noise: float | None = None
    # surely more than `tolerated` fails, surely less than `seen` passes
    tolerated: float | None = None
    seen: float | None = None
    # the smallest harm that would have failed nine times in ten
    could_see: float | None = None
    # taken, and how many in all would see `seen`
    seconds: float | None = None
    seconds_needed: float | None = None
    # None: told, and decides nothing
    status: Status | None = None
    required: bool = True
    reasons: tuple[Reason, ...] = ()
    accepted: Accepted | None = None


class Comparison(Record):
    """A version of a project beside its base."""

    # what the base was called, and which version that is
    base: str
    base_version: str
    status: Status
    changes: tuple[Change, ...]
    # target -> why it could not be compared
    not_compared: dict[str, str] = {}
    # targets that could not be compared and whose budgets the gate needs
    required_not_compared: tuple[str, ...] = ()
    # name of what was compared -> digest
    evidence: dict[str, str] = {}


R = TypeVar("R", bound=Record)


def seal(folder: Path, kind: str, sources: dict[str, str] | None = None, facts: dict[str, Any] | None = None) -> Card:
    """Writes the card of a folder, last, over every file that is in it now."""
    files = {name: FileFact(bytes=file.stat().st_size, sha256=sha256_of(file)) for name, file in _contents(folder)}
    card = Card(kind=kind, sources=sources or {}, facts=facts or {}, files=files)
    write(card, folder / CARD_NAME)
    return card


def open_folder(folder: Path, kind: str) -> Card:
    """The card of a folder whose files are all as they were when it was sealed, and no others.

    Raises:
        IntegrityError: no card (never finished), another kind, or a file missing, cut short, changed or added.
    """
    path = folder / CARD_NAME
    if not path.is_file():
        raise IntegrityError(f"{folder}: no {CARD_NAME}, so it was never finished; run `dvc repro` to make it again")
    card = read(Card, path)
    if card.kind != kind:
        raise IntegrityError(f"{folder}: found a '{card.kind}', expected a '{kind}'; run `dvc repro` to make it again")
    for name, fact in card.files.items():
        _check_file(folder / name, fact)
    if added := sorted({name for name, _ in _contents(folder)} - card.files.keys()):
        raise IntegrityError(
            f"{folder / added[0]}: not listed in the card beside it: somebody put it there; take it away, or delete "
            "the folder and run `dvc repro --force` on its stage"
        )
    return card


def _contents(folder: Path) -> list[tuple[str, Path]]:
    """(name within the folder, file), sorted: all but the card and what a desktop leaves in every folder it shows."""
    found = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != ".DS_Store")
    return [(name, file) for file in found if (name := file.relative_to(folder).as_posix()) != CARD_NAME]


def _check_file(path: Path, fact: FileFact) -> None:
    again = "delete the folder and run `dvc repro --force` on its stage"
    if not path.is_file():
        raise IntegrityError(f"{path}: missing, but listed in the card beside it; {again}")
    found_bytes = path.stat().st_size
    if found_bytes != fact.bytes:
        change = "truncated by" if found_bytes < fact.bytes else "longer by"
        raise IntegrityError(
            f"{path}: {change} {abs(fact.bytes - found_bytes):,} bytes (found {found_bytes:,}, "
            f"expected {fact.bytes:,}); {again}"
        )
    found = sha256_of(path)
    if found != fact.sha256:
        raise IntegrityError(f"{path}: damaged: found SHA-256 {found[:16]}…, expected {fact.sha256[:16]}…; {again}")


def write(record: Record, path: Path) -> None:
    """Writes a single-file record with the hash of its content."""
    body = record.model_dump(mode="json")
    write_atomically(path, _to_json({"sha256": _content_hash(body), "record": body}))


def read(kind: type[R], path: Path) -> R:
    """A record whose content is as it was written.

    Raises:
        IntegrityError: missing, not JSON, cut short, changed by hand, or of another schema version.
    """
    if not path.is_file():
        raise IntegrityError(f"{path}: missing; run `dvc repro` to make it")
    try:
        outer = json.loads(path.read_text("utf-8"))
        body, expected = outer["record"], str(outer["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise IntegrityError(f"{path}: not a Decant record or cut short; delete it and run `dvc repro`") from None
    found = _content_hash(body)
    if found != expected:
        raise IntegrityError(
            f"{path}: changed since it was written: content has SHA-256 {found[:16]}…, expected {expected[:16]}…; "
            "delete it and run `dvc repro`"
        )
    return _parse(kind, path, body)


def digest(record: Record) -> str:
    """The SHA-256 of a record's content."""
    return _content_hash(record.model_dump(mode="json"))


def digest_of(folder: Path) -> str:
    """The digest of a sealed folder by its card alone, for one whose files were hashed before."""
    return read(Card, folder / CARD_NAME).digest


def _parse(kind: type[R], path: Path, body: Any) -> R:
    version = body.get("schema_version") if isinstance(body, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        writer = "an earlier" if version < SCHEMA_VERSION else "a later"
        raise IntegrityError(
            f"{path}: found schema version {version}, which {writer} Decant writes, expected {SCHEMA_VERSION}; "
            "run `dvc repro --force` with this one to make it again"
        )
    text = json.dumps(body)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise IntegrityError(
            f"{path}: not a {kind.__name__} of schema version {SCHEMA_VERSION}: {where}: {first['msg']}"
        ) from error


def _content_hash(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _to_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, indent=1) + "\n"


def read_lines(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """(whole lines, what was ignored) of a JSON-lines log; a crash may have cut its last line."""
    if not path.is_file():
        return [], None
    lines = path.read_text("utf-8", errors="replace").splitlines()
    out: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            out.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                return out, f"{path}:{number}: the last line was cut by a crash and is ignored"
            raise IntegrityError(f"{path}:{number}: not JSON; the log is damaged") from None
    return out, None
