"""A student distilled on general text: made twice to the same bytes, learned from, and never from a test row."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_alignment import byte_pairs, renumbered
from tiny_project import make_rows, make_teacher, write_project, write_settings

from pipeline.base.errors import DataError, IntegrityError, ModelError, SettingsError
from pipeline.base.records import open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.inputs import describe_source, models_behind
from pipeline.data.seen import FILE as DIGESTS
from pipeline.data.seen import digest_of, digests_of, read_digests, write_digests
from pipeline.distillation.distil import Distillation
from pipeline.distillation.general import distil_general
from pipeline.distillation.variants import variants_of
from pipeline.families import shape_of
from pipeline.models.checkpoints import load_classifier
from pipeline.models.vocabulary import load_tokenizer, save_tokenizer
from pipeline.settings.params import load
from stages import distill, machine, prepare, teach

TEXTS = [text for text, _ in make_rows(300, seed=99)]
TRAINING = {"epochs": 3.0, "learning_rate": 5.0e-3, "batch_size": 16, "evaluations": 2}
GENERAL = {"texts": ["general.txt"], "max_length": 16, "held_out": 0.1, "training": TRAINING}
# few labels are few steps an epoch
LONGER = {"teacher__training": {"steps": 150, "learning_rate": 5.0e-3, "batch_size": 16, "evaluations": 3}}
LOSSES = {"minilm_v2": {"relation_heads": 4}, "hidden_mse": {"map": "last_only"}}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Paths in settings are meant from the current folder."""
    monkeypatch.chdir(tmp_path)


def project(folder, losses=None, **changes):
    """Settings and workspace with a general student of one narrower layer."""
    (folder / "general.txt").write_text("".join(f"{text}\n" for text in TEXTS), "utf-8")
    student = {"layers": 1, "hidden": 16, "heads": 4, "init": {"from": "general"}}
    general = GENERAL | {"losses": losses or LOSSES}
    return write_project(folder, student=student, general=general, **changes)


def test_it_learns_and_is_made_twice_to_the_same_bytes(tmp_path, monkeypatch):
    """The loss on held-out text falls; weights are equal to the last bit in another folder."""
    digests = []
    for number, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        params, workspace = project(tmp_path / name)
        torch.manual_seed(number)  # whoever drew before decides nothing
        distil_general(params, workspace)
        card = open_folder(workspace.general, "general")
        digests.append(card.files["model.safetensors"].sha256)
        loss = card.facts["held_out_loss"]
        assert loss["after"] < 0.9 * loss["before"]
        assert card.facts["texts"]["dev"] > 5 and sum(card.facts["texts"].values()) == len(set(map(digest_of, TEXTS)))
        assert not [file for file in card.files if "text" in file and file != DIGESTS]
    assert digests[0] == digests[1]
    shape = shape_of(load_classifier(workspace.general).config)
    assert (shape.layers, shape.hidden, shape.heads) == (1, 16, 4)


def test_a_task_begins_where_the_general_student_ended(tmp_path):
    """Its encoder is that of the folder, whatever the seed; its head is new."""
    params, workspace = project(tmp_path)
    machine.run(params, workspace)
    prepare.run(params, workspace)
    teach.run(params, workspace)
    distil_general(params, workspace)
    distillation = Distillation(params, workspace)
    general = load_file(workspace.general / "model.safetensors")
    one, other = (distillation.new_student(seed).state_dict() for seed in (0, 1))
    encoder = [name for name in general if ".encoder." in name or ".embeddings." in name]
    assert encoder and all(np.array_equal(one[name], general[name]) for name in encoder)
    assert not np.array_equal(one["classifier.weight"], other["classifier.weight"])
    distill.run(params, workspace)
    assert open_folder(workspace.student, "student").facts["dev_score"] > 0.8


def test_general_text_is_compared_by_pieces_where_tokens_do_not_belong_together(tmp_path):
    """Held-out text as well, which chooses the checkpoint: the loss on it is one of pieces, and falls."""
    other_model(tmp_path / "other", byte_pairs(), type_vocab_size=1)
    (tmp_path / "general.txt").write_text("".join(f"{text}\n" for text in TEXTS), "utf-8")
    init = {"from": str(tmp_path / "other")}
    student = {"layers": 1, "hidden": 16, "heads": 4, "init": {"from": "general"}}
    params, workspace = write_project(tmp_path, student=student, general=GENERAL | {"losses": LOSSES, "init": init})
    distil_general(params, workspace)
    loss = open_folder(workspace.general, "general").facts["held_out_loss"]
    assert loss["after"] < 0.9 * loss["before"]
    texts = open_folder(workspace.work("general") / "texts", "texts")
    assert texts.facts["encoding"]["alignment"]["by"] == "characters"
    assert {"encoded/train-segments.arrow", "encoded/dev-segments.arrow"} <= set(texts.files)


def test_another_general_student_trains_the_task_again(tmp_path):
    """Its weights are part of the key."""
    params, workspace = project(tmp_path)
    machine.run(params, workspace)
    prepare.run(params, workspace)
    teach.run(params, workspace)
    distil_general(params, workspace)
    variant = variants_of(params.distill, "cross_entropy", 0)[0]
    before = Distillation(params, workspace).key(variant)
    training = params.general.training.model_copy(update={"steps": 3})
    changed = params.model_copy(update={"general": params.general.model_copy(update={"training": training})})
    distil_general(changed, workspace)
    assert Distillation(params, workspace).key(variant) != before


def plant(folder, workspace, split):
    """Puts a text of dev or test among the general text, otherwise written; gives it as it stands in the data."""
    [text] = json.loads((workspace.data / f"{split}.jsonl").read_text("utf-8").splitlines()[3])["texts"]
    (folder / "general.txt").write_text("\n".join([*TEXTS, f"{text.upper()} !"]), "utf-8")
    return text


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_planted_test_text_is_refused_before_anything_is_trained(tmp_path, split):
    """Though the stage that makes the general student reads no task."""
    params, workspace = project(tmp_path)
    prepare.run(params, workspace)
    text = plant(tmp_path, workspace, split)
    with pytest.raises(
        DataError, match=rf"general\.texts: 1 of \d+ texts of {split} are learned from, such as '{text}'"
    ):
        prepare.run(params, workspace)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    """A project's folder with a general student that has learned from a test text, and that text."""
    folder = tmp_path_factory.mktemp("seen")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        params, workspace = project(folder)
        machine.run(params, workspace)
        prepare.run(params, workspace)
        teach.run(params, workspace)
        text = plant(folder, workspace, "test")
        distil_general(params, workspace)
    return folder, text


@pytest.fixture
def seen_too_much(made_once, tmp_path):
    """A copy of it, and what it is refused with, but for the setting's name."""
    folder, text = made_once
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    workspace = Workspace(tmp_path)
    return load(workspace.params), workspace, rf"{{}}: 1 of \d+ texts of test are learned from, such as '{text}'"


def test_a_student_that_has_seen_a_test_text_is_refused(seen_too_much):
    """Whoever made the model: the digests beside it tell, and how a text is written does not matter."""
    params, workspace, message = seen_too_much
    with pytest.raises(DataError, match=message.format(r"student\.init\.from")):
        Distillation(params, workspace)


@pytest.mark.parametrize("section", ["teacher", "teacher.second"])
def test_a_teacher_that_has_seen_a_test_text_is_refused(seen_too_much, section, monkeypatch):
    """Either, before the first of them is trained."""
    params, workspace, message = seen_too_much
    monkeypatch.setattr(teach, "fit", None)
    model, settings = str(workspace.general.resolve()), yaml.safe_load(workspace.params.read_text("utf-8"))
    teacher = settings["teacher"] | ({"model": model} if section == "teacher" else {"second": {"model": model}})
    params = write_settings(workspace, student={"layers": 1}, teacher=teacher)
    prepare.run(params, workspace)
    with pytest.raises(DataError, match=message.format(rf"{section}\.model")):
        teach.run(params, workspace)


def test_what_a_model_has_seen_goes_along_with_what_is_made_of_it(seen_too_much, tmp_path, monkeypatch):
    """Into a student of another project whose own texts are others, and into what is distilled from that."""
    _, workspace, message = seen_too_much
    origin, further = str(workspace.general.resolve()), tmp_path / "further"
    further.mkdir()
    monkeypatch.chdir(further)
    (further / "general.txt").write_text("\n".join(f"{text} indeed" for text in TEXTS[:40]), "utf-8")
    general = GENERAL | {"losses": {"hidden_mse": {"map": "last_only"}}, "init": {"from": origin}}
    general["training"] = TRAINING | {"epochs": 1.0}
    student = {"layers": 1, "hidden": 16, "heads": 4, "init": {"from": "general"}}
    params, other = write_project(further, student=student, general=general)
    distil_general(params, other)
    monkeypatch.chdir(tmp_path)
    # the first project again, with what the other has made
    params = write_settings(workspace, student={"layers": 1, "init": {"from": str(other.general.resolve())}})
    prepare.run(params, workspace)
    teach.run(params, workspace)
    with pytest.raises(DataError, match=message.format(r"student\.init\.from")):
        Distillation(params, workspace)


def test_a_student_and_its_teacher_say_what_they_have_seen(tmp_path):
    """Training texts, those without label, and what their models had seen."""
    data = {"data__labels_per_class": 10, "data__unlabelled": {"rest_of_train": True}}
    params, workspace = write_project(tmp_path, student={"layers": 1}, **data, **LONGER)
    machine.run(params, workspace)
    prepare.run(params, workspace)
    teach.run(params, workspace)
    distill.run(params, workspace)
    texts = {
        split: [
            one
            for line in (workspace.data / f"{split}.jsonl").read_text("utf-8").splitlines()
            for one in json.loads(line)["texts"]
        ]
        for split in ("train", "unlabelled")
    }
    assert set(read_digests(workspace.teacher)) == set(digests_of(texts["train"]))
    assert set(read_digests(workspace.student)) == set(digests_of([*texts["train"], *texts["unlabelled"]]))


def test_text_that_is_almost_a_test_row_is_counted_and_refused_above_the_share(tmp_path):
    """Planted: every test row backwards, which has the same words, in a file of text without labels."""
    strict = {"similarity": 0.999, "max_share": 0.5}
    changes = {"data__unlabelled": {"files": ["more.txt"]}}
    (tmp_path / "more.txt").write_text("quartz judges vex nymphs", "utf-8")
    params, workspace = write_project(tmp_path, **changes)
    prepare.run(params, workspace)
    facts = open_folder(workspace.data, "data").facts
    assert (facts["unlabelled"], facts["unlabelled_near_test"]) == (1, 0)
    rows = [json.loads(line)["texts"][0] for line in (workspace.data / "test.jsonl").read_text("utf-8").splitlines()]
    (tmp_path / "more.txt").write_text("\n".join(" ".join(row.split()[::-1]) for row in rows), "utf-8")
    prepare.run(params, workspace)
    assert open_folder(workspace.data, "data").facts["unlabelled_near_test"] == len(rows)
    params = write_settings(workspace, **changes, data__near_duplicates=strict)
    message = r"have a near duplicate in data\.unlabelled\.files .*raise data\.near_duplicates\.max_share"
    with pytest.raises(DataError, match=message):
        prepare.run(params, workspace)


def test_a_student_is_made_of_every_model_behind_it(tmp_path):
    """Of a general student those that it was distilled from, not the folder that it happens to lie in."""
    other_model(tmp_path / "another", renumbered())
    (tmp_path / "general.txt").write_text("".join(f"{text}\n" for text in TEXTS), "utf-8")
    student = {"layers": 1, "hidden": 16, "heads": 4, "init": {"from": "general"}}
    general = GENERAL | {"losses": LOSSES, "init": {"from": str(tmp_path / "another")}}
    general["training"] = TRAINING | {"epochs": 1.0}
    params, workspace = write_project(tmp_path, student=student, general=general)
    machine.run(params, workspace)
    prepare.run(params, workspace)
    teach.run(params, workspace)
    distil_general(params, workspace)
    base = describe_source(params.teacher.model)
    assert Distillation(params, workspace)._models == [base, "another"]
    shutil.copytree(workspace.general, tmp_path / "moved")
    assert models_behind(str(tmp_path / "moved")) == [base, "another"]
    (tmp_path / "another" / "card.json").write_text('{"license": "of somebody else"}')
    assert models_behind(str(tmp_path / "another"), str(tmp_path / "moved")) == ["another", base]


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1", None])
def test_damaged_digests_are_a_message(tmp_path, content):
    """An empty file, the pointer that Git LFS leaves, and an array of something else."""
    if content is None:
        np.save(tmp_path / DIGESTS, np.zeros(3))
    else:
        (tmp_path / DIGESTS).write_bytes(content)
    with pytest.raises(IntegrityError, match=r"texts\.npy: (damaged|no digests of texts); make that model again"):
        read_digests(tmp_path)


def test_nothing_is_made_where_none_is_asked_for(tmp_path):
    """A folder that says so, so that DVC has its output."""
    params, workspace = write_project(tmp_path)
    distil_general(params, workspace)
    assert open_folder(workspace.general, "general").facts == {"not_made": "student.init.from is not 'general'"}


def test_losses_on_answers_are_refused(tmp_path):
    """There is no task that would give any."""
    params, workspace = project(tmp_path, losses={"logit_kl": {}})
    with pytest.raises(SettingsError, match=r"general\.losses\.logit_kl: it reads logits, which no model gives before"):
        distil_general(params, workspace)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student__init": {"from": "general"}}, r"general\.texts names no file; name text to distil on"),
        ({"general": {"init": {"from": "general"}}}, r"general\.init\.from is 'general', which it describes"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, changes, message):
    """Before anything runs."""
    params, workspace = write_project(tmp_path)
    del params
    with pytest.raises(SettingsError, match=message):
        write_settings(workspace, **{"student": {"layers": 1}, **changes})


# --- a student of another model than its teacher ------------------------------------------------------------------


def other_model(folder, tokenizer, **changes):
    """A base model with a tokenizer of its own."""
    model = make_teacher(tokenizer, seed=5, **{"hidden_size": 24, "num_hidden_layers": 3, **changes})
    model.save_pretrained(str(folder), safe_serialization=True)
    save_tokenizer(tokenizer, folder)


@pytest.fixture
def two_models(tmp_path):
    """A project whose student is copied from a model that numbers the teacher's pieces otherwise."""
    other_model(tmp_path / "other", renumbered())
    student = {"layers": 2, "init": {"from": str(tmp_path / "other")}}
    losses = {"logit_kl": {"temperature": 2.0}, "attention_kl": {}, "hidden_mse": {"map": "uniform"}}
    return write_project(tmp_path, student=student, distill__losses=losses)


def made(params, workspace):
    """After everything up to the teacher."""
    for stage in (machine, prepare, teach):
        stage.run(params, workspace)
    return Distillation(params, workspace)


def test_a_student_of_another_model_learns_from_its_teacher_token_by_token(two_models):
    """It is of the other model's width and vocabulary; attention and hidden losses hold, and are learned."""
    params, workspace = two_models
    distillation = made(params, workspace)
    encoding = distillation.data.facts["encoding"]
    assert encoding["alignment"] == {"by": "tokens", "apart": {"train": []}}
    student = distillation.new_student(0)
    other = load_tokenizer(workspace.root / "other")
    assert shape_of(student.config).hidden == 24 and student.config.vocab_size == len(other)
    assert load_tokenizer(workspace.data / "tokenizer").get_vocab() == other.get_vocab()
    distill.run(params, workspace)
    card = open_folder(workspace.student, "student")
    assert card.facts["dev_score"] > 0.8
    log = [json.loads(line) for line in (workspace.student / "log.jsonl").read_text("utf-8").splitlines()]
    for name in ("attention_kl", "hidden_mse"):
        terms = [entry[f"term_{name}"] for entry in log if f"term_{name}" in entry]
        assert terms[0] > 0 and terms[-1] < terms[0]


def test_the_teachers_own_base_model_is_no_teacher_yet(tmp_path):
    """A student that names it starts as it was before the task; one that says 'teacher' as it is after."""
    params, workspace = write_project(tmp_path, student={"layers": 2, "init": {"from": "inputs/model"}})
    named = made(params, workspace).new_student(0)
    folders = (tmp_path / "inputs" / "model", workspace.teacher)
    base, taught = (load_file(folder / "model.safetensors") for folder in folders)
    weight = "bert.encoder.layer.1.output.dense.weight"
    assert np.array_equal(named.state_dict()[weight], base[weight])
    assert not np.array_equal(base[weight], taught[weight])
    copied = Distillation(write_settings(workspace, student={"layers": 2}), workspace).new_student(0)
    assert np.array_equal(copied.state_dict()[weight], taught[weight])


def test_a_student_is_no_model_to_copy_from_where_it_was_given_something_anew(tmp_path):
    """Refused before the teacher is trained."""
    params, workspace = write_project(tmp_path, student={"layers": 1, "embedding": 8})
    for stage in (machine, prepare, teach, distill):
        stage.run(params, workspace)
    workspace.student.rename(tmp_path / "made")
    changed = write_settings(workspace, student={"layers": 1, "init": {"from": "made"}})
    with pytest.raises(ModelError, match=r"student\.init\.from 'made': a student with a factorised embedding"):
        prepare.run(changed, workspace)


def test_planted_ids_of_other_pieces_do_not_count_as_the_same_tokens(two_models, monkeypatch):
    """Each piece belongs to its neighbour's id: rows of the same length are not enough."""
    params, workspace = two_models

    def shifted(student, teacher):
        return list(np.roll(range(len(teacher)), 1))

    monkeypatch.setattr("pipeline.data.prepared.token_map", shifted)
    machine.run(params, workspace)
    prepare.run(params, workspace)
    assert open_folder(workspace.data, "data").facts["encoding"]["alignment"]["by"] == "characters"


def test_a_trimmed_vocabulary_has_what_text_without_labels_needs(tmp_path):
    """Or its words would be spelled out; the student's ids are of its own model."""
    other_model(tmp_path / "other", renumbered())
    (tmp_path / "more.txt").write_text("a lamp in the kitchen\n", "utf-8")
    student = {"layers": 2, "vocabulary": "trimmed", "init": {"from": str(tmp_path / "other")}}
    params, workspace = write_project(tmp_path, student=student, data__unlabelled={"files": ["more.txt"]})
    distillation = made(params, workspace)
    trimmed = load_tokenizer(workspace.data / "tokenizer").get_vocab()
    assert "lamp" in trimmed and "kit" in trimmed and "snooze" in trimmed
    assert distillation.data.facts["unlabelled"] == 1 and len(distillation.splits["unlabelled"]) == 1
    assert distillation.new_student(0).config.vocab_size == len(trimmed)


def test_tokenizers_that_cut_otherwise_leave_losses_on_pieces_of_text(tmp_path):
    """Those that compare tokens are refused before training, with the ones that remain; hidden states are learned."""
    tokenizer = byte_pairs()
    other_model(tmp_path / "other", tokenizer, type_vocab_size=1)
    student = {"layers": 2, "init": {"from": str(tmp_path / "other")}}
    losses = {"logit_kl": {}, "sentence_cosine": {}, **LOSSES}
    params, workspace = write_project(tmp_path, student=student, distill__losses=losses)
    distillation = made(params, workspace)
    assert distillation.data.facts["encoding"]["alignment"]["by"] == "characters"
    refused = params.distill.model_copy(update={"losses": {"attention_kl": {}}})
    with pytest.raises(SettingsError, match=r"attention_kl: it compares token with token, (.|\n)*sentence_cosine"):
        distillation.check(variants_of(refused, "cross_entropy", 0)[0])
    distill.run(params, workspace)
    log = [json.loads(line) for line in (workspace.student / "log.jsonl").read_text("utf-8").splitlines()]
    for name in ("hidden_mse", "sentence_cosine", "minilm_v2"):
        terms = [entry[f"term_{name}"] for entry in log if f"term_{name}" in entry]
        assert terms[0] > 0 and terms[-1] < terms[0]


def test_a_model_that_is_nowhere_is_named_by_its_setting(tmp_path):
    """student.init.from, not teacher.model."""
    params, workspace = write_project(tmp_path, student={"layers": 1, "init": {"from": "./nowhere/at/all"}})
    with pytest.raises(ModelError, match=r"student\.init\.from './nowhere/at/all' is no folder"):
        machine.run(params, workspace)
        prepare.run(params, workspace)


# --- few labels, text without them, two teachers ------------------------------------------------------------------


def test_the_rest_of_train_is_text_without_labels(tmp_path):
    """Ten of each class keep theirs; the control sees those alone, and the student all of it, answered once."""
    params, workspace = write_project(tmp_path, data__labels_per_class=10, **LONGER)
    distillation = made(params, workspace)
    assert len(distillation.splits["train"]) == 30
    assert len(distillation.splits["unlabelled"]) == distillation.data.facts["unlabelled"] == 90
    control, student = (distillation._training_rows(losses) for losses in (["cross_entropy"], ["logit_kl"]))
    assert len(control) == 30 and len(student) == 120
    assert student.teacher_outputs["logits"].shape == (120, 3)
    assert sum(target == -100 for target in student.targets) == 90


def test_text_of_which_the_teacher_is_not_sure_is_left_out(tmp_path):
    """Rows with a label stay, however sure it is of them."""
    params, workspace = write_project(tmp_path, data__labels_per_class=10, **LONGER)
    whole = made(params, workspace)._training_rows(["logit_kl"])
    sure = whole.teacher_outputs["logits"].softmax(-1).amax(-1)
    least = float(sure[30:].median())
    unlabelled = params.distill.unlabelled.model_copy(update={"confidence": least})
    changed = params.model_copy(update={"distill": params.distill.model_copy(update={"unlabelled": unlabelled})})
    kept = Distillation(changed, workspace)._training_rows(["logit_kl"])
    assert len(kept) == 30 + int((sure[30:] >= least).sum()) < len(whole)
    assert list(kept.targets[:30]) == list(whole.targets[:30])


def test_outputs_of_two_teachers_are_mixed(tmp_path):
    """By the second's share; it reads its own tokens, its weights and share decide the key, and its scores are told."""
    other_model(tmp_path / "second", byte_pairs(), type_vocab_size=1)
    params, workspace = write_project(tmp_path)
    alone = made(params, workspace)
    variant = variants_of(params.distill, "cross_entropy", 0)[0]
    first, key = alone._training_rows(["logit_kl"]).teacher_outputs["logits"], alone.key(variant)
    second = {"model": str(tmp_path / "second"), "training": LONGER["teacher__training"]}
    settings = yaml.safe_load(workspace.params.read_text("utf-8"))
    params = write_settings(workspace, teacher={**settings["teacher"], "second": second})
    both = made(params, workspace)
    facts = open_folder(workspace.teacher, "teacher").facts
    assert set(facts["second"]) >= {"dev_score", "test_score", "mixed"}
    outputs = both._training_rows(["logit_kl"]).teacher_outputs["logits"]
    assert both.key(variant) != key
    other = 2 * outputs - first
    assert float((other - first).abs().max()) > 0.1
    agreement = (other.argmax(-1).numpy() == np.array(both.splits["train"].targets)).mean()
    assert agreement > 0.5
    params = write_settings(workspace, teacher={**settings["teacher"], "second": {**second, "share": 1.0}})
    alone = made(params, workspace)
    torch.testing.assert_close(alone._training_rows(["logit_kl"]).teacher_outputs["logits"], other, atol=1e-5, rtol=0)
    assert alone.key(variant) not in (both.key(variant), key)


def test_digests_hold_nothing_of_the_texts(tmp_path):
    """Eight bytes each, sorted."""
    write_digests(tmp_path, digests_of(TEXTS[:20]))
    content = np.load(tmp_path / DIGESTS, allow_pickle=False)
    assert content.dtype == np.uint64 and sorted(content) == list(content)
    assert {one.tobytes() for one in content} == set(map(digest_of, TEXTS[:20]))
