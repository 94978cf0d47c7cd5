"""ONNX, for onnxruntime on phones, in browsers and on servers: one file, inputs by name, any batch and length.

Exported by Optimum through torch's TorchScript exporter, which writes the same bytes in every process. The text type
ids of BERT are no input: a classifier of one text has only zeros there, and a phone should not have to pass them.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import onnx
from onnx import ModelProto, TensorProto, helper
from optimum.exporters.onnx import export
from optimum.exporters.tasks import TasksManager
from pydantic import Field
from transformers import PreTrainedModel

from export.lean_graph import make_lean, merge_parts
from export.onnx_int8 import drop_unused_weights, quantize_graph
from pipeline.base.errors import ExportError, ModelError
from pipeline.base.machine import version_of
from pipeline.base.records import Artefact, TensorFact
from pipeline.formats.onnx_files import check_onnx_file
from pipeline.models.checkpoints import load_classifier, positions_of
from pipeline.quantization.plan import PairFacts, Plan, Scheme, quantizable_modules
from pipeline.settings.params import Settings

PRECISIONS = ("fp32", "int8")
TOLERANCES = {
    "fp32": 1e-4,  # rounding in another order of additions: 1e-6 seen, 1e-4 leaves room for other CPUs
    "int8": 0.25,  # 3 to 8 % seen on a trained student, 11 % with one scale a tensor, 20 % with entropy ranges
}
# LayerNormalization is one operator from 17 on; every onnxruntime since 1.12 (2022) runs it.
OPSET = 17
FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
EITHER_INTEGER = {"Gather", "Shape", "Unsqueeze", "Cast"}  # operators whose answer is the same for int32 and int64


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
    model = load_classifier(source)
    if max_length > positions_of(model.config):
        raise ExportError(
            f"max_length is {max_length}, but the model has positions for {positions_of(model.config)} tokens; lower it"
        )
    modules = quantizable_modules(model, plan.embeddings) if plan else []
    classes = model.config.num_labels
    graph = _export(model, out / FILE)
    _clean(graph)
    counts = make_lean(graph, max_length)
    if plan is not None:
        quantize_graph(graph, plan, modules)
    counts |= merge_parts(graph)
    if params.inputs == "int32":
        _cast_inputs(graph)
    _name_shapes(graph, classes)
    _write(graph, out / FILE)
    shape = ("batch", "length")
    return Artefact(
        format="onnx",
        precision=precision,
        file=FILE,
        inputs=tuple(TensorFact(name=name, dtype=params.inputs, shape=shape) for name in INPUTS),
        outputs=(TensorFact(name="logits", dtype="float32", shape=("batch", classes)),),
        max_length=max_length,
        settings=params.settings,
        tools={name: version_of(name) for name in ("torch", "transformers", "optimum", "optimum-onnx", "onnx")},
        notes=(f"graph: {counts['exported']} nodes became {len(graph.graph.node)}", *_quantization_notes(plan)),
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


# --- from PyTorch ------------------------------------------------------------------------------------------------


def _export(model: PreTrainedModel, path: Path) -> ModelProto:
    constructor = TasksManager.get_exporter_config_constructor(
        "onnx", model, task="text-classification", library_name="transformers"
    )
    known = constructor(model.config)
    inputs = {name: {0: "batch", 1: "length"} for name in INPUTS}
    outputs = {"logits": {0: "batch"}}
    # A property of the class is the only place that Optimum reads names and axes from.
    config_class = type(
        "ClassifierConfig",
        (type(known),),
        {"inputs": property(lambda _: inputs), "outputs": property(lambda _: outputs)},
    )
    with _expected_warnings():
        names = export(model, config_class(model.config, task="text-classification"), path, opset=OPSET)
    if names != (list(INPUTS), ["logits"]) and names != [list(INPUTS), ["logits"]]:
        raise ExportError(f"exported with the inputs and outputs {names}, expected {INPUTS} and logits")
    return onnx.load_model_from_string(path.read_bytes())


@contextmanager
def _expected_warnings() -> Iterator[None]:
    """Silences by message what every export says: each was looked at, and parity is measured afterwards."""
    import torch

    with warnings.catch_warnings():
        for start in ("You are using the legacy TorchScript-based ONNX export", "The feature will be removed"):
            warnings.filterwarnings("ignore", message=start, category=DeprecationWarning)
        # shapes and padding ids that are constants of the model
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


# --- the graph ---------------------------------------------------------------------------------------------------


def _clean(model: ModelProto) -> None:
    """Takes out names of this machine and the detours that the exporter leaves, in place.

    Weight -> Identity -> node (two modules whose weights are equal) becomes Weight -> node.
    """
    graph = model.graph
    held = {tensor.name for tensor in graph.initializer}
    same: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Identity" and same.get(node.input[0], node.input[0]) in held:
            same[node.output[0]] = same.get(node.input[0], node.input[0])
    kept = [node for node in graph.node if node.output[0] not in same]
    for node in kept:
        node.input[:] = [same.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)
    drop_unused_weights(graph)
    model.doc_string = graph.doc_string = ""
    del model.metadata_props[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        item.doc_string = ""
        del item.metadata_props[:]


def _cast_inputs(model: ModelProto) -> None:
    """input (int64) -> node  becomes  input (int32) -> Cast to int64 -> node, in place.

    What takes either type reads the input itself: Gather, Shape, and the Unsqueeze and Cast of the mask.
    """
    casts = []
    for value in model.graph.input:
        value.type.tensor_type.elem_type = TensorProto.INT32
        wide = f"{value.name}_int64"
        narrow = [node for node in model.graph.node if value.name in node.input and node.op_type not in EITHER_INTEGER]
        for node in narrow:
            node.input[:] = [wide if name == value.name else name for name in node.input]
        if narrow:
            casts.append(helper.make_node("Cast", [value.name], [wide], name=wide, to=TensorProto.INT64))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _name_shapes(model: ModelProto, classes: int) -> None:
    del model.graph.value_info[:]  # of the graph before it was rewritten
    shape = model.graph.output[0].type.tensor_type.shape
    del shape.dim[:]
    shape.dim.add().dim_param = "batch"
    shape.dim.add().dim_value = classes


def _write(model: ModelProto, path: Path) -> None:
    path.write_bytes(model.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(check_onnx_file(path), full_check=True)
    except (ModelError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the exported file is not valid: {error}; report it with the model's configuration"
        ) from error
