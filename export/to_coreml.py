"""Core ML: an ML program in a `.mlpackage`, in fp32 or fp16, with weights as they are or compressed.

| precision | computes in | weights | runs from |
|---|---|---|---|
| fp32, fp16 | as named | as it computes | iOS 16 |
| auto | fp16, and fp32 where fp16 would overflow (`export/fp16_lint.py`) | as it computes | iOS 16 |
| int8 | fp16 | 8 bits, one scale an output channel; the plan's exclusions stay | iOS 16 |
| w8a8 | 8-bit inputs of matrix products, the rest fp16 | as int8 | iOS 17 |
| palette8, 6, 4 | fp16 | a palette of 256, 64 or 16 values a tensor; with `group_channels` iOS 18 | iOS 16 |
| mixed | fp16 | a palette for each tensor, of as many bits as `mixed` allows (`export/mixed_bits.py`) | iOS 16 |

The package is complete in itself: int32 `input_ids` and `attention_mask` of shape (1, L) go in; the model's answers
come out, and where a text has one label also the predicted `classLabel` and the probability of every label; labels,
lengths and the hash of its source are in its metadata. `ClassifierConfig` replaces the probabilities it is given and no
other output, so logits stay reachable.

Three traps, each checked on what was saved rather than on what was meant:

- a constant that is infinite in fp16 makes NaN of every answer: `check_finite_constants`;
- ids cast to 16 bits wrap in a vocabulary beyond 32,767: `check_wide_ids`;
- below iOS 18 only one input may have listed lengths, and this model has two: `Params`.
"""

import hashlib
import json
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np
from jaxtyping import Float, Int32
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers import PreTrainedModel

from export.channels_first import CONVOLUTIONS, SEPARATOR, channels_first_graph
from export.coreml_compression import Palette, linear_weights, linear_weights_and_activations, palettes
from export.fp16_lint import Lint, calibrate, lint
from export.lengths import check_ascending, choose_lengths
from export.mixed_bits import choose_bits
from export.mlpackage import (
    LEFTOVER,
    check_finite_constants,
    check_system,
    check_wide_ids,
    quiet_conversion,
    rewrite_manifest,
)
from export.program import export_program
from export.source import load_model, output_facts
from pipeline.base.errors import ExportError, PipelineError, SettingsError
from pipeline.base.files import sha256_of
from pipeline.base.machine import version_of
from pipeline.base.records import Artefact, TensorFact
from pipeline.families import DeploymentGraph, check_answers, deployment_graph, gives_one_label
from pipeline.mil.package import SPECIFICATION, WEIGHTS, Operation, read_package
from pipeline.mil.quiet import import_coremltools
from pipeline.models.checkpoints import token_table
from pipeline.quantization.plan import quantizable_modules
from pipeline.settings.base import Count, Settings

if TYPE_CHECKING:
    from pipeline.quantization.plan import Plan, Scheme

T = TypeVar("T")
PRECISIONS = ("fp32", "fp16", "auto", "int8", "w8a8", "palette8", "palette6", "palette4", "mixed")
# Those that look at the plan: what stays in float, or the rows that ranges are calibrated on.
PLANNED = ("fp16", "auto", "int8", "w8a8", "mixed")
# Share of the spread of the reference logits, by the reference interpreter against PyTorch; measured on 32 dev rows of
# Banking77, SST-2 and the bundled data.
TOLERANCES = {
    "fp32": 1.0e-4,  # the same sums in another order; measured 5e-7
    "fp16": 1.0e-2,  # 2^-11 at each of some ten roundings a layer; measured 7e-4
    "auto": 1.0e-2,
    "int8": 1.0e-1,  # up to 1/254 of its row's largest weight at each weight; measured 0.018
    "w8a8": 3.0e-1,
    "palette8": 1.0e-1,
    "palette6": 3.0e-1,
    "palette4": 1.0,  # an aim for nobody: whether it is good enough, budgets say
    "mixed": 1.0,
}
FILE_NAME, WEIGHT_NAMES = "model.mlpackage", "weights.json"
# What casting and compressing append to the name of a constant, as coremltools 9.0 does.
MADE_OF = {
    cast + made
    for cast in ("", "_to_fp16")
    for made in ("", "_quantized", "_palettized", "_sparsified", "_sparsified_palettized")
}


class LengthRange(Settings):
    """Any length between two."""

    min: int = Field(ge=2, description="Shortest input in tokens; 2 is a text with only its two special tokens.")
    max: int = Field(ge=2, description="Longest input in tokens; data.max_length.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"min {self.min} is not below max {self.max}; for one length give a list of one")
        return self


class Mixed(Settings):
    """What a choice of bits for each tensor may cost."""

    size_mb: float = Field(gt=0, description="Of the weights in the package, at most.")
    changed_percent: float = Field(
        ge=0, description="Share of the answers to calibration rows, in percent, that may differ from the student's."
    )


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
    layout: Literal["plain", "channels_first"] = Field(
        default="plain",
        description="channels_first: (B, C, 1, S) with 1x1 convolutions and heads apart, as Apple published for its "
        "Neural Engine. The same weights and answers.",
    )
    group_channels: Count | None = Field(
        default=None, description="For palettes: output channels that share one. Null: one a tensor. Needs iOS18."
    )
    embedding_bits: Literal[4, 6, 8] | None = Field(
        default=None,
        description="For palettes: bits of the word embedding, the largest tensor. Null: as the precision says.",
    )
    sparsity: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="For palettes: share of each tensor's smallest weights that become 0 and are not stored. iOS18.",
    )
    mixed: Mixed | None = Field(default=None, description="For precision mixed: what it may cost.")
    settings: dict[str, str] = Field(
        default_factory=dict, description="How the runtime opens it, such as compute_units: CPU_AND_NE."
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
        for name in ("group_channels", "sparsity"):
            if getattr(self, name) is not None and self.deployment_target != "iOS18":
                raise ValueError(
                    f"{name} needs iOS18, deployment_target is {self.deployment_target}; raise it, or leave {name} out"
                )
        return self


def why_unusable() -> str | None:
    """Why it cannot write here, or None: built from source, as on Linux for Arm, coremltools cannot write packages."""
    found = util.find_spec("coremltools")
    if found is None or found.origin is None:
        return "not installed: coremltools"
    if not list(Path(found.origin).parent.glob("libmilstoragepython*")):
        return f"coremltools has no native part here ({platform.system()} {platform.machine()}), which writes packages"
    return None


def scheme(precision: str, params: Params) -> "Scheme | None":
    """int8 is weights alone, w8a8 has fixed ranges; the others look at the plan's calibration rows only."""
    from pipeline.quantization.plan import Scheme

    if precision not in {"int8", "w8a8"}:
        return None
    return Scheme(activations="float" if precision == "int8" else "fixed")


def convert(source: Path, out: Path, precision: str, params: Params, max_length: int, plan: "Plan | None") -> Artefact:
    """Writes `model.mlpackage` into `out` and checks what was written.

    Args:
        source: model folder.
        out: existing empty folder.
        precision: one of PRECISIONS.
        params: options of the target.
        max_length: data.max_length; no length may be above it, and the longest must be it.
        plan: for those of PLANNED: what stays in fp16 and the rows to calibrate on. Its activation ranges are not used.
            fp16 goes without, and is not looked through then.

    Raises:
        SettingsError: lengths that do not fit max_length.
        ExportError: it could not be converted, or what was saved would not answer.
    """
    _check(precision, params, plan)
    lengths = _lengths(params, max_length)
    model = load_model(source, max_length)
    labels = _labels(source, model)
    make = channels_first_graph if params.layout == "channels_first" else deployment_graph
    graph = make(model, longest=max_length)
    check_answers(model, graph, max_length)
    ct = import_coremltools()
    job = _Job(ct, model, graph, lengths, labels, params, plan)
    with quiet_conversion():
        try:
            keep = job.lint(out).keep if precision in {"fp16", "auto"} and plan is not None else ()
            passes = job.compression(precision)
            package = job.package(precision, passes, keep if precision == "auto" else ())
        except PipelineError:
            raise
        except Exception as error:  # torch and coremltools raise nearly every built-in class
            raise ExportError(
                f"coremltools {ct.__version__} could not convert this '{model.config.model_type}' to {precision} for "
                f"{params.deployment_target}: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}; try "
                "another precision or deployment_target, or the versions in requirements.lock"
            ) from error
        path = out / FILE_NAME
        package.save(str(path))
        write_weight_names(path, out, graph, job.weights(), lengths[-1])
        if params.mixed is not None:
            check_size(path, params.mixed.size_mb)
    facts = _metadata(source, params, labels, lengths, precision)
    _settle(path, facts, params)
    check_finite_constants(path)
    check_wide_ids(path)
    check_system(path, params.deployment_target)
    notes = (*job.notes, *([f"in fp32: {', '.join(keep)}"] if precision == "auto" and keep else []))
    outputs = output_facts(graph, 1)
    if labels is not None:
        outputs += (
            TensorFact(name=LABEL, dtype="string", shape=()),
            TensorFact(name=PROBABILITIES, dtype="dictionary", shape=(len(labels),)),
        )
    return _artefact(precision, lengths, outputs, params, notes).model_copy(update={"settings": params.settings})


def _labels(source: Path, model: PreTrainedModel) -> list[str] | None:
    """Those that Core ML chooses from; None where a text does not get one label."""
    if not gives_one_label(model.config):
        return None
    names = model.config.id2label or {}
    labels = [names[i] for i in range(model.config.num_labels)]
    if len(set(labels)) != len(labels):
        raise ExportError(f"{source}: label names repeat; Core ML gives probabilities by name: make them differ")
    return labels


def _check(precision: str, params: Params, plan: "Plan | None") -> None:
    """Raises SettingsError for options that do not belong together, ExportError without a plan that is needed."""
    system = int(params.deployment_target.removeprefix("iOS"))
    if precision == "w8a8" and system < 17:
        raise SettingsError(f"precision w8a8 needs iOS17, options.deployment_target is {params.deployment_target}")
    if (precision == "mixed") != (params.mixed is not None):
        raise SettingsError(
            "precision mixed goes with options.mixed: {size_mb, changed_percent}; found "
            f"precision {precision} and mixed {params.mixed}"
        )
    is_palette = precision.startswith("palette") or precision == "mixed"
    given = [name for name in ("group_channels", "embedding_bits", "sparsity") if getattr(params, name) is not None]
    if given and not is_palette:
        raise SettingsError(f"options.{given[0]} is for palettes, precision is {precision}; leave it out")
    if given and precision == "mixed":
        raise SettingsError(f"options.{given[0]} would change what options.mixed has measured; leave it out")
    if plan is None and precision in PLANNED and precision != "fp16":
        raise ExportError(f"precision {precision} needs the quantization plan; run `dvc repro quantize`")


def _lengths(params: Params, max_length: int) -> tuple[int, ...]:
    """Every length that the package accepts, ascending."""
    wanted = params.lengths
    if isinstance(wanted, LengthRange):
        wanted = tuple(range(wanted.min, wanted.max + 1))
    return choose_lengths(wanted, max_length)


LABEL, PROBABILITIES = "classLabel", "classLabel_probs"  # as coremltools names them
INSIDE = "classifier"  # where the graph is in what is converted


class Answers(nn.Module):
    """A graph's outputs as a tuple, the probabilities of its logits last if it classifies."""

    def __init__(self, graph: nn.Module, *, is_classifier: bool) -> None:
        super().__init__()
        self.add_module(INSIDE, graph)
        self.is_classifier = is_classifier

    def forward(
        self, input_ids: Int32[Tensor, "1 length"], attention_mask: Int32[Tensor, "1 length"]
    ) -> tuple[Float[Tensor, "1 ..."], ...]:
        found = self.get_submodule(INSIDE)(input_ids, attention_mask)
        if self.is_classifier:
            return found, found.softmax(-1)
        return found if isinstance(found, tuple) else (found,)


# --- conversion --------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    """One model on its way to a package."""

    ct: ModuleType
    model: PreTrainedModel
    graph: DeploymentGraph
    lengths: tuple[int, ...]
    labels: Sequence[str] | None
    params: Params
    plan: "Plan | None"
    notes: tuple[str, ...] = ()

    def package(self, precision: str, passes: Any = None, keep: Sequence[str] = ()) -> Any:
        """The Core ML model; `keep` names operations that stay in fp32, `passes` compress its weights."""
        outputs = (*self.graph.output_names, *(["probabilities"] if self.labels is not None else []))
        mil = _to_mil(self.ct, self._program, outputs, self.lengths, precision, self.params, keep)
        # all passes have run once the program is MIL; fp16 must not be applied twice
        return _to_package(self.ct, mil, self.labels, self.params, passes or self.ct.PassPipeline.EMPTY)

    def lint(self, out: Path) -> Lint:
        """What fp16 would do, on the plan's calibration rows; written beside the artefact."""
        found = self._on_rows("fp32", lint)
        found.write(out)
        worst = next((one for one in found.findings if one.kind == "overflow"), None)
        if worst is not None:
            count = sum(one.kind == "overflow" for one in found.findings)
            self.notes += (
                f"fp16 may overflow at {count} operations, first '{worst.operation}' ({worst.module}): {worst.reason}",
            )
        return found

    def compression(self, precision: str) -> Any:
        """The passes for this precision; None for no compression."""
        ct, plan, params = self.ct, self.plan, self.params
        if precision in {"int8", "w8a8"}:
            assert plan is not None, "the caller makes a plan for int8"
            kept = _kept_constants(plan, self.weights(), self.model)
            if precision == "int8":
                return linear_weights(ct, plan.per_channel, kept)
            ranges = self._on_rows("fp16", lambda *given: calibrate(*given)[1])
            return linear_weights_and_activations(ct, plan.per_channel, kept, self._products(kept), ranges)
        if precision == "mixed":
            assert plan is not None and params.mixed is not None, "checked on entry"
            choice = choose_bits(
                self.model,
                self._tensors(),
                plan.calibration_rows,
                1e6 * params.mixed.size_mb,
                params.mixed.changed_percent / 100,
            )
            self.notes += (
                f"{100 * choice.changed:.2f} % of the answers to calibration rows changed; bits: "
                + ", ".join(f"{name} {bits}" for name, bits in choice.bits.items()),
            )
            return palettes(ct, self._constants(choice.bits), params.sparsity)
        if precision.startswith("palette"):
            bits = dict.fromkeys(self._tensors(), int(precision.removeprefix("palette")))
            return palettes(ct, self._constants(bits), params.sparsity)
        return None

    @cached_property
    def _program(self) -> ExportedProgram:
        """Traced once: coremltools converts it as often as a precision needs, and leaves it as it is."""
        answers = Answers(self.graph, is_classifier=self.labels is not None)
        program = export_program(answers, self.lengths[-1], any_length=len(self.lengths) > 1)
        return program.run_decompositions({})  # coremltools takes no other

    def weights(self) -> dict[str, str]:
        """Constant in the package before it is compressed -> weight of the classifier."""
        return weight_names(self.graph, self._program)

    def _tensors(self) -> list[str]:
        """Weights that may have a palette, as the model names them: tables and matrices."""
        modules = quantizable_modules(self.model, embeddings=True)
        known = dict(self.model.named_parameters())
        return [f"{module}.weight" for module in modules if f"{module}.weight" in known]

    def _constants(self, bits: Mapping[str, int]) -> dict[str, Palette]:
        """Palettes by name of the constant in the package; the word embedding as the options say."""
        wanted = dict(bits)
        if self.params.embedding_bits is not None:
            table = token_table(self.model).weight
            words = [name for name, weight in self.model.named_parameters() if weight is table]
            wanted |= {name: self.params.embedding_bits for name in words if name in wanted}
        group, rows = self.params.group_channels, dict(self.model.named_parameters())
        odd = sorted(weight for weight in wanted if group is not None and len(rows[weight]) % group)
        if odd:
            self.notes += (f"one palette each, as {group} does not divide their rows: {', '.join(odd)}",)
        return {
            constant + suffix: Palette(wanted[weight], None if weight in odd else group)
            for constant, weight in self.weights().items()
            if weight in wanted
            for suffix in ("", "_to_fp16")  # the fp16 pass renames what it casts
        }

    def _products(self, kept: Sequence[str]) -> list[str]:
        """Operations that read a constant which stays in fp16."""
        with self._saved("fp16") as path:
            return [op.name for op in read_package(path).operations if not set(kept).isdisjoint(op.reads)]

    def _on_rows(self, precision: str, look: Callable[..., T]) -> T:
        """What `look` says of the package in this precision, on the plan's calibration rows."""
        assert self.plan is not None, "checked on entry"
        pad_id = self.model.config.pad_token_id or 0
        with self._saved(precision) as path:
            return look(path, self.plan.calibration_rows, self.lengths, self.weights(), pad_id)

    @contextmanager
    def _saved(self, precision: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / FILE_NAME
            self.package(precision).save(str(path))
            yield path


def _to_mil(
    ct: ModuleType,
    program: ExportedProgram,
    outputs: Sequence[str],
    lengths: Sequence[int],
    precision: str,
    params: Params,
    keep: Sequence[str] = (),
) -> Any:
    """Core ML's program in memory, all passes applied, with these names for what the program gives."""
    shape: Any = (1, lengths[-1])
    if isinstance(params.lengths, LengthRange):
        shape = ct.Shape((1, ct.RangeDim(lengths[0], lengths[-1], default=lengths[-1])))
    elif len(lengths) > 1:
        shape = ct.EnumeratedShapes([(1, length) for length in lengths], default=(1, lengths[-1]))
    # Names of constants count up over the life of the process; a second package would have other bytes than a first.
    ct.converters.mil.Builder.name_count.clear()
    computes = ct.transform.FP16ComputePrecision(op_selector=lambda op: op.outputs[0].name not in keep)
    return ct.convert(
        program,
        convert_to="milinternal",
        minimum_deployment_target=getattr(ct.target, params.deployment_target),
        compute_precision=ct.precision.FLOAT32 if precision == "fp32" else computes,
        inputs=[ct.TensorType(name, shape, dtype=np.int32) for name in ("input_ids", "attention_mask")],
        outputs=[ct.TensorType(name, dtype=np.float32) for name in outputs],
    )


def _to_package(ct: ModuleType, mil: Any, labels: Sequence[str] | None, params: Params, passes: Any) -> Any:
    """The Core ML model; with labels a classifier, its probabilities replaced by label and probability of each."""
    config = None
    if labels is not None:
        config = ct.ClassifierConfig(list(labels), predicted_probabilities_output="probabilities")
    # coremltools 9.0 looks up the type of each output of a classifier in the list of what was asked for, which is one
    # shorter (label and probabilities stand for one): IndexError. The types have been applied, so the list can go.
    for function in mil.functions.values():
        function.output_types = None
    # Weights are compressed on the way, since on a finished package the labels cannot be written back.
    return ct.convert(
        mil,
        convert_to="mlprogram",
        minimum_deployment_target=getattr(ct.target, params.deployment_target),
        pass_pipeline=passes,
        classifier_config=config,
        skip_model_load=True,
    )


def _kept_constants(plan: "Plan", names: Mapping[str, str], model: nn.Module) -> list[str]:
    """Names of the constants in the package whose PyTorch module the plan leaves out."""
    plan.check_modules(model)
    excluded = list(plan.exclude)
    if not plan.embeddings:
        excluded += [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    # the fp16 pass renames what it casts
    return [
        constant + suffix
        for constant, weight in names.items()
        if any(weight.startswith(f"{module}.") for module in excluded)
        for suffix in ("", "_to_fp16")
    ]


def weight_names(graph: DeploymentGraph, program: ExportedProgram) -> dict[str, str]:
    """Constant in the package -> weight of the classifier, such as 'bert.pooler.dense.weight'."""
    signature = program.graph_signature
    read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    names = {}
    for constant, weight in (signature.inputs_to_parameters | signature.inputs_to_buffers).items():
        if constant not in read:  # of a module that the graph has and does not call
            continue
        original = weight.removeprefix(f"{INSIDE}.")
        head, _, rest = original.partition(".")
        # one table in the graph, the sum of several in the model
        sources = graph.sources.get(original, ())
        names[constant] = sources[0] if sources else rest.replace(SEPARATOR, ".") if head == CONVOLUTIONS else original
    return names


def check_size(path: Path, size_mb: float) -> None:
    """Raises ExportError when the weights that were written are larger than asked for."""
    size = sum(file.stat().st_size for file in (path / WEIGHTS).iterdir()) / 1e6
    if size > size_mb:
        raise ExportError(f"{path}: {size:.2f} MB of weights, options.mixed.size_mb is {size_mb:g}; raise it a little")


def write_weight_names(path: Path, out: Path, graph: DeploymentGraph, names: Mapping[str, str], longest: int) -> None:
    """Beside the package, which weights of the student are in which of its constants: `eval/checks/weights.py` looks.

    A constant that is a sum names each part: positions have the row of token type 0 in them. Of equal vectors, which
    are stored once, the first has the name.
    """
    known = dict(graph.named_parameters())
    sums = {f"b_{INSIDE}_{buffer}": list(sources) for buffer, sources in graph.sources.items() if sources}
    in_file = {name: kind for op in read_package(path).operations for name, kind in op.outputs if _is_stored(op)}
    found: dict[str, list[str]] = {}
    for constant, weight in names.items():
        if weight not in known:
            continue
        # compressing and casting add to the name; the longest is what the program reads
        stored = max((name for name in in_file if _is_made_of(name, constant)), key=len, default=None)
        if stored is None and constant in sums:  # of one length: folded with its slice
            cut = (longest, known[weight].shape[1])
            stored = next((name for name, kind in in_file.items() if kind.shape[-2:] == cut), None)
        if stored is not None:
            found[stored] = sums.get(constant, [weight])
    (out / WEIGHT_NAMES).write_text(json.dumps({"constants": found}, indent=1) + "\n", "utf-8")


def _is_stored(op: Operation) -> bool:
    return op.kind.startswith("const")


def _is_made_of(name: str, constant: str) -> bool:
    rest = name.removeprefix(constant)
    return rest in MADE_OF if name.startswith(constant) else False


# --- what is written ---------------------------------------------------------------------------------------------


def _metadata(
    source: Path, params: Params, labels: Sequence[str] | None, lengths: Sequence[int], precision: str
) -> dict[str, str]:
    weights = sorted(source.glob("*.safetensors"))
    hashes = {file.name: sha256_of(file) for file in (source / "config.json", *weights)}
    wanted = {"min": lengths[0], "max": lengths[-1]} if isinstance(params.lengths, LengthRange) else list(lengths)
    return {
        "decant.version": version_of("decant") or "not installed",
        "decant.source_sha256": hashlib.sha256(json.dumps(hashes).encode()).hexdigest(),
        **({} if labels is None else {"decant.labels": json.dumps(list(labels), ensure_ascii=False)}),
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
    kind = "Text model"
    if "decant.labels" in facts:
        kind = f"Text classifier, {len(json.loads(facts['decant.labels']))} labels"
    about.shortDescription = f"{kind}, {facts['decant.precision']}."
    about.userDefined.clear()
    about.userDefined.update(facts)
    described = {
        "input_ids": "Token ids of one text, padded on the right with any id to one of the lengths.",
        "attention_mask": "1 for a token of the text, 0 for padding.",
        "logits": "Scores, in the order of the labels.",
        "start_logits": "Score of each token as the first of the answer.",
        "end_logits": "Score of each token as the last of the answer.",
        LABEL: "The most probable label.",
        PROBABILITIES: "Probability of every label.",
    }
    for feature in (*spec.description.input, *spec.description.output):
        feature.shortDescription = described[feature.name]
    file = path / SPECIFICATION
    file.unlink()  # a new file has the usual permissions; coremltools leaves one that only its owner can read
    file.write_bytes(spec.SerializeToString(deterministic=True))
    rewrite_manifest(path)


def _tools() -> dict[str, str | None]:
    return {name: version_of(name) for name in ("coremltools", "torch", "transformers")}


def _artefact(
    precision: str, lengths: tuple[int, ...], outputs: tuple[TensorFact, ...], params: Params, notes: Sequence[str]
) -> Artefact:
    said = [f"one text a call; {params.deployment_target} or later", *notes]
    if precision == "int8":
        said.append("8-bit weights; activations are fp16, so calibrated ranges are not used")
    return Artefact(
        format="coreml",
        precision=precision,
        file=FILE_NAME,
        inputs=tuple(
            TensorFact(name=name, dtype="int32", shape=(1, "length")) for name in ("input_ids", "attention_mask")
        ),
        outputs=outputs,
        lengths=lengths,
        max_length=lengths[-1],
        tools=_tools(),
        notes=tuple(said),
    )
