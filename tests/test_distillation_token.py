"""A student with a distillation token: its tokenizer, weights, batches and exports; and noise on its class token."""

import copy
import json

import numpy as np
import onnx
import pytest
import test_to_coreml as coreml
import torch
from fakes import install_runtime, make_artefact, make_job, make_result, slow_but
from test_quantization import toy_examples
from tiny_project import make_rows, make_tokenizer, write_project, write_teacher
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from toy_models import FAMILIES, FUSED, NARROW_EMBEDDINGS, ROTARY, TASK, toy_model
from transformers import (
    BertTokenizerFast,
    DistilBertTokenizerFast,
    ElectraTokenizerFast,
    PreTrainedTokenizerFast,
    RobertaTokenizerFast,
)

from eval import parity
from eval.devices import local
from eval.latency import Exported, measure
from eval.runtimes import onnxruntime, pytorch
from eval.worker import Turn, execute
from export import to_coreml, to_onnx
from pipeline.base.errors import ModelError
from pipeline.data.batches import Collator, pad
from pipeline.data.prepared import EncodedSplit, open_data, read_encoded
from pipeline.data.texts import encode
from pipeline.families import DISTILLATION_TOKEN, family_of, layers_of, shape_of
from pipeline.mil.package import read_package
from pipeline.models.checkpoints import load_classifier, read_config, save_classifier, token_table
from pipeline.models.students import build_student, student_config
from pipeline.models.vocabulary import load_tokenizer, needed_tokens, save_tokenizer, trim, with_distillation_token
from pipeline.quantization.plan import Scheme, make_plan
from pipeline.settings.distill import ClassToken
from pipeline.settings.measure import MeasureSettings
from pipeline.settings.quantize import QuantizeSettings
from pipeline.settings.student import StudentSettings
from pipeline.signals.reader import TOKEN_POSITION, SignalReader
from pipeline.training.class_token import ClassTokenNoise
from stages import prepare

TEXTS = [text for text, _ in make_rows(60, seed=1)]
ODD_TEXTS = ["", "kitchen zebra", "é日", "PLAY  a song!", "play " * 40]
EVERY_FAMILY = pytest.mark.parametrize("family", sorted(FAMILIES))

# --- tokenizers --------------------------------------------------------------------------------------------------


def without_token(ids):
    """A text's ids with the token behind the class token taken out."""
    return [*ids[:TOKEN_POSITION], *ids[TOKEN_POSITION + 1 :]]


def wordpiece(folder, family):
    """The family's own class over a word list, with the post-processor that transformers makes for it."""
    (folder / "vocab.txt").write_text("\n".join(make_tokenizer().convert_ids_to_tokens(range(len(make_tokenizer())))))
    return family(str(folder / "vocab.txt"))


def byte_pairs(folder):
    """RoBERTa's class over bytes and a few merges; its mask is the last id, and it begins texts with <s>."""
    merges = [("p", "l"), ("pl", "a"), ("pla", "y"), ("Ġ", "s"), ("[", "D"), ("I", "S"), ("IS", "T")]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [*("".join(pair) for pair in merges), "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]))
    return RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))


def with_post_processor(make):
    """A BERT tokenizer whose post-processor is what `make` gives for (class, separator) and the usual template."""
    tokenizer = make_tokenizer()
    marks = [("[SEP]", tokenizer.sep_token_id), ("[CLS]", tokenizer.cls_token_id)]
    tokenizer.backend_tokenizer.post_processor = make(marks, tokenizer.backend_tokenizer.post_processor)
    return tokenizer


@pytest.fixture(
    params=["bert", "distilbert", "electra", "roberta", "template", "BERT's processor", "sequence", "added", "trimmed"]
)
def full(request, tmp_path):
    """A tokenizer of each family, and of each shape that its files may have."""
    if request.param == "roberta":
        return byte_pairs(tmp_path)
    if request.param == "BERT's processor":
        return with_post_processor(lambda marks, _: processors.BertProcessing(*marks))
    if request.param == "sequence":
        return with_post_processor(lambda _, template: processors.Sequence([template, processors.ByteLevel()]))
    if request.param == "added":
        tokenizer = make_tokenizer()
        tokenizer.add_tokens(["<phone>", "<mail>"])
        return tokenizer
    if request.param == "trimmed":
        return trim(make_tokenizer(), needed_tokens(make_tokenizer(), [TEXTS]))
    if request.param == "template":
        return make_tokenizer()
    classes = {"bert": BertTokenizerFast, "distilbert": DistilBertTokenizerFast, "electra": ElectraTokenizerFast}
    return wordpiece(tmp_path, classes[request.param])


def test_the_token_stands_behind_the_class_token(full):
    """With the id behind all others; the rest of the text is as it was."""
    made = with_distillation_token(full)
    assert (len(made), made.convert_ids_to_tokens(len(full))) == (len(full) + 1, "[DIST]")
    assert {piece: number for piece, number in made.get_vocab().items() if piece != "[DIST]"} == full.get_vocab()
    assert made.special_tokens_map == full.special_tokens_map
    for text in [*TEXTS, *ODD_TEXTS, "play <phone> <mail> <mask> [MASK]"]:
        before, after = encode(full, [text], 500)[0], encode(made, [text], 500)[0]
        assert after[TOKEN_POSITION] == len(full)
        assert without_token(after) == before


def test_text_pairs_have_one_token(full):
    """Behind the first class token, of the same type; the second text is as it was."""
    before = full("play a song", "some rain", return_token_type_ids=True)
    after = with_distillation_token(full)("play a song", "some rain", return_token_type_ids=True)
    assert without_token(after["input_ids"]) == before["input_ids"]
    assert after["input_ids"][TOKEN_POSITION] == len(full)
    assert without_token(after["token_type_ids"]) == before["token_type_ids"]
    assert after["token_type_ids"][TOKEN_POSITION] == 0


def test_a_text_that_names_the_token_does_not_become_it(full):
    """Though a text that names the class token does: here the lengths of teacher and student would differ."""
    made = with_distillation_token(full)
    for text in ("[DIST]", "play [DIST] song", "[DIST][DIST]", "play[dist]", " [DIST] "):
        before, after = encode(full, [text], 64)[0], encode(made, [text], 64)[0]
        assert without_token(after) == before
        assert after.count(len(full)) == 1
    named = encode(made, [f"play {full.cls_token} song"], 64)[0]
    assert named.count(full.cls_token_id) == 2 and named[TOKEN_POSITION] == len(full)


def test_cut_texts_keep_the_token(full):
    """It is one of the tokens that count: one token of text less has room."""
    made = with_distillation_token(full)
    for length in (4, 5, 9):
        found = encode(made, ["play a song please"], length)[0]
        assert len(found) <= length
        assert without_token(found) == encode(full, ["play a song please"], length - 1)[0]


def test_saved_tokenizer_reads_back_equal(full, tmp_path):
    """By transformers and by the `tokenizers` library, cut as `decant predict` and an app cut."""
    made = with_distillation_token(full)
    for name in ("a", "b"):
        save_tokenizer(made, tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()
    again, plain = load_tokenizer(tmp_path / "a"), Tokenizer.from_file(str(tmp_path / "a" / "tokenizer.json"))
    assert again.get_vocab() == plain.get_vocab() == made.get_vocab()
    plain.enable_truncation(9)
    for text in [*TEXTS, *ODD_TEXTS, "[DIST] song"]:
        assert encode(again, [text], 9) == encode(made, [text], 9) == [plain.encode(text).ids]


def test_a_text_keeps_its_pieces_where_tokens_were_added():
    """Words that someone added to the teacher's tokenizer stay whole, and no word becomes one by the vocabulary."""
    full = make_tokenizer()
    full.add_tokens(["<phone>", "covid"])
    made = with_distillation_token(full)
    for text in ("play <phone>", "covid", "covids uncovid", "phone <PHONE>"):
        assert without_token(encode(made, [text], 64)[0]) == encode(full, [text], 64)[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_distillation_token(make_tokenizer()), r"has a token '\[DIST\]' of its own"),
        (lambda: with_post_processor(lambda *_: processors.ByteLevel()), r"the text '' would have the token at \[\]"),
        (lambda: with_post_processor(lambda *_: endless()), r"the text '' would have the token at \[0\]"),
        (lambda: plain_tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0)), "is Unigram, whose pieces compete"),
        (lambda: plain_tokenizer(models.WordPiece({"[UNK]": 0, "a": 5})), "the tokenizer's ids have gaps"),
        (lambda: unsplit_tokenizer(), r"the text '\[DIST\]' would have the token at \[1, 2\]"),
    ],
)
def test_tokenizers_that_cannot_have_the_token_are_refused(make, message):
    """Each with its reason and what to do."""
    with pytest.raises(ModelError, match=rf"student.distillation_token is true, but .*{message}.*set it to false"):
        with_distillation_token(make())


def plain_tokenizer(model):
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))


def endless():
    """A template that ends a text and begins none."""
    return processors.TemplateProcessing(single="$A [SEP]", pair="$A $B [SEP]", special_tokens=[("[SEP]", 3)])


def unsplit_tokenizer():
    """Planted: words are split at spaces only, so that a text may hold any piece of the vocabulary."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.backend_tokenizer.normalizer = None
    return tokenizer


# --- students ----------------------------------------------------------------------------------------------------

CLASS, KEPT = 4, [0, 1, 4, 9, 10, 33, 57, 59]
SHAPES = {
    "as wide": ({}, None),
    "narrower": ({"hidden": 24, "heads": 3}, None),
    "factorised": ({"embedding": 8}, None),
    "trimmed": ({}, KEPT),
    "all at once": ({"hidden": 24, "heads": 4, "embedding": 8}, KEPT),
}


def probe(rows=16, length=9):
    """One batch of random text in the toy models' vocabulary, each begun by the class token."""
    ids = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(3))
    ids[:, 0] = CLASS
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def student(family="bert", *, token=True, seed=0, keep=None, **changes):
    """A student of a random teacher, in eval mode."""
    settings = StudentSettings.model_validate({"layers": 2, "distillation_token": token} | changes, strict=False)
    attention = "sdpa" if family in FUSED else "eager"
    return build_student(toy_model(family, attention), settings, seed, keep, [probe()]).eval()


STUDENTS = [
    (family, shape)
    for family in FAMILIES
    for shape in SHAPES
    if "embedding" not in SHAPES[shape][0] or family not in NARROW_EMBEDDINGS + ROTARY
]


@pytest.mark.parametrize(("family", "shape"), STUDENTS)
def test_the_new_row_is_the_class_tokens_with_a_little_noise(family, shape):
    """In any width; every other weight is that of the same student without the token."""
    changes, keep = SHAPES[shape]
    small, whole = (student(family, token=token, keep=keep, **changes) for token in (False, True))
    count = len(keep or range(60))
    assert (small.config.vocab_size, whole.config.vocab_size) == (count, count + 1)
    ours, theirs = token_table(whole).weight.detach(), token_table(small).weight.detach()
    assert torch.equal(ours[:-1], theirs)
    noise = ours[-1] - theirs[(keep or range(60)).index(CLASS)]
    assert noise.abs().max() > 0 and 0.005 < noise.std() < 0.04
    rest = [name for name, weight in small.named_parameters() if weight is not token_table(small).weight]
    for name in rest:
        assert torch.equal(small.get_parameter(name), whole.get_parameter(name)), name


def test_the_seed_decides_the_noise():
    """And nothing else does; the global random state is left alone."""
    teacher, settings = toy_model(), StudentSettings(layers=2, distillation_token=True)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    rows = [token_table(build_student(teacher, settings, seed, None, [probe()])).weight[-1] for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_a_student_from_random_weights_has_the_row_too():
    """Both tokens begin alike however the rest began."""
    made = student(init={"from": "random", "layers": "uniform"})
    table = token_table(made).weight
    assert (table[-1] - table[CLASS]).abs().max() < 0.1 < table[CLASS].abs().max()


@EVERY_FAMILY
def test_the_configuration_says_so(family, tmp_path):
    """Also when read back; that of a student without the token says nothing, so its file stays as it was."""
    config = toy_model(family).config
    assert not hasattr(student_config(config, StudentSettings(layers=2)), DISTILLATION_TOKEN)
    made = student(family)
    save_classifier(made, tmp_path)
    again = load_classifier(tmp_path)
    assert getattr(read_config(tmp_path), DISTILLATION_TOKEN) is True
    assert shape_of(again.config).distillation_token and not shape_of(config).distillation_token
    ids = torch.tensor([[CLASS, 60, 7, 8]])
    with torch.no_grad():
        # On some CPUs weights that lie otherwise in memory are summed in another order.
        torch.testing.assert_close(again(ids).logits, made(ids).logits, rtol=0, atol=1e-6)


def test_a_token_without_probe_text_is_refused():
    """No configuration says which token is the class token."""
    with pytest.raises(ModelError, match="copy of the class token, which text shows: give probe text"):
        build_student(toy_model(), StudentSettings(layers=2, distillation_token=True), seed=0)


# --- prepared data and batches -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a project lies, whose settings are relative to the folder that it is run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepared(folder, vocabulary="full", max_length=16, teacher=None):
    """(settings, workspace, card) of a tiny project whose data is prepared for a student with the token."""
    student = {"layers": 1, "distillation_token": True, "vocabulary": vocabulary}
    losses = {"distillation_token": {}, "logit_kl": {}}
    params, workspace = write_project(folder, student=student, data__max_length=max_length, distill__losses=losses)
    if teacher:
        write_teacher(folder / "inputs" / "model", **teacher)
    prepare.run(params, workspace)
    return params, workspace, open_data(workspace)


@pytest.mark.parametrize("vocabulary", ["full", "trimmed"])
@pytest.mark.parametrize("max_length", [16, 6])
def test_teacher_and_student_read_the_same_text(folder, vocabulary, max_length):
    """Token by token, in the teacher's ids, without the one that only the student has; also where texts are cut."""
    params, workspace, card = prepared(folder, vocabulary, max_length)
    keep = card.facts["keep_tokens"] or range(card.facts["vocabulary"]["teacher"])
    tokenizer = load_tokenizer(workspace.data / "tokenizer")
    examples, split = read_encoded(workspace, "train", params.data.max_length)
    assert split.has_token and card.facts["vocabulary"]["student"] == len(keep) + 1 == len(tokenizer)
    assert max(map(len, split.ids)) == (max_length if max_length == 6 else card.facts["tokens"]["train"]["longest"])
    for mine, theirs in zip(split.ids, split.teacher_ids, strict=True):
        assert mine[TOKEN_POSITION] == len(keep)
        assert [keep[i] for i in without_token(mine)] == theirs
    assert list(split.ids) == encode(tokenizer, examples.texts, max_length)
    assert split.delimiter_ids == (tokenizer.cls_token_id, len(keep), tokenizer.sep_token_id)
    cut = sum(len(ids) > max_length for ids in encode(tokenizer, examples.texts, 1_000))
    assert card.facts["tokens"]["train"]["cut"] == cut


def test_the_teacher_itself_reads_as_long_a_text_as_ever(folder):
    """While it is fine-tuned there is no student beside it."""
    params, workspace, _ = prepared(folder, max_length=6)
    examples, split = read_encoded(workspace, "train", params.data.max_length, reader="teacher")
    tokenizer = load_tokenizer(workspace.data / "teacher_tokenizer")
    assert list(split.ids) == encode(tokenizer, examples.texts, 6)
    assert (split.teacher_ids, split.has_token) == (None, False)
    assert split.delimiter_ids == (tokenizer.cls_token_id, tokenizer.sep_token_id)


def test_rows_of_the_teacher_that_no_token_uses_are_left_out(folder):
    """Planted: a teacher of 8 rows more than its tokenizer has tokens; the token's id must be its row's number."""
    tokens = len(make_tokenizer())
    params, workspace, card = prepared(folder, teacher={"vocab_size": tokens + 8})
    teacher = load_classifier(workspace.root / "inputs" / "model")
    _, split = read_encoded(workspace, "train", params.data.max_length)
    batch = pad(split.teacher_ids[:8], split.teacher_pad_id)
    made = build_student(teacher, params.student, 0, card.facts["keep_tokens"], [batch])
    assert token_table(made).num_embeddings == made.config.vocab_size == tokens + 1
    assert split.ids[0][TOKEN_POSITION] == tokens
    row = token_table(made).weight[tokens] - token_table(teacher).weight[split.teacher_ids[0][0]]
    assert 0 < row.abs().max() < 0.1


SPLIT = EncodedSplit(
    ("a", "b", "c"),
    [[2, 60, 5, 6, 3], [2, 60, 3], [2, 60, 7, 3]],
    (0, 1, 2),
    pad_id=3,
    teacher_ids=[[42, 45, 46, 43], [42, 43], [42, 47, 43]],
    teacher_pad_id=9,
    has_token=True,
    delimiter_ids=(2, 60, 3),
)


def test_batches_for_the_teacher_are_one_token_narrower():
    """With its own padding; delimiters are the student's, and padding is none even where it is a separator."""
    batch = Collator(SPLIT)([1, 0])
    assert batch["input_ids"].tolist() == [[2, 60, 3, 3, 3], [2, 60, 5, 6, 3]]
    assert batch["teacher_input_ids"].tolist() == [[42, 43, 9, 9], [42, 45, 46, 43]]
    assert batch["delimiters"].tolist() == [[True, True, True, False, False], [True, True, False, False, True]]


def test_batches_without_the_token_are_as_they_were():
    """The same width where both read as many tokens, and no delimiters where nobody said which they are."""
    batch = Collator(EncodedSplit(("a",), [[2, 5, 3]], (0,), 0, teacher_ids=[[42, 45, 43]], teacher_pad_id=9))([0])
    assert batch["teacher_input_ids"].shape == batch["input_ids"].shape
    assert not batch["delimiters"].any()


def test_signals_of_both_have_the_same_positions():
    """The student's are read without the token, so each stands where the teacher's does."""
    batch, ours = Collator(SPLIT)([0, 1, 2]), student()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "delimiters")}
    with SignalReader(ours, ("hidden", "attention", "delimiters", "token")) as reader:
        found = reader.read(inputs)
    assert torch.equal(found.mask, batch["teacher_input_ids"] != 9)
    assert found.delimiters.tolist() == [
        [True, False, False, True],
        [True, True, False, False],
        [True, False, True, False],
    ]
    assert found.hidden[-1].shape[:2] == batch["teacher_input_ids"].shape
    assert found.token.shape == (3, 32)


SCHEME = Scheme(activations="example", pair_safe=True)


# --- exports -----------------------------------------------------------------------------------------------------


def with_token(sequences):
    """Class token, distillation token, text."""
    return [[CLASS, 60, *sequence] for sequence in sequences]


def single_texts():
    for sequence in with_token(toy_examples(20, "test", seed=5).ids):
        batch = pad([sequence], 0)
        yield {name: values.numpy() for name, values in batch.items()}


def to_onnx_file(model, folder, precision):
    """(model folder, artefact folder, artefact, graph)."""
    source, out = folder / "model", folder / "out"
    source.mkdir(parents=True)
    out.mkdir()
    save_classifier(model, source)
    plan = None
    if precision == "int8":
        examples = [toy_examples(count, name, seed) for count, name, seed in ((12, "dev", 0), (50, "train", 1))]
        if shape_of(model.config).distillation_token:
            for rows in examples:
                rows.ids[:] = with_token(rows.ids)
        plan = make_plan(model, *examples, TASK, QuantizeSettings(allowed_drop=100), SCHEME, sensitivity_rows=2)
    artefact = to_onnx.convert(source, out, precision, to_onnx.Params(), 20, plan)
    return source, out, artefact, onnx.load(out / artefact.file)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("family", slow_but(["bert", "distilbert", "roberta", "electra"], "bert", "electra"))
def test_onnx_answers_as_pytorch_from_the_same_operators(tmp_path, family, precision):
    """In onnxruntime; the graph is that of the same student without the token, but for one row of one table."""
    source, out, artefact, graph = to_onnx_file(student(family), tmp_path / "with", precision)
    tolerance = to_onnx.TOLERANCES[precision]
    with onnxruntime.open_session(out, artefact, 1) as candidate, pytorch.open_session(source, None, 1) as model:
        found = parity.check(candidate, model, single_texts(), tolerance)
    assert found.worst_difference < (1e-5 if precision == "fp32" else tolerance)
    *_, plain = to_onnx_file(student(family, token=False), tmp_path / "without", precision)
    assert [node.op_type for node in graph.graph.node] == [node.op_type for node in plain.graph.node]
    sizes = [sorted(tuple(tensor.dims) for tensor in one.graph.initializer) for one in (graph, plain)]
    changed = [pair for pair in zip(*sizes, strict=True) if pair[0] != pair[1]]
    assert changed and all((ours[0], theirs[0]) == (61, 60) and ours[1:] == theirs[1:] for ours, theirs in changed)


# two more conversions for the second precision, ten seconds
@pytest.mark.parametrize("precision", ["fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_core_ml_packages_hold_one_row_more_and_the_same_operators(tmp_path, precision):
    """Executed by the reference interpreter, since Core ML itself needs a Mac."""
    programs = {}
    for token in (True, False):
        source = coreml.save(student(token=token), tmp_path / f"model-{token}")
        package = tmp_path / f"out-{token}" / coreml.export(source, tmp_path / f"out-{token}", precision).file
        programs[token] = read_package(package)
        if token:
            ids, mask = coreml.example()
            ids[0, :2] = CLASS, 60
            expected = coreml.torch_logits(source, ids, mask)
            difference = np.abs(coreml.run(package, ids, mask) - expected).max() / np.ptp(expected)
            assert difference < to_coreml.TOLERANCES[precision]
    assert [op.kind for op in programs[True].operations] == [op.kind for op in programs[False].operations]
    rows = {token: rows_of(programs[token]) for token in programs}
    assert (rows[True], rows[False]) == (61, 60)


def rows_of(program):
    """Rows of the table that the input's ids choose from: the longest of all that rows are gathered from."""
    kinds = {name: kind for op in program.operations for name, kind in op.outputs}
    tables = [op.inputs["x"][0] for op in program.operations if op.kind == "gather"]
    return max(kinds[name].shape[0] or 0 for name in tables)


# --- timing beside a teacher that does not know the token --------------------------------------------------------


def test_each_model_is_timed_on_its_own_tokens(monkeypatch, tmp_path):
    """The teacher's graph has no row for the token, and does not read it: neither may its time."""
    runtime = install_runtime(monkeypatch, tmp_path)
    turn = Turn(
        lengths="data", warmup=0, sequences=((2, 60, 3), (2, 60, 5, 3)), reference_sequences=((2, 3), (2, 5, 3))
    )
    execute(make_job(turns=(turn,)))
    seen = {(call[0], tuple(call[1][0])) for call in runtime.CALLS if call[1] != "closed"}
    assert seen == {
        ("student.fake", (2, 60, 3)),
        ("student.fake", (2, 60, 5, 3)),
        ("teacher.fake", (2, 3)),
        ("teacher.fake", (2, 5, 3)),
    }
    with pytest.raises(ValueError, match="1 texts for the reference, 2 in all"):
        Turn(lengths="data", warmup=0, sequences=((1,), (2,)), reference_sequences=((1,),))


def test_pairs_are_the_same_texts_in_both_models_tokens(monkeypatch, tmp_path):
    """Drawn together, at the data's lengths and at fixed ones; the canary is the student beside itself."""
    jobs = []

    def run_worker(job, timeout_s):
        jobs.append(job)
        return make_result(job, {"student.fake": 2e6, "teacher.fake": 8e6}, np.random.default_rng(0))

    monkeypatch.setattr(local, "run_worker", run_worker)
    exported = []
    for name in ("student.fake", "teacher.fake"):
        (tmp_path / name).write_text(name)
        exported.append(Exported(tmp_path, make_artefact(name), digest=name[0] * 64, size_bytes=1))
    measure(
        target="cpu",
        runtime="fake",
        device="local",
        candidate=exported[0],
        reference=exported[1],
        sequences=SPLIT.ids,
        pad_id=0,
        settings=MeasureSettings(processes=2, pairs=6, max_rounds=1, warmup=1, threads=1, lengths=(4, 8)),
        seed=0,
        reference_sequences=SPLIT.teacher_ids,
    )
    theirs = dict(zip(map(tuple, SPLIT.ids), map(tuple, SPLIT.teacher_ids), strict=True))
    for job in (job for job in jobs if job.kind == "time"):
        for turn in job.turns:
            if job.reference.artefact.file == "student.fake":
                assert turn.reference_sequences is None
            elif turn.lengths == "data":
                assert [theirs[sequence] for sequence in turn.sequences] == list(turn.reference_sequences)
            else:
                both = turn.sequences + turn.reference_sequences
                assert {len(sequence) for sequence in both} == {int(turn.lengths)}
                assert not any(60 in sequence for sequence in turn.reference_sequences)


# --- noise on the class token ------------------------------------------------------------------------------------

SAMPLED, BAYESIAN = ClassToken(kind="sampled", samples=4), ClassToken(kind="bayesian")
BOTH = pytest.mark.parametrize("settings", [SAMPLED, BAYESIAN], ids=["sampled", "bayesian"])


def quiet(family="bert"):
    """A toy model without dropout, in train mode."""
    names = family_of(toy_model(family).config).dropouts
    return toy_model(family, **dict.fromkeys(names, 0.0)).train()


def answer(model, ids=None, mask=None, seed=0):
    """Logits, with the random state set first."""
    ids = probe()["input_ids"] if ids is None else ids
    torch.manual_seed(seed)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids) if mask is None else mask).logits


def test_a_single_vector_is_the_plain_token():
    """Exactly, in train mode."""
    model = quiet()
    expected = answer(model)
    with ClassTokenNoise(model, ClassToken(kind="sampled", samples=1)):
        assert torch.equal(answer(model), expected)


@EVERY_FAMILY
@BOTH
def test_only_training_is_disturbed(family, settings):
    """In eval mode the answer is the plain token's to the last bit, whatever mode the noise itself is in."""
    model = quiet(family)
    plain = answer(model)
    noise = ClassTokenNoise(model, settings).train()
    assert not torch.allclose(answer(model), plain)
    assert not torch.equal(answer(model, seed=1), answer(model, seed=2))
    for seed in (1, 2):
        assert torch.equal(answer(model.eval(), seed=seed), plain)
    noise.eval()
    assert torch.equal(answer(model), plain)
    noise.detach()
    assert torch.equal(answer(model.train()), plain)


@BOTH
@pytest.mark.parametrize("factorised", [False, True])
def test_only_the_class_token_changes(settings, factorised):
    """Its embedding alone, differently for the examples of a batch; the width is the table's."""
    model = student(token=False, **({"embedding": 8} if factorised else {})).train()
    table = token_table(model)
    ids = probe(rows=32)["input_ids"]
    plain = table(ids)
    with ClassTokenNoise(model, settings) as noise:
        assert all(weight.shape[-1] == table.embedding_dim for weight in noise.parameters())
        found = table(ids)
    assert torch.equal(found[:, 1:], plain[:, 1:])
    drawn = (found - plain)[:, 0].detach()
    assert len({tuple(row) for row in drawn.tolist()}) == (4 if settings.kind == "sampled" else 32)
    assert 0.005 < float(drawn.std()) < 0.04


def test_the_mean_of_the_vectors_is_the_plain_token():
    """However far training has moved them apart."""
    noise = ClassTokenNoise(quiet(), SAMPLED)
    with torch.no_grad():
        noise.deltas.add_(torch.randn(4, 32) + 3)
    drawn = torch.stack([noise(1)[0] for _ in range(200)]).unique(dim=0)
    assert len(drawn) == 4
    torch.testing.assert_close(drawn.mean(dim=0), torch.zeros(32), rtol=0, atol=1e-5)


def test_the_spread_begins_small():
    """softplus(rho) is 0.02; what is drawn has that standard deviation."""
    noise = ClassTokenNoise(quiet(), BAYESIAN)
    torch.testing.assert_close(torch.nn.functional.softplus(noise.rho), torch.full((32,), 0.02))
    torch.manual_seed(0)
    assert float(noise(4_000).detach().std()) == pytest.approx(0.02, rel=0.02)


@BOTH
def test_the_noise_is_trained(settings):
    """Every weight of it has a gradient, another for each vector; the class token's row has one as ever."""
    model = quiet()
    with ClassTokenNoise(model, settings) as noise:
        torch.nn.functional.cross_entropy(answer(model), torch.arange(16) % 3).backward()
    for weight in noise.parameters():
        assert (weight.grad.abs() > 0).all()
    if settings.kind == "sampled":
        assert len(noise.deltas.grad.unique(dim=0)) == 4
        torch.testing.assert_close(noise.deltas.grad.sum(dim=0), torch.zeros(32), rtol=0, atol=1e-6)
    assert token_table(model).weight.grad[CLASS].abs().max() > 0


@BOTH
def test_the_noise_is_no_part_of_the_model(settings, tmp_path):
    """Its weights are in no state of it and in no file, and no hook is left behind."""
    model = quiet()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with ClassTokenNoise(model, settings):
        answer(model)
        assert model.state_dict().keys() == before.keys()
        save_classifier(model, tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in load_classifier(tmp_path).state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_two_noises_on_one_model_are_refused():
    """They would add up; the first must be taken off, as between two phases."""
    model = quiet()
    first = ClassTokenNoise(model, SAMPLED)
    with pytest.raises(AssertionError, match="two noises would add up: detach one"):
        ClassTokenNoise(model, BAYESIAN)
    first.detach()
    ClassTokenNoise(model, BAYESIAN).detach()


@BOTH
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_padding_does_not_change_what_the_noise_does(settings, family):
    """Neither its length nor what stands in it, which the mask hides."""
    model = quiet(family)
    pad_id, ids = model.config.pad_token_id, probe(rows=5)["input_ids"]
    longer = torch.cat((ids, torch.full((5, 4), pad_id)), dim=1)
    mask = (torch.arange(13) < 9).long().expand(5, 13)
    other = longer.clone()
    other[:, 9:] = 30
    with ClassTokenNoise(model, settings):
        plain = answer(model, ids)
        torch.testing.assert_close(answer(model, longer, mask), plain, rtol=1e-4, atol=1e-5)
        if family != "roberta":  # whose positions are counted by the padding ids
            torch.testing.assert_close(answer(model, other, mask), plain, rtol=1e-4, atol=1e-5)


@BOTH
def test_training_repeats_with_the_random_state(settings):
    """As a resumed run needs; the noise's own weights come from it too."""
    seen = []
    for _ in range(2):
        model = copy.deepcopy(quiet())
        torch.manual_seed(3)
        with ClassTokenNoise(model, settings):
            seen.append(answer(model, seed=4))
    assert torch.equal(*seen)


def test_a_student_with_both_tokens_is_disturbed_in_the_first_only():
    """The distillation token's own embedding stays as it is."""
    model = student().train()
    ids = torch.tensor([[CLASS, 60, 7], [CLASS, 60, 9]])
    plain = token_table(model)(ids)
    states = []
    layers_of(model)[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))
    with ClassTokenNoise(model, SAMPLED):
        found = token_table(model)(ids)
        model(ids)
    assert torch.equal(found[:, 1:], plain[:, 1:]) and not torch.equal(found[:, 0], plain[:, 0])
    assert states[0].shape == (2, 3, 32)
