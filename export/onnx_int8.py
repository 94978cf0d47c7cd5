"""Writing a quantization plan into an ONNX graph, with standard operators only.

Written here rather than by onnxruntime's quantizer, because that one keeps a single scale for a whole embedding table
and chooses activation ranges itself, so the file would not be what the plan measured. Where both do the same thing
(dynamic, linear layers) they give the same bytes of weights; a test compares them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from jaxtyping import Float
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from pipeline.base.errors import ExportError
from pipeline.base.plugins import nearest
from pipeline.quantization.calibration import Range
from pipeline.quantization.plan import Plan, activation_scale, quantize_weight

# Positions that are counted from 0 are a Slice of their table, others a Gather.
TABLE_READERS = ("Gather", "Slice")


def module_of(node: NodeProto) -> str:
    """The PyTorch module that a node was exported from: '/bert/pooler/dense/Gemm' gives 'bert.pooler.dense'."""
    return node.name.strip("/").rpartition("/")[0].replace("/", ".")


def weight_nodes(model: ModelProto) -> dict[str, NodeProto]:
    """Module name -> the node that reads its weight from the file: MatMul, Gemm, or Gather or Slice from a table."""
    held = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    place = {"MatMul": 1, "Gemm": 1, **dict.fromkeys(TABLE_READERS, 0)}
    return {
        module_of(node): node
        for node in model.graph.node
        if node.op_type in place and node.input[place[node.op_type]] in held
    }


def quantize_graph(model: ModelProto, plan: Plan, modules: Sequence[str]) -> None:
    """Makes the graph 8-bit as the plan says, in place.

    Linear, dynamic:   x -> MatMul(W) -> y
        becomes        x -> DynamicQuantizeLinear -> MatMulInteger(W8) -> Cast -> Mul(x_scale * W_scale) -> y
    Linear, static:    x -> QuantizeLinear -> DequantizeLinear -> MatMul(DequantizeLinear(W8)) -> y
    Embedding table:   Gather(W, ids) -> y
        becomes        Gather(W8, ids) -> Cast -> Mul(Gather(W_scale, ids)) -> y
    Position table:    Slice(W, end=length) -> y
        becomes        Slice(Mul(Cast(W8), W_scale), end=length) -> y, all but the Slice computed once, at load
    A Gemm becomes a MatMul and an Add first. One input that several modules share is quantized once.

    Args:
        model: exported from PyTorch, each module's weight read by one node.
        plan: what to quantize and how.
        modules: the quantizable modules of the PyTorch model.

    Raises:
        ExportError: a module of the plan is not in the model, a module has no node, or a static range is missing.
    """
    nodes = weight_nodes(model)
    for name in (*plan.exclude, *plan.ranges):
        if name not in nodes:
            raise ExportError(
                f"the quantization plan names the module '{name}', which is not in the graph{nearest(name, nodes)}"
            )
    chosen = [name for name in modules if name not in plan.exclude]
    for name in chosen:
        if name not in nodes:
            raise ExportError(
                f"module '{name}' has no node with its weight in the graph{nearest(name, nodes)}; add it to the plan's "
                "exclude, or report it with the model's configuration"
            )
        if plan.scheme.activations == "fixed" and nodes[name].op_type not in TABLE_READERS and name not in plan.ranges:
            raise ExportError(f"the plan has no fixed range for module '{name}'; make the plan again from this model")
    _Rewriter(model, plan, {nodes[name].name: name for name in chosen}).run()


class _Rewriter:
    """Copies the nodes one by one, replacing those to quantize, so that their order stays valid."""

    def __init__(self, model: ModelProto, plan: Plan, module_of_node: dict[str, str]) -> None:
        self.graph = model.graph
        self.plan = plan
        self.module_of_node = module_of_node
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes: list[NodeProto] = []
        self.added: list[TensorProto] = []
        # quantized once: input (and range) -> names of what stands for it
        self.quantized_inputs: dict[tuple[str, Range | None], tuple[str, ...]] = {}

    def run(self) -> None:
        for node in self.graph.node:
            module = self.module_of_node.get(node.name)
            if module is None:
                self.nodes.append(node)
            elif node.op_type in TABLE_READERS:
                self._table(node, module)
            else:
                self._linear(node, module)
        self.graph.initializer.extend(self.added)
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        drop_unused_weights(self.graph)

    def _emit(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def _constant(self, name: str, array: np.ndarray) -> str:
        self.added.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def _weight(self, module: str, weight: Float[np.ndarray, "rows columns"]) -> tuple[str, str]:
        """Names of the 8-bit weight, (columns, rows), and of its scale: (rows,), or () for one scale."""
        quantized, scale = quantize_weight(
            torch.from_numpy(weight.copy()), self.plan.per_channel, self.plan.scheme.pair_safe
        )
        return (
            self._constant(f"{module}.weight_int8", quantized.numpy().T),
            self._constant(f"{module}.weight_scale", (scale if self.plan.per_channel else scale[0]).numpy()),
        )

    def _table(self, node: NodeProto, module: str) -> None:
        table, *where = node.input
        quantized, scale = quantize_weight(
            torch.from_numpy(numpy_helper.to_array(self.weights[table]).copy()), self.plan.per_channel
        )
        weight = self._constant(f"{module}.weight_int8", quantized.numpy())
        # one column, so that a row's scale stands beside its row, whatever axes the ids have
        scales = self._constant(
            f"{module}.weight_scale", (scale[:, None] if self.plan.per_channel else scale[0]).numpy()
        )
        if node.op_type == "Slice":
            floats = self._emit("Cast", [weight], f"{module}/floats", to=TensorProto.FLOAT)
            rows = self._emit("Mul", [floats, scales], f"{module}/rows")
            self._copy(node, [rows, *where], node.output[0])
            return
        if self.plan.per_channel:
            scales = self._copy(node, [scales, *where], f"{module}/row_scale")
        rows = self._copy(node, [weight, *where], f"{module}/rows_int8")
        rows = self._emit("Cast", [rows], f"{module}/rows", to=TensorProto.FLOAT)
        self._emit("Mul", [rows, scales], node.output[0])

    def _copy(self, node: NodeProto, inputs: Sequence[str], output: str) -> str:
        """The same operator on other inputs."""
        copied = helper.make_node(node.op_type, inputs, [output], name=output)
        copied.attribute.extend(node.attribute)
        self.nodes.append(copied)
        return output

    def _linear(self, node: NodeProto, module: str) -> None:
        stored = numpy_helper.to_array(self.weights[node.input[1]])
        is_gemm = node.op_type == "Gemm"
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if is_gemm and (
            attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1 or attributes.get("transA", 0)
        ):
            raise ExportError(
                f"node '{node.name}' is a Gemm with factors or a transposed input; add '{module}' to exclude"
            )
        weight, scale = self._weight(module, stored if attributes.get("transB", 0) else stored.T)
        bias = node.input[2] if is_gemm and len(node.input) > 2 else None
        product = f"{module}/product" if bias else node.output[0]
        multiply = self._static if self.plan.scheme.activations == "fixed" else self._dynamic
        multiply(node.input[0], weight, scale, product, module)
        if bias:
            self._emit("Add", [product, bias], node.output[0])

    def _dynamic(self, values: str, weight: str, scale: str, product: str, module: str) -> None:
        if (values, None) not in self.quantized_inputs:
            outputs = (f"{values}_int8", f"{values}_scale", f"{values}_zero")
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [values], outputs, name=outputs[0]))
            self.quantized_inputs[values, None] = outputs
        quantized, values_scale, zero = self.quantized_inputs[values, None]
        # This order of operators is the one that onnxruntime fuses into a single kernel.
        integers = self._emit("MatMulInteger", [quantized, weight, zero], f"{module}/integers")
        floats = self._emit("Cast", [integers], f"{module}/floats", to=TensorProto.FLOAT)
        both = self._emit("Mul", [values_scale, scale], f"{module}/scale")
        self._emit("Mul", [floats, both], product)

    def _static(self, values: str, weight: str, scale: str, product: str, module: str) -> None:
        fixed = self.plan.ranges[module]
        if (values, fixed) not in self.quantized_inputs:
            low, high = (torch.tensor(bound, dtype=torch.float32) for bound in fixed)
            step, zero = activation_scale(low, high)
            # named by module: one tensor may be quantized over two ranges
            names = [
                self._constant(f"{module}.input_scale", step.numpy()),
                self._constant(f"{module}.input_zero", zero.numpy().astype(np.uint8)),
            ]
            quantized = self._emit("QuantizeLinear", [values, *names], f"{module}/input_int8")
            self.quantized_inputs[values, fixed] = (
                self._emit("DequantizeLinear", [quantized, *names], f"{module}/input"),
            )
        (rounded,) = self.quantized_inputs[values, fixed]
        axis = {"axis": 1} if self.plan.per_channel else {}
        # No zero point: it is 0 by default, and written out it costs 5 % of the time.
        restored = self._emit("DequantizeLinear", [weight, scale], f"{module}/weight", **axis)
        self._emit("MatMul", [rounded, restored], product)


def drop_unused_weights(graph: onnx.GraphProto) -> None:
    """Takes weights out that no node reads, in place."""
    used = {value for node in graph.node for value in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
