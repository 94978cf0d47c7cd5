"""Faults to plant, one at a time: in what a runtime answers, in a graph, in a tokenizer, and in weights.

Used by benchmarks/checks.py, and those of graphs by the tests of the checks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from onnx import helper, numpy_helper

from eval.checks import Subject
from eval.isolated import IsolatedSession
from eval.padding import MASK
from eval.runtimes import Arrays, Session

Run = Callable[[Arrays], dict[str, np.ndarray]]


# --- a runtime that answers wrongly ------------------------------------------------------------------------------


def first_to_all(run: Run, inputs: Arrays, max_length: int) -> dict[str, np.ndarray]:
    """Every row of a batch gets the answer of row 0."""
    return {name: np.repeat(values[:1], len(values), axis=0) for name, values in run(inputs).items()}


def rows_turned(run: Run, inputs: Arrays, max_length: int) -> dict[str, np.ndarray]:
    """The answers of a batch, in the opposite order."""
    return {name: values[::-1] for name, values in run(inputs).items()}


def without_mask(run: Run, inputs: Arrays, max_length: int) -> dict[str, np.ndarray]:
    """Padding counts as text."""
    return run({**inputs, MASK: np.ones_like(inputs[MASK])})


def inputs_swapped(run: Run, inputs: Arrays, max_length: int) -> dict[str, np.ndarray]:
    """Ids are read as the mask, and the mask as ids."""
    return run({**inputs, "input_ids": inputs[MASK], MASK: inputs["input_ids"]})


def labels_swapped(run: Run, inputs: Arrays, max_length: int) -> dict[str, np.ndarray]:
    """The first two classes have changed places."""
    return {name: values[..., [1, 0, *range(2, values.shape[-1])]] for name, values in run(inputs).items()}


def one_token_less(run: Run, inputs: Arrays, max_length: int) -> dict[str, np.ndarray]:
    """The length is off by one: a text's last token is not read."""
    mask = inputs[MASK].copy()
    for row in mask:
        if (count := int(row.sum())) > 1:
            row[count - 1] = 0
    return run({**inputs, MASK: mask})


def long_texts_cut(run: Run, inputs: Arrays, max_length: int) -> dict[str, np.ndarray]:
    """What is too long is answered as far as it fits, though the card says that it is refused."""
    return run({name: values[:, :max_length] for name, values in inputs.items()})


def not_numbers(run: Run, inputs: Arrays, max_length: int) -> dict[str, np.ndarray]:
    """One number of each answer is NaN."""
    found = {name: values.copy() for name, values in run(inputs).items()}
    for values in found.values():
        values[..., -1] = np.nan
    return found


@dataclass(frozen=True)
class Spoiled(Subject):
    """A subject whose runtime answers wrongly."""

    spoil: Callable[[Run, Arrays, int], dict[str, np.ndarray]] = first_to_all
    # only when it is opened in another runtime than its own
    elsewhere: bool = field(default=False)

    @classmethod
    def of(cls, subject: Subject, spoil: Any, *, elsewhere: bool = False) -> Self:
        """The same subject in such a runtime."""
        known = {one.name: getattr(subject, one.name) for one in fields(Subject)}
        return cls(**known, spoil=spoil, elsewhere=elsewhere)

    def open(
        self, runtime: str | None = None, *, count_kernels: bool = False, emulated: bool = False
    ) -> IsolatedSession:
        session = super().open(runtime, count_kernels=count_kernels, emulated=emulated)
        if self.elsewhere and runtime in (None, self.runtime):
            return session
        return _SpoiledSession(session, self)  # type: ignore[return-value]  # has what checks use of it


class _SpoiledSession:
    def __init__(self, session: Session, subject: Spoiled) -> None:
        self._session, self._subject = session, subject

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return self._subject.spoil(self._session.run, inputs, self._subject.artefact.max_length)

    def __enter__(self) -> Self:
        self._session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.__exit__(kind, error, trace)


# --- a graph that is wrong ---------------------------------------------------------------------------------------


def ignore_the_mask(graph: onnx.GraphProto) -> None:
    """Every position counts, padding too: mask x 0 + 1."""
    for name, value in (("nought", 0), ("one", 1)):
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=_dtype(graph, MASK)), name))
    _read_instead(graph, MASK, "all_ones")
    nodes = [
        helper.make_node("Mul", [MASK, "nought"], ["no_mask"], name="no_mask"),
        helper.make_node("Add", ["no_mask", "one"], ["all_ones"], name="all_ones"),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)


def answer_the_first_row(graph: onnx.GraphProto) -> None:
    """logits -> logits[:1] + 0 x logits."""
    (output,) = graph.output
    for node in graph.node:
        node.output[:] = ["all_logits" if name == output.name else name for name in node.output]
    for name, value in (("row_0", [0]), ("row_1", [1]), ("nothing", np.float32(0))):
        graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    graph.node.extend(
        [
            helper.make_node("Slice", ["all_logits", "row_0", "row_1"], ["first"], name="first"),
            helper.make_node("Mul", ["all_logits", "nothing"], ["no_logits"], name="no_logits"),
            helper.make_node("Add", ["first", "no_logits"], [output.name], name="first_to_all"),
        ]
    )


def swap_the_inputs(graph: onnx.GraphProto) -> None:
    """Ids are read as the mask, and the mask as ids."""
    other = {"input_ids": MASK, MASK: "input_ids"}
    for node in graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]


def fatten(graph: onnx.GraphProto) -> None:
    """Shape arithmetic that an exporter leaves: the mask expanded to its own shape."""
    _read_instead(graph, MASK, "spread_mask")
    nodes = [
        helper.make_node("Shape", [MASK], ["mask_shape"], name="mask_shape"),
        helper.make_node("Expand", [MASK, "mask_shape"], ["spread_mask"], name="spread_mask"),
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)


def cut_positions(graph: onnx.GraphProto, most: int, tokens: int) -> None:
    """The position table ends at so many rows, of the `tokens` that the card promises."""
    table = next(one for one in graph.initializer if len(one.dims) >= 2 and one.dims[-2] == tokens)
    table.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(table)[..., :most, :], table.name))


def _read_instead(graph: onnx.GraphProto, name: str, other: str) -> None:
    for node in graph.node:
        node.input[:] = [other if read == name else read for read in node.input]


def _dtype(graph: onnx.GraphProto, name: str) -> np.dtype:
    (value,) = (one for one in graph.input if one.name == name)
    return helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


# --- a tokenizer that is wrong -----------------------------------------------------------------------------------

# what -> its change to the state of tokenizer.json
TOKENIZER: dict[str, Callable[[dict[str, Any]], object]] = {
    "case": lambda state: state["normalizer"].update(lowercase=False),
    "accents": lambda state: state["normalizer"].update(strip_accents=False),
    "chinese": lambda state: state["normalizer"].update(handle_chinese_chars=False),
    "separator": lambda state: state["post_processor"]["single"].pop(),
    "long words": lambda state: state["model"].update(max_input_chars_per_word=5),
    "no end": lambda state: state.update(truncation=None),
}
