"""Graph rewrites that leave an exported classifier only the nodes that its answer needs.

The TorchScript exporter writes down how PyTorch found out shapes, masks and scales. With the inputs fixed to
`input_ids` and `attention_mask` of shape (batch, length) nearly all of that is known beforehand. Padding may stand
anywhere; axis 0 of every activation is the batch and axis 1 of a three-dimensional one the position, as everywhere in
these encoders. A student of two layers of 192 at 15 tokens, 8-bit, answers in 0.67 of the time: 0.80 without the nodes
that nothing needs, the rest because the last layer computes one position.

A rewrite that does not find its pattern leaves the graph as it is: still right, only slower. Nodes that hold a module's
weight keep their names, since the quantizer finds modules by them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.onnx_int8 import drop_unused_weights, module_of
from pipeline.quantization.plan import MIN_TABLE_ROWS

SMALL = 64  # elements; a larger constant is a weight, which no rewrite computes
MASKED = float(np.finfo(np.float32).min)  # what PyTorch adds to the score of a masked key
# Orders of axes in which PyTorch transposes (batch, length, heads, size).
HEADS, HEADS_OF_KEY = [0, 2, 1, 3], [0, 2, 3, 1]
# Operators that compute each position from that position alone.
ROW_WISE = {"Add", "Sub", "Mul", "Div", "Erf", "Tanh", "Relu", "Sqrt", "Pow", "Sigmoid", "Cast"}


def make_lean(model: ModelProto, max_length: int) -> dict[str, int]:
    """Applies every rewrite of REWRITES, in place, and cuts the table of positions to `max_length` rows.

    Returns:
        How many nodes there were as exported and after each rewrite, in order.
    """
    counts = {"exported": len(model.graph.node)}
    counts |= _apply(model, REWRITES)
    cut_positions(model, max_length)
    return counts


def merge_parts(model: ModelProto) -> dict[str, int]:
    """Applies every rewrite of MERGES, in place: after quantization, which looks for single modules.

    Returns:
        How many nodes there were after each rewrite, in order.
    """
    return _apply(model, MERGES)


def _apply(model: ModelProto, rewrites: Sequence[Callable[[ModelProto], None]]) -> dict[str, int]:
    counts = {}
    for rewrite in rewrites:
        rewrite(model)
        drop_unused(model.graph)
        counts[rewrite.__name__] = len(model.graph.node)
    return counts


# --- the rewrites ------------------------------------------------------------------------------------------------


def store_constants(model: ModelProto) -> None:
    """Constant -> node  becomes  stored value -> node; equal small values are stored once."""
    graph = model.graph
    stored: dict[tuple, str] = {}
    renamed: dict[str, str] = {}
    for node in [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]:
        tensor = node.attribute[0].t
        key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
        if key not in stored:
            stored[key] = node.output[0]
            graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor), node.output[0]))
        renamed[node.output[0]] = stored[key]
        graph.node.remove(node)
    _rename_inputs(graph, renamed)


def add_text_type_as_row(model: ModelProto) -> None:
    """Gather(text types, Expand(Slice(zeros))) -> Add  becomes  the table's first row -> Add.

    A classifier of one text has only the text type 0. A table that the quantizer knows as a module stays.
    """
    view = _View(model)
    for node in view.nodes("Gather"):
        table, ids = node.input
        if view.stored_rank(table) != 2 or view.stored(table).shape[0] >= MIN_TABLE_ROWS or not _is_zero(view, ids):
            continue
        row = _store(model, f"{table}_row_0", view.stored(table)[0])
        _rename_inputs(model.graph, {node.output[0]: row})


def slice_positions(model: ModelProto) -> None:
    """Gather(table, Slice(0 1 2 ..., end=length))  becomes  Slice(table, end=length).

    The table keeps its node's place, so that the quantizer finds it. RoBERTa counts positions from the ids and keeps
    its Gather.
    """
    view = _View(model)
    for node in view.nodes("Gather"):
        table, ids = node.input
        cut = view.producer.get(ids)
        if view.stored_rank(table) != 2 or cut is None or cut.op_type != "Slice" or len(cut.input) != 5:
            continue
        counted, start, end, axis, step = cut.input
        numbers = view.stored(counted)
        if numbers is None or not np.array_equal(numbers, np.arange(len(view.stored(table)))[None]):
            continue
        if [view.list_of(name) for name in (start, axis, step)] != [[0], [1], [1]]:
            continue
        first = _store(model, f"{table}_axis", np.array([0]))
        name = node.name.removesuffix("Gather") + "Slice"
        # (length, hidden), which broadcasts over the batch as (1, length, hidden) did
        node.CopyFrom(helper.make_node("Slice", [table, start, end, first], [node.output[0]], name=name))


def cut_positions(model: ModelProto, max_length: int) -> None:
    """Slice(table, end=length)  becomes  Slice(the table's first max_length rows, end=length).

    A longer input then fails, where the sum with its words has no common shape, rather than being answered.
    """
    view = _View(model)
    for node in view.nodes("Slice"):
        if view.stored_rank(node.input[0]) == 2:
            rows = view.stored(node.input[0])[:max_length]
            node.input[0] = _store(model, f"{node.input[0]}_{max_length}", rows)
    drop_unused(model.graph)


def simplify_mask(model: ModelProto) -> None:
    """mask -> Unsqueeze, Expand, Cast, Sub, Cast, Where ...  becomes  Unsqueeze -> Cast -> 1 - mask -> Mul(lowest).

    What is added to the scores is one number a key, (batch, 1, 1, length), and broadcasts over heads and queries. The
    old nodes are executed on every mask of three tokens, and are replaced only if the new ones give the same numbers.
    """
    view = _View(model)
    old = dict.fromkeys(name for softmax in view.nodes("Softmax") for name in view.producer[softmax.input[0]].input)
    masks = [name for name in old if _is_plain_mask(model, view, name)]
    if not masks:
        return
    names = {key: f"attention_mask_{key}" for key in ("axes", "one", "lowest", "column", "float", "hidden", "added")}
    _store(model, names["axes"], np.array([1, 2]))
    _store(model, names["one"], np.array(1, np.float32))
    _store(model, names["lowest"], np.array(MASKED, np.float32))
    new = [
        _node("Unsqueeze", ["attention_mask", names["axes"]], names["column"]),
        _node("Cast", [names["column"]], names["float"], to=TensorProto.FLOAT),
        _node("Sub", [names["one"], names["float"]], names["hidden"]),
        _node("Mul", [names["hidden"], names["lowest"]], names["added"]),  # (batch, 1, 1, length)
    ]
    _rename_inputs(model.graph, dict.fromkeys(masks, names["added"]))
    _set_nodes(model.graph, [*new, *model.graph.node])


def fix_reshapes(model: ModelProto) -> None:
    """Reshape(x, Concat(Shape(y)[0], -1, heads, size))  becomes  Reshape(x, [0, 0, heads, size]), 0 meaning "as in x".

    Only where the sizes behind the first two axes multiply to the same on both sides, so that axis 1 stays too.
    """
    shapes = _known_shapes(model)
    view = _View(model)
    for node in view.nodes("Reshape"):
        before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
        if view.stored(node.input[1]) is not None or len(before) < 3 or len(after) < 3:
            continue
        if None in (*before[2:], *after[2:]) or math.prod(before[2:]) != math.prod(after[2:]):  # type: ignore[arg-type]
            continue
        node.input[1] = _store(model, f"{node.name}_shape", np.array([0, 0, *after[2:]]))


def fold_known_sizes(model: ModelProto) -> None:
    """Slice(Shape(x), -1)  becomes  the number, where that axis of x has a fixed size."""
    shapes = _known_shapes(model)
    view = _View(model)
    for node in [*view.nodes("Slice"), *view.nodes("Gather")]:
        source = view.producer.get(node.input[0])
        if source is None or source.op_type != "Shape" or source.attribute:
            continue
        sizes = shapes.get(source.input[0])
        if not sizes or any(view.stored(name) is None for name in node.input[1:]):
            continue
        numbers = np.array([-1 if size is None else size for size in sizes])
        feeds = {name: view.stored(name) for name in node.input[1:]}
        picked = _evaluate(model, [node], feeds | {node.input[0]: numbers})
        if (picked > 0).all():
            _rename_inputs(model.graph, {node.output[0]: _store(model, f"{node.output[0]}_known", picked)})


def read_length_directly(model: ModelProto) -> None:
    """Unsqueeze(Gather(Shape(x), 1))  becomes  Shape(x, start=1, end=2)."""
    view = _View(model)
    for node in view.nodes("Unsqueeze"):
        pick = view.producer.get(node.input[0])
        shape = view.producer.get(pick.input[0]) if pick is not None and pick.op_type == "Gather" else None
        if pick is None or shape is None or shape.op_type != "Shape" or view.stored(pick.input[1]) is None:
            continue
        index = view.stored(pick.input[1])
        if index.shape == () and view.list_of(node.input[1]) == [0]:
            start = int(index)
            direct = helper.make_node("Shape", shape.input, node.output, name=node.name, start=start, end=start + 1)
            node.CopyFrom(direct)


def fold_constants(model: ModelProto) -> None:
    """A node whose inputs are all small stored numbers  becomes  its result."""
    view = _View(model)
    kept = []
    for node in view.all:
        feeds = {name: view.small(name) for name in node.input}
        if feeds and all(value is not None for value in feeds.values()):
            result = np.asarray(_evaluate(model, [node], feeds))
            view.weights[node.output[0]] = numpy_helper.from_array(result, _store(model, node.output[0], result))
        else:
            kept.append(node)
    _set_nodes(model.graph, kept)


def fold_attention_scale(model: ModelProto) -> None:
    """MatMul(Mul(query, s), Mul(key, s)) or Div(MatMul(query, key), c)  becomes  MatMul(query', key).

    The factor goes into the weight and bias of the query's projection: other rounding, the same 8-bit weights, because
    each of their columns has a scale of its own.
    """
    view = _View(model)
    for softmax in view.nodes("Softmax"):
        after, scores = _scores(view, softmax)
        if scores is None:
            continue
        factor = 1.0
        changes = []
        if after is not None:
            factor /= float(view.small(after.input[1]).item())
            changes.append((after.output[0], scores.output[0]))
        for name in scores.input:
            multiply = view.producer[name]
            number = view.small(multiply.input[1]) if multiply.op_type == "Mul" else None
            if number is not None and number.size == 1 and view.reads(name) == 1:
                factor *= float(number.item())
                changes.append((name, multiply.input[0]))
        query = dict(changes).get(scores.input[0], scores.input[0])
        if factor != 1.0 and _scale_projection(model, view, query, factor):
            _rename_inputs(model.graph, dict(changes))


def keep_first_token(model: ModelProto) -> None:
    """hidden -> last layer -> Gather(position 0)  becomes  hidden -> Slice(position 0) -> last layer for one position.

    The classifier reads the first position only. Keys and values of the last layer need every position; its query,
    attention output, feed-forward part and norms are needed for one. In a dynamically quantized file the ranges of
    those layers then come from that one position: the answer differs a little, and depends less on padding.
    """
    view = _View(model)
    shapes = _known_shapes(model)
    rows = _Rows()
    for node in view.nodes("Gather"):
        index = view.small(node.input[1])
        if index is not None and index.shape == () and index == 0 and _attribute(node, "axis", 0) == 1:
            rows.take(node, {0: 1})
    for node in reversed(view.all):
        axis = rows.axis.get(node.output[0])
        if axis is not None and all(rows.is_taken(reader, place) for reader, place in view.readers[node.output[0]]):
            rows.take(node, _inputs_of_row(view, node, axis, shapes))
    _slice_rows(model, view, rows)


REWRITES: tuple[Callable[[ModelProto], None], ...] = (
    store_constants,  # first: the others look for numbers among the stored values only
    add_text_type_as_row,
    slice_positions,
    simplify_mask,
    fix_reshapes,
    fold_known_sizes,  # after fix_reshapes, which makes the sizes of heads known
    read_length_directly,
    fold_constants,
    fold_attention_scale,  # after fold_constants, which computes the scale
    keep_first_token,  # after fix_reshapes: it follows axes through reshapes with fixed numbers only
)


# --- after quantization ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Projection:
    """MatMul -> Add(bias), or MatMulInteger -> Cast -> Mul(Mul(x_scale, W_scale)) -> Add(bias)."""

    module: str
    nodes: tuple[NodeProto, ...]
    weight: str
    bias: str
    scales: tuple[str, str] | None  # of the input and of the weight


def multiply_once(model: ModelProto) -> None:
    """x -> query, x -> key, x -> value  becomes  x -> one product -> Split.

    Only projections of one input that are quantized alike are merged; one that the plan excludes stays by itself. The
    numbers are those of the single products: each column keeps its scale. Static 8-bit pairs are left alone, because
    NPU compilers look for them around each product.
    """
    view = _View(model)
    groups: dict[tuple[str, str], list[_Projection]] = {}
    for node in view.all:
        found = _projection(view, node)
        if found is not None:
            groups.setdefault((node.op_type, node.input[0]), []).append(found)
    for projections in groups.values():
        if len(projections) > 1:
            _merge(model, view, projections)


def add_text_type_to_positions(model: ModelProto) -> None:
    """Add(Add(words, row), Slice(table))  becomes  Add(words, Slice(Add(table, row))), all but the Slice known at load.

    After quantization, so that the table is the 8-bit one that the plan was measured with.
    """
    view = _View(model)
    for node in view.nodes("Add"):
        words, positions = (view.producer.get(name) for name in node.input)
        if words is None or words.op_type != "Add" or view.reads(words.output[0]) != 1:
            continue
        if positions is None or positions.op_type != "Slice" or not view.is_constant(positions.input[0]):
            continue
        if view.stored_rank(words.input[1]) != 1 or view.reads(positions.output[0]) != 1:
            continue
        table, row = positions.input[0], words.input[1]
        total = f"{positions.output[0]}_with_text_type"
        new = []
        if table in view.weights:
            _store(model, total, view.stored(table) + view.stored(row))
        else:
            new.append(_node("Add", [table, row], total))
        positions.input[0] = total
        node.input[0] = words.input[0]
        _replace(model.graph, positions, new, set())


def transpose_heads_once(model: ModelProto) -> None:
    """Split -> Reshape, Transpose for each of query, key and value  becomes  Reshape -> Transpose -> Split by heads.

    The key's other order of axes stays a Transpose of its own, which runtimes make part of the product.
    """
    view = _View(model)
    for split in view.nodes("Split"):
        reshapes = [found for name in split.output if (found := view.only_reader(name, "Reshape"))]
        moves = [found for node in reshapes if (found := view.only_reader(node.output[0], "Transpose"))]
        orders = [_attribute(node, "perm", None) for node in moves]
        shapes = [view.list_of(node.input[1]) for node in reshapes]
        if len(moves) < len(split.output) or any(order not in (HEADS, HEADS_OF_KEY) for order in orders):
            continue
        if shapes[0] is None or len(shapes[0]) != 4 or any(shape != shapes[0] for shape in shapes):
            continue
        heads, size = shapes[0][2:]
        name = split.name.removesuffix("/split")
        target = _store(model, f"{name}.heads_shape", np.array([0, 0, heads * len(moves), size]))
        sizes = _store(model, f"{name}.heads", np.array([heads] * len(moves)))
        outputs = [node.output[0] for node in moves]
        turned = []
        for i, move in enumerate(moves):
            if orders[i] == HEADS_OF_KEY:
                outputs[i] += "_upright"
                turned.append(
                    helper.make_node("Transpose", [outputs[i]], move.output, name=move.name, perm=[0, 1, 3, 2])
                )
        nodes = [
            _node("Reshape", [split.input[0], target], f"{name}/heads"),  # (batch, length, heads of all, size)
            _node("Transpose", [f"{name}/heads"], f"{name}/by_head", perm=HEADS),
            helper.make_node("Split", [f"{name}/by_head", sizes], outputs, name=split.name, axis=1),
            *turned,
        ]
        _replace(model.graph, split, nodes, {node.output[0] for node in (split, *reshapes, *moves)})


def _replace(graph: GraphProto, first: NodeProto, new: Sequence[NodeProto], gone: set[str]) -> None:
    """Puts the new nodes where `first` is, and takes out those whose first output is in `gone`."""
    kept: list[NodeProto] = []
    for node in graph.node:
        if node.output[0] == first.output[0]:
            kept.extend(new)
        if node.output[0] not in gone:
            kept.append(node)
    _set_nodes(graph, kept)


def _projection(view: "_View", node: NodeProto) -> _Projection | None:
    if node.op_type not in {"MatMul", "MatMulInteger"} or view.stored_rank(node.input[1]) != 2:
        return None
    chain = [node]
    for operator in ("Cast", "Mul", "Add") if node.op_type == "MatMulInteger" else ("Add",):
        readers = view.readers[chain[-1].output[0]]
        if len(readers) != 1 or readers[0][0].op_type != operator:
            return None
        chain.append(readers[0][0])
    bias = [name for name in chain[-1].input if view.stored_rank(name) == 1]
    if len(bias) != 1:
        return None
    scales = None
    if node.op_type == "MatMulInteger":
        both = view.producer[chain[2].input[1]]
        scales = both.input[0], both.input[1]
        chain.append(both)
    return _Projection(module_of(node), tuple(chain), node.input[1], bias[0], scales)


def _merge(model: ModelProto, view: "_View", projections: Sequence[_Projection]) -> None:
    module = "+".join(one.module for one in projections)
    weights = [view.stored(one.weight) for one in projections]
    widths = [weight.shape[1] for weight in weights]
    first = projections[0].nodes[0]
    joined = _store(
        model, f"{module}.weight{'_int8' if first.op_type == 'MatMulInteger' else ''}", np.concatenate(weights, axis=1)
    )
    nodes = [_node(first.op_type, [first.input[0], joined, *first.input[2:]], f"{module}/product")]
    scales = [one.scales for one in projections]
    if scales[0] is not None:
        columns = [
            np.broadcast_to(view.stored(one[1]), width) for one, width in zip(scales, widths, strict=True) if one
        ]
        scale = _store(model, f"{module}.weight_scale", np.concatenate(columns))
        nodes += [
            _node("Cast", [f"{module}/product"], f"{module}/floats", to=TensorProto.FLOAT),
            _node("Mul", [scales[0][0], scale], f"{module}/scale"),
            _node("Mul", [f"{module}/floats", f"{module}/scale"], f"{module}/scaled"),
        ]
    bias = _store(model, f"{module}.bias", np.concatenate([view.stored(one.bias) for one in projections]))
    nodes.append(_node("Add", [nodes[-1].output[0], bias], f"{module}/biased"))
    sizes = _store(model, f"{module}.sizes", np.array(widths))
    outputs = [one.nodes[-1 if one.scales is None else -2].output[0] for one in projections]
    nodes.append(helper.make_node("Split", [f"{module}/biased", sizes], outputs, name=f"{module}/split", axis=-1))
    _replace(model.graph, first, nodes, {node.output[0] for one in projections for node in one.nodes})


MERGES: tuple[Callable[[ModelProto], None], ...] = (
    add_text_type_to_positions,
    multiply_once,
    transpose_heads_once,  # looks for the Split that multiply_once has made
)


# --- reading and changing a graph --------------------------------------------------------------------------------


class _View:
    """Who writes and who reads each value of a graph as it is now."""

    def __init__(self, model: ModelProto) -> None:
        self.all = list(model.graph.node)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producer = {output: node for node in self.all for output in node.output}
        self.readers: dict[str, list[tuple[NodeProto, int]]] = {output: [] for output in self.producer}
        for node in self.all:
            for place, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, place))

    def nodes(self, operator: str) -> list[NodeProto]:
        return [node for node in self.all if node.op_type == operator]

    def reads(self, name: str) -> int:
        return len(self.readers[name])

    def only_reader(self, name: str, operator: str) -> NodeProto | None:
        """The one node that reads this value, if it is of this operator."""
        readers = self.readers.get(name, [])
        return readers[0][0] if len(readers) == 1 and readers[0][0].op_type == operator else None

    def is_constant(self, name: str) -> bool:
        """Whether this value depends on no input."""
        if name not in self.producer:
            return name in self.weights
        return all(self.is_constant(one) for one in self.producer[name].input)

    def stored(self, name: str) -> Any:
        """The stored array of this name, or None for what is computed."""
        return numpy_helper.to_array(self.weights[name]) if name in self.weights else None

    def stored_rank(self, name: str) -> int | None:
        return len(self.weights[name].dims) if name in self.weights else None

    def small(self, name: str) -> Any:
        """As `stored`, and None for a weight."""
        return self.stored(name) if name in self.weights and math.prod(self.weights[name].dims) <= SMALL else None

    def list_of(self, name: str) -> list | None:
        value = self.small(name)
        return None if value is None else value.tolist()


def drop_unused(graph: GraphProto) -> None:
    """Takes nodes out whose outputs nobody reads, and then weights, in place."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    _set_nodes(graph, kept[::-1])
    drop_unused_weights(graph)


def _set_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    nodes = [*nodes]
    del graph.node[:]
    graph.node.extend(nodes)


def _rename_inputs(graph: GraphProto, renamed: dict[str, str]) -> None:
    for node in graph.node:
        if any(name in renamed for name in node.input):
            node.input[:] = [renamed.get(name, name) for name in node.input]


def _store(model: ModelProto, name: str, array: np.ndarray) -> str:
    if all(tensor.name != name for tensor in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
    return name


def _node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs, [output], name=output, **attributes)


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def _known_shapes(model: ModelProto) -> dict[str, tuple[int | None, ...]]:
    """The sizes of every value that onnx can infer, None for those that depend on the input."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    return {
        value.name: tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


def _evaluate(model: ModelProto, nodes: Sequence[NodeProto], feeds: dict[str, np.ndarray]) -> Any:
    """What the last node gives, by ONNX's own reference implementation."""
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    output = onnx.ValueInfoProto(name=nodes[-1].output[0])
    graph = helper.make_graph(nodes, "part", inputs, [output])
    part = helper.make_model(graph, opset_imports=model.opset_import)
    (found,) = ReferenceEvaluator(part).run(None, feeds)
    return found


# --- parts of the rewrites ---------------------------------------------------------------------------------------


def _is_zero(view: _View, name: str) -> bool:
    while name in view.producer and view.producer[name].op_type in {"Expand", "Slice"}:
        name = view.producer[name].input[0]
    value = view.stored(name)
    return value is not None and not value.any()


def _is_plain_mask(model: ModelProto, view: _View, name: str) -> bool:
    """Whether this value is 0 for each token and MASKED for padding, tried on every mask of up to three tokens."""
    needed: set[str] = {name}
    numbers: dict[str, np.ndarray] = {}
    part = []
    for node in reversed(view.all):
        if node.output[0] in needed:
            needed.update(node.input)
            part.append(node)
            if "input_ids" in node.input and node.op_type != "Shape":
                return False
    for leaf in needed - set(view.producer) - {"input_ids", "attention_mask"}:
        value = view.small(leaf)
        if value is None:
            return False
        numbers[leaf] = value
    if not part or "attention_mask" not in needed:
        return False
    for length in (1, 2, 3):
        mask = (np.arange(2**length)[:, None] >> np.arange(length)) & 1
        found = _evaluate(model, part[::-1], numbers | {"attention_mask": mask, "input_ids": mask})
        expected = np.where(mask[:, None, None] == 1, 0, np.float32(MASKED))
        if found.ndim != 4 or not np.array_equal(np.broadcast_to(expected, found.shape), found):
            return False
    return True


def _scores(view: _View, softmax: NodeProto) -> tuple[NodeProto | None, NodeProto | None]:
    """The division behind a product of query and key, if there is one, and the product."""
    add = view.producer[softmax.input[0]]
    for name in add.input:
        node, after = view.producer.get(name), None
        if node is not None and node.op_type == "Div" and view.small(node.input[1]) is not None:
            node, after = view.producer.get(node.input[0]), node
        if node is not None and node.op_type == "MatMul" and node.input[1] not in view.weights:
            return after, node
    return None, None


def _scale_projection(model: ModelProto, view: _View, value: str, factor: float) -> bool:
    """Multiplies the weight and bias that `value` comes from, if nobody else reads what they give."""
    while view.producer[value].op_type in {"Reshape", "Transpose"} and view.reads(value) == 1:
        value = view.producer[value].input[0]
    add = view.producer[value]
    product = view.producer.get(add.input[1]) if add.op_type == "Add" else None
    if product is None or product.op_type != "MatMul" or view.reads(value) != 1 or view.reads(add.input[1]) != 1:
        return False
    if view.stored_rank(product.input[1]) != 2 or view.stored_rank(add.input[0]) != 1:
        return False
    # named by node: layers with equal weights share one stored copy, which is scaled once for each
    for node, place in ((product, 1), (add, 0)):
        scaled = view.stored(node.input[place]).astype(np.float64) * factor
        node.input[place] = _store(model, f"{node.name}_for_scores", scaled.astype(np.float32))
    return True


class _Rows:
    """Which inputs of which nodes need their first position only, and the axis that positions are on."""

    def __init__(self) -> None:
        self.axis: dict[str, int] = {}
        self._taken: set[tuple[str, int]] = set()
        self.nodes: set[str] = set()  # by their first output

    def is_taken(self, node: NodeProto, place: int) -> bool:
        return (node.output[0], place) in self._taken

    def take(self, node: NodeProto, inputs: dict[int, int]) -> None:
        if not inputs or any(self.axis.get(node.input[place], axis) != axis for place, axis in inputs.items()):
            return
        self.nodes.add(node.output[0])
        for place, axis in inputs.items():
            self._taken.add((node.output[0], place))
            self.axis[node.input[place]] = axis


def _inputs_of_row(
    view: _View, node: NodeProto, axis: int, shapes: dict[str, tuple[int | None, ...]]
) -> dict[int, int]:
    """Where one position of the node's output along `axis` comes from: input -> axis; empty if not known."""
    rank = len(shapes.get(node.output[0], ()))
    if not axis < rank - 1:
        return {}
    if node.op_type in {"LayerNormalization", "Softmax"}:
        return {0: axis} if _attribute(node, "axis", -1) == -1 else {}
    if node.op_type == "MatMul":
        product_of_activations = node.input[1] not in view.weights
        return {0: axis} if not product_of_activations or axis == rank - 2 else {}
    if node.op_type == "Transpose":
        return {0: int(_attribute(node, "perm", None)[axis])}
    if node.op_type == "Reshape":
        return {0: 1} if axis == 1 and (view.list_of(node.input[1]) or [])[:2] == [0, 0] else {}
    if node.op_type not in ROW_WISE:
        return {}
    inputs = {}
    for place, name in enumerate(node.input):
        if (view.stored_rank(name) or 0) > 1 or (name not in view.weights and len(shapes.get(name, ())) != rank):
            return {}
        if name not in view.weights and shapes[name][axis] != 1:  # 1: broadcasts over positions, as the mask does
            inputs[place] = axis
    return inputs


def _slice_rows(model: ModelProto, view: _View, rows: _Rows) -> None:
    """Puts a Slice where a value of all positions enters a node that needs the first one only."""
    nodes = []
    cut: set[str] = set()
    for node in view.all:
        for place, name in enumerate(node.input):
            if not rows.is_taken(node, place) or name in rows.nodes or node.op_type == "Gather":
                continue
            if name not in cut:
                axis = rows.axis[name]
                numbers = [_store(model, f"first_position_{n}", np.array([n])) for n in (0, 1, axis)]
                nodes.append(_node("Slice", [name, *numbers], f"{name}_first"))
                cut.add(name)
            node.input[place] = f"{name}_first"
        nodes.append(node)
    _set_nodes(model.graph, nodes)
