"""The checks on every format besides ONNX, in the runtime that executes it: sound files pass, planted faults do not.

Faults are planted in the graph before it is written, so that the whole way through exporter, file and runtime is there.
"""

import dataclasses
import importlib
import shutil

import numpy as np
import pytest
import torch
from fakes import make_measurement
from test_checks import exported, found, judged
from test_quantization import toy_examples
from tiny_project import make_rows, make_teacher, make_tokenizer
from toy_models import TASK

from eval.checks import Subject, int8, kernels, lengths, padding
from eval.checks import settings as settings_check
from pipeline.base import emulation, plugins
from pipeline.base.errors import ExportError, ModelError
from pipeline.base.records import Status
from pipeline.families import DeploymentGraph
from pipeline.models.checkpoints import save_classifier
from pipeline.models.vocabulary import save_tokenizer
from pipeline.quantization.plan import Scheme, make_plan, quantize_weight
from pipeline.settings.quantize import QuantizeSettings
from stages import examine

MAX_LENGTH = 20
MODULES = 14  # products with weights of two layers, pooler and classifier
# format -> (runtime, options); formats of fixed lengths take two here
FORMATS = {
    "ort": ("onnxruntime", {}),
    "openvino": ("openvino", {}),
    "litert": ("litert", {"lengths": (12, MAX_LENGTH)}),
    "executorch": ("executorch", {}),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model folder with its tokenizer, and a plan."""
    folder = tmp_path_factory.mktemp("source")
    words = make_tokenizer()
    model = make_teacher(words, hidden_size=64, intermediate_size=256).eval()
    save_tokenizer(words, folder)
    save_classifier(model, folder)
    plan = make_plan(
        model,
        toy_examples(12, "dev"),
        toy_examples(30, "train", seed=1),
        TASK,
        QuantizeSettings(allowed_drop=100),
        Scheme(activations="example", pair_safe=True),
        sensitivity_rows=2,
    )
    return folder, plan, words


def convert(source, out, name, precision):
    folder, plan, _ = source
    exporter = plugins.load("format", name)
    params = exporter.Params(**FORMATS[name][1])
    return exporter.convert(folder, out, precision, params, MAX_LENGTH, plan if precision == "int8" else None)


# ExecuTorch takes several seconds to import, in each process that a check starts: `make test-all` has it.
EACH_FORMAT = [pytest.param(name, marks=pytest.mark.slow) if name == "executorch" else name for name in sorted(FORMATS)]


@pytest.fixture(scope="module", params=EACH_FORMAT)
def sound(request, source, tmp_path_factory):
    """(format, precision -> folder, precision -> artefact)."""
    name = request.param
    reason = plugins.load("runtime", FORMATS[name][0]).why_unusable()
    if reason is not None:
        pytest.skip(reason)  # the runtime's own words, such as the extra that is not installed and how to get it
    folders = {precision: tmp_path_factory.mktemp(f"{name}-{precision}") for precision in ("fp32", "int8")}
    return name, folders, {precision: convert(source, folders[precision], name, precision) for precision in folders}


def subject_of(source, name, folder, artefact, twin=None):
    texts = [text for text, _ in make_rows(40, seed=3)]
    words = source[2]
    return Subject(
        target=name,
        runtime=FORMATS[name][0],
        device="local",
        exported=weighed(folder, artefact),
        float_twin=twin,
        student=source[0],
        tokenizer=source[0],
        pad_id=words.pad_token_id,
        sequences=[words(text)["input_ids"] for text in texts],
        texts=texts,
        tolerance=plugins.load("format", name).TOLERANCES[artefact.precision],
    )


def weighed(folder, artefact):
    """An OpenVINO artefact is a folder."""
    path = folder / artefact.file
    if path.is_file():
        return exported(folder, artefact)
    one = exported(path, artefact.model_copy(update={"file": "model.bin"}))
    return dataclasses.replace(one, folder=folder, artefact=artefact)


def plant(monkeypatch, name, before=None, after=None):
    """Has the exporter write a graph with a fault, its own look at the graph switched off."""
    forward = DeploymentGraph.forward

    # named, since exporters give inputs by name
    def spoiled(self, input_ids, attention_mask):
        inputs = (input_ids, attention_mask) if before is None else before(input_ids, attention_mask)
        found = forward(self, *inputs)
        return found if after is None else after(found)

    monkeypatch.setattr(DeploymentGraph, "forward", spoiled)
    exporter = "onnx" if name in ("ort", "openvino") else name
    monkeypatch.setattr(importlib.import_module(f"export.to_{exporter}"), "check_answers", lambda *_: None)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_sound_file_passes(sound, source, precision):
    name, folders, artefacts = sound
    subject = subject_of(source, name, folders[precision], artefacts[precision])
    for check in (lengths, padding):
        status, reason = found(check, subject)
        assert status is Status.PASS, reason


def test_swapped_inputs_are_found(sound, source, monkeypatch, tmp_path):
    """Planted fault: ids are read as the mask, and the mask as ids."""
    name, _, _ = sound
    plant(monkeypatch, name, lambda ids, mask: (mask, ids))
    status, reason = found(lengths, subject_of(source, name, tmp_path, convert(source, tmp_path, name, "fp32")))
    assert status is Status.FAIL, reason


def test_leak_from_the_padding_is_found(sound, source, monkeypatch, tmp_path):
    """Planted fault: the mask is read and counts for nothing."""
    name, _, _ = sound
    plant(monkeypatch, name, lambda ids, mask: (ids, mask * 0 + torch.ones_like(mask)))
    status, reason = found(padding, subject_of(source, name, tmp_path, convert(source, tmp_path, name, "fp32")))
    assert (status, "the mask does not reach every layer" in reason) == (Status.FAIL, True), reason


def test_dropped_output_is_found(sound, source, monkeypatch, tmp_path):
    """Planted fault: the last class is missing from the answers, and from the card."""
    name, _, _ = sound

    plant(monkeypatch, name, None, lambda logits: logits[:, :-1])
    if name in ("ort", "openvino"):  # the exporter of ONNX knows how many classes the model has
        with pytest.raises(ExportError, match="not valid"):
            convert(source, tmp_path, name, "fp32")
        return
    artefact = convert(source, tmp_path, name, "fp32")
    (logits,) = artefact.outputs
    fewer = logits.model_copy(update={"shape": (logits.shape[0], logits.shape[1] - 1)})
    subject = subject_of(source, name, tmp_path, artefact.model_copy(update={"outputs": (fewer,)}))
    result = examine.make(lengths, subject)
    assert result.status is Status.FAIL, result.reason


def test_length_bucket_off_by_one_is_found(sound, source):
    """Planted fault: the card's first bucket, or its longest length, is one more than the file's."""
    name, folders, artefacts = sound
    artefact = artefacts["fp32"]
    change = {"max_length": MAX_LENGTH + 1}
    if artefact.lengths is not None:
        change = {"lengths": (artefact.lengths[0] + 1, *artefact.lengths[1:])}
    subject = subject_of(source, name, folders["fp32"], artefact.model_copy(update=change))
    result = examine.make(lengths, subject)
    assert result.status is Status.FAIL, result.reason


def test_kernels_are_counted(sound):
    """Every product with weights runs on integers in the int8 file, none in the float file."""
    name, folders, artefacts = sound
    runtime = plugins.load("runtime", FORMATS[name][0])
    kernels = {precision: runtime.count_kernels(folders[precision], artefacts[precision]) for precision in folders}
    # OpenVINO's 8-bit product with a tanh is wrong on x86 without VNNI
    kept = ("bert.pooler.dense",) if name == "openvino" else ()
    assert (
        kernels["int8"].float_weights == kept
        and set(kept) <= set(artefacts["int8"].kept_in_float)
        and kernels["int8"].integer > 0
    )
    assert kernels["fp32"].integer == 0 and len(kernels["fp32"].float_weights) >= kernels["int8"].integer
    if name in ("litert", "executorch"):  # elsewhere query, key and value are one product
        assert kernels["int8"].integer == len(kernels["fp32"].float_weights) == MODULES


def test_float_file_under_the_name_of_int8_is_found(sound, source, tmp_path, monkeypatch):
    """Planted fault: the weights are float, in a file that is as small as it should be."""
    name, folders, artefacts = sound
    file = artefacts["fp32"].file
    whole = folders["fp32"] / file
    (shutil.copytree if whole.is_dir() else shutil.copy)(whole, tmp_path / file)
    fake = artefacts["fp32"].model_copy(update={"precision": "int8"})
    subject = subject_of(source, name, tmp_path, fake, weighed(folders["fp32"], artefacts["fp32"]))
    assert judged(subject, timed=1.5)[0] is Status.FAIL
    monkeypatch.setattr(int8, "LARGEST_SHARE", 2.0)
    status, reason = judged(subject, timed=1.5)
    assert (status, "matrix products with weights run in float" in reason) == (Status.FAIL, True), reason


def test_nameless_products_may_be_as_many_as_the_plan_keeps(source, tmp_path):
    """XNNPACK's graphs have no names: their number must do."""
    subject = subject_of(source, "executorch", tmp_path, fake_artefact(tmp_path))
    kept = dataclasses.replace(subject, exclude=("classifier",))
    assert int8._stray(("#1",), kept) == []
    assert int8._stray(("#1", "#2"), kept) == ["#2"]
    assert int8._stray(("classifier", "bert.pooler.dense"), kept) == ["bert.pooler.dense"]


def fake_artefact(folder):
    from fakes import make_artefact

    (folder / "student.fake").write_bytes(b"x")
    return make_artefact(precision="int8").model_copy(update={"format": "executorch"})


# --- settings ----------------------------------------------------------------------------------------------------


def judged_settings(monkeypatch, subject, ratios, **noise):
    """The check with times made by hand: title of a variant -> how many times as fast as shipped."""
    changed = plugins.load("runtime", subject.runtime).variants(subject.artefact)
    timed = []

    def measure(*, candidate, reference, settings, **_):
        assert reference.artefact == subject.artefact
        (title,) = (one for one, more in changed.items() if candidate.artefact.settings == more)
        timed.append(title)
        times = ratios.get(title, 1.0)
        return make_measurement(2.0, 2.0 * times, **{"noise": 0.01, **noise}, processes=settings.processes)

    monkeypatch.setattr(settings_check, "measure", measure)
    result = found(settings_check, subject)
    assert timed == list(changed)
    return result


def test_slower_setting_than_another_is_found(sound, source, monkeypatch):
    """A setting that is faster on as many threads fails the check; more threads are told, and are the app's to give."""
    name, folders, artefacts = sound
    subject = subject_of(source, name, folders["fp32"], artefacts["fp32"])
    if not settings_check.applies(subject):
        assert name == "executorch"  # its threads belong to the process
        return
    status, reason = judged_settings(monkeypatch, subject, {"two threads": 1.9})
    assert (status, "two threads 1.9" in reason, "in one process" in reason) == (Status.PASS, True, True), reason
    other = next(
        (one for one in plugins.load("runtime", subject.runtime).variants(subject.artefact) if "thread" not in one),
        None,
    )
    if other is not None:
        status, reason = judged_settings(monkeypatch, subject, {other: 1.3})
        assert (status, "set options.settings of the target to" in reason) == (Status.FAIL, True), reason
        # review C4: nobody can say that no setting is much faster where the interval reaches far, or the figure itself
        status, reason = judged_settings(monkeypatch, subject, {other: 1.04}, noise=0.4)
        assert (status, "5% faster is undecided" in reason) == (Status.INCONCLUSIVE, True), reason
        status, reason = judged_settings(monkeypatch, subject, {other: 1.06}, noise=0.05)
        assert (status, "5% faster is undecided" in reason) == (Status.INCONCLUSIVE, True), reason
        status, reason = judged_settings(monkeypatch, subject, {other: 1.3}, twins=1.3)
        assert (status, "the runner is unfit" in reason) == (Status.INCONCLUSIVE, True), reason


def test_setting_of_the_card_reaches_the_runtime(sound):
    """And one that the runtime does not know is refused by name."""
    name, folders, artefacts = sound
    runtime = plugins.load("runtime", FORMATS[name][0])
    if not hasattr(runtime, "SETTINGS"):
        assert name == "executorch"  # its threads belong to the process
        return
    wrong = artefacts["fp32"].model_copy(update={"settings": {"spining": "1"}})
    with pytest.raises(ModelError, match=r"setting 'spining'.*known: .*mend options.settings"):
        runtime.open_session(folders["fp32"], wrong, 1)
    for changed in runtime.variants(artefacts["fp32"]).values():
        artefact = artefacts["fp32"].model_copy(update={"settings": changed})
        with runtime.open_session(folders["fp32"], artefact, 1) as session:
            ids = torch.ones(1, 5, dtype=torch.int64).numpy()
            assert session.run({"input_ids": ids, "attention_mask": ids})["logits"].shape[0] == 1


# --- kernels -----------------------------------------------------------------------------------------------------


def test_no_pair_of_weights_saturates_and_an_emulated_cpu_agrees(source, sound):
    """Proved from the file where the runtime has such kernels; sampled where qemu-user is present."""
    name, folders, artefacts = sound
    result = kernels.check(subject_of(source, name, folders["int8"], artefacts["int8"]))
    proved = hasattr(plugins.load("runtime", FORMATS[name][0]), "pair_summed_weights")
    sampled = emulation.why_unusable() is None
    assert result.status is (Status.PASS if proved or sampled else Status.NOT_MEASURED), result.reason
    assert ("proved from the file" in result.reason) == proved
    assert ("difference" in result.facts) == sampled


PLAIN = {
    "export.onnx_int8.quantize_weight": lambda weight, per_channel, pair_safe=False: quantize_weight(
        weight, per_channel
    ),
    "export.to_openvino.least_scale": lambda weights: np.zeros(len(weights)),
}


@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_unsafe_pairs_are_found(source, tmp_path, monkeypatch, name):
    """Planted fault: plain scales, as every other exporter has them."""
    if plugins.load("format", name).__dict__.get("why_unusable", lambda: None)() is not None:
        pytest.skip("the extra of this format is not installed")  # nothing to plant the fault in; CI has all extras
    for module in ("export.onnx_int8.quantize_weight", "export.to_openvino.least_scale"):
        monkeypatch.setattr(module, PLAIN[module])
    artefact = convert(source, tmp_path, name, "int8")
    result = kernels.check(subject_of(source, name, tmp_path, artefact))
    assert result.status is Status.FAIL and "pairs of neighbouring weights" in result.reason
    assert result.facts["unsafe"] > 0


def test_an_emulated_cpu_that_answers_otherwise_is_found(source, sound, monkeypatch):
    """Planted fault: the proof is switched off, and the other CPU's answers are someone else's."""
    if emulation.why_unusable() is not None:
        pytest.skip(emulation.why_unusable())  # qemu-user is optional, and its absence is tested below
    name, folders, artefacts = sound
    subject = subject_of(source, name, folders["int8"], artefacts["int8"])
    monkeypatch.setattr(kernels, "_difference_without_vnni", lambda subject: 0.3)
    result = kernels.check(subject)
    assert result.status is Status.FAIL and "answers 0.3 of the spread away" in result.reason


def test_without_an_emulator_only_a_proof_passes(source, sound, monkeypatch):
    """Formats whose kernels cannot be proved are then not measured, which is no pass."""
    monkeypatch.setattr(emulation, "COMMAND", "no-such-emulator")
    name, folders, artefacts = sound
    result = kernels.check(subject_of(source, name, folders["int8"], artefacts["int8"]))
    proved = hasattr(plugins.load("runtime", FORMATS[name][0]), "pair_summed_weights")
    assert result.status is (Status.PASS if proved else Status.NOT_MEASURED)
    assert "not confirmed" in result.reason
