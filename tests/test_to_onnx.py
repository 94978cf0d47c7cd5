"""What is exported answers as the model, is what the plan says, and is the same bytes every time."""

import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from fakes import named, slow_but
from onnx import numpy_helper
from pydantic import ValidationError
from test_quantization import answer, toy_examples
from toy_models import TASK, toy_model

from eval import parity
from eval.runtimes import onnxruntime, pytorch
from export import onnx_int8, source, to_onnx
from export.to_onnx import TOLERANCES, Params, convert, module_of
from pipeline.base.errors import ExportError
from pipeline.data.batches import pad
from pipeline.families._post_norm import PostNorm
from pipeline.models.checkpoints import load_classifier, save_classifier
from pipeline.models.students import build_student
from pipeline.quantization.plan import Scheme, fake_quantized, make_plan, quantizable_modules
from pipeline.settings.quantize import Calibration, QuantizeSettings
from pipeline.settings.student import StudentSettings

FAMILIES = ("bert", "distilbert", "roberta", "electra", "albert", "mpnet", "modernbert")
ATTENTION = {"electra": "eager", "mpnet": "eager"}
LOOSE = QuantizeSettings(allowed_drop=100)
DYNAMIC = Scheme(activations="example", pair_safe=True)
STATIC = Scheme(activations="fixed", pair_safe=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One saved toy model of each family, and a student with a factorised embedding."""
    saved = {}
    for family in FAMILIES:
        saved[family] = toy_model(family, ATTENTION.get(family, "sdpa"))
    settings = StudentSettings(layers=2, embedding=8)
    saved["factorised"] = build_student(toy_model("bert"), settings, seed=0).eval()
    folders = {}
    for name, model in saved.items():
        folders[name] = tmp_path_factory.mktemp(name)
        save_classifier(model, folders[name])
    return {name: (saved[name], folders[name]) for name in saved}


def plan_of(model, scheme, **changes):
    settings = LOOSE.model_copy(update=changes)
    examples = toy_examples(12, "dev"), toy_examples(100, "train", seed=1)
    return make_plan(model, *examples, TASK, settings, scheme, sensitivity_rows=2)


WRITTEN = {}  # an export takes seconds, and several tests look at the same file


def exported(folder, out, plan=None, params=None, max_length=20, anew=False):
    key = (folder, plan.model_dump_json() if plan else None, params.model_dump_json() if params else None, max_length)
    if anew or key not in WRITTEN:
        out.mkdir()
        artefact = convert(folder, out, "int8" if plan else "fp32", params or Params(), max_length, plan)
        if anew:
            return artefact, onnx.load(out / artefact.file)
        WRITTEN[key] = artefact, out
    artefact, first = WRITTEN[key]
    if out != first:
        shutil.copytree(first, out)
    return artefact, onnx.load(out / artefact.file)


def single_texts(count=20):
    """Batches of one unpadded text, as on a phone."""
    for sequence in toy_examples(count, "test", seed=5).ids:
        batch = pad([sequence], 0)
        yield {name: values.numpy() for name, values in batch.items()}


def difference(folder, out, artefact, tolerance):
    with (
        onnxruntime.open_session(out, artefact, 1) as candidate,
        pytorch.open_session(folder, None, 1) as reference,
    ):
        return parity.check(candidate, reference, single_texts(), tolerance)


def operators(model):
    return [node.op_type for node in model.graph.node]


def quantized_modules(model):
    """The modules whose weight is 8-bit; projections that were merged are named together, with + between them."""
    names = [tensor.name for tensor in model.graph.initializer if tensor.name.endswith(".weight_int8")]
    return sorted(module for name in names for module in name.removesuffix(".weight_int8").split("+"))


@pytest.mark.parametrize("name", [*FAMILIES, "factorised"])
def test_fp32_answers_as_pytorch(models, tmp_path, name):
    """To rounding, for padded batches of several lengths and sizes, with two inputs and one output."""
    model, folder = models[name]
    artefact, graph = exported(folder, tmp_path / "out")
    assert difference(folder, tmp_path / "out", artefact, TOLERANCES["fp32"]).worst_difference < 1e-5
    assert [value.name for value in graph.graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in graph.graph.output] == ["logits"]
    pad_id = model.config.pad_token_id
    with onnxruntime.open_session(tmp_path / "out", artefact, 1) as session:
        for count in (1, 2, 9):
            rows = toy_examples(count, "x", seed=count)
            batch = pad(rows.ids, pad_id)
            found = session.run(named(batch["input_ids"].numpy(), batch["attention_mask"].numpy()))["logits"]
            np.testing.assert_allclose(found, answer(model, rows).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, DYNAMIC) for name in [*FAMILIES, "factorised"]),
        *((name, STATIC) for name in ("bert", "modernbert", "factorised")),
        *(
            pytest.param(name, STATIC, marks=pytest.mark.slow)
            for name in FAMILIES
            if name not in ("bert", "modernbert")
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value.activations,
)
def test_int8_answers_as_the_plan_imitated(models, tmp_path, name, settings, monkeypatch):
    """Close to fp32, and much closer to the imitation in PyTorch that the plan was chosen by.

    With every position of the last layer, since dynamic ranges are else those of one token there.
    """
    model, folder = models[name]
    if settings is DYNAMIC:
        monkeypatch.setattr(PostNorm, "reads_first", lambda *_: False)
    plan = plan_of(model, settings)
    artefact, graph = exported(folder, tmp_path / "out", plan, anew=settings is DYNAMIC)
    against_fp32 = difference(folder, tmp_path / "out", artefact, TOLERANCES["int8"])
    assert against_fp32.same_label >= 0.9
    rows = toy_examples(20, "test", seed=5)
    with fake_quantized(model, quantizable_modules(model, True), True, plan.scheme, plan.ranges):
        imitated = answer(model, rows).numpy()
    with onnxruntime.open_session(tmp_path / "out", artefact, 1) as session:
        found = np.concatenate([session.run(batch)["logits"] for batch in single_texts()])
    # not equal: a value on the edge between two steps may fall on either side
    assert np.abs(found - imitated).mean() < against_fp32.mean_difference * np.ptp(imitated) / 2
    biases = {"mpnet.encoder.relative_attention_bias"}
    assert quantized_modules(graph) == sorted(set(quantizable_modules(model, True)) - biases)
    assert ("MatMulInteger" in operators(graph)) == (settings is DYNAMIC)
    assert ("QuantizeLinear" in operators(graph)) == (settings is STATIC)
    assert {opset.domain for opset in graph.opset_import} == {""}


def test_weights_agree_with_onnxruntimes_quantizer(models, tmp_path):
    """An independent implementation gives the same 8-bit weights and scales for every linear layer."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, folder = models["bert"]
    exported(folder, tmp_path / "fp32")
    _, ours = exported(folder, tmp_path / "int8", plan_of(model, Scheme(activations="example")))
    quantize_dynamic(
        tmp_path / "fp32/model.onnx", tmp_path / "theirs.onnx", per_channel=True, weight_type=QuantType.QInt8
    )
    held = [
        {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
        for graph in (ours, onnx.load(tmp_path / "theirs.onnx"))
    ]
    theirs = {}
    for node in onnx.load(tmp_path / "theirs.onnx").graph.node:
        if node.op_type == "MatMulInteger":
            module = re.sub(r"_quant$", "", module_of(node.name))
            weight = held[1][node.input[1]]
            theirs[module] = weight, held[1][node.input[1].replace("_quantized", "_scale")]
    assert sorted(theirs) == sorted(quantizable_modules(model, False))
    joined = [name.removesuffix(".weight_int8") for name in held[0] if name.endswith(".weight_int8")]
    for name in (name for name in joined if "embeddings" not in name):
        weights, scales = zip(*(theirs[module] for module in name.split("+")), strict=True)
        np.testing.assert_array_equal(held[0][f"{name}.weight_int8"], np.concatenate(weights, axis=1))
        np.testing.assert_allclose(held[0][f"{name}.weight_scale"], np.concatenate(scales), rtol=1e-6)


@pytest.mark.parametrize("settings", slow_but([DYNAMIC, STATIC], DYNAMIC), ids=["dynamic", "static"])
@pytest.mark.parametrize(
    "module", ["bert.encoder.layer.1.output.dense", "classifier", "bert.embeddings.word_embeddings"]
)
def test_an_excluded_module_really_stays_in_fp32(models, tmp_path, module, settings):
    """Its own weight is in the file as it was, read by a float operator; all others are 8-bit."""
    model, folder = models["bert"]
    plan = plan_of(model, settings).model_copy(update={"exclude": (module,)})
    artefact, graph = exported(folder, tmp_path / "out", plan)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    (name,) = [name for name in held if name in (f"{module}.weight", f"{module}.weight.transposed")]
    weight = model.get_submodule(module).weight.detach().numpy()
    np.testing.assert_array_equal(held[name].T if name.endswith("transposed") else held[name], weight)
    (reader,) = [node for node in graph.graph.node if name in node.input]
    assert reader.op_type in {"MatMul", "Gemm", "Gather"} and module_of(reader.name) == module
    assert quantized_modules(graph) == sorted(set(quantizable_modules(model, True)) - {module})
    assert any(module in note for note in artefact.notes)
    difference(folder, tmp_path / "out", artefact, TOLERANCES["int8"])


def test_excluding_everything_gives_the_fp32_answers(models, tmp_path):
    """Then nothing is left to differ."""
    model, folder = models["distilbert"]
    plan = plan_of(model, DYNAMIC).model_copy(update={"exclude": tuple(quantizable_modules(model, True))})
    artefact, _ = exported(folder, tmp_path / "out", plan)
    assert difference(folder, tmp_path / "out", artefact, 1e-4).worst_difference < 1e-5


def test_a_plan_of_another_model_is_refused(models, tmp_path):
    """An unknown module, with the nearest that exists; and a range that is missing."""
    model, folder = models["bert"]
    plan = plan_of(model, STATIC)
    wrong = plan.model_copy(update={"exclude": ("bert.encoder.layer.9.output.dense",)})
    with pytest.raises(
        ExportError, match=r"names the module 'bert\.encoder\.layer\.9\.output\.dense'.*did you mean 'bert"
    ):
        exported(folder, tmp_path / "a", wrong)
    ranges = {name: found for name, found in plan.ranges.items() if name != "classifier"}
    with pytest.raises(ExportError, match="no fixed range for module 'classifier'"):
        exported(folder, tmp_path / "b", plan.model_copy(update={"ranges": ranges}))


def test_a_module_without_a_node_is_refused(models, tmp_path, monkeypatch):
    """A layer that the graph does not compute with cannot be quantized in silence."""
    model, folder = models["bert"]
    plan = plan_of(model, DYNAMIC)

    def load_with_extra(path):
        loaded = load_classifier(path)
        loaded.bert.extra = torch.nn.Linear(4, 4)
        return loaded

    monkeypatch.setattr(source, "load_classifier", load_with_extra)
    with pytest.raises(ExportError, match=r"module 'bert\.extra' has no node with its weight"):
        exported(folder, tmp_path / "out", plan, anew=True)


@pytest.mark.parametrize("method", slow_but(["minmax", "entropy", "percentile"], "entropy", "percentile"))
def test_static_ranges_of_every_method_are_in_the_file(models, tmp_path, method):
    """Scale and zero point of a layer's input are those of the plan."""
    model, folder = models["bert"]
    plan = plan_of(model, STATIC, calibration=Calibration(method=method))
    artefact, graph = exported(folder, tmp_path / "out", plan)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    low, high = plan.ranges["classifier"]
    scale = (max(high, 0) - min(low, 0)) / 255
    (node,) = [one for one in graph.graph.node if one.name == "/classifier/QuantizeLinear"]
    assert held[node.input[1]] == pytest.approx(scale, rel=1e-6)
    assert held[node.input[2]] == round(-min(low, 0) / scale)
    # entropy may clip a range of random weights hard, so only the other two are held to the tolerance
    difference(folder, tmp_path / "out", artefact, TOLERANCES["int8"] if method != "entropy" else 1.0)


@pytest.mark.parametrize("scheme", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_one_scale_for_all_channels(models, tmp_path, scheme):
    """per_channel: false writes a single scale."""
    model, folder = models["bert"]
    plan = plan_of(model, scheme, per_channel=False)
    artefact, graph = exported(folder, tmp_path / "out", plan)
    scales = [tensor for tensor in graph.graph.initializer if tensor.name.endswith("weight_scale")]
    assert scales
    for tensor in scales:
        merged = tensor.name.count("+")
        assert len(np.unique(numpy_helper.to_array(tensor))) <= 1 + merged and (merged or list(tensor.dims) == [])
    difference(folder, tmp_path / "out", artefact, 0.5)


def test_tables_stay_in_fp32_when_asked(models, tmp_path):
    """embeddings: false leaves Gather as it is."""
    model, folder = models["bert"]
    plan = plan_of(model, DYNAMIC, embeddings=False)
    _, graph = exported(folder, tmp_path / "out", plan)
    assert quantized_modules(graph) == sorted(quantizable_modules(model, False))


@pytest.mark.parametrize("scheme", [DYNAMIC, STATIC], ids=["dynamic", "static"])
def test_a_channel_of_zeros_gives_finite_answers(tmp_path, scheme):
    """Its scale is 1, and the plan's warning is in the artefact's notes."""
    model = toy_model()
    with torch.no_grad():
        for weight in (model.bert.pooler.dense.weight, model.bert.encoder.layer[0].output.dense.weight):
            weight.zero_()
        model.bert.pooler.dense.bias.zero_()  # then the classifier's input is always 0
    (tmp_path / "model").mkdir()
    save_classifier(model, tmp_path / "model")
    plan = plan_of(model, scheme)
    artefact, graph = exported(tmp_path / "model", tmp_path / "out", plan)
    scales = [numpy_helper.to_array(t) for t in graph.graph.initializer if "scale" in t.name]
    assert all(np.isfinite(scale).all() and (scale > 0).all() for scale in scales)
    with onnxruntime.open_session(tmp_path / "out", artefact, 1) as session:
        assert all(np.isfinite(session.run(batch)["logits"]).all() for batch in single_texts())
    assert any("all zero" in note for note in artefact.notes)


def test_two_modules_with_equal_weights_are_both_quantized(tmp_path):
    """One copy of equal weights may be kept; each module still has its 8-bit product."""
    model = toy_model()
    layers = model.bert.encoder.layer
    layers[1].load_state_dict(layers[0].state_dict())
    (tmp_path / "model").mkdir()
    save_classifier(model, tmp_path / "model")
    artefact, graph = exported(tmp_path / "model", tmp_path / "out", plan_of(model, DYNAMIC))
    kinds = Counter(operators(graph))
    assert kinds["MatMulInteger"] == 15 and kinds["MatMul"] == 2 * 3 and "Gemm" not in kinds
    difference(tmp_path / "model", tmp_path / "out", artefact, TOLERANCES["int8"])


@pytest.mark.parametrize("module", slow_but(["query", "key", "value"], "value"))
def test_an_excluded_projection_is_not_merged(models, tmp_path, module):
    """The other two still are, and it stays in fp32 under its own name."""
    model, folder = models["bert"]
    name = f"bert.encoder.layer.0.attention.self.{module}"
    plan = plan_of(model, DYNAMIC).model_copy(update={"exclude": (name,)})
    artefact, graph = exported(folder, tmp_path / "out", plan)
    held = [tensor.name for tensor in graph.graph.initializer]
    others = [f"bert.encoder.layer.0.attention.self.{one}" for one in ("query", "key", "value") if one != module]
    assert f"{'+'.join(others)}.weight_int8" in held
    assert quantized_modules(graph) == sorted(set(quantizable_modules(model, True)) - {name})
    assert f"{name}.weight.transposed" in held
    difference(folder, tmp_path / "out", artefact, TOLERANCES["int8"])


@pytest.mark.parametrize("name", slow_but(["bert", "distilbert", "roberta"], "bert"))
def test_ranges_of_one_token_are_no_farther_from_fp32(models, tmp_path, name, monkeypatch):
    """The last layer of a dynamic file is quantized by the first token's values alone, padding or not."""
    model, folder = models[name]
    plan = plan_of(model, DYNAMIC)
    artefact, _ = exported(folder, tmp_path / "one", plan)
    lean = difference(folder, tmp_path / "one", artefact, TOLERANCES["int8"])
    monkeypatch.setattr(PostNorm, "reads_first", lambda *_: False)
    artefact, _ = exported(folder, tmp_path / "all", plan, anew=True)
    whole = difference(folder, tmp_path / "all", artefact, TOLERANCES["int8"])
    # 20 texts of a random model: the two errors are draws of the same size
    assert lean.mean_difference < 1.5 * whole.mean_difference


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_may_stand_anywhere(models, tmp_path, name):
    """Masks with holes, for any batch and length, in onnxruntime without rewrites of its own, as in PyTorch."""
    model, folder = models[name]
    exported(folder, tmp_path / "out")
    session = raw_session(tmp_path / "out", optimized=False)
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (1, 7), (3, 7), (3, 20)):
        ids, mask = rng.integers(2, 60, shape), rng.integers(0, 2, shape)
        mask[:, 0] = 1
        with torch.no_grad():
            expected = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits
        (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def raw_session(folder, optimized=True):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("settings", slow_but([None, DYNAMIC], None), ids=["fp32", "int8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_file_itself_refuses_a_longer_input(models, tmp_path, name, settings):
    """Its positions end where its card says; RoBERTa's would else go on to those of the whole model."""
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

    model, folder = models[name]
    plan = plan_of(model, settings) if settings else None
    artefact, _ = exported(folder, tmp_path / "out", plan)
    session = raw_session(tmp_path / "out")
    longest, longer = (np.full((1, count), 5) for count in (artefact.max_length, artefact.max_length + 1))
    session.run(None, {"input_ids": longest, "attention_mask": np.ones_like(longest)})
    with pytest.raises((Fail, InvalidArgument)):
        session.run(None, {"input_ids": longer, "attention_mask": np.ones_like(longer)})


# operators of a 3-layer model, by family and precision
NODES = {
    ("bert", "fp32"): 101,
    ("bert", "dynamic"): 162,
    ("bert", "static"): 159,
    ("distilbert", "fp32"): 101,
    ("roberta", "fp32"): 109,
    ("electra", "fp32"): 103,
}


@pytest.mark.parametrize(("name", "precision"), NODES)
def test_only_what_the_answer_needs_is_left(models, tmp_path, name, precision):
    """No arithmetic on shapes; the mask once for all layers; each layer's norms and GELU one operator each."""
    model, folder = models[name]
    scheme = {"fp32": None, "dynamic": DYNAMIC, "static": STATIC}[precision]
    _, graph = exported(folder, tmp_path / "out", plan_of(model, scheme) if scheme else None)
    kinds = Counter(operators(graph))
    assert not {"Constant", "Concat", "Expand", "Where", "Identity", "Sqrt", "Erf", "Range"} & set(kinds)
    assert kinds["Shape"] == (0 if name == "roberta" else 1) and kinds["Softmax"] == 3
    assert kinds["LayerNormalization"] == 7 and kinds["Gelu"] == 3 + (name == "electra")
    # of 8-bit products with ranges from the input: (q k v), (q k v), q and (k v); four more a layer; two of the head
    if precision == "dynamic":
        assert (kinds["MatMulInteger"], kinds["DynamicQuantizeLinear"]) == (15, 15)
    assert kinds.total() == NODES[name, precision]


@pytest.mark.parametrize("name", slow_but(["bert", "electra"], "bert"))
def test_joining_8_bit_products_changes_no_bit(models, tmp_path, name, monkeypatch):
    """Integers add up alike in one product or three, and every column keeps its scale."""
    model, folder = models[name]
    plan = plan_of(model, DYNAMIC)
    joined, graph = exported(folder, tmp_path / "joined", plan)
    monkeypatch.setattr(onnx_int8, "_share_products", lambda graph: None)
    apart, other = exported(folder, tmp_path / "apart", plan, anew=True)
    assert operators(graph).count("MatMulInteger") == operators(other).count("MatMulInteger") - 5
    with (
        onnxruntime.open_session(tmp_path / "joined", joined, 1) as ours,
        onnxruntime.open_session(tmp_path / "apart", apart, 1) as theirs,
    ):
        for batch in single_texts():
            np.testing.assert_array_equal(ours.run(batch)["logits"], theirs.run(batch)["logits"])


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_int32_inputs(models, tmp_path, name):
    """The file takes int32, the answers stay the same."""
    _, folder = models[name]
    artefact, graph = exported(folder, tmp_path / "out", params=Params(inputs="int32"))
    assert {value.type.tensor_type.elem_type for value in graph.graph.input} == {onnx.TensorProto.INT32}
    assert {fact.dtype for fact in artefact.inputs} == {"int32"}
    difference(folder, tmp_path / "out", artefact, 1e-4)


def wiring(model):
    """Each node's name, kind, attributes, and what it reads and gives: constants by value, the rest by number."""
    names = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    names = {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in names.items()}

    def facts(node):
        for attribute in node.attribute:
            # a trace counts the axis of ModernBERT's halves from the end
            if (node.op_type, attribute.name) != ("Split", "axis"):
                yield attribute.SerializeToString()
        for name in (*node.input, *node.output):
            yield names.setdefault(name, len(names))

    return [(node.name, node.op_type, *facts(node)) for node in model.graph.node]


@pytest.mark.parametrize("settings", slow_but([None, DYNAMIC], DYNAMIC), ids=["fp32", "int8"])
@pytest.mark.parametrize("name", slow_but([*FAMILIES, "factorised"], "bert", "modernbert"))
def test_a_trace_that_is_not_decomposed_gives_the_same_graph(models, tmp_path, name, settings, monkeypatch):
    """And what holds an operator that is not known to do so is decomposed, as the exporter does by itself."""
    model, folder = models[name]
    plan = plan_of(model, settings) if settings else None
    decomposed = []
    whole = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram,
        "run_decompositions",
        lambda program, table: decomposed.append(program) or whole(program, table),
    )
    _, as_traced = exported(folder, tmp_path / "as traced", plan, anew=True)
    assert not decomposed
    monkeypatch.setattr(to_onnx, "AS_TRACED", re.compile(to_onnx.AS_TRACED.pattern.replace("layer_norm", "other")))
    _, by_exporter = exported(folder, tmp_path / "decomposed", plan, anew=True)
    assert len(decomposed) == 1 and wiring(as_traced) == wiring(by_exporter)


@pytest.mark.parametrize(
    ("compute", "is_known"),
    [
        (lambda values: 1.0 - values.to(torch.float32), True),
        (lambda values: values.to(torch.float32, copy=True), False),
        (lambda values: torch.rsub(values, 1.0, alpha=2), False),
        (lambda values: values.to(torch.float32).add_(1.0), False),
    ],
    ids=["plain", "copy", "alpha", "in place"],
)
def test_operators_with_options_are_decomposed(compute, is_known):
    """They would be written without them, or not at all."""

    class Graph(torch.nn.Module):
        def forward(self, values):
            return compute(values)

    program = torch.export.export(Graph(), (torch.ones(2, dtype=torch.int64),), strict=False)
    assert to_onnx._is_translated(program) == is_known


@pytest.mark.parametrize("settings", slow_but([None, DYNAMIC, STATIC], STATIC), ids=["fp32", "dynamic", "static"])
def test_exported_twice_gives_the_same_bytes(models, tmp_path, settings):
    """Without a path of this machine in them."""
    model, folder = models["bert"]
    plan = plan_of(model, settings) if settings else None
    artefacts = [exported(folder, tmp_path / name, plan, anew=True)[0] for name in "ab"]
    first, second = ((tmp_path / name / "model.onnx").read_bytes() for name in "ab")
    assert first == second and artefacts[0] == artefacts[1]
    for trace in (str(tmp_path), "site-packages", "/work", ".py", "doc_string"):
        assert trace.encode() not in first


@pytest.mark.slow
def test_another_process_gives_the_same_bytes(models, tmp_path):
    """With another hash seed, in another folder. Slow: imports torch again."""
    _, folder = models["bert"]
    exported(folder, tmp_path / "here")
    (tmp_path / "there").mkdir()
    code = (
        "import sys; from pathlib import Path; from export.to_onnx import Params, convert;"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), 'fp32', Params(), 20, None)"
    )
    subprocess.run(
        [sys.executable, "-c", code, folder, tmp_path / "there"],
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": "."},
    )
    assert (tmp_path / "here/model.onnx").read_bytes() == (tmp_path / "there/model.onnx").read_bytes()


def test_the_record_says_what_was_written(models, tmp_path):
    """Names, types, free dimensions, versions, and the trap of signed weights."""
    model, folder = models["bert"]
    artefact, graph = exported(folder, tmp_path / "out", plan_of(model, DYNAMIC))
    assert (artefact.format, artefact.precision, artefact.file) == ("onnx", "int8", "model.onnx")
    assert artefact.inputs[0].shape == ("batch", "length") and artefact.outputs[0].shape == ("batch", 3)
    assert set(artefact.tools) == {"torch", "transformers", "onnxscript", "onnx-ir", "onnx"}
    assert None not in artefact.tools.values()
    assert any("without VNNI" in note for note in artefact.notes)
    assert artefact.notes[0] == f"graph: {len(graph.graph.node)} nodes"
    shape = [dim.dim_param or dim.dim_value for dim in graph.graph.output[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 3]
    assert not [node for node in graph.graph.node if node.op_type == "Identity"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.onnx"]


def test_settings_that_do_not_fit_are_refused(models, tmp_path):
    """Each with its reason."""
    model, folder = models["bert"]
    plan = plan_of(model, DYNAMIC)
    for precision, given, length, message in (
        ("fp16", None, 20, "cannot be written as 'fp16', expected one of fp32, int8"),
        ("int8", None, 20, "int8 needs a quantization plan"),
        ("fp32", plan, 20, "fp32 takes no quantization plan"),
        ("fp32", None, 41, "max_length is 41, but the model has positions for 40"),
    ):
        with pytest.raises(ExportError, match=message):
            convert(folder, tmp_path, precision, Params(), length, given)
    with pytest.raises(ValidationError):
        Params(inputs="int16")
    assert set(to_onnx.PRECISIONS) == set(TOLERANCES)
