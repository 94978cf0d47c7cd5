"""The exported program answers as the model, is 8-bit where the plan says, and is the same bytes every time."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from fakes import named
from torch import nn
from toy_models import FAMILIES, shallow_model, toy_model

from eval import parity
from eval.runtimes import executorch as runtime
from eval.runtimes import pytorch
from export import to_executorch
from export.to_executorch import BUNDLE, FILE, TOLERANCES, Params, convert
from pipeline.base.errors import ExportError
from pipeline.families import deployment_graph
from pipeline.models.checkpoints import save_classifier
from pipeline.models.students import build_student
from pipeline.quantization.plan import Plan, Scheme, quantizable_modules, quantize_weight
from pipeline.settings.student import StudentSettings

pytest.importorskip("executorch", reason="the extra 'executorch' is not installed")

LONGEST = 12
KEPT = "bert.encoder.layer.0.output.dense"
TABLE = "bert.embeddings.word_embeddings"
PLAN = Plan(
    scheme=Scheme(activations="token"),
    per_channel=True,
    embeddings=True,
    exclude=(KEPT,),
    sensitivity_rows=1,
    dev_rows=1,
    fp32_score=1.0,
    int8_score=1.0,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A toy model of one layer, one channel of it all zero and one of tiny weights, and its folder."""
    model = toy_model(attention="sdpa", num_hidden_layers=1)
    with torch.no_grad():
        weight = model.bert.encoder.layer[0].attention.self.query.weight
        weight[0] = 0
        weight[1] *= 1e-4
    folder = tmp_path_factory.mktemp("source")
    save_classifier(model, folder)
    return model, folder


@pytest.fixture(scope="module")
def fp32(saved, tmp_path_factory):
    """The folder of the program and its record."""
    out = tmp_path_factory.mktemp("fp32")
    return out, convert(saved[1], out, "fp32", Params(), LONGEST, None)


@pytest.fixture(scope="module")
def int8(saved, tmp_path_factory):
    """The same in 8 bits, without one layer."""
    out = tmp_path_factory.mktemp("int8")
    return out, convert(saved[1], out, "int8", Params(), LONGEST, PLAN)


@pytest.mark.slow  # a conversion of its own
def test_a_factorised_table_is_8_bit_too(tmp_path):
    """The narrow table is the plan's, and its projection a layer like others."""
    model = build_student(toy_model(), StudentSettings(layers=1, embedding=8), seed=0).eval()
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir(), out.mkdir()
    save_classifier(model, source)
    artefact = convert(source, out, "int8", Params(), LONGEST, PLAN.model_copy(update={"exclude": ()}))
    assert difference(source, (out, artefact), TOLERANCES["int8"]).same_label > 0.9
    assert any("8-bit word table" in note for note in artefact.notes)
    kernels = runtime.count_kernels(out, artefact)
    assert (kernels.integer, kernels.float_weights) == (9, ())  # six of the layer, projection, pooler and classifier


def texts():
    """Two unpadded texts of every length."""
    rng = np.random.default_rng(0)
    for length in (*range(1, LONGEST + 1), *range(1, LONGEST + 1)):
        yield named(rng.integers(2, 60, (1, length)), np.ones((1, length), np.int64))


def difference(folder, exported, tolerance):
    with runtime.open_session(*exported, 1) as candidate, pytorch.open_session(folder, None, 1) as reference:
        return parity.check(candidate, reference, texts(), tolerance)


def weights_of(model):
    """Module -> (weights as 8-bit codes, weights in fp32), as bytes."""
    found = {}
    for name in [*quantizable_modules(model, embeddings=False), TABLE]:
        weight = model.get_submodule(name).weight.detach()
        found[name] = quantize_weight(weight, True)[0].numpy().tobytes(), weight.numpy().tobytes()
    return found


def test_fp32_answers_as_pytorch(saved, fp32):
    """To rounding, at every length, that of a single token included."""
    assert difference(saved[1], fp32, TOLERANCES["fp32"]).worst_difference < 1e-5


def test_int8_answers_close_to_pytorch(saved, int8):
    """Within the tolerance, and not to rounding, or nothing would be 8-bit."""
    found = difference(saved[1], int8, TOLERANCES["int8"])
    assert found.worst_difference > 1e-3 and found.same_label >= 0.8


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_padding_does_not_change_an_answer(request, precision):
    """Neither that it is there nor what stands in it, to the last bit: a range of activations is one token's."""
    rng = np.random.default_rng(1)
    ids = rng.integers(2, 60, (1, LONGEST))
    mask = (np.arange(LONGEST) < 5).astype(np.int64)[None]
    with runtime.open_session(*request.getfixturevalue(precision), 1) as session:
        first = session.run(named(ids, mask))["logits"]
        garbage = np.where(mask == 1, ids, rng.integers(2, 60, ids.shape))
        np.testing.assert_array_equal(session.run(named(garbage, mask))["logits"], first)
        np.testing.assert_array_equal(session.run(named(ids[:, :5], mask[:, :5]))["logits"], first)


def test_the_weights_in_the_file_are_those_of_the_plan(saved, int8):
    """PyTorch's quantizer agrees with ours on every code, a channel of zeros included; what the plan keeps is fp32."""
    content = (int8[0] / FILE).read_bytes()
    for name, (codes, weights) in weights_of(saved[0]).items():
        assert (codes in content, weights in content) == ((False, True) if name == KEPT else (True, False)), name


def test_fp32_weights_are_in_the_file_once(saved, fp32):
    """All of them, and of the positions only the rows that are used, summed with the token type."""
    content = (fp32[0] / FILE).read_bytes()
    assert all(content.count(weights) == 1 for _, weights in weights_of(saved[0]).values())
    embeddings = saved[0].bert.embeddings
    positions = (embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]).detach()
    assert positions[:LONGEST].numpy().tobytes() in content
    assert positions[: LONGEST + 1].numpy().tobytes() not in content


def test_int8_runs_in_quantized_kernels(fp32, int8):
    """Its table outside XNNPACK's parts, all else inside; and the file is smaller."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    operators = []
    for folder, artefact in (fp32, int8):
        program = deserialize_pte_binary((folder / artefact.file).read_bytes()).program
        operators.append({operator.name for operator in program.execution_plan[0].operators})
    assert not any("quantized" in name for name in operators[0])
    assert {name for name in operators[1] if "quantize" in name} == {"quantized_decomposed::embedding_byte"}
    assert "aten::embedding" in operators[0] and "aten::embedding" not in operators[1]
    assert not any(name in operators[0] for name in ("aten::bmm", "aten::addmm", "aten::linear", "aten::expand_copy"))
    assert (int8[0] / FILE).stat().st_size < 0.8 * (fp32[0] / FILE).stat().st_size


def test_layers_that_xnnpack_did_not_take_are_refused():
    """Too few 8-bit layers, or one that is left to other kernels."""
    graph = torch.fx.symbolic_trace(nn.Identity())
    to_executorch._check_parts(graph, 0)
    with pytest.raises(ExportError, match=r"takes 0 calls of 8-bit layers and .* expected 2 and"):
        to_executorch._check_parts(graph, 2)
    with graph.graph.inserting_before(next(node for node in graph.graph.nodes if node.op == "output")):
        graph.graph.create_node("call_function", torch.add, name="x").target = "dequantize_per_channel"
    with pytest.raises(ExportError, match=r"leaves \['x'\] to other kernels"):
        to_executorch._check_parts(graph, 0)


def test_exported_again_gives_the_same_bytes(saved, fp32, tmp_path, capfd):
    """In silence, and without a path of this machine in them."""
    again = convert(saved[1], tmp_path, "fp32", Params(), LONGEST, None)
    assert capfd.readouterr() == ("", "")
    assert again == fp32[1]
    for name in (FILE, BUNDLE):
        content = (tmp_path / name).read_bytes()
        assert content == (fp32[0] / name).read_bytes()
        for trace in (str(tmp_path), "site-packages", "/work", "/tmp", "/root", "/home", ".py"):
            assert trace.encode() not in content


@pytest.mark.slow  # a second process imports ExecuTorch; the same process has a fast test
def test_another_process_gives_the_same_bytes(saved, int8, tmp_path):
    """With another hash seed. Slow: imports torch and ExecuTorch again."""
    code = (
        "import sys; from pathlib import Path; from export.to_executorch import Params, convert;"
        "from pipeline.quantization.plan import Plan; plan = Plan.model_validate_json(sys.argv[3]);"
        f"convert(Path(sys.argv[1]), Path(sys.argv[2]), 'int8', Params(), {LONGEST}, plan)"
    )
    subprocess.run(
        [sys.executable, "-c", code, saved[1], tmp_path, PLAN.model_dump_json()],
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": "."},
    )
    for name in (FILE, BUNDLE):
        assert (tmp_path / name).read_bytes() == (int8[0] / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"bert"}))
def test_other_families_answer_as_pytorch(tmp_path, family, precision):
    """With their own numbering of positions, narrow embeddings and attention. Slow: a conversion for each."""
    model = shallow_model(family)
    (tmp_path / "source").mkdir()
    (tmp_path / "out").mkdir()
    save_classifier(model, tmp_path / "source")
    plan = PLAN.model_copy(update={"exclude": ()}) if precision == "int8" else None
    artefact = convert(tmp_path / "source", tmp_path / "out", precision, Params(), LONGEST, plan)
    difference(tmp_path / "source", (tmp_path / "out", artefact), TOLERANCES[precision])


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-4), ("int8", 1.0)])
def test_the_bundle_holds_answers_that_the_program_gives(request, precision, atol):
    """ExecuTorch's own comparison finds the student's answers for the shortest, a middle and the longest text."""
    runtime.prepare(*request.getfixturevalue(precision))
    from executorch.extension.pybindings import portable_lib

    content = (request.getfixturevalue(precision)[0] / BUNDLE).read_bytes()
    bundle = portable_lib._load_bundled_program_from_buffer(content)
    for case in range(3):
        bundle.verify_result_with_bundled_expected_output("forward", case, rtol=0, atol=atol)
        if precision == "int8":  # it does compare
            with pytest.raises(RuntimeError, match="Result verification failed"):
                bundle.verify_result_with_bundled_expected_output("forward", case, rtol=0, atol=1e-6)
    with pytest.raises(RuntimeError):
        bundle.verify_result_with_bundled_expected_output("forward", 3, rtol=0, atol=atol)


def test_the_record_says_what_was_written(fp32, int8):
    """Names in the program's order, types, the free length, versions, and what an app must have."""
    out, artefact = int8
    assert (artefact.format, artefact.precision, artefact.file) == ("executorch", "int8", "model.pte")
    assert [(fact.name, fact.dtype, fact.shape) for fact in artefact.inputs] == [
        ("input_ids", "int32", (1, "length")),
        ("attention_mask", "int32", (1, "length")),
    ]
    assert artefact.outputs[0].shape == (1, 3) and artefact.lengths is None and artefact.max_length == LONGEST
    assert None not in artefact.tools.values()
    assert f"kept in fp32: {KEPT}" in artefact.notes
    assert any("kernels_quantized" in note for note in artefact.notes)
    assert not any("8-bit" in note for note in fp32[1].notes)
    assert sorted(path.name for path in out.iterdir()) == ["model.bpte", "model.pte"]


def test_what_the_plan_asks_and_the_format_has_not_is_said():
    """One scale for all channels, and a position table of 8 bits."""
    asked = PLAN.model_copy(update={"per_channel": False, "exclude": (), "warnings": ("one",)})
    notes = to_executorch._notes(asked, table=False)
    for words in (
        "XNNPACK has no such 8-bit layer",
        "the position table stays in fp32",
    ):
        assert any(words in note for note in notes)
    assert notes[-1] == "one" and not any("kernels_quantized" in note for note in notes)


@pytest.mark.parametrize("change", [{"embeddings": False}, {"exclude": (TABLE,)}])
def test_the_word_table_stays_in_fp32_when_asked(saved, change):
    """Whether tables are left out as such, or this one by its name."""
    graph = deployment_graph(saved[0])
    table = graph.bert.embeddings.word_embeddings
    assert not to_executorch._quantize_table(saved[0], graph, PLAN.model_copy(update=change))
    assert graph.bert.embeddings.word_embeddings is table


def test_settings_that_do_not_fit_are_refused(saved, tmp_path):
    """Each with its reason."""
    unknown = PLAN.model_copy(update={"exclude": ("bert.encoder.layer.9.output.dense",)})
    for precision, plan, length, message in (
        ("fp16", None, LONGEST, "cannot be written as 'fp16', expected one of fp32, int8"),
        ("int8", None, LONGEST, "int8 needs a quantization plan"),
        ("fp32", PLAN, LONGEST, "fp32 takes no quantization plan"),
        ("fp32", None, 2, "max_length is 2, expected at least 3"),
        ("fp32", None, 41, "max_length is 41, but the model has positions for 40"),
        (
            "int8",
            unknown,
            LONGEST,
            r"names the module 'bert\.encoder\.layer\.9\.output\.dense', which the",
        ),
    ):
        with pytest.raises(ExportError, match=message):
            convert(saved[1], tmp_path, precision, Params(), length, plan)
    assert set(to_executorch.PRECISIONS) == set(TOLERANCES)


def test_a_failure_of_executorch_names_the_model_and_the_precision(saved, tmp_path, monkeypatch):
    """Rather than a traceback of a compiler."""

    def fail(program):
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr(to_executorch, "_divide", fail)
    with pytest.raises(ExportError, match=r"this 'bert' to fp32: RuntimeError: no such operator; use the versions in"):
        convert(saved[1], tmp_path, "fp32", Params(), LONGEST, None)
    assert not list(tmp_path.iterdir())


def test_it_says_why_it_cannot_write(monkeypatch):
    """A missing package is a reason, with the command that installs it."""
    assert to_executorch.why_unusable() is None
    monkeypatch.setattr(to_executorch.extras.util, "find_spec", lambda name: None)
    assert to_executorch.why_unusable() == (
        "not installed: executorch, torchao; run: pip install -c requirements.lock '.[executorch]'"
    )
