"""ORT, onnxruntime's own file format: what its reduced builds for phones and small devices load.

The file of `export.to_onnx`, already optimized, so that loading does no work, with the list of operators that a reduced
build of onnxruntime must hold (`--include_ops_by_config required_operators.config`).
"""

import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from export import to_onnx
from pipeline.base.errors import ExportError, first_line
from pipeline.base.machine import version_of
from pipeline.base.records import Artefact
from pipeline.quantization.plan import Plan

PRECISIONS = to_onnx.PRECISIONS
TOLERANCES = to_onnx.TOLERANCES  # the same operators on the same numbers
scheme = to_onnx.scheme
FILE = "model.ort"
OPERATORS = "required_operators.config"


class Params(to_onnx.Params):
    """`targets.<name>.options` of the format ort."""

    # Never onnxruntime's highest level, ORT_ENABLE_ALL: it lays weights out for the CPU that it runs on, and the file
    # then is slow or fails on another type of machine.
    optimization: Literal["extended", "basic"] = Field(
        default="extended",
        description="extended: operators fused for any CPU, from onnxruntime's own set; basic: ONNX's operators only, "
        "for builds without that set.",
    )


def convert(source: Path, out: Path, precision: str, params: Params, max_length: int, plan: Plan | None) -> Artefact:
    """Writes `model.ort` and `required_operators.config` into the existing empty folder `out`. Same source, same bytes.

    Args:
        source: a model folder, as `pipeline.models.checkpoints.load_classifier` reads it.
        out: where to write.
        precision: one of PRECISIONS.
        params: the exporter's options.
        max_length: longest input in tokens that will be used.
        plan: the quantization plan; needed for int8, None for fp32.

    Raises:
        ExportError: as `export.to_onnx.convert`, or onnxruntime cannot convert what that wrote.
    """
    if precision not in PRECISIONS:
        raise ExportError(f"ort cannot be written as '{precision}', expected one of {', '.join(PRECISIONS)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artefact = to_onnx.convert(
            source,
            folder,
            precision,
            to_onnx.Params(inputs=params.inputs, activations=params.activations),
            max_length,
            plan,
        )
        _save_as_ort(folder / artefact.file, folder / FILE, params.optimization)
        data = sort_kernel_table((folder / FILE).read_bytes())
    (out / FILE).write_bytes(data)
    (out / OPERATORS).write_text(_list_operators(data), "utf-8")
    return artefact.model_copy(
        update={
            "format": "ort",
            "file": FILE,
            "tools": artefact.tools | {"onnxruntime": version_of("onnxruntime")},
            "notes": (
                *artefact.notes,
                f"{OPERATORS} beside it lists the operators that a reduced build of onnxruntime must hold",
            ),
        }
    )


def _save_as_ort(source: Path, path: Path, optimization: str) -> None:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = {"basic": levels.ORT_ENABLE_BASIC, "extended": levels.ORT_ENABLE_EXTENDED}[
        optimization
    ]
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 3  # errors; they are raised as well
    try:
        # The fused operator that is left out is the one that `eval.runtimes.onnxruntime` leaves out, for its reason.
        onnxruntime.InferenceSession(
            str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
        )
    except (errors.Fail, errors.InvalidGraph, errors.NotImplemented, errors.RuntimeException) as error:
        raise ExportError(
            f"onnxruntime cannot convert the exported file: {first_line(error)}; report it with the model's "
            "configuration"
        ) from error


def _list_operators(data: bytes) -> str:
    """`domain;version;operator,operator,...` for each version, as a reduced build of onnxruntime reads it.

    Written here, because onnxruntime's own tool puts the folder of this machine into a comment.
    """
    graph = _read(data).Model().Graph()
    operators: dict[tuple[str, int], set[str]] = {}
    for node in (graph.Nodes(i) for i in range(graph.NodesLength())):
        domain = (node.Domain() or b"").decode() or "ai.onnx"
        operators.setdefault((domain, node.SinceVersion()), set()).add(node.OpType().decode())
    return "".join(
        f"{domain};{version};{','.join(sorted(names))}\n" for (domain, version), names in sorted(operators.items())
    )


def _read(data: bytes) -> Any:
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py import fbs

    return fbs.InferenceSession.InferenceSession.GetRootAs(data, 0)


# --- same bytes --------------------------------------------------------------------------------------------------


def sort_kernel_table(data: bytes) -> bytes:
    """The same file with its table of kernel types in alphabetical order; onnxruntime writes it in the order of a hash.

    A FlatBuffer is written from its end: the model first, then this table, then the root. So what stands before the
    model is written anew, and the bytes of the model stay.
    """
    import flatbuffers
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py import fbs

    session = _read(data)
    table = session.Model()._tab
    start = min(table.Pos, table.Pos - table.Get(flatbuffers.number_types.SOffsetTFlags, table.Pos))
    tail = data[start:]
    builder = flatbuffers.Builder(len(data) + 1024)
    builder.head -= len(tail)
    builder.Bytes[builder.head :] = tail
    builder.minalign = 16  # the alignment of weights, which is counted from the file's end
    version = builder.CreateString(session.OrtVersion())
    resolver = _copy_resolver(builder, session.KernelTypeStrResolver())
    place = fbs.InferenceSession
    place.InferenceSessionStart(builder)
    place.InferenceSessionAddOrtVersion(builder, version)
    place.InferenceSessionAddModel(builder, len(data) - table.Pos)
    place.InferenceSessionAddKernelTypeStrResolver(builder, resolver)
    builder.Finish(place.InferenceSessionEnd(builder), b"ORTM")
    return bytes(builder.Output())


def _copy_resolver(builder: Any, resolver: Any) -> int:
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py import fbs

    place = fbs.OpIdKernelTypeStrArgsEntry
    entries = [resolver.OpKernelTypeStrArgs(i) for i in range(resolver.OpKernelTypeStrArgsLength())]
    offsets = []
    for entry in sorted(entries, key=lambda one: one.OpId()):
        types = [entry.KernelTypeStrArgs(i) for i in range(entry.KernelTypeStrArgsLength())]
        copies = [_copy_types(builder, one) for one in sorted(types, key=lambda one: one.KernelTypeStr())]
        vector = _vector(builder, place.OpIdKernelTypeStrArgsEntryStartKernelTypeStrArgsVector, copies)
        name = builder.CreateString(entry.OpId())
        place.OpIdKernelTypeStrArgsEntryStart(builder)
        place.OpIdKernelTypeStrArgsEntryAddOpId(builder, name)
        place.OpIdKernelTypeStrArgsEntryAddKernelTypeStrArgs(builder, vector)
        offsets.append(place.OpIdKernelTypeStrArgsEntryEnd(builder))
    whole = fbs.KernelTypeStrResolver
    vector = _vector(builder, whole.KernelTypeStrResolverStartOpKernelTypeStrArgsVector, offsets)
    whole.KernelTypeStrResolverStart(builder)
    whole.KernelTypeStrResolverAddOpKernelTypeStrArgs(builder, vector)
    return whole.KernelTypeStrResolverEnd(builder)


def _copy_types(builder: Any, types: Any) -> int:
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py import fbs

    place, argument = fbs.KernelTypeStrArgsEntry, fbs.ArgTypeAndIndex
    offsets = []
    for one in (types.Args(i) for i in range(types.ArgsLength())):
        argument.ArgTypeAndIndexStart(builder)
        argument.ArgTypeAndIndexAddArgType(builder, one.ArgType())
        argument.ArgTypeAndIndexAddIndex(builder, one.Index())
        offsets.append(argument.ArgTypeAndIndexEnd(builder))
    vector = _vector(builder, place.KernelTypeStrArgsEntryStartArgsVector, offsets)
    name = builder.CreateString(types.KernelTypeStr())
    place.KernelTypeStrArgsEntryStart(builder)
    place.KernelTypeStrArgsEntryAddKernelTypeStr(builder, name)
    place.KernelTypeStrArgsEntryAddArgs(builder, vector)
    return place.KernelTypeStrArgsEntryEnd(builder)


def _vector(builder: Any, begin: Any, offsets: list[int]) -> int:
    begin(builder, len(offsets))
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()
