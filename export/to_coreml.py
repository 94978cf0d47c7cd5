"""Core ML: an ML program in a `.mlpackage`, in fp32, fp16, or fp16 with 8-bit weights.

The package is complete in itself: int32 `input_ids` and `attention_mask` of shape (1, L) go in; `logits`, the predicted
`classLabel` and the probability of every label come out; labels, lengths and the hash of its source are in its
metadata. `ClassifierConfig` replaces the probabilities it is given and no other output, so logits stay reachable.

Three traps, each checked on what was saved rather than on what was meant:

- a constant that is infinite in fp16 makes NaN of every answer: `check_finite_constants`;
- ids cast to 16 bits wrap in a vocabulary beyond 32,767: `check_wide_ids`;
- below iOS 18 only one input may have listed lengths, and this model has two: `Params`.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import nn
from torch.export import ExportedProgram

from export.encoder_graph import EncoderGraph, check_answers, export_graph
from export.lengths import check_ascending, choose_lengths
from export.mlpackage import (
    LEFTOVER,
    check_finite_constants,
    check_wide_ids,
    quiet_conversion,
    rewrite_manifest,
)
from pipeline.errors import ExportError
from pipeline.files import sha256_of
from pipeline.machine import version_of
from pipeline.mil.package import SPECIFICATION
from pipeline.mil.quiet import import_coremltools
from pipeline.models import load_classifier
from pipeline.params import Count, Settings
from pipeline.records import Artefact, TensorFact

if TYPE_CHECKING:
    from pipeline.quantization import Plan

PRECISIONS = ("fp32", "fp16", "int8")
# Share of the spread of the reference logits. Measured: a NumPy reading of the saved program against PyTorch, 26 texts,
# on a 3-layer MiniLM student with a fresh classifier, whose logits lie close together.
TOLERANCES = {
    "fp32": 1.0e-4,  # the same sums in another order; measured 5e-7
    "fp16": 1.0e-2,  # 2^-11 at each of some ten roundings a layer; measured 7e-4
    "int8": 1.0e-1,  # up to 1/254 of its row's largest weight at each weight; measured 0.018
}
FILE_NAME = "model.mlpackage"


class LengthRange(Settings):
    """Any length between two."""

    min: int = Field(ge=2, description="Shortest input in tokens; 2 is a text with only its two special tokens.")
    max: int = Field(ge=2, description="Longest input in tokens; data.max_length.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"min {self.min} is not below max {self.max}; for one length give a list of one")
        return self


class Params(Settings):
    """Options of a Core ML target."""

    lengths: tuple[Count, ...] | LengthRange | None = Field(
        default=None,
        description="Token lengths the model accepts, ascending, the last one data.max_length; or {min, max} for any "
        "between. Null: 16, 32, 64, ... below data.max_length, and data.max_length. The Neural Engine wants a list.",
    )
    deployment_target: Literal["iOS16", "iOS17", "iOS18"] = Field(
        default="iOS18", description="Oldest system it runs on. Below iOS18: one length, or a range."
    )
    author: str = Field(default="made with Decant", description="Author, shown by Xcode.")
    licence: str = Field(default="not stated", description="Licence, shown by Xcode.")

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        listed = self.lengths if isinstance(self.lengths, tuple) else (2,)
        check_ascending(listed)
        several = self.lengths is None or len(listed) > 1
        if several and self.deployment_target != "iOS18":
            raise ValueError(
                f"deployment_target is {self.deployment_target}, which allows a list of lengths for one input only, "
                "and there are two; set it to iOS18, or lengths to one length or to {min: ..., max: ...}"
            )
        return self


def convert(source: Path, out: Path, precision: str, params: Params, max_length: int, plan: "Plan | None") -> Artefact:
    """Writes `model.mlpackage` into `out` and checks what was written.

    Args:
        source: model folder.
        out: existing empty folder.
        precision: one of PRECISIONS. int8 is 8-bit weights, dequantized on load or on use; activations are fp16.
        params: options of the target.
        max_length: data.max_length; no length may be above it, and the longest must be it.
        plan: for int8: what stays in fp16. Its activation ranges are not used.

    Raises:
        SettingsError: lengths that do not fit max_length.
        ExportError: it could not be converted, or what was saved would not answer.
    """
    lengths = _lengths(params, max_length)
    model = load_classifier(source)
    names = model.config.id2label or {}
    labels = [names[i] for i in range(model.config.num_labels)]
    if len(set(labels)) != len(labels):
        raise ExportError(f"{source}: label names repeat; Core ML gives probabilities by name: make them differ")
    graph = EncoderGraph(model).eval()
    check_answers(graph, max_length)
    ct = import_coremltools()
    with quiet_conversion():
        program = export_graph(graph, max_length, any_length=len(lengths) > 1)
        passes = ct.PassPipeline.EMPTY  # all have run once the program is MIL; fp16 must not be applied twice
        if precision == "int8":
            assert plan is not None, "the caller makes a plan for int8"
            passes = _quantization(ct, plan, _kept_constants(plan, graph, program))
        try:
            mil = _to_mil(ct, program, lengths, precision, params)
            package = _to_package(ct, mil, labels, params, passes)
        except Exception as error:  # torch and coremltools raise nearly every built-in class
            raise ExportError(
                f"coremltools {ct.__version__} could not convert this '{model.config.model_type}' to {precision} for "
                f"{params.deployment_target}: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}; try "
                "another precision or deployment_target, or the versions in requirements.lock"
            ) from error
        path = out / FILE_NAME
        package.save(str(path))
    facts = _metadata(source, params, labels, lengths, precision)
    _settle(path, facts, params)
    check_finite_constants(path)
    check_wide_ids(path)
    return _artefact(precision, lengths, labels, params)


def _lengths(params: Params, max_length: int) -> tuple[int, ...]:
    """Every length that the package accepts, ascending."""
    wanted = params.lengths
    if isinstance(wanted, LengthRange):
        wanted = tuple(range(wanted.min, wanted.max + 1))
    return choose_lengths(wanted, max_length)


# --- conversion --------------------------------------------------------------------------------------------------


def _to_mil(ct: ModuleType, program: ExportedProgram, lengths: Sequence[int], precision: str, params: Params) -> Any:
    """Core ML's program in memory, all passes applied, with outputs `logits` and `probabilities`."""
    shape: Any = (1, lengths[-1])
    if isinstance(params.lengths, LengthRange):
        shape = ct.Shape((1, ct.RangeDim(lengths[0], lengths[-1], default=lengths[-1])))
    elif len(lengths) > 1:
        shape = ct.EnumeratedShapes([(1, length) for length in lengths], default=(1, lengths[-1]))
    # Names of constants count up over the life of the process; a second package would have other bytes than a first.
    ct.converters.mil.Builder.name_count.clear()
    return ct.convert(
        program,
        convert_to="milinternal",
        minimum_deployment_target=getattr(ct.target, params.deployment_target),
        compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
        inputs=[ct.TensorType(name, shape, dtype=np.int32) for name in ("input_ids", "attention_mask")],
        outputs=[ct.TensorType(name, dtype=np.float32) for name in ("logits", "probabilities")],
    )


def _to_package(ct: ModuleType, mil: Any, labels: Sequence[str], params: Params, passes: Any) -> Any:
    """The Core ML model, its probabilities replaced by label and probability of every label."""
    # coremltools 9.0 looks up the type of each output of a classifier in the list of what was asked for, which is one
    # shorter (label and probabilities stand for one): IndexError. The types have been applied, so the list can go.
    for function in mil.functions.values():
        function.output_types = None
    return ct.convert(
        mil,
        convert_to="mlprogram",
        minimum_deployment_target=getattr(ct.target, params.deployment_target),
        pass_pipeline=passes,
        classifier_config=ct.ClassifierConfig(list(labels), predicted_probabilities_output="probabilities"),
        skip_model_load=True,
    )


def _quantization(ct: ModuleType, plan: "Plan", kept: Sequence[str]) -> Any:
    """The one pass that makes weights 8-bit. (Done on a finished package, it cannot write the labels back.)"""
    from coremltools.optimize import coreml

    config = coreml.OptimizationConfig(
        # The plan decides what is quantized, not a size; vectors are never touched by coremltools.
        global_config=coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric",
            dtype="int8",
            granularity="per_channel" if plan.per_channel else "per_tensor",
            weight_threshold=0,
        ),
        op_name_configs=dict.fromkeys(kept, None),
    )
    name = "compression::linear_quantize_weights"
    passes = ct.PassPipeline([name], pipeline_name="decant_int8")
    passes.set_options(name, {"config": config})
    return passes


def _kept_constants(plan: "Plan", graph: EncoderGraph, program: ExportedProgram) -> list[str]:
    """Names of the constants in the package whose PyTorch module the plan leaves out."""
    names = weight_names(graph, program)
    modules = dict(graph.model.named_modules())
    unknown = [name for name in plan.exclude if name not in modules]
    if unknown:
        raise ExportError(
            f"the plan leaves out '{unknown[0]}', which the model does not have; run `dvc repro quantize`"
        )
    excluded = list(plan.exclude)
    if not plan.embeddings:
        excluded += [name for name, module in modules.items() if isinstance(module, nn.Embedding)]
    # the fp16 pass renames what it casts
    return [
        constant + suffix
        for constant, weight in names.items()
        if any(weight.startswith(f"{module}.") for module in excluded)
        for suffix in ("", "_to_fp16")
    ]


def weight_names(graph: EncoderGraph, program: ExportedProgram) -> dict[str, str]:
    """Constant in the package -> weight of the classifier, such as 'bert.pooler.dense.weight'."""
    prefix = graph.model.base_model_prefix
    signature = program.graph_signature
    names = {}
    for constant, weight in (signature.inputs_to_parameters | signature.inputs_to_buffers).items():
        head, _, rest = weight.partition(".")
        # one table in the graph, the sum of two in the model
        original = f"{prefix}.embeddings.position_embeddings.weight" if head == "positions" else rest
        names[constant] = f"{prefix}.{rest}" if head == "encoder" else original
    return names


# --- what is written ---------------------------------------------------------------------------------------------


def _metadata(
    source: Path, params: Params, labels: Sequence[str], lengths: Sequence[int], precision: str
) -> dict[str, str]:
    weights = sorted(source.glob("*.safetensors"))
    hashes = {file.name: sha256_of(file) for file in (source / "config.json", *weights)}
    wanted = {"min": lengths[0], "max": lengths[-1]} if isinstance(params.lengths, LengthRange) else list(lengths)
    return {
        "decant.version": version_of("decant") or "not installed",
        "decant.source_sha256": hashlib.sha256(json.dumps(hashes).encode()).hexdigest(),
        "decant.labels": json.dumps(list(labels), ensure_ascii=False),
        "decant.lengths": json.dumps(wanted),
        "decant.max_length": str(lengths[-1]),
        "decant.precision": precision,
        "decant.tools": json.dumps(_tools()),
    }


def _settle(path: Path, facts: dict[str, str], params: Params) -> None:
    """Fills in the description, and makes every byte follow from the model: no date, no random identifiers."""
    ct = import_coremltools()
    (path / LEFTOVER).unlink(missing_ok=True)
    spec = ct.utils.load_spec(str(path))
    about = spec.description.metadata
    about.author, about.license = params.author, params.licence
    about.versionString = facts["decant.source_sha256"][:12]
    about.shortDescription = (
        f"Text classifier, {len(json.loads(facts['decant.labels']))} labels, {facts['decant.precision']}."
    )
    about.userDefined.clear()
    about.userDefined.update(facts)
    described = {
        "input_ids": "Token ids of one text, padded on the right with any id to one of the lengths.",
        "attention_mask": "1 for a token of the text, 0 for padding.",
        "logits": "Scores before the softmax, in the order of the labels.",
        "classLabel": "The most probable label.",
        "classLabel_probs": "Probability of every label.",
    }
    for feature in (*spec.description.input, *spec.description.output):
        feature.shortDescription = described[feature.name]
    file = path / SPECIFICATION
    file.unlink()  # a new file has the usual permissions; coremltools leaves one that only its owner can read
    file.write_bytes(spec.SerializeToString(deterministic=True))
    rewrite_manifest(path)


def _tools() -> dict[str, str | None]:
    return {name: version_of(name) for name in ("coremltools", "torch", "transformers")}


def _artefact(precision: str, lengths: tuple[int, ...], labels: Sequence[str], params: Params) -> Artefact:
    notes = [f"one text a call; {params.deployment_target} or later"]
    if precision == "int8":
        notes.append("8-bit weights; activations are fp16, so calibrated ranges are not used")
    return Artefact(
        format="coreml",
        precision=precision,
        file=FILE_NAME,
        inputs=tuple(
            TensorFact(name=name, dtype="int32", shape=(1, "length")) for name in ("input_ids", "attention_mask")
        ),
        outputs=(
            TensorFact(name="logits", dtype="float32", shape=(1, len(labels))),
            TensorFact(name="classLabel", dtype="string", shape=()),
            TensorFact(name="classLabel_probs", dtype="dictionary", shape=(len(labels),)),
        ),
        lengths=lengths,
        max_length=lengths[-1],
        tools=_tools(),
        notes=tuple(notes),
    )
