"""Each rewrite leaves the answers as they were, for every mask, batch and length, and modules keep their nodes."""

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from test_to_onnx import DYNAMIC, plan_of
from toy_models import toy_model

from export import lean_graph, onnx_int8, to_onnx
from export.lean_graph import MERGES, REWRITES, cut_positions, drop_unused, make_lean, merge_parts
from pipeline.quantization.plan import quantizable_modules

FAMILIES = {"bert": "sdpa", "distilbert": "sdpa", "roberta": "sdpa", "electra": "eager"}
MAX_LENGTH = 20
# The others only take nodes out that compute shapes, masks and numbers: not a bit may differ.
ROUNDED = {"fold_attention_scale", "keep_first_token", "add_text_type_to_positions", "multiply_once"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Of each family a toy model and its graph as exported."""
    found = {}
    for family, attention in FAMILIES.items():
        model = toy_model(family, attention)
        graph = to_onnx._export(model, tmp_path_factory.mktemp(family) / "model.onnx")
        to_onnx._clean(graph)
        found[family] = model, graph
    return found


@pytest.fixture(scope="module")
def steps(models):
    """Of each family the graph before the first rewrite and after each, by name."""
    found = {}
    for family, (_, graph) in models.items():
        graph = copied(graph)
        found[family] = [("exported", copied(graph))]
        for rewrite in (*REWRITES, *MERGES):
            rewrite(graph)
            drop_unused(graph.graph)
            found[family].append((rewrite.__name__, copied(graph)))
    return found


def copied(model):
    other = ModelProto()
    other.CopyFrom(model)
    return other


def inputs():
    """Random ids and masks with holes anywhere; some rows have no token at all."""
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        for length in (1, 7, MAX_LENGTH):
            yield {
                "input_ids": rng.integers(0, 60, (batch, length)),
                "attention_mask": rng.integers(0, 2, (batch, length)),
            }


def answers(model):
    """In onnxruntime without any rewrite of its own, for all inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [session.run(None, feeds)[0] for feeds in inputs()]


def operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rewrite", [rewrite.__name__ for rewrite in (*REWRITES, *MERGES)])
def test_a_rewrite_keeps_the_answers(steps, family, rewrite):
    """To the last bit, or to rounding where it changes the arithmetic."""
    names = [name for name, _ in steps[family]]
    place = names.index(rewrite)
    before, after = steps[family][place - 1][1], steps[family][place][1]
    onnx.checker.check_model(after, full_check=True)
    for found, expected in zip(answers(after), answers(before), strict=True):
        if rewrite in ROUNDED:
            np.testing.assert_allclose(found, expected, atol=1e-5)
        else:
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_evaluator_agrees(steps, family):
    """ONNX's own implementation answers alike from the first and the last graph."""
    first, last = (ReferenceEvaluator(steps[family][place][1]) for place in (0, -1))
    for feeds in inputs():
        np.testing.assert_allclose(last.run(None, feeds)[0], first.run(None, feeds)[0], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_the_answer_needs_is_left(steps, family):
    """No arithmetic on shapes; one mask for all layers; one product for query, key and value but in the last layer."""
    counts = {name: len(graph.graph.node) for name, graph in steps[family]}
    last = steps[family][-1][1]
    kinds = operators(last)
    assert counts["exported"] > 270 and counts["transpose_heads_once"] < 110
    assert not {"Constant", "Expand", "Where", "ConstantOfShape", "Concat", "Sqrt"} & set(kinds)
    assert kinds.count("Shape") == (0 if family == "roberta" else 1) and kinds.count("Softmax") == 3
    # two of activations a layer; six with weights a layer, of which (q k v), (q k v) and (k v) are merged
    assert kinds.count("Split") == 3 and kinds.count("Unsqueeze") == 1
    assert kinds.count("MatMul") == 2 * 3 + 6 * 3 - 2 - 2 - 1 + (family == "electra")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_module_keeps_its_node(models, family):
    """The quantizer finds each linear layer and table by the name of its node."""
    model, graph = models[family]
    graph = copied(graph)
    counts = make_lean(graph, MAX_LENGTH)
    assert set(quantizable_modules(model, True)) <= set(onnx_int8.weight_nodes(graph))
    assert list(counts) == ["exported", *(rewrite.__name__ for rewrite in REWRITES)]
    assert counts["exported"] == len(models[family][1].graph.node)


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_merging_8_bit_products_changes_no_bit(models, family):
    """Integers add up alike in one product or three, and every column keeps its scale."""
    model, graph = models[family]
    graph = copied(graph)
    make_lean(graph, MAX_LENGTH)
    onnx_int8.quantize_graph(graph, plan_of(model, DYNAMIC), quantizable_modules(model, True))
    lean_graph.add_text_type_to_positions(graph)
    before = answers(graph)
    products = operators(graph).count("MatMulInteger")
    merge_parts(graph)
    for found, expected in zip(answers(graph), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert operators(graph).count("MatMulInteger") == products - 5


def test_the_same_graph_gives_the_same_bytes(models):
    """Whatever was rewritten before it in this process."""
    written = set()
    for _ in range(2):
        graph = copied(models["bert"][1])
        make_lean(graph, MAX_LENGTH)
        merge_parts(graph)
        written.add(graph.SerializeToString(deterministic=True))
    assert len(written) == 1


def test_positions_beyond_the_longest_input_are_cut(models):
    """The table holds max_length rows; a longer input fails rather than being answered."""
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    graph = copied(models["bert"][1])
    make_lean(graph, 9)
    (table,) = [
        tensor for tensor in graph.graph.initializer if "position_embeddings" in tensor.name and tensor.dims[0] == 9
    ]
    assert list(table.dims) == [9, 32]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ids = np.full((1, 10), 5)
    session.run(None, {"input_ids": ids[:, :9], "attention_mask": np.ones_like(ids[:, :9])})
    with pytest.raises(Fail, match="Add"):
        session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})


# --- what does not fit is left alone -----------------------------------------------------------------------------


def edited(model, rewrites, change):
    """The graph after some rewrites and a change to its stored values, and the number of nodes."""
    graph = copied(model)
    for rewrite in rewrites:
        rewrite(graph)
    change(graph)
    return graph


def replace_stored(graph, matches, value):
    for tensor in graph.graph.initializer:
        if matches(tensor.name, numpy_helper.to_array(tensor)):
            tensor.CopyFrom(numpy_helper.from_array(value(numpy_helper.to_array(tensor)), tensor.name))


def test_another_mask_is_left_alone(models):
    """A family that adds something else to masked scores keeps its nodes."""
    graph = edited(
        models["bert"][1],
        [lean_graph.store_constants],
        lambda graph: replace_stored(
            graph, lambda _, array: array.size == 1 and array.min() < -1e30, lambda array: np.full_like(array, -1e4)
        ),
    )
    before = operators(graph)
    lean_graph.simplify_mask(graph)
    assert operators(graph) == before


def test_a_large_table_of_text_types_is_left_alone(models):
    """The quantizer knows it as a module, so its node must stay."""
    graph = edited(
        models["bert"][1],
        [lean_graph.store_constants],
        lambda graph: replace_stored(graph, lambda name, _: "token_type" in name, lambda array: np.tile(array, (5, 1))),
    )
    before = operators(graph)
    lean_graph.add_text_type_as_row(graph)
    assert operators(graph) == before


def test_a_classifier_of_another_token_computes_every_position(models):
    """Only the first position is known to be read."""
    graph = edited(models["bert"][1], REWRITES[: REWRITES.index(lean_graph.keep_first_token)], lambda graph: None)
    (gather,) = [node for node in graph.graph.node if node.name == "/bert/pooler/Gather"]
    gather.input[1] = lean_graph._store(graph, "second", np.array(1))
    before = operators(graph)
    lean_graph.keep_first_token(graph)
    assert operators(graph) == before


def test_cutting_twice_changes_nothing(models):
    """A table that is short enough stays as it is."""
    graph = copied(models["bert"][1])
    make_lean(graph, MAX_LENGTH)
    before = answers(graph)
    cut_positions(graph, MAX_LENGTH)
    for found, expected in zip(answers(graph), before, strict=True):
        np.testing.assert_array_equal(found, expected)
