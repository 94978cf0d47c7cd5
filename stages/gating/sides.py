"""One target of two versions of a project: timed beside each other, and asked the same test rows."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from eval import changes, instructions
from eval.calibration import calibrate
from eval.latency import Exported, Sequences, load_in_turns, measure, model_digest
from eval.runtimes import coreml_reference
from eval.scores import answer
from eval.slices import large
from eval.statistics import Values
from eval.worker import Result, WorkerError
from pipeline import tasks
from pipeline.base import machine, plugins
from pipeline.base.errors import IntegrityError, UnusableRuntimeError
from pipeline.base.records import Calibration, Card, Change, Measurement, Status, open_folder
from pipeline.data.examples import Examples
from pipeline.data.texts import clean
from pipeline.settings.measure import MeasureSettings
from pipeline.settings.params import Params
from pipeline.settings.targets import Target
from stages.targets import artefact_bytes, artefact_of

# Upper ends of the buckets of length, in tokens, that slices of the test rows are made of.
BUCKETS = (8, 16, 32, 64, 128)
COUNTED = (0.1, 0.3, 0.5, 0.7, 0.9)  # where in the order of lengths lie the texts whose instructions are counted


@dataclass(frozen=True)
class Side:
    """One version's artefact, and the test rows as its own tokenizer reads them."""

    exported: Exported
    card: Card
    texts: Sequence[tuple[str, ...]]

    @classmethod
    def open(cls, folder: Path, texts: Sequence[tuple[str, ...]], python: str | None = None) -> "Side":
        """The artefact in a folder, once its files are as its card says, and the Python that shall execute it."""
        card = open_folder(folder, "artefact")
        artefact = artefact_of(card)
        return cls(Exported(folder, artefact, card.digest, artefact_bytes(card, artefact), python), card, texts)

    @cached_property
    def sequences(self) -> list[list[int]]:
        """Token ids of each row, as an app would make them."""
        tokenizer = Tokenizer.from_file(str(self.exported.folder / "tokenizer.json"))
        return [tokenizer.encode(*map(clean, text)).ids for text in self.texts]


@dataclass(frozen=True)
class Runtime:
    """What the base was, and shall be, executed in."""

    # version on record, and the Python of another environment that has it
    version: str | None = None
    python: str | None = None


def compare_target(params: Params, name: str, base: Path, head: Path, rows: Examples, runtime: Runtime) -> list[Change]:
    """Everything that can be said of a target beside its base.

    Args:
        params: the head's settings.
        name: of the target.
        base: folder of the base's artefact.
        head: folder of the head's.
        rows: the test split; both sides answer it.
        runtime: of the base, where it is not this environment's.

    Raises:
        IntegrityError: an artefact is damaged, or the two are no versions of one model: other classes, another task.
        UnusableRuntimeError: the target's runtime does not run here.
        WorkerError: a process of it crashed or hung.
    """
    old, new = Side.open(base, rows.texts, runtime.python), Side.open(head, rows.texts)
    if old.card.facts["task"] != new.card.facts["task"]:
        raise IntegrityError(
            "base and head have other classes, or another task, so their answers mean different things"
        )
    target = params.targets[name]
    if runtime.python is not None and target.device != "local":
        raise UnusableRuntimeError(f"--base-python is of this machine, and the target runs on '{target.device}'")
    reason = _why_unusable(target)
    if _is_same(old, new):
        here = None if reason is not None else plugins.load("runtime", target.runtime).version()
        found = [*_of_the_runtime(name, target, runtime.version, None, here), changes.same_file(name)]
    elif reason is not None:
        raise UnusableRuntimeError(reason)
    else:
        found = [*_answered(params, name, old, new, rows, runtime), *_timed(params, name, old, new)]
        found.append(changes.judge_size(name, old.exported.size_bytes, new.exported.size_bytes, params.compare.size))
    return [change.model_copy(update={"required": target.required}) for change in found]


def _of_the_runtime(
    name: str, target: Target, recorded: str | None, base: str | None, head: str | None
) -> list[Change]:
    """What there is to say of the runtime's versions; nothing where it does not run here."""
    if head is None:
        return []

    def named(version: str | None) -> str | None:
        return None if version is None else f"{target.runtime} {version}"

    found = changes.runtime_of(name, named(recorded), named(base), f"{target.runtime} {head}")
    return [] if found is None else [found]


def _is_same(old: Side, new: Side) -> bool:
    """Whether nothing can differ: the model byte for byte, what executes it, how it is opened, and what it reads."""
    if old.exported.python != new.exported.python or model_digest(old.exported) != model_digest(new.exported):
        return False
    return old.exported.artefact.settings == new.exported.artefact.settings and old.sequences == new.sequences


def _why_unusable(target: Target) -> str | None:
    return (
        plugins.load("device", target.device).why_unusable() or plugins.load("runtime", target.runtime).why_unusable()
    )


# --- time --------------------------------------------------------------------------------------------------------


def take_times(
    params: Params, name: str, exports: tuple[Exported, Exported], sequences: tuple[Sequences, Sequences]
) -> Measurement:
    """Base and head timed in the same processes until the time is decided, or the rounds or seconds are spent.

    Args:
        params: whose `compare` says how.
        name: of the target.
        exports: the base's artefact and the head's.
        sequences: token ids of the test rows as each of them reads them.
    """
    target, settings = params.targets[name], params.compare
    end = time.monotonic() + settings.seconds

    def is_undecided(so_far: Measurement) -> bool:
        status = changes.judge_time(so_far, settings.time).status
        return status is Status.INCONCLUSIVE and time.monotonic() < end

    return measure(
        target=name,
        runtime=target.runtime,
        device=target.device,
        candidate=exports[1],
        reference=exports[0],
        sequences=sequences[1],
        reference_sequences=sequences[0],
        pad_id=0,  # one text a call needs no padding but up to a fixed length, which the mask leaves out
        settings=MeasureSettings(
            processes=settings.processes,
            pairs=settings.pairs,
            max_rounds=settings.max_rounds,
            threads=params.measure.threads,
            lengths=(),
        ),
        seed=params.seed,
        undecided=is_undecided,
        machine=machine.facts(),
        with_loads=False,
    )


def _timed(params: Params, name: str, old: Side, new: Side) -> list[Change]:
    target = params.targets[name]
    found: list[Change] = []
    if target.format in coreml_reference.FORMATS:
        found = _operations(name, old, new)
    if hasattr(plugins.load("runtime", target.runtime), "NOT_TIMED"):  # a stand-in, whose times say nothing
        return found
    exports, sequences = (old.exported, new.exported), (old.sequences, new.sequences)
    found.append(changes.judge_time(take_times(params, name, exports, sequences), params.compare.time))
    loads = load_in_turns(
        exports,
        runtime=target.runtime,
        device=target.device,
        sequences=sequences,
        pad_id=0,
        threads=params.measure.threads,
    )
    for what, title, unit, field, scale in (
        ("load", "load time", "ms", "load_ms", 1.0),
        ("first_call", "first call", "ms", "first_call_ms", 1.0),
        ("memory", "memory added", "MB", "memory_bytes", 1e-6),
    ):
        before, after = ([scale * getattr(one, field) for one in side] for side in loads)
        if (told := changes.tell(name, what, title, unit, before, after)) is not None:
            found.append(told)
    found += _library(name, *(side[-1] for side in loads))
    return [*found, _instructions(params, name, old, new)]


def _instructions(params: Params, name: str, old: Side, new: Side) -> Change:
    """Counted on texts of all lengths; neither the machine nor its neighbours are in it."""
    runtime, most = params.targets[name].runtime, params.compare.instructions
    order = np.argsort([len(ids) for ids in new.sequences], kind="stable")
    rows = [order[int(share * len(order))] for share in COUNTED]
    threads = params.measure.threads
    try:
        before, after = (
            instructions.count(
                runtime,
                side.exported.folder,
                side.exported.artefact,
                [side.sequences[row] for row in rows],
                0,
                threads,
                side.exported.python,
            )
            for side in (old, new)
        )
    except (UnusableRuntimeError, WorkerError) as error:  # not every runtime starts under the emulator
        title = "instructions of a call"
        return changes.not_measured(name, "instructions", title, str(error), decides=most is not None)
    return changes.judge_instructions(name, before, after, most)


def _library(name: str, before: Result, after: Result) -> list[Change]:
    """One size unless a runtime comes in parts, or each side has its own version of it."""
    if before.library_bytes is None or after.library_bytes is None:
        return []
    change = changes.judge_size(name, before.library_bytes, after.library_bytes, None)
    return [change.model_copy(update={"what": "library", "title": "runtime's library"})]


def _operations(name: str, old: Side, new: Side) -> list[Change]:
    before, after = (
        coreml_reference.count_kernels(one.exported.folder, one.exported.artefact).nodes for one in (old, new)
    )
    return [changes.tell_value(name, "operations", "operations in the package", "", before, after)]


# --- answers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """What a side answered to the test rows: the metric on each, how sure it was, and the version of the runtime."""

    values: Values
    calibration: Calibration | None
    runtime_version: str


def _answered(params: Params, name: str, old: Side, new: Side, rows: Examples, runtime: Runtime) -> list[Change]:
    metric = tasks.load(params.task.name, params.task.options, _space(new)).METRIC
    theirs, ours = (_answers(params, name, side, rows) for side in (old, new))
    before, after = theirs.values, ours.values
    found = [changes.judge_score(name, before, after, metric, params.compare.score)]
    theirs_alone = theirs.runtime_version if runtime.python is not None else None
    target = params.targets[name]
    found[:0] = _of_the_runtime(name, target, runtime.version, theirs_alone, ours.runtime_version)
    if params.compare.slices is not None:
        change = changes.judge_slices(name, slices_of(new, rows), before, after, metric, params.compare.slices)
        found += [] if change is None else [change]
    one, other = theirs.calibration, ours.calibration
    if one is not None and other is not None:
        title = "calibration error"
        found.append(changes.tell_value(name, "calibration", title, "points", 100 * one.error, 100 * other.error))
    return found


def _answers(params: Params, name: str, side: Side, rows: Examples) -> Answers:
    """The test rows as this side answers them in the target's runtime."""
    target, one = params.targets[name], side.exported
    task = tasks.load(params.task.name, params.task.options, _space(side))
    batch = getattr(plugins.load("runtime", target.runtime), "BATCH", None)
    device = plugins.load("device", target.device)
    elsewhere = {} if one.python is None else {"python": one.python}
    with device.open_session(target.runtime, one.folder, one.artefact, params.measure.threads, **elsewhere) as session:
        outputs = answer(session, side.sequences, one.artefact, 0, batch)
        version = session.runtime_version
    values = np.asarray(task.values(task.answers(outputs, task.space), rows.numbers), dtype=np.float64)
    return Answers(values, calibrate(task.confidences(outputs), values) if task.says_confidence else None, version)


def _space(side: Side) -> tasks.Space:
    return tasks.Space.model_validate(side.card.facts["task"]["space"])


def slices_of(side: Side, rows: Examples) -> dict[str, Sequence[str]]:
    """Kind of slice -> that of each row: the task's groups, the length in tokens, and the data's own column.

    Rows of a slice that is too small to say anything are in none.
    """
    found: dict[str, Sequence[str]] = {"length": [_bucket(len(ids)) for ids in side.sequences]}
    found |= ({"class": rows.groups} if rows.groups else {}) | ({"slice": rows.slices} if rows.slices else {})
    return {kind: large(names) for kind, names in found.items()}


def _bucket(tokens: int) -> str:
    low = 1
    for high in BUCKETS:
        if tokens <= high:
            return f"{low} to {high} tokens"
        low = high + 1
    return f"over {BUCKETS[-1]} tokens"
