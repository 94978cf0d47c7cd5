"""ONNX, for onnxruntime on phones, in browsers and on servers: one file, inputs by name, any batch and length.

Exported from the family's deployment graph by torch's exporter, which writes the same bytes in every process.
onnxscript's optimizer then folds what is constant; what it leaves to do is short and stands below. The text type ids of
BERT are no input: a classifier of one text has only zeros there, and a phone should not have to pass them.
"""

import logging
import math
import re
import warnings
from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir
import torch
from jaxtyping import Float
from onnx import ModelProto
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
from onnxscript import opset18
from onnxscript.optimizer import optimize_ir
from pydantic import Field
from torch import Tensor
from torch.export import Dim, ExportedProgram

from export.onnx_int8 import quantize_modules
from export.source import load_model, output_facts
from pipeline.base.errors import ExportError, ModelError
from pipeline.base.machine import version_of
from pipeline.base.records import Artefact, TensorFact
from pipeline.families import DeploymentGraph, check_answers, deployment_graph, shape_of
from pipeline.formats.onnx_files import check_onnx_file
from pipeline.quantization.plan import PairFacts, Plan, Scheme, quantizable_modules
from pipeline.settings.base import Settings

PRECISIONS = ("fp32", "int8")
TOLERANCES = {
    "fp32": 1e-4,  # rounding in another order of additions: 1e-6 seen, 1e-4 leaves room for other CPUs
    "int8": 0.25,  # 3 to 8 % seen on a trained student, 11 % with one scale a tensor, 20 % with entropy ranges
}
# LayerNormalization is one operator from 17 on and Gelu from 20 on; every onnxruntime since 1.17 (2024) runs them.
OPSET, IR_VERSION = 20, 9
FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes the module that a node comes from


def _cast(values: Any, dtype: int) -> Any:
    return opset18.Cast(values, to=dtype)


def _subtract_from(values: Any, other: Any) -> Any:
    return opset18.Sub(opset18.CastLike(other, values), values)


# Operators of a trace that the exporter has no translation of until it has decomposed them.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.to.dtype: _cast,
    torch.ops.aten.rsub.Scalar: _subtract_from,
}
# Those that give the same nodes as they are traced as when they are decomposed; none writes into its input.
AS_TRACED = re.compile(
    r"<built-in function getitem>|onnx_symbolic\._symbolic(_multi_out)?\.default|aten\.("
    r"(_assert_tensor_metadata|arange|cat|chunk|clamp|cumsum|embedding|gelu|layer_norm|linear|matmul|neg|permute|relu"
    r"|split_with_sizes|tanh|unsqueeze)\.default|(add|mul|slice|sub)\.Tensor|(ne|rsub)\.Scalar|pow\.Tensor_Scalar"
    r"|(select|softmax|sym_size|transpose|unflatten)\.int|flatten\.using_ints|to\.dtype)"
)


class Params(Settings):
    """`targets.<name>.options` of the format onnx."""

    activations: Literal["dynamic", "static"] = Field(
        default="dynamic",
        description="Of int8: a range of activations taken from each call's input as it comes, or fixed ones, "
        "calibrated on training rows.",
    )
    inputs: Literal["int64", "int32"] = Field(
        default="int64", description="Type of both inputs; int32 where a phone's or browser's API has no int64."
    )
    settings: dict[str, str] = Field(
        default={},
        description='How the runtime opens it, such as {spinning: "1"}; the rest is as measured fastest.',
    )


def scheme(precision: str, params: Params) -> Scheme | None:
    """What the format does with activations and weights in this precision; None where nothing is 8-bit.

    onnxruntime's kernels for x86 without VNNI add pairs of products in 16 bits, so pairs of weights are kept safe.
    """
    if precision != "int8":
        return None
    return Scheme(activations="example" if params.activations == "dynamic" else "fixed", pair_safe=True)


def convert(source: Path, out: Path, precision: str, params: Params, max_length: int, plan: Plan | None) -> Artefact:
    """Writes `model.onnx` into the existing empty folder `out`. Same source, same bytes.

    Args:
        source: a model folder, as `pipeline.models.checkpoints.load_classifier` reads it.
        out: where to write.
        precision: one of PRECISIONS.
        params: the exporter's options.
        max_length: longest input in tokens that will be used.
        plan: the quantization plan; needed for int8, None for fp32.

    Raises:
        ExportError: the precision and the plan do not belong together, the plan is of another model, max_length is
            beyond the model's positions, or what was written is not valid.
    """
    if precision not in PRECISIONS:
        raise ExportError(f"onnx cannot be written as '{precision}', expected one of {', '.join(PRECISIONS)}")
    if (precision == "int8") != (plan is not None):
        raise ExportError(f"precision {precision} {'needs a' if precision == 'int8' else 'takes no'} quantization plan")
    model = load_model(source, max_length)
    graph = deployment_graph(model, longest=max_length)
    check_answers(model, graph, max_length)
    eight_bit = quantize_modules(graph, plan, quantizable_modules(model, plan.embeddings)) if plan is not None else []
    _scale_queries(graph)
    exported = _export(graph, params.inputs, max_length)
    _check_modules(exported, eight_bit)
    _optimize(exported)
    inputs = tuple(TensorFact(name=name, dtype=params.inputs, shape=("batch", "length")) for name in INPUTS)
    outputs = output_facts(graph, "batch")
    written = _to_proto(exported, (*inputs, *outputs))
    _write(written, out / FILE)
    return Artefact(
        format="onnx",
        precision=precision,
        file=FILE,
        inputs=inputs,
        outputs=outputs,
        max_length=max_length,
        settings=params.settings,
        tools={name: version_of(name) for name in ("torch", "transformers", "onnxscript", "onnx-ir", "onnx")},
        notes=(f"graph: {len(written.graph.node)} nodes", *_quantization_notes(plan)),
    )


def _quantization_notes(plan: Plan | None) -> tuple[str, ...]:
    if plan is None:
        return ()
    notes = []
    if plan.pair_facts is not None:
        notes.append(pair_note(plan.pair_facts))
    else:
        notes.append("x86 without VNNI adds pairs of products in 16 bits, which can saturate: answers may differ there")
    if plan.scheme.activations != "fixed":
        notes.append(
            "activation ranges are taken over the whole input, padding included, so an answer depends on what is in "
            "the batch: score and use it one unpadded text at a time"
        )
    else:
        notes.append(
            "static ranges are written as QuantizeLinear and DequantizeLinear pairs, which NPUs read; on the CPU "
            "onnxruntime runs dynamic ones faster (0.64 against 0.89 ms for 3 layers of 384 at 16 tokens)"
        )
    if plan.exclude:
        notes.append(f"kept in fp32: {', '.join(plan.exclude)}")
    return (*notes, *plan.warnings)


def pair_note(facts: PairFacts) -> str:
    """What keeps answers alike with and without VNNI, and what it took."""
    return (
        "no pair of neighbouring 8-bit weights can saturate a sum of 16 bits, so x86 without VNNI has the same sums as "
        f"other processors; {facts.unsafe:,} of {facts.pairs:,} pairs could with plain scales, so {facts.grown:,} of "
        f"{facts.channels:,} channels have a larger one, by at most {facts.largest_growth:.2f} times"
    )


# --- the graph ---------------------------------------------------------------------------------------------------


def _scale_queries(graph: DeploymentGraph) -> None:
    """query -> Mul(1 / sqrt(size)) -> MatMul(key)  becomes  query' -> MatMul(key), in place.

    The factor goes into the weight and bias of the query's projection, of an 8-bit weight into its scale, so that the
    plan's bytes stay. onnxruntime would make a slower product of the multiplication, by 2 % of a call at 8 tokens. Left
    alone where one module projects query and key.
    """
    family, shape = graph.family, shape_of(graph.config)
    if family.module_of("query") == family.module_of("key"):
        return
    factor = math.sqrt(shape.heads / shape.hidden)
    with torch.no_grad():
        for layer in dict.fromkeys(family.layers(graph)):  # one that is called several times is scaled once
            query: Any = layer.get_submodule(family.module_of("query"))
            for scaled in (getattr(query, "weight_scale", None), getattr(query, "weight", None), query.bias):
                if scaled is not None:
                    scaled.mul_(factor)
    graph.attend = _attend_scaled


def _attend_scaled(
    query: Float[Tensor, "batch heads queries size"],
    key: Float[Tensor, "batch heads keys size"],
    value: Float[Tensor, "batch heads keys size"],
    mask: Float[Tensor, "#batch #heads #queries keys"],
) -> Float[Tensor, "batch heads queries size"]:
    return (query @ key.transpose(-1, -2) + mask).softmax(-1) @ value


def _export(graph: DeploymentGraph, dtype: str, max_length: int) -> ir.Model:
    # It warns at every export that it knows no operators of torchvision.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    example = {name: torch.ones(2, max_length, dtype=getattr(torch, dtype)) for name in INPUTS}
    axes = {0: Dim("batch", min=1), 1: Dim("length", min=1, max=max_length)}
    # Without gradients no trace records how to compute them, 8 % of an export's time; the bytes are the same.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        program = torch.export.export(graph, (), example, dynamic_shapes=dict.fromkeys(INPUTS, axes), strict=False)
        as_traced = _is_translated(program)
        if as_traced:
            # To decompose it the exporter would trace it twice more, half of an export's time.
            program.run_decompositions = lambda _table=None: program
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            output_names=list(graph.output_names),
            custom_translation_table=TRANSLATIONS if as_traced else None,
        )
    assert exported is not None
    return exported.model


def _is_translated(program: ExportedProgram) -> bool:
    """Whether each operator is one of AS_TRACED; those of TRANSLATIONS without options, such as `copy` and `alpha`."""
    return all(
        AS_TRACED.fullmatch(str(node.target))
        and (node.target not in TRANSLATIONS or (len(node.args) == 2 and not node.kwargs))
        for node in program.graph.nodes
        if node.op == "call_function"
    )


def _check_modules(model: ir.Model, eight_bit: list[str]) -> None:
    """Raises ExportError where the graph does not read the 8-bit weight of a module that the plan makes 8-bit."""
    read = {value.name for value in model.graph.initializers.values() if value.uses()}
    for name in eight_bit:
        if f"{name}.weight_int8" not in read:
            raise ExportError(
                f"module '{name}' has no node with its weight in the graph; add it to the plan's exclude, or report it "
                "with the model's configuration"
            )


def _optimize(model: ir.Model) -> None:
    """onnxscript's passes, with names kept, and the reshapes that those leave, in place."""
    _name_weights(model)
    CommonSubexpressionEliminationPass()(model)  # before weights are joined, of which it would keep large copies apart
    optimize_ir(model, should_fold=_should_fold)
    _fix_reshapes(model)
    RemoveUnusedNodesPass()(model)
    _name_nodes(model)  # last: a Gemm is made of two nodes


def _name_weights(model: ir.Model) -> None:
    """What is made of weights alone is named by them."""
    for node in model.graph:
        weights = [
            str(value.name).rpartition(".") for value in node.inputs if value is not None and value.is_initializer()
        ]
        if node.op_type == "Transpose" and weights:
            node.outputs[0].name = "".join(weights[0]) + ".transposed"
        elif node.op_type == "Concat" and len(weights) == len(node.inputs):
            node.outputs[0].name = "+".join(module for module, _, _ in weights) + f".{weights[0][-1]}"


def _name_nodes(model: ir.Model) -> None:
    """Each node is named by its module: '/bert/pooler/dense/MatMul'."""
    seen: Counter[str] = Counter()
    for node in model.graph:
        # '@1' behind the name of a module is its second call
        scope = re.sub(r"@\d+", "", literal_eval(node.metadata_props.get(SCOPES, "['', '']"))[-2])
        name = "/".join(["", *filter(None, scope.split(".")), node.op_type])
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1


def _should_fold(node: ir.Node) -> bool | None:
    """Weights are joined whatever their size; an 8-bit table stays one, though its sum with others is constant."""
    if node.op_type in {"Transpose", "Concat"}:
        return True
    return False if node.op_type == "Cast" else None


def _fix_reshapes(model: ir.Model) -> None:
    """Reshape(x, Concat(batch, length, heads, size))  becomes  Reshape(x, [0, 0, heads, size]), 0 meaning "as in x"."""
    for node in model.graph:
        if node.op_type != "Reshape":
            continue
        (x, *_), (y,) = node.inputs, node.outputs
        assert x is not None and x.shape is not None and y.shape is not None
        before, after = list(x.shape), list(y.shape)
        sizes = [size if isinstance(size, int) else 0 for size in after]
        if any(size == 0 and before[i : i + 1] != after[i : i + 1] for i, size in enumerate(sizes)):
            continue
        name = f"shape_{'_'.join(map(str, sizes))}"
        if name not in model.graph.initializers:
            tensor = ir.tensor(sizes, dtype=ir.DataType.INT64, name=name)
            model.graph.register_initializer(ir.Value(name=name, const_value=tensor))
        node.replace_input_with(1, model.graph.initializers[name])
        node.attributes.pop("allowzero", None)


def _to_proto(model: ir.Model, facts: Sequence[TensorFact]) -> ModelProto:
    """Without names of this machine, and with names for the free axes."""
    model.ir_version = IR_VERSION
    proto = ir.to_proto(model)
    graph = proto.graph
    del graph.value_info[:]
    for item in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    axes = {fact.name: fact.shape for fact in facts}
    for value in (*graph.input, *graph.output):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for axis in axes[value.name]:
            dimension = shape.dim.add()
            setattr(dimension, "dim_param" if isinstance(axis, str) else "dim_value", axis)
    return proto


def _write(model: ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(check_onnx_file(path), full_check=True)
    except (ModelError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the exported file is not valid: {error}; report it with the model's configuration"
        ) from error


def module_of(node_name: str) -> str:
    """The PyTorch module that a node was exported from: '/bert/pooler/dense/MatMul' gives 'bert.pooler.dense'."""
    return node_name.strip("/").rpartition("/")[0].replace("/", ".")
