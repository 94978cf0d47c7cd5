"""The stages one after another on a tiny project: what each leaves, what it refuses, and the same bytes twice."""

import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file
from tiny_project import CLASSES, TARGET, flip_bit, make_teacher, make_tokenizer, write_project, write_settings
from tokenizers import Tokenizer

from eval import instructions
from export import to_onnx
from pipeline.base import emulation, plugins, records
from pipeline.base.errors import IntegrityError, ModelError, SettingsError, TrainingError, ValuesDifferError
from pipeline.base.files import sha256_of
from pipeline.base.records import Comparison, Examination, Floors, Measurement, Parity, Score, Status, open_folder, seal
from pipeline.base.workspace import Workspace
from pipeline.data.examples import read_prepared
from pipeline.data.prepared import TEST_ANSWERS, TEST_OUTPUTS, read_encoded
from pipeline.data.texts import encode
from pipeline.distillation import distil as distillation
from pipeline.models.checkpoints import load_classifier
from pipeline.models.vocabulary import load_tokenizer
from pipeline.settings.params import load
from stages import benchmark, convert, distill, evaluate, examine, floors, machine, prepare, quantize, reference, teach
from stages.commands import compare
from stages.commands.predict import predict
from stages.gating import sides

LABELS = tuple(sorted(CLASSES))
TARGETS = ("cpu_fp32", "cpu")
FOR_EACH_TARGET = (convert, evaluate, examine, benchmark)


def make(folder, *stages, **changes):
    """Runs stages in a project of its own, from within its folder as `dvc repro` does."""
    params, workspace = write_project(folder, **changes)
    run(params, workspace, *stages)
    return params, workspace


def run(params, workspace, *stages):
    """Runs stages from within the project's folder; those of a target once for each target."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.root)
        for stage in stages:
            for names in (
                [(name,) for name in params.targets] if stage in (convert, evaluate, examine, benchmark) else [()]
            ):
                stage.run(params, workspace, *names)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(settings, workspace) after every stage; tests that spoil something take a `copy`."""
    stages = (machine, prepare, floors, teach, reference, distill, quantize, convert, evaluate, examine, benchmark)
    return make(tmp_path_factory.mktemp("built"), *stages)


@pytest.fixture
def copy(built, tmp_path):
    """(settings, workspace) of a copy that may be spoiled."""
    shutil.copytree(built[1].root, tmp_path / "copy")
    return built[0], Workspace(tmp_path / "copy")


def test_a_core_ml_target_is_judged_by_the_interpreter_and_says_so(copy):
    """Converted, scored on the whole test split, examined; every record names the stand-in, and nothing is timed."""
    params, workspace = copy
    longest = params.data.max_length
    ios = params.targets["cpu_fp32"].model_copy(
        update={
            "format": "coreml",
            "precision": "auto",
            "options": {"lengths": {"min": 2, "max": longest}},
            "runtime": "coreml_reference",
        }
    )
    params = params.model_copy(update={"targets": {**params.targets, "ios": ios}})
    for stage in (convert, evaluate, examine, benchmark):
        stage.run(params, workspace, "ios")
    parity = Parity.model_validate(open_folder(workspace.exported("ios"), "artefact").facts["parity"])
    scored = records.read(Score, workspace.scored("ios"))
    examined = records.read(Examination, workspace.examined("ios"))
    assert {parity.stand_in, scored.stand_in, examined.stand_in} == {"reference interpreter, not a device"}
    assert scored.agreement.value == 1 and len(scored.answers) == 48
    assert {check.title: check.status for check in examined.checks} == dict.fromkeys(
        ("fp16 range", "lengths and batches", "padding", "tokenizer", "weights"), Status.PASS
    )
    measured = records.read(Measurement, workspace.measured("ios"))
    assert measured.not_measured.startswith("the reference interpreter's time says nothing of a phone's")


# --- what the stages leave ---------------------------------------------------------------------------------------


def test_prepared_data_is_the_data(built):
    """Splits of the right size, labels in order, tokenizers, and a card over all of it."""
    _, workspace = built
    card = open_folder(workspace.data, "data")
    assert card.facts["rows"] == {"train": 120, "dev": 36, "test": 48}
    assert card.facts["vocabulary"]["teacher"] == card.facts["vocabulary"]["student"] == len(make_tokenizer())
    assert {f"encoded/{split}.arrow" for split in ("train", "dev", "test")} <= set(card.files)
    examples = read_prepared(workspace.data, "test")
    assert json.loads((workspace.data / "space.json").read_text())["names"] == list(LABELS)
    assert all(
        any(word in text.split() for word in CLASSES[LABELS[label]])
        for (text,), label in zip(examples.texts, examples.numbers, strict=True)
    )


def test_token_ids_are_made_once(built):
    """They are what both tokenizers say; a length other than theirs, or data from before, stops with what to do."""
    params, workspace = built
    longest = params.data.max_length
    examples, split = read_encoded(workspace, "test", longest)
    assert list(split.ids) == encode(load_tokenizer(workspace.data / "tokenizer"), examples.texts, longest)
    assert (split.teacher_ids, split.has_token, split.pad_id) == (None, False, make_tokenizer().pad_token_id)
    with pytest.raises(IntegrityError, match=f"cut to {longest}, expected data.max_length {longest + 1}; run `dvc"):
        read_encoded(workspace, "test", longest + 1)


def test_facts_of_tokens_are_those_of_uncut_texts(tmp_path):
    """Though only texts that fill the length are tokenised again: lengths, their median, and how many are cut."""
    _, workspace = make(tmp_path, prepare, data__max_length=7)
    tokenizer = load_tokenizer(workspace.data / "tokenizer")
    for split, found in open_folder(workspace.data, "data").facts["tokens"].items():
        if split == "max_length":
            continue
        lengths = [len(ids) for ids in encode(tokenizer, read_prepared(workspace.data, split).texts, 1_000)]
        assert (found["longest"], found["cut"]) == (max(lengths), sum(length > 7 for length in lengths))
        assert (found["mean"], found["p50"]) == (round(np.mean(lengths), 2), int(np.median(lengths)))
        assert found["histogram"] == {str(n): sum(min(length, 7) == n for length in lengths) for n in range(5, 8)}


def test_the_bytes_of_the_data_do_not_depend_on_the_size_of_batches(tmp_path, monkeypatch):
    """Texts are tokenised some at a time; what is learned from must not know how many."""
    params, workspace = make(tmp_path, prepare)
    _, whole = read_encoded(workspace, "train", params.data.max_length)
    card = open_folder(workspace.data, "data")
    run(params, workspace, prepare)
    assert open_folder(workspace.data, "data") == card
    monkeypatch.setattr("pipeline.data.prepared.BATCH", 17)
    run(params, workspace, prepare)
    _, parts = read_encoded(workspace, "train", params.data.max_length)
    assert (list(parts.ids), parts.digest) == (list(whole.ids), whole.digest)


def test_a_trimmed_student_reads_ids_of_its_own(tmp_path):
    """Beside the teacher's, as each of the two saved tokenizers gives them."""
    params, workspace = make(tmp_path, prepare, student__vocabulary="trimmed")
    longest = params.data.max_length
    examples, split = read_encoded(workspace, "dev", longest)
    ours, theirs = (load_tokenizer(workspace.data / name) for name in ("tokenizer", "teacher_tokenizer"))
    assert len(ours) < len(theirs)
    assert list(split.ids) == encode(ours, examples.texts, longest)
    assert list(split.teacher_ids) == encode(theirs, examples.texts, longest)
    assert (split.pad_id, split.teacher_pad_id, split.has_token) == (ours.pad_token_id, theirs.pad_token_id, False)
    assert split.delimiter_ids == (ours.cls_token_id, ours.sep_token_id)
    _, alone = read_encoded(workspace, "dev", longest, reader="teacher")
    assert (list(alone.ids), alone.teacher_ids) == (list(split.teacher_ids), None)
    assert alone.pad_id == theirs.pad_token_id


def test_data_without_token_ids_are_prepared_again(copy):
    """Planted: what an earlier version wrote."""
    params, workspace = copy
    facts = open_folder(workspace.data, "data").facts
    seal(workspace.data, "data", facts={name: fact for name, fact in facts.items() if name != "encoding"})
    with pytest.raises(IntegrityError, match="found no token ids"):
        read_encoded(workspace, "dev", params.data.max_length)


def test_floors_are_scored_on_test(built):
    """Majority class: a third; words tell the class, so a linear classifier is good."""
    found = records.read(Floors, built[1].floors)
    accuracy = {floor.name: floor.primary.value for floor in found.floors}
    assert accuracy["majority"] == pytest.approx(1 / 3, abs=0.03)
    assert accuracy["linear"] > 0.8


def test_teacher_and_student_learned_the_task(built):
    """Far above chance, on dev and on test, and what the card says is what the weights answer."""
    _, workspace = built
    for folder, kind in ((workspace.teacher, "teacher"), (workspace.student, "student")):
        card = open_folder(folder, kind)
        assert card.facts["dev_score"] > 0.6 and card.facts["test_score"] > 0.6
        examples = read_prepared(workspace.data, "test")
        model, tokenizer = load_classifier(folder), load_tokenizer(folder)
        answers = []
        with torch.no_grad():
            for (text,) in examples.texts:
                answers.append(int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()))
        assert answers == json.loads((folder / TEST_ANSWERS).read_text())
        assert card.facts["test_score"] == np.mean(np.array(answers) == examples.numbers)
        assert tuple(model.config.id2label.values()) == LABELS


def test_cards_tell_what_each_folder_was_made_from(built):
    """From the artefact back to the data, by digests."""
    _, workspace = built
    data, teacher = open_folder(workspace.data, "data"), open_folder(workspace.teacher, "teacher")
    student, plan = open_folder(workspace.student, "student"), open_folder(workspace.quantized, "quantized")
    assert teacher.sources == {"data": data.digest}
    assert student.sources == {"data": data.digest, "teacher": teacher.digest}
    assert plan.sources == {"student": student.digest}
    assert open_folder(workspace.exported("cpu_fp32"), "artefact").sources == {"student": student.digest}
    exported = open_folder(workspace.exported("cpu"), "artefact")
    assert exported.sources == {"student": student.digest, "plan": plan.digest}
    assert open_folder(workspace.reference / "onnx", "reference").sources == {"teacher": teacher.digest}
    of_data = {"data": data.digest}
    scored = records.read(Score, workspace.scored("cpu"))
    assert (scored.artefact_digest, scored.sources) == (exported.digest, student.sources | {"student": student.digest})
    assert records.read(Floors, workspace.floors).sources == of_data
    assert records.read(Measurement, workspace.measured("cpu")).sources == of_data
    examined = records.read(Examination, workspace.examined("cpu"))
    assert examined.sources == of_data | {"student": student.digest}
    assert {check.name for check in examined.checks} <= set(plugins.names("check"))


def test_every_check_was_made(built):
    """What two of them found is a matter of a toy's times on this machine; everything else holds."""
    _, workspace = built
    for target in TARGETS:
        found = {check.name: check for check in records.read(Examination, workspace.examined(target)).checks}
        timed = [found.pop(name) for name in ("int8", "settings") if name in found]
        assert {name: check.reason for name, check in found.items() if check.status is not Status.PASS} == {}
        assert len(timed) == (2 if target == "cpu" else 1)
        assert all("times as fast as" in check.reason for check in timed)


@pytest.mark.parametrize("target", TARGETS)
def test_artefact_answers_as_the_student(built, target):
    """Parity was measured and kept; the reference inputs and outputs beside it are the student's own."""
    params, workspace = built
    card = open_folder(workspace.exported(target), "artefact")
    found = Parity.model_validate(card.facts["parity"])
    assert found.examples >= 18
    assert found.worst_difference <= found.tolerance == to_onnx.TOLERANCES[params.targets[target].precision]
    kept = load_file(workspace.exported(target) / "reference.safetensors")
    with torch.no_grad():
        expected = load_classifier(workspace.student)(
            torch.tensor(kept["input_ids"]).long(), torch.tensor(kept["attention_mask"]).long()
        ).logits
    np.testing.assert_allclose(kept["logits"], expected.numpy(), rtol=1e-4, atol=1e-4)
    assert json.loads((workspace.exported(target) / "labels.json").read_text()) == list(LABELS)


def test_scores_are_those_of_the_exported_files(built):
    """fp32 answers every row as the student does; int8 nearly."""
    _, workspace = built
    found = {target: records.read(Score, workspace.scored(target)) for target in TARGETS}
    student = load_file(workspace.student / TEST_OUTPUTS)["logits"]
    assert list(found["cpu_fp32"].answers) == student.argmax(1).tolist()
    assert 0 < found["cpu_fp32"].worst_output_difference < 1e-4 < found["cpu"].worst_output_difference
    assert found["cpu_fp32"].agreement.value == 1
    assert found["cpu"].agreement.value > 0.85
    for score in found.values():
        assert score.not_measured is None and score.stand_in is None
        assert score.primary.low <= score.primary.value <= score.primary.high
        assert score.primary.value > 0.5


@pytest.mark.parametrize("target", TARGETS)
def test_times_are_taken_beside_the_teacher(built, target):
    """Raw samples of both in the same processes, sizes, and the digests of both files."""
    _, workspace = built
    found = records.read(Measurement, workspace.measured(target))
    assert found.not_measured is None
    assert {series.model for series in found.series} >= {"candidate", "reference"}
    assert all(min(series.wall_ns) > 0 for series in found.series)
    assert found.artefact_digest == open_folder(workspace.exported(target), "artefact").digest
    assert found.reference_digest == open_folder(workspace.reference / "onnx", "reference").digest
    assert found.size_bytes == (workspace.exported(target) / "model.onnx").stat().st_size
    assert found.size_bytes < found.reference_size_bytes


def test_predictions_are_those_of_the_score(built):
    """From text to label by the shipped files alone; probabilities fall and sum to 1."""
    _, workspace = built
    texts = list(read_prepared(workspace.data, "test").texts)
    for target in TARGETS:
        answers = predict(workspace, target, texts)
        best = [LABELS.index(ranked[0][0]) for ranked in answers]
        assert tuple(best) == records.read(Score, workspace.scored(target)).answers
        for ranked in answers:
            probabilities = [p for _, p in ranked]
            assert probabilities == sorted(probabilities, reverse=True)
            assert sum(probabilities) == pytest.approx(1)
            assert {label for label, _ in ranked} == set(LABELS)


@pytest.mark.parametrize("text", ["", "🎉🎉", "play " * 5000, "שלום", "\udce9 rain", "a\0b", "\n"])
def test_any_text_gets_an_answer(built, text):
    """Faults row 21: nothing, only emoji, far too long, right to left, a lone surrogate, NUL."""
    [ranked] = predict(built[1], "cpu", [(text,)])
    assert len(ranked) == 3


def test_target_without_settings_is_named(built):
    """With the nearest that there is."""
    with pytest.raises(SettingsError, match=r"no target 'cpu_fp3' .* did you mean 'cpu_fp32'"):
        predict(built[1], "cpu_fp3", [("play",)])


# --- the same twice ----------------------------------------------------------------------------------------------


def hashes(folder):
    """SHA-256 of every file, by its path in the folder."""
    return {str(f.relative_to(folder)): sha256_of(f) for f in sorted(folder.rglob("*")) if f.is_file()}


def test_same_inputs_give_the_same_bytes_in_another_place(built, tmp_path, monkeypatch):
    """Faults row 37: another directory, timezone, umask; every file from the data to the artefacts, logs and cards."""
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    time.tzset()
    before = os.umask(0o077)
    try:
        _, again = make(tmp_path / "somewhere else", machine, prepare, teach, reference, distill, quantize, convert)
    finally:
        os.umask(before)
        monkeypatch.undo()
        time.tzset()
    _, first = built
    for folder in ("data", "teacher", "reference", "student", "variants", "quantized", "exported"):
        assert hashes(first.artifacts / folder) == hashes(again.artifacts / folder)


def test_no_artefact_holds_a_path_of_this_machine(built):
    """Checkpoints under artifacts/work do not leave it."""
    _, workspace = built
    work = workspace.artifacts / "work"
    files = [f for f in workspace.artifacts.rglob("*") if f.is_file() and not f.is_relative_to(work)]
    assert len(files) > 30
    for file in files:
        content = file.read_bytes()
        for path in (workspace.root, Path(convert.__file__).parents[1]):
            assert str(path).encode() not in content, (file, path)


def test_finished_student_is_not_trained_again(copy, caplog, monkeypatch):
    """A stage that was killed while it wrote its output only writes it again, to the same bytes."""
    params, workspace = copy
    expected = {folder: hashes(workspace.artifacts / folder) for folder in ("student", "variants")}
    shutil.rmtree(workspace.student)
    shutil.rmtree(workspace.variants)
    monkeypatch.setattr(distillation, "fit", None)
    with caplog.at_level(logging.INFO):
        run(params, workspace, distill)
    assert any("already trained" in record.message for record in caplog.records)
    assert {folder: hashes(workspace.artifacts / folder) for folder in ("student", "variants")} == expected


def test_a_finished_student_answers_the_test_rows_of_now(copy, monkeypatch):
    """Planted: test in another order and a row shorter, on which no weight depends; nothing is trained."""
    params, workspace = copy
    before = load_file(workspace.student / TEST_OUTPUTS)["logits"]
    header, _, *others = (workspace.root / "inputs" / "test.csv").read_text("utf-8").splitlines()
    (workspace.root / "inputs" / "test.csv").write_text("\n".join([header, *reversed(others)]) + "\n", "utf-8")
    monkeypatch.setattr(distillation, "fit", None)
    run(params, workspace, prepare, distill)
    after = load_file(workspace.student / TEST_OUTPUTS)["logits"]
    np.testing.assert_allclose(after, before[:0:-1], atol=1e-5)
    assert json.loads((workspace.student / TEST_ANSWERS).read_text()) == after.argmax(1).tolist()
    card = open_folder(workspace.student, "student")
    assert card.sources["data"] == open_folder(workspace.data, "data").digest
    labels = read_prepared(workspace.data, "test").numbers
    assert card.facts["test_score"] == float(np.mean(after.argmax(1) == np.asarray(labels)))


def test_a_student_of_an_earlier_version_is_asked_again(copy):
    """Planted: a folder without its answers."""
    params, workspace = copy
    card = open_folder(workspace.student, "student")
    (workspace.student / TEST_OUTPUTS).unlink()
    seal(workspace.student, "student", card.sources, card.facts)
    with pytest.raises(
        IntegrityError, match=r"no test_outputs.safetensors: an earlier version made it; run `dvc repro"
    ):
        evaluate.run(params, workspace, "cpu")


# --- refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("data/train.jsonl", [floors, teach, distill, quantize]),
        ("data/tokenizer/tokenizer.json", [teach, distill, convert]),
        ("teacher/model.safetensors", [reference, distill, evaluate]),
        ("student/model.safetensors", [quantize, convert]),
        ("student/tokenizer.json", [convert]),
        ("exported/cpu_fp32/model.onnx", [evaluate, benchmark]),
        ("exported/cpu_fp32/tokenizer.json", [evaluate, benchmark]),
        ("reference/onnx/model.onnx", [benchmark]),
    ],
)
def test_damaged_file_stops_the_next_stage(copy, file, stages):
    """Faults rows 9 and 22: one flipped bit, found by hash, named with both hashes; never trained on, never timed."""
    params, workspace = copy
    flip_bit(workspace.artifacts / file)
    for stage in stages:
        before = hashes(workspace.artifacts)
        with pytest.raises(IntegrityError, match=rf"{file}: damaged: found SHA-256 \w+…, expected \w+…"):
            run(params, workspace, stage)
        assert hashes(workspace.artifacts) == before


def test_damaged_plan_stops_the_int8_target_only(copy):
    """The other is made without it."""
    params, workspace = copy
    flip_bit(workspace.quantized / "plan.json")
    convert.run(params, workspace, "cpu_fp32")
    with pytest.raises(IntegrityError, match=r"quantized/plan.json: damaged"):
        convert.run(params, workspace, "cpu")


@pytest.mark.parametrize("required", [True, False])
def test_only_a_required_target_stops_the_others_by_its_parity(copy, monkeypatch, required):
    """The optional one has no artefact then, and says why to whoever asks."""
    params, workspace = copy
    changed = params.targets["cpu"].model_copy(
        update={"required": required, "budgets": params.targets["cpu"].budgets.model_copy(update={"size_mb": 9.0})}
    )
    params = params.model_copy(update={"targets": {**params.targets, "cpu": changed}})
    monkeypatch.setattr(to_onnx, "TOLERANCES", dict.fromkeys(to_onnx.TOLERANCES, 0.0))
    if required:
        with pytest.raises(ValuesDifferError, match="the conversion changed the model"):
            convert.run(params, workspace, "cpu")
        return
    convert.run(params, workspace, "cpu")
    evaluate.run(params, workspace, "cpu")
    assert "the conversion changed the model" in records.read(Score, workspace.scored("cpu")).not_measured


def test_damaged_artefact_answers_nothing(copy):
    """Also on the command line."""
    flip_bit(copy[1].exported("cpu") / "model.onnx")
    with pytest.raises(IntegrityError, match=r"exported/cpu/model.onnx: damaged"):
        predict(copy[1], "cpu", ["play"])


def test_stage_that_did_not_finish_is_as_if_it_never_ran(copy):
    """Faults row 3: a folder without its card."""
    params, workspace = copy
    (workspace.student / "card.json").unlink()
    with pytest.raises(IntegrityError, match=r"student: no card.json, so it was never finished"):
        run(params, workspace, quantize)


def spoil_teacher(workspace):
    """One weight becomes NaN."""
    from safetensors.torch import load_file, save_file

    file = workspace.root / "inputs" / "model" / "model.safetensors"
    weights = load_file(file)
    weights["bert.encoder.layer.0.output.dense.weight"][0, 0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})


def test_teacher_with_nan_is_refused(tmp_path):
    """Faults row 15: before a step is taken."""
    params, workspace = make(tmp_path, prepare)
    spoil_teacher(workspace)
    with pytest.raises(ModelError, match=r"weight 'bert.encoder.layer.0.output.dense.weight' holds NaN"):
        run(params, workspace, teach)
    assert not workspace.teacher.exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["alarm", "music"], "answers 2 labels .* the data has 3"),
        (["music", "alarm", "weather"], "differ from the data's .* in name or order"),
    ],
)
def test_ready_teacher_with_other_labels_is_refused(tmp_path, labels, message):
    """Faults row 26: compared by name, before anything is trained."""
    params, workspace = make(tmp_path, prepare, teacher__fine_tune=False)
    make_teacher(make_tokenizer(), labels=labels).save_pretrained(str(tmp_path / "inputs" / "model"))
    with pytest.raises(ModelError, match=message):
        run(params, workspace, teach)


def test_tokenizer_with_more_tokens_than_the_teacher_is_refused(tmp_path):
    """Faults row 22: planted, a tokenizer of another model; it would ask for rows that are not there."""
    params, workspace = write_project(tmp_path)
    make_tokenizer(extra=["another", "word"]).save_pretrained(str(tmp_path / "inputs" / "model"))
    tokens = len(make_tokenizer())
    with pytest.raises(ModelError, match=rf"tokenizer has {tokens + 2} tokens, but the model {tokens}"):
        run(params, workspace, prepare)


def test_length_beyond_the_teacher_is_refused(tmp_path):
    """By the first stage."""
    params, workspace = write_project(tmp_path, data__max_length=33)
    with pytest.raises(ModelError, match=r"max_length is 33, but teacher.model has positions for 32 tokens"):
        run(params, workspace, prepare)


def test_teacher_that_learns_nothing_fails_its_stage(tmp_path):
    """Faults row 16: not the gate at the end."""
    training = {"epochs": 0.1, "learning_rate": 1.0e-9}
    params, workspace = make(tmp_path, machine, prepare, teacher__training=training)
    with pytest.raises(TrainingError, match="the teacher collapsed"):
        run(params, workspace, teach)
    assert not workspace.teacher.exists()


def test_student_that_learns_nothing_fails_its_stage(copy):
    """Planted: a rate at which nothing moves, from random weights."""
    _, workspace = copy
    changes = {
        "distill__training": {"epochs": 0.1, "learning_rate": 1.0e-9},
        "student__init": {"from": "random", "layers": "uniform"},
    }
    params = write_settings(workspace, **changes)
    with pytest.raises(TrainingError, match="the student collapsed"):
        run(params, workspace, distill)


def test_losses_that_do_not_fit_are_refused_before_training(copy):
    """Faults row 26: all of them at once."""
    _, workspace = copy
    losses = {"attention_kl": {"map": [[1, 9]]}, "hidden_mse": {"map": [[2, 1]]}}
    params = write_settings(workspace, distill__losses=losses)
    with pytest.raises(SettingsError) as caught:
        run(params, workspace, distill)
    assert "distill.losses.attention_kl" in str(caught.value) and "distill.losses.hidden_mse" in str(caught.value)


# --- other shapes of a distillation ------------------------------------------------------------------------------


def test_small_student_with_controls_goes_all_the_way(copy):
    """Trimmed, narrower, factorised, in two phases, with a second seed and controls: each of as many steps."""
    _, workspace = copy
    student = {"layers": 2, "hidden": 16, "heads": 2, "embedding": 8, "vocabulary": "trimmed"}
    losses = {"logit_kl": {}, "hidden_mse": {"decay": "linear"}}
    params = write_settings(
        workspace,
        student=student,
        distill__losses=losses,
        distill__phases="two",
        distill__signal_epochs=1.0,
        distill__seeds=2,
        distill__controls={"no_teacher": 1, "logits_only": 1},
    )
    run(params, workspace, prepare, teach, distill, quantize, convert, evaluate)
    card = open_folder(workspace.variants, "variants")
    names = {"distilled-0", "distilled-1", "logits_only-0", "no_teacher-0"}
    assert {path.name for path in workspace.variants.iterdir() if path.is_dir()} == names
    cards = {name: open_folder(workspace.variants / name, "student") for name in names}
    assert {one.facts["steps"] for one in cards.values()} == {8 + 96}
    assert len({one.facts["parameters"] for one in cards.values()}) == 1
    assert cards["logits_only-0"].facts["losses"] == {"logit_kl": {}}
    best = max(("distilled-0", "distilled-1"), key=lambda name: cards[name].facts["dev_score"])
    assert card.facts["shipped"] == best
    weights = "model.safetensors"
    assert sha256_of(workspace.student / weights) == sha256_of(workspace.variants / best / weights)
    facts = open_folder(workspace.data, "data").facts
    assert facts["vocabulary"]["student"] < facts["vocabulary"]["teacher"]
    model = load_classifier(workspace.student)
    assert model.config.vocab_size == facts["vocabulary"]["student"]
    plain = Tokenizer.from_file(str(workspace.exported("cpu") / "tokenizer.json"))
    assert plain.get_vocab_size() == facts["vocabulary"]["student"]
    log = [json.loads(line) for line in (workspace.student / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == sorted(entry["step"] for entry in log)
    assert log[-1]["step"] == 104
    assert records.read(Score, workspace.scored("cpu")).agreement.value > 0.7
    assert load(workspace.params) == params


# --- a change against its base ------------------------------------------------------------------------------------


@pytest.fixture
def versions(copy, monkeypatch):
    """(workspace with one required target, folder of its artefact as it was); without an emulator, which takes long."""
    monkeypatch.setattr(emulation, "COMMAND", "no-such-emulator")
    _, workspace = copy
    required = {**TARGET, "precision": "int8", "required": True, "budgets": {"size_mb": 5.0}}
    quick = {"processes": 3, "pairs": 4, "max_rounds": 1, "time": {"tolerated": 50.0, "seen": 100.0}}
    write_settings(workspace, targets={"cpu": required}, compare=quick)
    return workspace, Path(shutil.copytree(workspace.exported("cpu"), workspace.root / "base"))


def rewrite(folder, change):
    """Another model file under the same card."""
    card = open_folder(folder, "artefact")
    model = onnx.load(folder / "model.onnx")
    change(model)
    onnx.save(model, folder / "model.onnx")
    seal(folder, "artefact", sources=card.sources, facts=card.facts)


def turn_answers_round(model):
    """The first class's logit is the last one's, and so on."""
    (output,) = (value for value in model.graph.output if value.name == "logits")
    for node in model.graph.node:
        node.output[:] = ["before" if name == output.name else name for name in node.output]
    order = onnx.numpy_helper.from_array(np.arange(len(LABELS))[::-1].astype(np.int64).copy(), "order")
    model.graph.initializer.append(order)
    model.graph.node.append(onnx.helper.make_node("Gather", ["before", "order"], [output.name], name="turn", axis=1))


def compared(workspace, base, **options):
    """(exit status, the record that was written)."""
    status = compare.command(str(base), folder=workspace.root, target=["cpu"], build=False, **options)
    return status, records.read(Comparison, workspace.compared / "comparison.json")


def test_a_file_that_did_not_change_is_not_timed(versions, monkeypatch):
    """Byte for byte the same: there is nothing to measure."""
    workspace, base = versions
    monkeypatch.setattr(sides, "measure", None)
    status, found = compared(workspace, base)
    assert (status, found.status, [one.what for one in found.changes]) == (0, Status.PASS, ["runtime", "file"])
    # an artefact's folder has no scores beside it that would name their runtime
    assert "no record says which version" in (workspace.compared / "comment.md").read_text("utf-8")


def test_another_file_is_timed_scored_and_weighed(versions, capsys, monkeypatch):
    """Every row of the table, and the files that people and CI read."""
    monkeypatch.undo()  # the emulator where there is one
    workspace, base = versions
    rewrite(workspace.exported("cpu"), lambda model: setattr(model, "doc_string", "another"))
    status, found = compared(workspace, base)
    rows = {one.what: one for one in found.changes}
    figures = [
        "runtime",
        "score",
        "slices",
        "calibration",
        "time",
        "load",
        "first_call",
        "memory",
        "library",
        "instructions",
        "size",
    ]
    assert list(rows) == figures
    counted = instructions.why_unusable() is None
    assert (rows["instructions"].harm is not None) == counted  # with a reason where they cannot be
    # of a toy call most is Python itself, which differs each time; tests/test_instructions.py has a larger one
    assert not counted or abs(rows["instructions"].harm.value) < 5
    assert counted or rows["instructions"].reasons
    assert (status, rows["score"].status, rows["size"].status) == (3, Status.INCONCLUSIVE, Status.PASS)
    # a toy's time decides nothing; it was taken
    assert rows["time"].status in {Status.PASS, Status.INCONCLUSIVE} and rows["time"].base
    assert rows["load"].status is None
    assert set(found.evidence) == {"base/cpu", "head/cpu"} and len(set(found.evidence.values())) == 2
    assert "Undecided against" in (workspace.compared / "comment.md").read_text("utf-8")
    assert '<testcase classname="decant.compare.cpu" name="time"' in (workspace.compared / "junit.xml").read_text(
        "utf-8"
    )
    out = capsys.readouterr().out
    assert "median time of a call" in out and f"comment: {workspace.compared / 'comment.md'}" in out


def test_another_version_of_the_runtime_is_not_passed_over(versions):
    """Planted: the base's record names another one. The same file then is no pass: the runtime may be slower."""
    workspace, _ = versions
    before = Path(shutil.copytree(workspace.root, workspace.root.parent / "before"))
    score = records.read(Score, Workspace(before).scored("cpu"))
    records.write(score.model_copy(update={"runtime_version": "0.1"}), Workspace(before).scored("cpu"))
    status, found = compared(workspace, before)
    assert (status, found.status) == (3, Status.NOT_MEASURED)
    runtime, file = found.changes
    assert (runtime.what, runtime.status, file.what) == ("runtime", Status.NOT_MEASURED, "file")
    comment = (workspace.compared / "comment.md").read_text("utf-8")
    assert "### ○ Decant: Not measured against" in comment and "No regression" not in comment
    assert "the base is on record with onnxruntime 0.1 and was executed in onnxruntime 1." in comment
    assert "as --base-python" in comment
    # nor is another environment that has not the version on record either
    status, found = compared(workspace, before, base_python=Path(sys.executable))
    assert (status, found.changes[0].what, found.changes[0].status) == (3, "runtime", Status.NOT_MEASURED)


def test_two_environments_are_timed_in_processes_by_turns(versions, monkeypatch):
    """And the same file in both is compared, since its runtime may differ; here it is this Python twice."""
    workspace, base = versions
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    status, found = compared(workspace, base, base_python=Path("python"))
    rows = {one.what: one for one in found.changes}
    assert (rows["runtime"].status, rows["score"].harm.value) == (None, 0.0)
    assert rows["time"].status is not Status.NOT_MEASURED and rows["time"].base, rows["time"].reasons
    assert "ran in processes of their own, by turns" in (workspace.compared / "comment.md").read_text("utf-8")
    with pytest.raises(SettingsError, match="found no program"):
        compared(workspace, base, base_python=Path("no-such-python"))
    assert status in (0, 3)


def test_answers_that_became_wrong_are_a_regression(versions):
    """The same speed, and every answer another."""
    workspace, base = versions
    rewrite(workspace.exported("cpu"), turn_answers_round)
    status, found = compared(workspace, base)
    assert (status, found.status) == (1, Status.FAIL)
    (score_row,) = (one for one in found.changes if one.what == "score")
    assert score_row.status is Status.FAIL and score_row.harm.low > 0
    turned_back = compared(Workspace(workspace.root), workspace.exported("cpu"))[1]
    assert turned_back.status is Status.PASS  # the project beside itself


def test_what_cannot_be_compared_is_no_pass(versions):
    """A damaged base, and one with other classes; the reason is in the comment."""
    workspace, base = versions
    card = open_folder(base, "artefact")
    space = {**card.facts["task"]["space"], "names": ["a", "b", "c"]}
    seal(base, "artefact", facts={**card.facts, "task": {**card.facts["task"], "space": space}})
    status, found = compared(workspace, base)
    assert (status, found.status) == (3, Status.NOT_MEASURED)
    assert "other classes" in found.not_compared["cpu"]
    flip_bit(base / "model.onnx")
    with pytest.raises(IntegrityError, match="damaged"):
        compared(workspace, base)
    assert not workspace.compared.exists()  # the comment before it was of another comparison
