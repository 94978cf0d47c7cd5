"""OpenVINO IR, for Intel processors: a folder `model.openvino` with the graph (`model.xml`) and weights (`model.bin`).

Read from our own ONNX export, so that both formats have the same graph, inputs and names. int8 is NNCF's post-training
quantization with fixed ranges, held to the plan: only the modules that the plan makes 8-bit are, because only those
were measured. Left alone, NNCF also rounds products of two activations, which on a 2-layer student made it no faster.
"""

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field
from transformers import PreTrainedModel

from export import to_onnx
from export.to_onnx import module_of
from pipeline.base.errors import ExportError
from pipeline.base.extras import why_missing
from pipeline.base.machine import version_of
from pipeline.base.plugins import nearest
from pipeline.base.records import Artefact
from pipeline.formats.openvino_products import Product, eight_bit_products
from pipeline.models.checkpoints import load_classifier
from pipeline.quantization.pair_sums import least_scale, unsafe_pairs
from pipeline.quantization.plan import PairFacts, Plan, Scheme, quantizable_modules
from pipeline.settings.base import Settings

if TYPE_CHECKING:
    import openvino

# Importing openvino or nncf, and each call of nncf, is reported to Google Analytics without asking, with an id that is
# kept under the home folder; neither happens where this package cannot be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

PRECISIONS = ("fp32", "fp16", "int8")
# Shares of the reference's spread. Seen: a trained 2-layer student of 77 classes on 600 texts, computed in fp32.
TOLERANCES = {
    "fp32": 1e-4,  # rounding in another order of additions: 1e-6 seen, 1e-4 leaves room for other CPUs
    "fp16": 1e-2,  # weights rounded to 11 bits: 5e-4 seen
    "int8": 0.25,  # 3 % seen, 26 % on random weights; as for ONNX
}
FOLDER = "model.openvino"
# Where an operator has its weight: MatMul(x, weight), Gather(table, ids).
WEIGHT_PLACE = {"MatMul": 1, "Gather": 0}


class Params(Settings):
    """`targets.<name>.options` of the format openvino."""

    inputs: Literal["int64", "int32"] = Field(
        default="int64", description="Type of both inputs; int32 where a program's own arrays are."
    )
    settings: dict[str, str] = Field(
        default={},
        description="How the runtime opens it, such as {NUM_STREAMS: 2}; the rest is as measured fastest.",
    )


def scheme(precision: str, params: Params) -> Scheme | None:
    """NNCF fixes the ranges of activations; OpenVINO's kernels for x86 without VNNI add pairs in 16 bits."""
    return Scheme(activations="fixed", pair_safe=True) if precision == "int8" else None


def why_unusable() -> str | None:
    """Why it cannot write here, or None."""
    return why_missing("openvino", "openvino", "nncf")


def convert(source: Path, out: Path, precision: str, params: Params, max_length: int, plan: Plan | None) -> Artefact:
    """Writes the folder `model.openvino` into the existing empty folder `out`. Same source, same bytes.

    That holds on one kind of CPU: NNCF's ranges are computed, and another CPU may round the last bit differently.

    Args:
        source: a model folder, as `pipeline.models.checkpoints.load_classifier` reads it.
        out: where to write.
        precision: one of PRECISIONS. fp16 is about the weights; on a CPU they are computed with in fp32.
        params: the exporter's options.
        max_length: longest input in tokens that will be used.
        plan: the quantization plan; needed for int8, None for the others. Its ranges and per_channel are not used:
            NNCF takes a scale for each channel and fixed ranges, from the plan's calibration rows.

    Raises:
        ExportError: the precision and the plan do not belong together, the plan is of another model or has no
            calibration rows, or max_length is beyond the model's positions.
    """
    _check(precision, plan)
    import openvino

    with TemporaryDirectory() as folder:
        artefact = to_onnx.convert(
            source,
            Path(folder),
            "fp32",
            to_onnx.Params(inputs=params.inputs, settings=params.settings),
            max_length,
            plan=None,
        )
        # Within the block: the weights are read from the ONNX file when they are written.
        model = openvino.Core().read_model(Path(folder) / artefact.file)
        _name_by_place(model)
        notes = artefact.notes
        left: tuple[str, ...] = ()
        if plan is not None:
            model, left = _quantize(model, plan, load_classifier(source))
            facts = _make_pairs_safe(model)
            _join_products(model)
            _name_by_place(model)
            notes += _notes(plan, left, facts)
        (out / FOLDER).mkdir()
        openvino.save_model(model, out / FOLDER / "model.xml", compress_to_fp16=precision == "fp16")
    tools = ("openvino", "nncf") if plan else ("openvino",)
    return artefact.model_copy(
        update={
            "format": "openvino",
            "precision": precision,
            "file": FOLDER,
            "tools": artefact.tools | {name: version_of(name) for name in tools},
            "kept_in_float": tuple(left),
            "notes": notes,
        }
    )


def _check(precision: str, plan: Plan | None) -> None:
    if precision not in PRECISIONS:
        raise ExportError(f"openvino cannot be written as '{precision}', expected one of {', '.join(PRECISIONS)}")
    if (precision == "int8") != (plan is not None):
        raise ExportError(f"precision {precision} {'needs a' if precision == 'int8' else 'takes no'} quantization plan")
    if plan is not None and not plan.calibration_rows:
        raise ExportError(
            "the quantization plan has no calibration rows, expected token ids of training texts, from which NNCF "
            "takes the ranges of activations; make the plan again: dvc repro -f quantize"
        )


def _notes(plan: Plan, left: Sequence[str], facts: PairFacts) -> tuple[str, ...]:
    notes = [
        f"fixed ranges of activations, from NNCF on {len(plan.calibration_rows)} training texts; the plan's ranges "
        "are not used",
        to_onnx.pair_note(facts),
    ]
    if not plan.per_channel:
        notes.append("each output channel has a scale of its own, though the plan has one for all: NNCF has no other")
    if plan.exclude:
        notes.append(f"kept in fp32: {', '.join(plan.exclude)}")
    if left:
        notes.append(
            f"kept in fp32 besides, though the plan makes them 8-bit: {', '.join(left)}; a table that is added to "
            "others, or a module that a tanh follows, whose kernel is wrong on x86 without VNNI"
        )
    return (*notes, *plan.warnings)


# --- 8 bits ------------------------------------------------------------------------------------------------------


def _quantize(
    model: "openvino.Model", plan: Plan, classifier: PreTrainedModel
) -> tuple["openvino.Model", tuple[str, ...]]:
    """Makes the plan's modules 8-bit; gives the names of those that could not be, too.

    Linear:           x -> MatMul(W) -> y
        becomes       x -> Multiply(s) -> FakeQuantize -> MatMul(Multiply(Convert(W8), W_scale)) -> y
    Embedding table:  Gather(W, ids) -> y
        becomes       Gather(Multiply(Convert(W8), W_scale), ids) -> y
    s moves large channels of x into the weight (SmoothQuant); without it the worst difference is twice as large.
    """
    ops = {_module_of(op): op for op in model.get_ordered_ops() if _reads_weight(op)}
    plan.check_modules(classifier)
    wanted = [name for name in quantizable_modules(classifier, plan.embeddings) if name not in plan.exclude]
    linear = quantizable_modules(classifier, embeddings=False)
    for name in wanted:
        if name in linear and name not in ops:
            raise ExportError(
                f"module '{name}' has no operator with its weight in the graph{nearest(name, ops)}; add it to the "
                "plan's exclude, or report it with the model's configuration"
            )
    quantized = [name for name in wanted if name in ops and not _goes_into_tanh(ops[name])]
    chosen = {ops[name].get_friendly_name() for name in quantized}
    no_operators = {"Constant", "Parameter", "Result"}  # unknown to NNCF, which refuses a name it does not know
    ignored = [
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_friendly_name() not in chosen and op.get_type_name() not in no_operators
    ]
    rows = [np.array([row], dtype=np.int64) for row in plan.calibration_rows]
    given = model.inputs[0].get_element_type().to_dtype()
    samples = [{"input_ids": ids.astype(given), "attention_mask": np.ones_like(ids, dtype=given)} for ids in rows]
    with _quiet_nncf() as nncf:
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        # By default NNCF takes the mean of the texts' greatest values and cuts half the texts off there: 5.4 % of the
        # spread away at worst, 2.6 % with the greatest of all.
        ranges = nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
        )
        result = nncf.quantize(
            model,
            nncf.Dataset(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(names=ignored),
            advanced_parameters=ranges,
        )
    # Its arguments, the list of ignored names among them, which nothing reads.
    del result.rt_info["nncf"]
    return result, tuple(name for name in wanted if name not in quantized)


def _make_pairs_safe(model: "openvino.Model") -> PairFacts:
    """Raises the scales of channels in which a pair of neighbouring weights could saturate a sum of 16 bits, in place.

    x -> MatMul(Multiply(Convert(W8), s))  becomes  x -> MatMul(Multiply(Convert(round(W8 / g)), g s)), g > 1 for those
    channels only. NNCF's own cure, a range of 7 bits, would be g = 2 for all.
    """
    from openvino import opset13

    pairs = unsafe = channels = grown = 0
    most = 1.0
    for product in eight_bit_products(model):
        weights, scale = product.weights, product.scaled.input_value(1).get_node()
        found = unsafe_pairs(weights)
        growth = np.maximum(1, least_scale(weights.astype(np.float64)))
        pairs, unsafe = pairs + found.size, unsafe + int(found.sum())
        channels, grown = channels + len(growth), grown + int((growth > 1).sum())
        most = max(most, float(growth.max()))
        if found.any():
            tamed = np.round(weights / growth[:, None]).astype(np.int8)
            tamed = tamed if product.by_rows else tamed.T
            factors = growth.reshape(scale.data.shape).astype(np.float32)
            product.widened.input(0).replace_source_output(opset13.constant(np.ascontiguousarray(tamed)).output(0))
            product.scaled.input(1).replace_source_output(opset13.constant(scale.data * factors).output(0))
    return PairFacts(pairs=pairs, unsafe=unsafe, channels=channels, grown=grown, largest_growth=most)


def _join_products(model: "openvino.Model") -> None:
    """Makes products of one rounded activation, such as query, key and value, one product, in place.

    x -> MatMul(W1) -> y1, x -> MatMul(W2) -> y2  becomes  x -> MatMul([W1 W2]) -> VariadicSplit -> y1, y2. One kernel
    for three took 0.98 of their time in a student of 2 x 192, and the same in one of 3 x 384 (x86 without VNNI). Behind
    NNCF, for which one excluded module would keep the others of its product in float too; there it rounds each one's
    input apart, and they stay apart.
    """
    from openvino import opset13

    groups: dict[tuple[str, bool], list[Product]] = {}
    for product in eight_bit_products(model):
        activation = product.op.input_value(0).get_node()
        groups.setdefault((activation.get_friendly_name(), product.by_rows), []).append(product)
    for (_, by_rows), group in groups.items():
        if len(group) == 1:
            continue
        outputs = 0 if by_rows else 1
        codes = np.concatenate([product.widened.input_value(0).get_node().data for product in group], axis=outputs)
        scales = np.concatenate([product.scaled.input_value(1).get_node().data for product in group], axis=outputs)
        weights = opset13.multiply(opset13.convert(opset13.constant(codes), "f32"), opset13.constant(scales))
        joined = opset13.matmul(group[0].op.input_value(0), weights, False, by_rows)
        joined.set_friendly_name("+".join(product.op.get_friendly_name() for product in group))
        widths = np.array([len(product.weights) for product in group])
        split = opset13.variadic_split(joined, opset13.constant(np.int64(-1)), opset13.constant(widths))
        for product, output in zip(group, split.outputs(), strict=True):
            product.op.output(0).replace(output)
    model.validate_nodes_and_infer_types()


def _module_of(op: "openvino.Node") -> str:
    """The PyTorch module whose weight an operator reads."""
    # A Gemm of ONNX is read as several operators, and the one with the weight gets this ending.
    return module_of(op.get_friendly_name().removesuffix("/WithoutBiases"))


def _goes_into_tanh(op: "openvino.Node") -> bool:
    """Whether a product, its bias added, is given to a tanh, which the plugin then computes in the product's kernel.

    On x86 without VNNI that kernel is wrong in 8 bits: for the pooler of a toy BERT 42 % of the logits' spread away,
    with weights of 6 bits too, where VNNI's is 2 % away; with a GELU it is right (OpenVINO 2026.4.1).
    """
    readers = [op]
    while len(readers) == 1 and (readers[0] is op or readers[0].get_type_name() in {"Add", "Multiply"}):
        readers = [port.get_node() for port in readers[0].output(0).get_target_inputs()]
    return any(reader.get_type_name() == "Tanh" for reader in readers)


def _reads_weight(op: "openvino.Node") -> bool:
    place = WEIGHT_PLACE.get(op.get_type_name())
    if place is None:
        return False
    weight = op.input_value(place)
    return weight.get_node().get_type_name() == "Constant" and len(weight.get_partial_shape()) == 2


@contextmanager
def _quiet_nncf() -> Iterator[ModuleType]:
    """NNCF, which prints nothing within the block."""
    import nncf
    import rich

    console, log = rich.get_console(), logging.getLogger("nncf")
    quiet, level = console.quiet, log.level
    console.quiet = True  # progress bars
    log.setLevel(logging.ERROR)  # errors are raised as well
    try:
        yield nncf
    finally:
        console.quiet = quiet
        log.setLevel(level)


# --- the graph ---------------------------------------------------------------------------------------------------


def _name_by_place(model: "openvino.Model") -> None:
    """MVN_239474 -> MVN_37, in place: a name that OpenVINO made counts what the process has made before it."""
    model.set_friendly_name("model")
    for place, op in enumerate(model.get_ordered_ops()):
        if re.fullmatch(rf"{op.get_type_name()}_\d+", op.get_friendly_name()):
            op.set_friendly_name(f"{op.get_type_name()}_{place}")
