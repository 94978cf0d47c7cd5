"""One task a file: what a row of data is, what a model answers to it, and what an answer is worth.

Nothing outside this room knows a task, and a task knows no model. A task whose TEXTS is one column takes pairs of texts
as well: `data.files.columns.pair` names the second. A task file has:

- `TITLE`: what it is, in a few words.
- `METRIC`: the `pipeline.base.records.Metric` that dev chooses by, and that budgets and reports speak of.
- `TARGET_LOSS`: the loss that teaches from the data's own targets, without a teacher.
- `Params`: a frozen model of `task.options`: what the task has to be told.
- `TEXTS`, `TARGETS`: names of the columns that hold a row's text and its target; `data.files.columns` says which
  columns of the data they are.
- `read(values, params)`: the values of the columns TARGETS to a target, plain JSON in the data's own words. Raises
  ValueError, whose text is the problem.
- `learn_space(targets)`: from those of the training rows, the `Space` of the answers.
- `find_problems(targets)`: split -> (place, target) to what is wrong with the rows together, as texts.
- `facts(targets, space)`: split -> its targets to what the card of the data tells of them.
- `describe(space)`: it in a few words, for the log.
- `number(target, space)`: a target as what training compares with: a number, or a list of them.
- `group(target)`: the class or kind that a row belongs to, for cutting splits and for reports; None: there are none.
- `head(space)`: the `Head` that stands on the encoder.
- `collate(numbers, length)`: those of a batch, whose longest row has so many tokens, as one tensor. UNLABELLED stands
  for that of a text that has none.
- `units(outputs, targets, mask)`: what losses on logits compare, whatever the task: `Units`.
- `answers(outputs, space)`: the outputs of rows to their answers, plain JSON. NumPy only: runtimes, bundles and
  interpreters share it. Outputs with a value a token are NO_CHOICE behind those of a row.
- `values(answers, numbers)`: what each answer is worth; METRIC is their mean.
- `further(answers, numbers)`: other figures of the whole split, by name.
- `why_blind(answers, numbers)`: why these answers show that nothing was learned, or None.
- `fit_floors(texts, numbers, space, seed)`: `Floor`s, models that a student must beat.
- `explain(outputs, space)`: of one row, (text, probability) by falling probability: what `decant predict` prints.
- `confidences(outputs)` (optional): how sure the model is of each answer, 0 to 1.
- `CLIENT` (optional): "label" where an answer is the place of the largest of the outputs `logits`, which is what code
  for apps answers (export/bundles/clients). Without it no bundle is made.
- `HUB_NAME` (with CLIENT): what model hubs call such a task.
- `show(answer, space)`: an answer as a person reads it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pipeline.base import plugins
from pipeline.base.records import Record
from pipeline.data.examples import SPACE
from pipeline.data.examples import UNLABELLED as UNLABELLED

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.settings.params import Params

Answer = Any  # plain JSON
Texts = Sequence[tuple[str, ...]]  # of each row one text, or a pair
NO_CHOICE = -1.0e4  # in outputs with a value a token: behind the tokens of a row


class Space(Record):
    """What answers are made of, fixed by the training rows."""

    # Of the outputs, in order; empty where they have no names.
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Head:
    """What stands on the encoder, in the words that transformers has for it."""

    kind: Literal["sequence", "token", "span"]  # one answer a text, one a token, a start and an end
    outputs: int
    choices: int  # of each of the task's units
    names: tuple[str, ...] = ()
    problem_type: str | None = None


@dataclass(frozen=True, eq=False)
class Units:
    """What a batch is compared in: one unit a text, a token, or a label of a text.

    The choices of a unit are exclusive: several labels are as many units of two choices.
    """

    logits: "Tensor"  # (units, choices)
    targets: "Tensor | None"  # (units,) of whole numbers, UNLABELLED where there is none


def one_unit_a_row(outputs: Mapping[str, "Tensor"], targets: "Tensor | None", mask: "Tensor") -> Units:
    """The `units` of tasks that give one answer to a text."""
    return Units(outputs["logits"], targets)


@dataclass(frozen=True)
class Floor:
    """A model that costs nothing to train."""

    name: str
    size_bytes: int
    answer: Callable[[Texts], list[Answer]]
    is_timed: bool = True


@dataclass(frozen=True)
class Task:
    """A task file bound to its settings and, once data are prepared, to its space."""

    name: str
    module: ModuleType
    params: Any
    space: Space = field(default_factory=Space)

    def __getattr__(self, name: str) -> Any:
        """Whatever the file has."""
        return getattr(self.module, name)

    @property
    def says_confidence(self) -> bool:
        """Whether the task says how sure an answer is."""
        return hasattr(self.module, "confidences")

    @property
    def head(self) -> Head:
        return self.module.head(self.space)


def of(params: "Params", folder: Path) -> Task:
    """The task of the settings, with the space that was learned from the prepared data in a folder."""
    space = Space.model_validate_json((folder / SPACE).read_text("utf-8"))
    return load(params.task.name, params.task.options, space)


def load(name: str, options: Mapping[str, Any], space: Space | None = None) -> Task:
    """The task of that name.

    Raises:
        SettingsError: there is no such file.
    """
    module = plugins.load("task", name)
    return Task(name, module, module.Params.model_validate(dict(options)), space or Space())
