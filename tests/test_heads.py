"""Heads that answer each token: from a teacher to its student, and to every format in its runtime."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_models import FAMILIES

from eval import parity
from eval.padding import pad
from eval.runtimes import pytorch
from eval.scores import answer
from export.mixed_bits import choose_bits
from pipeline.base import plugins
from pipeline.base.errors import ExportError, ModelError, ValuesDifferError
from pipeline.base.records import TensorFact
from pipeline.data.batches import Collator
from pipeline.data.prepared import EncodedSplit
from pipeline.families import HEAD, check_answers, deployment_graph, layers_of
from pipeline.mil.package import read_package
from pipeline.models.checkpoints import load_classifier, new_model, save_classifier
from pipeline.models.students import build_student
from pipeline.quantization.plan import Plan, calibrate, quantizable_modules
from pipeline.settings.student import StudentSettings
from pipeline.tasks import NO_CHOICE, UNLABELLED, Units
from pipeline.training.answers import predict
from pipeline.training.distiller import Distiller

LONGEST = 16
NAMES = {"token": ("logits",), "span": ("start_logits", "end_logits")}
RUNTIMES = {
    "onnx": "onnxruntime",
    "ort": "onnxruntime",
    "openvino": "openvino",
    "litert": "litert",
    "executorch": "executorch",
    "coreml": "coreml_reference",
}
ROWS = [np.random.default_rng(i).integers(2, 60, 3 + 3 * i).tolist() for i in range(5)]


def make(family, head, **changes):
    """A random model whose every weight matters."""
    config_class, _, sizes = FAMILIES[family]
    outputs = 2 if head == "span" else 3
    torch.manual_seed(0)
    config = config_class(**(sizes | {"initializer_range": 0.3, "num_labels": outputs} | changes))
    setattr(config, HEAD, head)
    model = new_model(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


@pytest.fixture(scope="module", params=NAMES)
def saved(request, tmp_path_factory):
    """(kind, folder of a BERT with that head)."""
    folder = tmp_path_factory.mktemp(request.param)
    save_classifier(make("bert", request.param, num_hidden_layers=1), folder)
    return request.param, folder


@pytest.mark.parametrize("head", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_answers_as_the_model_at_every_token(family, head):
    model = make(family, head)
    graph = deployment_graph(model, longest=LONGEST)
    check_answers(model, graph, LONGEST)
    assert graph.output_names == NAMES[head]


@pytest.mark.parametrize("head", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_that_answers_one_token_wrong_is_refused(family, head):
    """Planted: the last layer at the first position only, whose answer would then stand for every token."""
    model = make(family, head)
    graph = deployment_graph(model, longest=LONGEST)
    encode = graph.family.encode

    class FirstOnly:
        answer = staticmethod(graph.family.answer)

        @staticmethod
        def encode(graph, ids, mask, first):
            return encode(graph, ids, mask, first)[:, :1].expand(-1, ids.shape[1], -1)

    graph.family = FirstOnly
    with pytest.raises(ExportError, match=rf"answers '{NAMES[head][0]}' .* off the model"):
        check_answers(model, graph, LONGEST)


def plan_for(model, scheme):
    """Everything in 8 bits."""
    split = EncodedSplit([str(i) for i in range(len(ROWS))], ROWS, [0] * len(ROWS), pad_id=0)
    ranges = calibrate(model, split, "minmax", 100.0) if scheme.activations == "fixed" else {}
    return Plan(
        scheme=scheme, per_channel=True, embeddings=True, ranges=ranges, calibration_rows=tuple(map(tuple, ROWS))
    )


def export(source, folder, name, precision):
    folder.mkdir()
    exporter = plugins.load("format", name)
    if reason := getattr(exporter, "why_unusable", lambda: None)():
        pytest.skip(reason)
    params = exporter.Params(**({"lengths": (8, LONGEST)} if name in ("litert", "coreml") else {}))
    scheme = exporter.scheme(precision, params)
    plan = plan_for(load_classifier(source), scheme) if scheme else None
    return exporter, exporter.convert(source, folder, precision, params, LONGEST, plan)


# The rest by `make test-all`: conversions take seconds, and heads differ before any format does.
def formats(names, fast):
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", formats(RUNTIMES, ("onnx", "litert", "coreml")))
def test_every_format_answers_as_the_model(saved, tmp_path, name):
    """Rows of 3 to 15 tokens: a format of listed lengths pads them, and takes the padding out of its answers."""
    head, source = saved
    exporter, artefact = export(source, tmp_path / name, name, "fp32")
    assert artefact.number_outputs == NAMES[head] and artefact.token_outputs == set(NAMES[head])
    runtime = plugins.load("runtime", RUNTIMES[name])
    batches = [pad([row], 0, artefact) for row in ROWS]
    with (
        runtime.open_session(tmp_path / name, artefact, 1) as candidate,
        pytorch.open_session(source, None, 1) as model,
    ):
        tolerance = exporter.TOLERANCES["fp32"]
        found = parity.check(candidate, model, batches, tolerance, artefact.token_outputs)
        assert found.worst_difference <= tolerance
        row = np.asarray([ROWS[2]])
        plain = {"input_ids": row, "attention_mask": np.ones_like(row)}
        for output, values in candidate.run(plain).items():
            assert values.shape == model.run(plain)[output].shape


@pytest.mark.parametrize("name", formats(("onnx", "litert", "executorch", "openvino"), ("onnx",)))
def test_int8_covers_the_head(saved, tmp_path, name):
    """The layer that answers is 8-bit like the others, as the runtime sees it, and the answers stay near."""
    _, source = saved
    _, artefact = export(source, tmp_path / name, name, "int8")
    runtime = plugins.load("runtime", RUNTIMES[name])
    if hasattr(runtime, "count_kernels"):
        kernels = runtime.count_kernels(tmp_path / name, artefact)
        assert kernels.integer and not kernels.float_weights
    batches = [pad([row], 0, artefact) for row in ROWS]
    with (
        runtime.open_session(tmp_path / name, artefact, 1) as candidate,
        pytorch.open_session(source, None, 1) as model,
    ):
        found = parity.measure(candidate, model, batches, 1.0, artefact.token_outputs)
    assert 0 < found.mean_difference < 0.1


def test_core_ml_names_no_label_where_a_text_has_not_one(saved, tmp_path):
    """Tags, spans, several labels and numbers are plain outputs: a softmax over them would say nothing."""
    _, source = saved
    export(source, tmp_path / "package", "coreml", "fp16")
    package = read_package(tmp_path / "package" / "model.mlpackage")
    assert package.labels is None and set(package.outputs) == set(NAMES[saved[0]])


def test_a_card_that_promises_a_label_which_the_package_has_not_is_refused(saved, tmp_path):
    _, source = saved
    _, artefact = export(source, tmp_path / "package", "coreml", "fp32")
    lied = (*artefact.outputs, TensorFact(name="classLabel", dtype="string", shape=()))
    runtime = plugins.load("runtime", "coreml_reference")
    with pytest.raises(ModelError, match="classLabel"):
        runtime.open_session(tmp_path / "package", artefact.model_copy(update={"outputs": lied}), 1)


def test_padding_is_not_compared_and_tokens_are():
    """Planted: one token's answer is off, then one of the padding's."""

    class Fixed:
        input_names, output_names = ("input_ids", "attention_mask"), ("logits",)

        def __init__(self, values):
            self.values = values

        def run(self, inputs):
            return {"logits": self.values}

    values = np.random.default_rng(0).normal(size=(1, 4, 3)).astype(np.float32)
    batch = {"input_ids": np.ones((1, 4), int), "attention_mask": np.array([[1, 1, 1, 0]])}
    for place, differs in ((2, True), (3, False)):
        other = values.copy()
        other[0, place] += 1.0
        if differs:
            with pytest.raises(ValuesDifferError):
                parity.check(Fixed(other), Fixed(values), [batch], 0.01, {"logits"})
        else:
            assert parity.check(Fixed(other), Fixed(values), [batch], 0.01, {"logits"}).worst_difference == 0
    with pytest.raises(ValuesDifferError):  # where nothing says that it is padding
        parity.check(Fixed(other), Fixed(values), [batch], 0.01)


@pytest.mark.parametrize("head", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_all_layers_answers_as_its_teacher(family, head):
    """So the head was copied too."""
    teacher = make(family, head)
    student = build_student(teacher, StudentSettings(layers=len(layers_of(teacher))), seed=0).eval()
    ids = torch.tensor([[2, *ROWS[3], 3]])
    with torch.no_grad():
        found, expected = student(input_ids=ids), teacher(input_ids=ids)
    for name in NAMES[head]:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-3)


def units_of_tags(outputs, targets, mask):
    """One unit a token, as a task of tags would say."""
    return Units(outputs["logits"][mask], None if targets is None else targets[mask])


def collate_tags(numbers, length):
    """(batch, length): a list a row, or UNLABELLED for a text without."""
    rows = [[] if one == UNLABELLED else one for one in numbers]
    return torch.tensor([[*row, *[UNLABELLED] * (length - len(row))] for row in rows])


def test_tags_are_distilled_from_what_the_teacher_was_known_to_answer():
    """Its answers are kept as long as the longest row of all; a batch of short rows takes their beginning."""
    teacher, student = make("bert", "token"), make("bert", "token", num_hidden_layers=1)
    ids = [[2, *row, 3] for row in ROWS]
    targets = tuple([0, *[i % 3] * len(row), 1] for i, row in enumerate(ROWS))
    split = EncodedSplit(tuple("abcde"), ids, targets, pad_id=0)
    known = replace(split, teacher_outputs=predict(teacher, ids, 0, "teacher", quiet=True))
    losses = {"logit_kl": {}, "cross_entropy": {}, "attention_kl": {"map": "last_only"}}
    values = []
    for rows in (split, known):
        batch = Collator(rows, collate_tags)([0, 1])
        with closing(Distiller(student, teacher, losses, units=units_of_tags)) as distiller:
            distiller.eval()
            values.append(distiller(**batch))
    assert {"teacher_output_logits"} == {name for name in batch if name.startswith("teacher_output")}
    assert batch["teacher_output_logits"].shape[1] > batch["input_ids"].shape[1]
    for name, term in values[0]["terms"].items():
        assert term > 0
        torch.testing.assert_close(values[1]["terms"][name], term, rtol=1e-4, atol=1e-6)


def test_a_row_without_tags_adds_nothing():
    """As a text that was made by augmentation."""
    split = EncodedSplit(("a", "b"), [[2, 5, 3], [2, 6, 7, 3]], ([0, 1, 2], UNLABELLED), pad_id=0)
    batch = Collator(split, collate_tags)([0, 1])
    assert batch["targets"].tolist() == [[0, 1, 2, UNLABELLED], [UNLABELLED] * 4]
    assert "targets" not in Collator(split)([0, 1])


def test_a_distillation_token_is_refused():
    settings = StudentSettings(layers=1, distillation_token=True)
    with pytest.raises(ModelError, match="answers each token"):
        build_student(make("bert", "token"), settings, seed=0)


def test_a_file_and_the_model_answer_alike_to_rows_of_several_lengths(saved, tmp_path):
    """Planted: what PyTorch answers to the padding of a batch would be part of the largest difference."""
    head, source = saved
    _, artefact = export(source, tmp_path / "onnx", "onnx", "fp32")
    runtime = plugins.load("runtime", "onnxruntime")
    with runtime.open_session(tmp_path / "onnx", artefact, 1) as session:
        found = answer(session, ROWS, artefact, 0)
    expected = predict(load_classifier(source), ROWS, 0, "student", quiet=True)
    for name in NAMES[head]:
        np.testing.assert_allclose(found[name], expected[name].numpy(), atol=1e-4)
        assert (found[name][0, len(ROWS[0]) :] == NO_CHOICE).all()


def test_bits_are_chosen_by_what_tokens_are_answered(saved):
    """More room, less change."""
    _, source = saved
    model = load_classifier(source)
    tensors = [f"{name}.weight" for name in quantizable_modules(model, embeddings=True)]
    size = sum(weight.numel() for weight in model.parameters())
    small, large = (choose_bits(model, tensors, ROWS, size * factor, 1.0) for factor in (0.8, 2.5))
    assert 0 < large.mean_kl < small.mean_kl
    assert set(small.bits.values()) != set(large.bits.values()) == {8}
