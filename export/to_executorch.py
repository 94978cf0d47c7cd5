"""ExecuTorch: a `.pte` program for the XNNPACK kernels of phone CPUs, in fp32 or 8-bit.

One text a call, of any length up to the longest: int32 `input_ids` and `attention_mask` of shape (1, L) go in by
position, since the format has no names; answers come out. A list of lengths would gain nothing: for 2 layers of 192, a
program of 16 tokens alone takes 0.566 ms and one of any length 0.570 ms, at 64 tokens 1.603 and 1.612 ms.

What was lowered is checked rather than what was meant: an 8-bit layer that XNNPACK does not take would run in kernels
that an app may not have (`_check_parts`).
"""

import copy
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from transformers import PreTrainedModel

from export.program import export_program
from export.source import load_model, output_facts
from pipeline.base import extras
from pipeline.base.errors import ExportError, first_line
from pipeline.base.machine import version_of
from pipeline.base.records import Artefact, TensorFact
from pipeline.families import DeploymentGraph, check_answers, deployment_graph
from pipeline.models.checkpoints import token_table
from pipeline.quantization.plan import TINY, Scheme, quantize_weight
from pipeline.settings.base import Settings

if TYPE_CHECKING:
    from pipeline.quantization.plan import Plan

PRECISIONS = ("fp32", "int8")
# Share of the spread of the reference logits. Measured: 63 made-up texts of 1 to 64 tokens, a trained 2-layer student.
TOLERANCES = {
    "fp32": 1.0e-4,  # the same sums in another order; measured 6e-7
    "int8": 0.15,  # weights to 1/254 of their channel's largest, activations to 1/255 of their token's range; 0.029
}
FILE, BUNDLE = "model.pte", "model.bpte"
INPUTS = ("input_ids", "attention_mask")  # in the program's order


class Params(Settings):
    """`targets.<name>.options` of the format executorch: there are none."""


def scheme(precision: str, params: Params) -> Scheme | None:
    """One range of activations a token; XNNPACK's kernels widen before they add, so pairs need no care."""
    return Scheme(activations="token") if precision == "int8" else None


def why_unusable() -> str | None:
    """Why it cannot write here, or None."""
    return extras.why_missing("executorch", "executorch", "torchao")


def convert(source: Path, out: Path, precision: str, params: Params, max_length: int, plan: "Plan | None") -> Artefact:
    """Writes `model.pte`, and `model.bpte` with inputs and answers to test it by, into the existing empty folder `out`.

    Args:
        source: a model folder, as `pipeline.models.checkpoints.load_classifier` reads it.
        out: where to write.
        precision: one of PRECISIONS. int8 is 8-bit weights and activations whose range is taken token by token as they
            come; attention between tokens, normalizations and the position table stay in fp32.
        params: the exporter's options.
        max_length: longest input in tokens that will be used; above 2.
        plan: the quantization plan; needed for int8, None for fp32. Its activation ranges are not used.

    Raises:
        ExportError: the precision and the plan do not belong together, the plan is of another model, max_length is
            beyond the model's positions, or what was lowered is not what was meant.
    """
    _check_request(precision, max_length, plan)
    model = load_model(source, max_length)
    layers = plan.modules_of(model, embeddings=False) if plan else []
    graph = deployment_graph(model, longest=max_length)
    graph.attend = _attend
    check_answers(model, graph, max_length)
    cases = _cases(model, graph.output_names, max_length)
    with _quiet():
        table = plan is not None and _quantize_table(model, graph, plan)
        try:
            program = export_program(graph, max_length, any_length=True)
            calls = _calls(program, layers)
            if plan is not None:
                program = _quantize(program, layers, max_length)
            parts = _divide(program)
            lowered = parts.to_executorch()
        except Exception as error:  # torch, torchao and ExecuTorch raise nearly every built-in class
            raise ExportError(
                f"ExecuTorch {version_of('executorch')} could not convert this '{model.config.model_type}' to "
                f"{precision}: {type(error).__name__}: {first_line(error)}; use the versions in requirements.lock"
            ) from error
        _check_parts(parts.exported_program().graph_module, calls)
        (out / FILE).write_bytes(lowered.buffer)
        (out / BUNDLE).write_bytes(_bundle(lowered, cases))
    shape: tuple[int | str, ...] = (1, "length")
    return Artefact(
        format="executorch",
        precision=precision,
        file=FILE,
        inputs=tuple(TensorFact(name=name, dtype="int32", shape=shape) for name in INPUTS),
        outputs=output_facts(graph, 1),
        max_length=max_length,
        tools={name: version_of(name) for name in ("executorch", "torch", "torchao", "transformers")},
        notes=_notes(plan, table),
    )


def _check_request(precision: str, max_length: int, plan: "Plan | None") -> None:
    if precision not in PRECISIONS:
        raise ExportError(f"executorch cannot be written as '{precision}', expected one of {', '.join(PRECISIONS)}")
    if (precision == "int8") != (plan is not None):
        raise ExportError(f"precision {precision} {'needs a' if precision == 'int8' else 'takes no'} quantization plan")
    if max_length < 3:
        raise ExportError(f"max_length is {max_length}, expected at least 3: two special tokens and a word; raise it")


def _notes(plan: "Plan | None", table: bool) -> tuple[str, ...]:
    notes = [
        "one text a call, inputs by position: input_ids, attention_mask",
        f"{BUNDLE} is the same program with inputs and the student's answers, for ExecuTorch's own test runners",
    ]
    if plan is None:
        return tuple(notes)
    notes.append("8-bit layers take one range of activations a token, so padding does not change them")
    if table:
        notes.append("the 8-bit word table needs ExecuTorch's quantized kernels in the app (kernels_quantized)")
    if plan.embeddings:
        notes.append("the position table stays in fp32: it is cut to max_length rows")
    if not plan.per_channel:
        notes.append("one scale a channel, though the plan has one a tensor: XNNPACK has no such 8-bit layer")
    if plan.exclude:
        notes.append(f"kept in fp32: {', '.join(plan.exclude)}")
    return (*notes, *plan.warnings)


# --- what is exported --------------------------------------------------------------------------------------------


def _attend(
    query: Float[Tensor, "batch heads queries size"],
    key: Float[Tensor, "batch heads length size"],
    value: Float[Tensor, "batch heads length size"],
    mask: Float[Tensor, "#batch #heads #queries length"],
) -> Float[Tensor, "batch heads queries size"]:
    """Attention as products of three axes, all of which XNNPACK takes, of one text or, to check it, of several.

    A product of four axes is lowered to three copies around one of three, which XNNPACK does not take: 16 pieces
    instead of 8 for two layers, and 8 to 15 % of the time.
    """
    if query.shape[0] > 1:
        texts = range(len(query))
        return torch.cat([_attend(*(part[i : i + 1] for part in (query, key, value, mask))) for i in texts])
    H, d = query.shape[1], query.shape[3]
    # -1 and not the length: XNNPACK takes a reshape with an inferred size, and none with a symbolic one
    q, k, v = (one.view(H, -1, d) for one in (query * (1 / math.sqrt(d)), key, value))
    scores = torch.bmm(q, k.transpose(1, 2)) + mask[0]  # (H, Q, K)
    return torch.bmm(scores.softmax(-1), v).view(1, H, -1, d)


# --- int8 --------------------------------------------------------------------------------------------------------


class _EightBitTable(nn.Module):
    """An embedding table of 8-bit codes, one scale a row."""

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Float[Tensor, "rows columns"], per_channel: bool) -> None:
        super().__init__()
        codes, scales = quantize_weight(weight, per_channel)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    def forward(self, ids: Int32[Tensor, "1 length"]) -> Float[Tensor, "1 length columns"]:
        lookup = torch.ops.quantized_decomposed.embedding_byte.dtype
        # the kernel ends the process on ids of 32 bits
        return lookup(self.codes, self.scales, None, -127, 127, ids.long(), dtype=torch.float32)


def _quantize_table(model: PreTrainedModel, graph: DeploymentGraph, plan: "Plan") -> bool:
    """Whether the word table was replaced by one of 8 bits, as the plan wants."""
    table = token_table(model)
    name = next(name for name, module in graph.named_modules() if module is table)
    if not plan.embeddings or name in plan.exclude:
        return False
    import executorch.exir.passes._quant_patterns_and_replacements  # declares the operator
    import executorch.kernels.quantized  # noqa: F401 - declares how it writes into given memory

    graph.set_submodule(name, _EightBitTable(table.weight.detach(), plan.per_channel))
    return True


def _quantize(program: ExportedProgram, layers: Sequence[str], max_length: int) -> ExportedProgram:
    """The program with 8-bit weights, and activations rounded to 8 bits in front of them."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    wanted = set(layers)
    quantizer = _quantizer().set_filter_function(lambda node: _layer_of(node) in wanted)
    # the guards would be exported as a module of their own
    prepared = prepare_pt2e(program.module(check_guards=False), quantizer)
    with torch.no_grad():
        prepared(*(torch.ones(1, max_length, dtype=torch.int32) for _ in INPUTS))  # weights are looked at on a call
    return export_program(convert_pt2e(prepared), max_length, any_length=True)


def _quantizer() -> Any:
    """XNNPACK's quantizer with scales as small as the weights want.

    Its own are at least 2^-12: a channel whose largest weight is below 127 x 2^-12 = 0.031 would lose bits.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import PerChannelMinMaxObserver

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    exact = replace(config.weight, observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=TINY))
    quantizer = XNNPACKQuantizer().set_global(replace(config, weight=exact))
    # It would make floats of whole numbers in sums and products, those that RoBERTa counts positions with among them,
    # to prepare 8-bit sums and products; only layers are 8-bit here.
    quantizer.transform_for_annotation = lambda model: model
    return quantizer


def _layer_of(node: Node) -> str:
    """The classifier's name of the module that a node comes from, such as 'bert.pooler.dense'."""
    path, _ = list(node.meta["nn_module_stack"].values())[-1]
    return re.sub(r"@\d+", "", path)  # how often the module was called before


def _calls(program: ExportedProgram, layers: Sequence[str]) -> int:
    """How often these layers are called: once each, but for what a model goes through several times."""
    wanted, linear = set(layers), torch.ops.aten.linear.default
    return sum(node.target is linear and _layer_of(node) in wanted for node in program.graph.nodes)


def _check_parts(graph: GraphModule, calls: int) -> None:
    """Raises ExportError unless XNNPACK takes each call of an 8-bit layer."""
    from executorch.exir.lowered_backend_module import LoweredBackendModule

    taken = [part.original_module.graph for part in graph.children() if isinstance(part, LoweredBackendModule)]
    inside = sum("dequantize_per_channel" in str(node.target) for part in taken for node in part.nodes)
    outside = [node.name for node in graph.graph.nodes if "quantize_per" in str(node.target)]
    if outside or inside != calls:
        raise ExportError(
            f"XNNPACK takes {inside} calls of 8-bit layers and leaves {outside or 'nothing'} to other kernels, "
            f"expected {calls} and nothing left; use the versions in requirements.lock"
        )


# --- lowering and what is written --------------------------------------------------------------------------------


def _divide(program: ExportedProgram) -> Any:
    """The program divided into what XNNPACK takes and the rest, such as table look-ups and normalizations.

    One partitioner for float and 8-bit. ExecuTorch's documents put one for 8-bit layers in front of it; that gives
    the same answers from 20 parts instead of 10 for 2 layers, 1 to 3 % slower.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])


def _cases(
    model: PreTrainedModel, names: Sequence[str], max_length: int
) -> list[tuple[tuple[Tensor, Tensor], list[Tensor]]]:
    """(inputs, the model's own answers) for made-up ids of the shortest, a middle and the longest length.

    Answers are summed in float64: in float32 the last bit depends on the number of threads, and with it the bytes.
    """
    exact = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(0)
    cases = []
    for length in sorted({2, max(2, max_length // 2), max_length}):
        ids = torch.randint(0, model.config.vocab_size, (1, length), generator=generator, dtype=torch.int32)
        mask = torch.ones_like(ids)
        with torch.no_grad():
            answers = exact(input_ids=ids.long(), attention_mask=mask.long())
        cases.append(((ids, mask), [answers[name].float() for name in names]))
    return cases


def _bundle(lowered: Any, cases: Sequence[tuple[tuple[Tensor, Tensor], list[Tensor]]]) -> bytes:
    from executorch.devtools import BundledProgram
    from executorch.devtools.bundled_program.config import MethodTestCase, MethodTestSuite
    from executorch.devtools.bundled_program.serialize import serialize_from_bundled_program_to_flatbuffer

    suite = MethodTestSuite("forward", [MethodTestCase(inputs, answers) for inputs, answers in cases])
    return serialize_from_bundled_program_to_flatbuffer(BundledProgram(lowered, [suite]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Drops the warnings of torch and ExecuTorch that are about themselves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", r"(read_text|open_text|read_binary) is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", r"`torch\.jit\.script", DeprecationWarning)
        yield
