"""What is exported answers as the model, has 8 bits where the plan says and nowhere else, and is the same bytes."""

import os
import subprocess
import sys

import numpy as np
import pytest
from fakes import named, slow_but
from pydantic import ValidationError
from test_quantization import toy_examples
from toy_models import FUSED, toy_batch, toy_model

from eval import parity
from eval.runtimes import openvino as runtime
from eval.runtimes import pytorch
from export.to_openvino import PRECISIONS, TOLERANCES, Params, convert, why_unusable
from pipeline.base import extras
from pipeline.base.errors import ExportError
from pipeline.families import family_of
from pipeline.models.checkpoints import save_classifier
from pipeline.quantization.plan import Plan, Scheme, quantizable_modules

openvino = pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")

PLAN = Plan(
    scheme=Scheme(activations="fixed", pair_safe=True),
    per_channel=True,
    embeddings=True,
    calibration_rows=tuple(map(tuple, toy_examples(40, "train", seed=1).ids)),
    sensitivity_rows=1,
    dev_rows=1,
    fp32_score=1.0,
    int8_score=1.0,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A toy BERT and its folder."""
    folder = tmp_path_factory.mktemp("model")
    model = toy_model()
    save_classifier(model, folder)
    return model, folder


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    """Precision -> folder and record."""
    folders = {precision: tmp_path_factory.mktemp(precision) for precision in PRECISIONS}
    return {precision: (folder, write(source[1], folder, precision)) for precision, folder in folders.items()}


def write(folder, out, precision="int8", plan=PLAN, params=None):
    return convert(folder, out, precision, params or Params(), 20, plan if precision == "int8" else None)


def read(out):
    return openvino.Core().read_model(out / "model.openvino/model.xml")


def before_tanh(model):
    """Whose 8-bit product would be computed together with a tanh, which is wrong on x86 without VNNI."""
    names = {"bert": "bert.pooler.dense", "albert": "albert.pooler"} | dict.fromkeys(
        ("roberta", "mpnet"), "classifier.dense"
    )
    return {names[model.config.model_type]} if model.config.model_type in names else set()


def content(out):
    return {path.name: path.read_bytes() for path in sorted((out / "model.openvino").iterdir())}


def weights(graph):
    """Module -> operator that reads its weight, and the type it is stored in."""
    found = {}
    for op in graph.get_ordered_ops():
        place = {"MatMul": 1, "Gather": 0}.get(op.get_type_name())
        if place is not None and op.input_value(place).get_partial_shape().rank.get_length() == 2:
            node = op.input_value(place).get_node()
            while node.get_type_name() in {"Multiply", "Convert"}:
                node = node.input_value(0).get_node()
            if node.get_type_name() == "Constant":
                for name in modules_of(op.get_friendly_name()):
                    found[name] = op.get_type_name(), node.get_element_type().get_type_name()
    return found


def modules_of(name):
    """The modules in an operator's name: '/bert/pooler/dense/Gemm/WithoutBiases', '/a/query/MatMul+/a/key/MatMul'."""
    parts = (part.removesuffix("/WithoutBiases").strip("/") for part in name.split("+"))
    return [part.rpartition("/")[0].replace("/", ".") for part in parts]


def eight_bit(graph):
    return {name for name, (_, kind) in weights(graph).items() if kind == "i8"}


def added(model):
    """Tables that are added to others, which the graph has as one: no operator reads their own weight."""
    family, names = family_of(model.config), {module: name for name, module in model.named_modules()}
    return {names[table] for table in (*family.tables(model), *family.tables_of_heads(model))}


def rounded(graph):
    """Modules whose operator reads a value of 8 bits."""
    found = set()
    for op in graph.get_ops():
        if op.get_type_name() == "FakeQuantize":
            for reader in op.output(0).get_target_inputs():
                found |= set(modules_of(reader.get_node().get_friendly_name()))
    return found


def single_texts(count=20):
    """Batches of one unpadded text, as on a phone."""
    for sequence in toy_examples(count, "test", seed=5).ids:
        yield named(np.array([sequence]), np.ones((1, len(sequence)), dtype=np.int64))


def difference(folder, out, artefact, batches=None, tolerance=None):
    with (
        runtime.open_session(out, artefact, 1) as candidate,
        pytorch.open_session(folder, None, 1) as reference,
    ):
        return parity.check(
            candidate, reference, batches or single_texts(), tolerance or TOLERANCES[artefact.precision]
        )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_answers_as_pytorch(source, exported, precision):
    """Within the tolerance, for single texts and for a padded batch."""
    out, artefact = exported[precision]
    batch = toy_batch()
    padded = {name: values.numpy() for name, values in batch.items()}
    found = difference(source[1], out, artefact, [*single_texts(), padded])
    if precision == "fp32":
        assert found.worst_difference < 1e-5


@pytest.mark.parametrize(
    "family", slow_but(["distilbert", "roberta", "electra", "albert", "mpnet", "modernbert"], "albert", "modernbert")
)
def test_other_families_in_8_bits(tmp_path, family):
    """Every linear layer and every table is found in the graph by its name, and the answers stay close.

    Judged by their mean: one of a few random answers may differ by a quarter of the spread.
    """
    model = toy_model(family, "sdpa" if family in FUSED else "eager")
    for name in ("model", "out"):
        (tmp_path / name).mkdir()
    save_classifier(model, tmp_path / "model")
    artefact = write(tmp_path / "model", tmp_path / "out")
    graph = read(tmp_path / "out")
    assert eight_bit(graph) == set(quantizable_modules(model, True)) - added(model) - before_tanh(model)
    found = difference(tmp_path / "model", tmp_path / "out", artefact, tolerance=1.0)
    assert found.mean_difference < 0.05 and found.same_label >= 0.9


@pytest.mark.parametrize("precision", PRECISIONS)
def test_padding_does_not_move_the_answer(exported, precision):
    """Whatever ids stand there: no range of 8 bits may cut the mask's great negative numbers off."""
    out, artefact = exported[precision]
    (batch,) = single_texts(1)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    wider = np.zeros((1, 6), dtype=np.int64)
    with runtime.open_session(out, artefact, 1) as session:
        alone = session.run(named(ids, mask))["logits"]
        for garbage in (0, 3, 59):
            padded = session.run(named(np.hstack([ids, wider + garbage]), np.hstack([mask, wider])))["logits"]
            np.testing.assert_allclose(padded, alone, atol=1e-5)


def test_the_files_shrink(exported):
    """fp16 halves the weights, 8 bits quarter them: constants of 16 and of 8 bits are really there."""
    sizes = {precision: len(content(out)["model.bin"]) for precision, (out, _) in exported.items()}
    assert sizes["fp16"] < 0.6 * sizes["fp32"] and sizes["int8"] < sizes["fp16"]
    for precision, kind in (("fp16", "f16"), ("fp32", "f32")):
        assert {found for _, found in weights(read(exported[precision][0])).values()} == {kind}


def test_only_what_the_plan_says_is_8_bit(source, exported):
    """Its modules' weights and their inputs; no sum, no product of two activations, no table of two rows."""
    out, artefact = exported["int8"]
    graph = read(out)
    pooler = before_tanh(source[0])
    assert eight_bit(graph) == set(quantizable_modules(source[0], embeddings=True)) - added(source[0]) - pooler
    assert rounded(graph) == set(quantizable_modules(source[0], embeddings=False)) - pooler
    assert pooler and pooler <= set(artefact.kept_in_float)
    tables = added(source[0]) & set(quantizable_modules(source[0], embeddings=True))
    assert tables and all(any(name in note for note in artefact.notes) for name in tables)


def test_products_of_one_activation_are_one(exported):
    """The last layer's query is of the first token alone."""
    products = [op.get_friendly_name() for op in read(exported["int8"][0]).get_ordered_ops()]
    several = [modules_of(name) for name in products if "+" in name]
    joined = [" ".join(name.rpartition(".")[2] for name in modules) for modules in several]
    assert joined == ["query key value", "query key value", "key value"]


def test_a_table_has_a_scale_for_each_row(source, exported):
    """And each weight is the nearest of its steps."""
    graph = read(exported["int8"][0])
    gather = next(op for op in graph.get_ops() if op.get_friendly_name().endswith("/word_embeddings/Gather"))
    product = gather.input_value(0).get_node()
    scale = product.input_value(1).get_node().get_data()
    values = product.input_value(0).get_node().input_value(0).get_node().get_data()
    weight = source[0].bert.embeddings.word_embeddings.weight.detach().numpy()
    assert values.dtype == np.int8 and scale.shape == (60, 1)
    assert (np.abs(values * scale - weight) <= scale * 0.501).all()


@pytest.mark.parametrize(
    "change",
    [
        {"exclude": ("bert.encoder.layer.1.output.dense", "classifier")},
        {"exclude": ("bert.encoder.layer.0.attention.self.query",)},
        {"exclude": ("bert.embeddings.word_embeddings",)},
        {"embeddings": False},
    ],
    ids=["linear", "one of three that read the same states", "table", "all tables"],
)
def test_what_is_left_out_stays_in_fp32(source, tmp_path, change):
    """Its weight and its input; everything else is still 8-bit."""
    plan = PLAN.model_copy(update=change)
    artefact = write(source[1], tmp_path, plan=plan)
    graph = read(tmp_path)
    linear, wanted = (
        set(quantizable_modules(source[0], tables)) - set(plan.exclude) for tables in (False, plan.embeddings)
    )
    pooler = before_tanh(source[0])
    assert eight_bit(graph) == wanted - added(source[0]) - pooler
    assert rounded(graph) == linear - pooler
    assert all(any(name in note for note in artefact.notes) for name in (*plan.exclude, *pooler))


def test_a_plan_of_another_model_is_refused(source, tmp_path):
    """With the nearest name that exists."""
    plan = PLAN.model_copy(update={"exclude": ("bert.encoder.layer.9.output.dense",)})
    with pytest.raises(ExportError, match=r"the module 'bert\.encoder\.layer\.9\.output\.dense'.*did you mean 'bert"):
        write(source[1], tmp_path, plan=plan)


def test_settings_that_do_not_fit_are_refused(source, tmp_path):
    """Each with its reason, and with what to do where that is not plain."""
    for precision, plan, length, message in (
        ("int4", None, 20, "cannot be written as 'int4', expected one of fp32, fp16, int8"),
        ("int8", None, 20, "int8 needs a quantization plan"),
        ("fp16", PLAN, 20, "fp16 takes no quantization plan"),
        ("int8", PLAN.model_copy(update={"calibration_rows": ()}), 20, "no calibration rows.*make the plan again"),
        ("fp32", None, 41, "max_length is 41, but the model has positions for 40"),
    ):
        with pytest.raises(ExportError, match=message):
            convert(source[1], tmp_path, precision, Params(), length, plan)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValidationError):
        Params(inputs="int16")


def test_int32_inputs(source, tmp_path):
    """The file takes int32, in 8 bits too, where calibration has to feed it that."""
    artefact = write(source[1], tmp_path, params=Params(inputs="int32"))
    assert {port.get_element_type().get_type_name() for port in read(tmp_path).inputs} == {"i32"}
    assert {fact.dtype for fact in artefact.inputs} == {"int32"}
    difference(source[1], tmp_path, artefact)


def test_the_record_says_what_was_written(exported):
    """Names, types, free dimensions and versions; and for 8 bits, what of the plan was not followed."""
    out, artefact = exported["int8"]
    assert (artefact.format, artefact.precision, artefact.file) == ("openvino", "int8", "model.openvino")
    assert [(fact.name, fact.dtype, fact.shape) for fact in artefact.inputs] == [
        ("input_ids", "int64", ("batch", "length")),
        ("attention_mask", "int64", ("batch", "length")),
    ]
    assert [(fact.name, fact.shape) for fact in artefact.outputs] == [("logits", ("batch", 3))]
    assert artefact.max_length == 20 and artefact.lengths is None
    assert {"openvino", "nncf"} <= set(artefact.tools) and None not in artefact.tools.values()
    assert any("40 training texts" in note for note in artefact.notes)
    assert "nncf" not in exported["fp16"][1].tools
    assert sorted(content(out)) == ["model.bin", "model.xml"]
    assert [path.name for path in out.iterdir()] == ["model.openvino"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_again_it_writes_the_same_bytes_and_prints_nothing(source, exported, tmp_path, capfd, precision):
    """Without a path of this machine in them."""
    out, artefact = exported[precision]
    assert write(source[1], tmp_path, precision) == artefact
    assert capfd.readouterr() == ("", "")
    assert content(tmp_path) == content(out)
    for trace in (str(tmp_path), str(source[1]), "site-packages", "/tmp", "<nncf>"):
        assert trace.encode() not in content(out)["model.xml"]


@pytest.mark.slow
def test_another_process_writes_the_same_bytes_and_tells_nobody(source, exported, tmp_path):
    """With another hash seed. OpenVINO's reports to its makers would leave an id under the home folder. Slow: imports
    torch and Optimum again."""
    for name in ("home", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "plan.json").write_text(PLAN.model_dump_json())
    code = (
        "import sys; from pathlib import Path; from export.to_openvino import Params, convert;"
        "from pipeline.quantization.plan import Plan;"
        "plan = Plan.model_validate_json(Path(sys.argv[3]).read_text());"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), 'int8', Params(), 20, plan)"
    )
    subprocess.run(
        [sys.executable, "-c", code, source[1], tmp_path / "out", tmp_path / "plan.json"],
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": ".", "HOME": str(tmp_path / "home")},
    )
    assert content(tmp_path / "out") == content(exported["int8"][0])
    assert not (tmp_path / "home/intel").exists()


def test_it_says_why_it_cannot_write(monkeypatch):
    """Missing packages are a reason with a command, not an error."""
    assert why_unusable() is None
    monkeypatch.setattr(extras.util, "find_spec", lambda name: None)
    assert "not installed: openvino, nncf; run: pip install" in why_unusable()
