"""A quantization plan as modules that write standard ONNX operators, in the place of the float ones.

Written here rather than by onnxruntime's quantizer, because that one keeps a single scale for a whole embedding table
and chooses activation ranges itself, so the file would not be what the plan measured. Where both do the same thing
(dynamic, linear layers) they give the same bytes of weights; a test compares them.

The modules are for `torch.onnx.export` alone: PyTorch has no such operators and computes zeros.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.onnx.ops import symbolic, symbolic_multi_out

from pipeline.base.errors import ExportError
from pipeline.families import DeploymentGraph
from pipeline.quantization.calibration import Range
from pipeline.quantization.plan import Plan, activation_scale, quantize_weight


class DynamicLinear(nn.Module):
    """x -> DynamicQuantizeLinear -> MatMulInteger(W8) -> Cast -> Mul(x_scale * W_scale) -> Add(bias).

    Modules that read one input may share the product: each takes its columns of Concat(W8, W8 of the next, ...), and
    the exporter keeps one of equal nodes.
    """

    weight_int8: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    together: list["DynamicLinear"]

    def __init__(self, linear: nn.Linear, plan: Plan) -> None:
        super().__init__()
        _keep_weight(self, linear, plan)
        self.together = [self]

    def forward(self, values: Float[Tensor, "*shape inputs"]) -> Float[Tensor, "*shape outputs"]:
        whole, scale, zero = symbolic_multi_out(
            "DynamicQuantizeLinear",
            (values,),
            dtypes=(torch.uint8, torch.float32, torch.uint8),
            shapes=(values.shape, (), ()),
        )
        widths = [one.weight_int8.shape[1] for one in self.together]
        weight = _join([one.weight_int8 for one in self.together], widths)
        weight_scale = _join([one.weight_scale for one in self.together], widths)
        shape = (*values.shape[:-1], weight.shape[1])
        integers = symbolic("MatMulInteger", (whole, weight, zero), dtype=torch.int32, shape=shape)
        # This order of operators is the one that onnxruntime fuses into a single kernel.
        product = integers.to(torch.float32) * (scale * weight_scale)
        if self.bias is not None:
            product = product + _join([one.bias for one in self.together if one.bias is not None], widths)
        place = self.together.index(self)
        return product.split(widths, -1)[place] if len(widths) > 1 else product


def _join(parts: Sequence[Tensor], widths: Sequence[int]) -> Tensor:
    """One part as it is, several side by side; a single number is that of all columns."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(
        [part if part.dim() else part.expand(width) for part, width in zip(parts, widths, strict=True)], -1
    )


class StaticLinear(nn.Module):
    """x -> QuantizeLinear -> DequantizeLinear -> MatMul(DequantizeLinear(W8)) -> Add(bias)."""

    weight_int8: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    input_scale: Tensor
    input_zero: Tensor

    def __init__(self, linear: nn.Linear, plan: Plan, fixed: Range) -> None:
        super().__init__()
        _keep_weight(self, linear, plan)
        step, zero = activation_scale(*(torch.tensor(bound, dtype=torch.float32) for bound in fixed))
        self.register_buffer("input_scale", step)
        self.register_buffer("input_zero", zero.to(torch.uint8))
        self.axis: dict[str, Any] = {"axis": 1} if plan.per_channel else {}

    def forward(self, values: Float[Tensor, "*shape inputs"]) -> Float[Tensor, "*shape outputs"]:
        range_ = (self.input_scale, self.input_zero)
        whole = symbolic("QuantizeLinear", (values, *range_), dtype=torch.uint8, shape=values.shape)
        rounded = symbolic("DequantizeLinear", (whole, *range_), dtype=torch.float32, shape=values.shape)
        # No zero point: it is 0 by default, and written out it costs 5 % of the time.
        weight = symbolic(
            "DequantizeLinear",
            (self.weight_int8, self.weight_scale),
            self.axis,
            dtype=torch.float32,
            shape=self.weight_int8.shape,
        )
        product = rounded @ weight
        return product if self.bias is None else product + self.bias


class Table(nn.Module):
    """Gather(W8, ids) -> Cast -> Mul(Gather(W_scale, ids))."""

    weight_int8: Tensor
    weight_scale: Tensor

    def __init__(self, table: nn.Embedding, plan: Plan, rows: int | None = None) -> None:
        super().__init__()
        quantized, scale = quantize_weight(table.weight.detach(), plan.per_channel)
        self.register_buffer("weight_int8", quantized[:rows].clone())
        # one column, so that a row's scale stands beside its row, whatever axes the ids have
        self.register_buffer("weight_scale", scale[:rows, None].clone() if plan.per_channel else scale[0])

    def forward(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        scale = self.weight_scale
        rows = nn.functional.embedding(ids, self.weight_int8).to(torch.float32)
        return rows * (nn.functional.embedding(ids, scale) if scale.dim() else scale)

    def all_rows(self) -> Float[Tensor, "rows width"]:
        return self.weight_int8.to(torch.float32) * self.weight_scale


class SumOfTables(nn.Module):
    """Add(Mul(Cast(W8), W_scale), row): constants, which a runtime computes when it loads the file."""

    added: Tensor | None

    def __init__(self, table: Table, added: Float[Tensor, " width"] | None) -> None:
        super().__init__()
        self.tables = [table]  # in a list, so that its weights keep the one name that they have in the model
        self.register_buffer("added", added)

    def forward(self, _: Tensor) -> Float[Tensor, "rows width"]:
        rows = self.tables[0].all_rows()
        return rows if self.added is None else rows + self.added


def _keep_weight(module: nn.Module, linear: nn.Linear, plan: Plan) -> None:
    """The 8-bit weight, (inputs, outputs), and its scale: (outputs,), or () for one scale."""
    quantized, scale = quantize_weight(linear.weight.detach(), plan.per_channel, plan.scheme.pair_safe)
    module.register_buffer("weight_int8", quantized.T.contiguous())
    module.register_buffer("weight_scale", scale if plan.per_channel else scale[0])
    module.register_buffer("bias", None if linear.bias is None else linear.bias.detach())


def quantize_modules(graph: DeploymentGraph, plan: Plan, modules: Sequence[str]) -> list[str]:
    """Makes the graph 8-bit as the plan says, in place.

    Args:
        graph: its modules are the model's.
        plan: what to quantize and how.
        modules: the quantizable modules of the model.

    Returns:
        The modules whose 8-bit weights stand in the graph now: each has buffers `weight_int8` and `weight_scale`.

    Raises:
        ExportError: a module of the plan is not in the model, or a static range is missing.
    """
    known = dict(graph.named_modules())
    plan.check_modules(graph)
    # The biases of MPNet's heads are a buffer of the graph, and so few that nothing is lost.
    biases = graph.family.tables_of_heads(graph)
    chosen = [name for name in modules if name not in plan.exclude and known[name] not in biases]
    summed = {name for sources in graph.sources.values() for name in map(_module_of_weight, sources)}
    for buffer, sources in graph.sources.items():
        _quantize_sum(graph, plan, chosen, buffer, [_module_of_weight(name) for name in sources])
    for name in chosen:
        if name not in summed:
            graph.set_submodule(name, _quantized(known[name], plan, name))
    _share_products(graph)
    return [name for name in chosen if hasattr(graph.get_submodule(name), "weight_int8")]


def _module_of_weight(name: str) -> str:
    return name.removesuffix(".weight")


def _quantized(module: nn.Module, plan: Plan, name: str) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return Table(module, plan)
    assert isinstance(module, nn.Linear)
    if plan.scheme.activations != "fixed":
        return DynamicLinear(module, plan)
    if name not in plan.ranges:
        raise ExportError(f"the plan has no fixed range for module '{name}'; make the plan again from this model")
    return StaticLinear(module, plan, plan.ranges[name])


def _quantize_sum(graph: DeploymentGraph, plan: Plan, chosen: Sequence[str], buffer: str, tables: list[str]) -> None:
    """A table of positions with the row of the only text type added to each: the first is 8-bit, if the plan says so.

    The sum itself is not quantized: the plan was measured with the table alone in 8 bits.
    """
    if not tables or tables[0] not in chosen:
        return
    first, *others = (cast(nn.Embedding, graph.get_submodule(name)) for name in tables)
    rows = [
        (Table(other, plan).all_rows() if name in chosen else other.weight.detach())[0]
        for name, other in zip(tables[1:], others, strict=True)
    ]
    table = Table(first, plan, rows=len(getattr(graph, buffer)))
    graph.set_submodule(tables[0], table)
    parametrize.register_parametrization(
        graph, buffer, SumOfTables(table, sum(rows[1:], rows[0]) if rows else None), unsafe=True
    )


def _share_products(graph: DeploymentGraph) -> None:
    """Query, key and value are one product, which saves 2 to 3 % of a call at 8 tokens; numbers and weights stay.

    In the last layer the query reads another input, the position of the answer. Fixed ranges are left alone, because
    NPU compilers look for QuantizeLinear and DequantizeLinear around each product.
    """
    layers = graph.family.layers(graph)
    names = [graph.family.module_of(part) for part in ("query", "key", "value")]
    for layer in dict.fromkeys(layers):
        joined = names[1:] if layer is layers[-1] else names
        modules = dict.fromkeys(layer.get_submodule(name) for name in joined)
        together = [one for one in modules if isinstance(one, DynamicLinear) and one.bias is not None]
        for one in together:
            one.together = together
