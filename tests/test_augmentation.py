"""Further training text: made of training text alone, never a held-out text, and the same for the same seed."""

import itertools
import json
import logging
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny_project import make_tokenizer
from tokenizers import Tokenizer, models
from toy_models import toy_model
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

import pipeline.augment.augmentation
import pipeline.augment.words
from pipeline.augment.augmentation import augment, cached_augmentation
from pipeline.augment.masked_words import load_masked_lm, masked_words
from pipeline.augment.text_changes import mask_text, mask_words, mix_spans, swap_words
from pipeline.augment.words import find_words, is_replaceable, key_of, match_case, neighbours, substitute
from pipeline.base.dependencies import Trace
from pipeline.base.errors import ModelError
from pipeline.data.texts import normalise
from pipeline.models.checkpoints import save_classifier
from pipeline.models.vocabulary import save_tokenizer
from pipeline.settings.augment import AugmentSettings

COLOURS = ("red", "blue", "green", "yellow")
FRUITS = ("apple", "pear", "plum", "cherry")
TEXTS = [
    *(f"please paint my {colour} {thing} tonight" for colour in COLOURS for thing in ("wall", "door", "fence")),
    *(f"eat that ripe {fruit} {when}, will you?" for fruit in FRUITS for when in ("quickly", "slowly", "later")),
]
WORDS = sorted({text[start:end] for text in TEXTS for start, end in find_words(text)})
TOKENIZER = make_tokenizer(extra=WORDS)
TOKENIZER.model_max_length = 512  # beyond what the language models here have positions for
MADE = ("mask", "replace", "span_mix", "crop", "masked_lm")  # the methods that change a training text


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A folder with a random BERT that has an output layer for words."""
    return save_language_model(tmp_path_factory.mktemp("models") / "masked_lm", TOKENIZER)


def save_language_model(folder, tokenizer, seed=0, **changes):
    """Its large weights make predictions depend on every part of the input."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 48,
        "initializer_range": 0.5,
    }
    save_classifier(BertForMaskedLM(BertConfig(**(sizes | changes))), folder)
    save_tokenizer(tokenizer, folder)
    return folder


def made_by(method, language_model=None, texts=TEXTS, seed=0, held_out=(), tokenizer=TOKENIZER, **settings):
    if method == "masked_lm":
        settings["masked_lm"] = str(language_model)
    return augment(texts, AugmentSettings(methods=(method,), **settings), tokenizer, seed, held_out)


def texts_of(made):
    return [item.text for item in made]


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ("mask", "replace", "mask")}, r"methods names 'mask' 2 times, expected once"),
        ({"methods": ("masked_lm",)}, r"masked_lm is null; name a masked language model"),
        ({"methods": ("masks",)}, r"methods\.0\n.*'mask', 'replace', 'span_mix', 'crop' or 'masked_lm'"),
        ({"probability": 0.0}, r"probability\n.*greater than 0"),
        ({"probability": 1.1}, r"probability\n.*less than or equal to 1"),
        ({"copies": 0}, r"copies\n.*greater than or equal to 1"),
        ({"copies": "4"}, r"copies\n.*valid integer"),
        ({"candidates": 0}, r"candidates\n.*greater than or equal to 1"),
        ({"masked_lm": ""}, r"masked_lm\n.*at least 1 character"),
        ({"copy": 4}, r"copy\n.*not permitted"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    """Each says what was found and what to do."""
    with pytest.raises(ValidationError, match=message):
        AugmentSettings(**settings)


def test_settings_are_off_by_default_and_read_from_a_list():
    """As YAML gives them."""
    assert AugmentSettings().methods == ()
    assert augment(TEXTS, AugmentSettings(), TOKENIZER, 0, ()) == []
    read = AugmentSettings.model_validate_json('{"methods": ["mask", "crop"]}')
    assert read.methods == ("mask", "crop")


def test_every_setting_is_described():
    """Editors show the sentence."""
    assert all(field.description for field in AugmentSettings.model_fields.values())


# --- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, e-mail me!", ["Don't", "stop", "e-mail", "me"]),
        ("  (what?)\t\n50% off…", ["what", "50", "off"]),
        ("cafe\u0301 “naïve”", ["cafe\u0301", "naïve"]),
        ("मुझे हिंदी में बताओ।", ["मुझे", "हिंदी", "में", "बताओ"]),  # vowel signs at the end, a danda after it
        ("今天 天气", ["今天", "天气"]),
        ("❤️ 👍🏽 ... ?", []),
        ("", []),
    ],
)
def test_words_are_found_without_the_punctuation_around_them(text, words):
    """Accents and vowel signs are part of their word; an emoji is none."""
    assert [text[start:end] for start, end in find_words(text)] == words


@given(st.text(max_size=60))
def test_words_hold_every_letter_and_no_space(text):
    """In order, without overlap; substituting each word by itself changes nothing."""
    spans = find_words(text)
    assert all(start < end for start, end in spans)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))
    assert not any(c.isspace() for start, end in spans for c in text[start:end])
    inside = {i for start, end in spans for i in range(start, end)}
    assert all(i in inside for i, c in enumerate(text) if c.isalnum())
    assert substitute(text, [(start, end, text[start:end]) for start, end in spans]) == text


def test_stop_words_contractions_and_numbers_stay():
    """'The' is one at the start of a sentence too; a word of another script is none."""
    assert [is_replaceable(word) for word in ("The", "not", "don't", "3rd", "7")] == [False] * 5
    assert [is_replaceable(word) for word in ("wall", "Wall", "naïve", "cafe\u0301", "हिंदी", "天气")] == [True] * 6


def test_capital_is_kept():
    """Only the first letter's: the rest is as the other word is written."""
    assert [match_case("tonight", like) for like in ("Later", "LATER", "later")] == ["Tonight", "Tonight", "tonight"]
    assert match_case("PIN", "code") == "PIN"


# --- neighbours --------------------------------------------------------------------------------------------------


def test_words_used_alike_are_neighbours():
    """Planted: colours stand in the same places, fruits in others; equals are in the alphabet's order."""
    near = neighbours(TEXTS, 100)
    for group, others in ((COLOURS, FRUITS), (FRUITS, COLOURS)):
        for word in group:
            assert near[word][:3] == sorted({*group} - {word})
            assert not {*near[word]} & {*others}


def vectors_by_hand(sentences, words):
    """Cosines between words, from the definition: dense, counted cell by cell, and by the root of P times P."""
    contexts = [(side, name) for side in "LR" for name in [*words, "<rare>", "<start>", "<end>"]]
    counts = np.zeros((len(words), len(contexts)))
    for sentence in sentences:
        padded = ["<start>", *(word if word in words else "<rare>" for word in sentence), "<end>"]
        for i, word in enumerate(padded):
            for offset, weight in ((-2, 1), (-1, 2), (1, 2), (2, 1)):
                if word in words and 0 <= i + offset < len(padded):
                    counts[words.index(word), contexts.index(("LR"[offset > 0], padded[i + offset]))] += weight
    of_context = counts.sum(0) ** 0.75 / (counts.sum(0) ** 0.75).sum()
    joint = counts / counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        P = np.maximum(np.nan_to_num(np.log(joint / np.outer(joint.sum(1), of_context)), neginf=0), 0)
    squares, axes = np.linalg.eigh(P @ P.T)
    root = axes * np.sqrt(np.maximum(squares, 0)) @ axes.T  # U S U': the product of U sqrt(S) with itself
    lengths = np.sqrt(np.diag(root))
    return root / np.outer(lengths, lengths)


def test_nearness_is_that_of_the_formula():
    """Counted by hand in dense NumPy; with fewer words than dimensions the decomposition is exact."""
    rng = random.Random(5)
    names = [f"{a}{b}" for a in "bdfg" for b in ("ana", "elo", "iru")]
    sentences = [rng.choices(names, [*range(1, 13)], k=rng.randint(1, 6)) for _ in range(40)] + [["ox", names[0]]]
    words = sorted(name for name in names if sum(name in sentence for sentence in sentences) > 1)
    near = neighbours([" ".join(sentence) for sentence in sentences], 100)
    cosines = vectors_by_hand(sentences, words)
    np.fill_diagonal(cosines, 0)
    assert set(near) == set(words)
    for word, row in zip(words, np.round(cosines, 6), strict=True):
        assert near[word] == [words[i] for i in np.argsort(-row, kind="stable") if row[i] > 0]


def test_last_digits_of_a_machine_decide_no_neighbour(monkeypatch):
    """Planted: noise as another number of threads gives it, on words that are equally near."""
    exact = pipeline.augment.words._word_vectors
    expected = neighbours(TEXTS, 100)

    def noisy(*args):
        vectors = exact(*args)
        return vectors + np.random.default_rng(0).normal(0, 1e-9, vectors.shape)

    monkeypatch.setattr(pipeline.augment.words, "_word_vectors", noisy)
    assert neighbours(TEXTS, 100) == expected


def test_accents_composed_and_apart_are_one_word():
    """Each spelling is there once, which alone were too few."""
    near = neighbours(["paint my caf\u00e9 tonight", "paint my cafe\u0301 tonight", "paint my wall tonight"], 5)
    assert "café" in near


def test_neighbours_are_words_of_the_training_text():
    """Neither stop words, nor the word itself, nor one seen once; at most as many as asked for, and none twice."""
    texts = [*TEXTS, "a lonely zebra"]
    near = neighbours(texts, 2)
    words = {key_of(text[start:end]) for text in texts for start, end in find_words(text)}
    assert set(near) <= words
    for word, others in near.items():
        assert len(others) == len(set(others)) <= 2
        assert word not in others
        assert set(others) <= words
        assert all(is_replaceable(other) for other in others)
    assert "zebra" not in {*near, *(other for others in near.values() for other in others)}


def test_neighbour_is_written_as_it_is_most_often():
    """A name keeps its capital."""
    texts = [
        f"fly {how} {city} {when}" for city in ("Rome", "Oslo") for how in ("past", "near") for when in ("ok", "go")
    ]
    assert neighbours([*texts, "fly past rome ok"], 1)["oslo"] == ["Rome"]


def test_order_of_the_texts_decides_no_neighbour():
    """Counting is a sum, and equals stay in the alphabet's order."""
    mixed = random.Random(3).sample(TEXTS, len(TEXTS))
    assert neighbours(mixed, 5) == neighbours(TEXTS, 5)


@pytest.mark.parametrize("texts", [[], [""], ["wall"], ["wall wall"], ["the of", "the of"], ["x1 q1 wall q2 q3"] * 3])
def test_text_without_two_words_has_no_neighbours(texts):
    """And no error from the numbers below."""
    assert neighbours(texts, 5) == {}


# --- each method -------------------------------------------------------------------------------------------------


def test_mask_is_read_as_the_mask_token():
    """The text, not a number: what the teacher and the student encode."""
    assert mask_text(TOKENIZER) == "[MASK]"
    made = made_by("mask")
    assert all(TOKENIZER.mask_token_id in TOKENIZER(item.text)["input_ids"] for item in made)
    for item in made:
        words, before = item.text.split(), TEXTS[item.source_index].split()
        assert len(words) == len(before)
        assert all(new in (old, re.sub(r"\w+", "[MASK]", old)) for new, old in zip(words, before, strict=True))


def plain_tokenizer(**changes):
    """One that has no mask token, or reads it as plain text."""
    state = TOKENIZER.backend_tokenizer.to_str()
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(state), **(names | changes))


@pytest.mark.parametrize("changes", [{}, {"mask_token": "[MASK]", "split_special_tokens": True}])
def test_words_are_dropped_where_no_text_gives_the_mask(changes, caplog):
    """And this is said; single spaces are left, and at least one word."""
    with caplog.at_level(logging.WARNING):
        made = made_by("mask", tokenizer=plain_tokenizer(**changes))
    assert "drops words instead" in caplog.text
    for item in made:
        assert "MASK" not in item.text and "  " not in item.text
        before = TEXTS[item.source_index].split()
        assert 1 <= len(find_words(item.text)) < len(before)
        rest = iter(before)
        assert all(any(word in old for old in rest) for word in item.text.split())


def spans_and_text(count):
    text = " ".join(f"w{i}," for i in range(count))
    return text, find_words(text)


@given(st.integers(1, 12), st.floats(0.01, 1), st.integers(0, 99))
def test_mask_changes_words_only_and_leaves_one(count, probability, seed):
    """Whatever is drawn; with probability 1 exactly one is left."""
    text, spans = spans_and_text(count)
    pieces = mask_words(text, spans, "[MASK]", probability, random.Random(seed)).split()
    assert all(piece in (f"w{i},", "[MASK],") for i, piece in enumerate(pieces))
    left = sum(piece != "[MASK]," for piece in pieces)
    assert left >= 1 and len(pieces) == count
    assert left == 1 or probability < 1


@given(st.integers(1, 12), st.floats(0.01, 1), st.integers(0, 99))
def test_swap_changes_words_with_a_slot_only(count, probability, seed):
    """With probability 1 all of them."""
    text, spans = spans_and_text(count)
    slots = [(start, end, ["x", "y"]) for start, end in spans[::2]]
    pieces = swap_words(text, slots, probability, random.Random(seed)).split()
    for i, piece in enumerate(pieces):
        assert piece in ([f"w{i},", "x,", "y,"] if i % 2 == 0 else [f"w{i},"])
        assert probability < 1 or i % 2 or piece != f"w{i},"


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.01, 1), st.integers(0, 99))
def test_mix_keeps_a_word_of_the_text_and_takes_one_of_the_other(own, other, probability, seed):
    """Both in their order, the taken ones in a row."""
    text, spans = spans_and_text(own)
    other_text = spans_and_text(other)[0].replace("w", "v")
    mixed = mix_spans(0, [text, other_text], [spans, find_words(other_text)], [0, 1], probability, random.Random(seed))
    words = [mixed[start:end] for start, end in find_words(mixed)]
    kept = [int(word[1:]) for word in words if word[0] == "w"]
    taken = [int(word[1:]) for word in words if word[0] == "v"]
    assert kept == sorted(set(kept)) and len(kept) >= 1
    assert taken == list(range(taken[0], taken[0] + len(taken)))
    assert "".join(word[0] for word in words).count("wv") <= 1


@pytest.mark.parametrize("probability", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("method", ["mask", "swap"])
def test_share_of_changed_words_is_the_probability(method, probability):
    """Within 5 standard deviations; the word that a mask must leave is one in thousands."""
    text, spans = spans_and_text(50)
    slots = [(start, end, ["x", "y"]) for start, end in spans]
    rng = random.Random(1)
    changed = 0
    for _ in range(400):
        one = (
            mask_words(text, spans, "x", probability, rng)
            if method == "mask"
            else swap_words(text, slots, probability, rng)
        )
        changed += 50 - one.count("w")
    assert abs(changed / 20_000 - probability) < 5 * math.sqrt(probability * (1 - probability) / 20_000)


def test_replacements_are_neighbours():
    """Each in the place of the word it is near to; all else is as it was."""
    near = neighbours(TEXTS, 2)
    made = made_by("replace", candidates=2, probability=1.0)
    assert made
    for item in made:
        for new, old in zip(item.text.split(), TEXTS[item.source_index].split(), strict=True):
            assert new == old or new.strip(",?") in near[old.strip(",?")]
            assert re.sub(r"\w", "", new) == re.sub(r"\w", "", old)


def test_crop_is_a_row_of_words_of_the_text():
    """With what stands between them; never the whole text, and every length below its own comes up."""
    text = "often charming, and often affecting journey"
    made = texts_of(made_by("crop", texts=[text], copies=60))
    assert all(piece in text and piece != text for piece in made)
    assert {len(find_words(piece)) for piece in made} == set(range(1, len(find_words(text))))


def test_one_word_gets_a_word_before_or_after_it():
    """It would be gone otherwise."""
    made = made_by("span_mix", texts=["wall", *TEXTS], copies=8)
    first = [item.text.split() for item in made if item.source_index == 0]
    assert all(len(words) == 2 and "wall" in words for words in first)
    assert {words.index("wall") for words in first} == {0, 1}


# --- masked language model ---------------------------------------------------------------------------------------


def likeliest_by_hand(folder, text, start, end, most):
    """As TinyBERT's release builds it: pieces with one masked, then the untouched ones, one sentence, all logits."""
    model = BertForMaskedLM.from_pretrained(str(folder)).eval()
    before, word = TOKENIZER.tokenize(text[:start]), TOKENIZER.tokenize(text[start:end])
    pieces = TOKENIZER.tokenize(text)
    place = len(before)
    assert pieces[place : place + 1] == word
    a = ["[CLS]", *pieces[:place], "[MASK]", *pieces[place + 1 :], "[SEP]"]
    b = [*pieces, "[SEP]"]
    ids = torch.tensor([TOKENIZER.convert_tokens_to_ids(a + b)])
    with torch.no_grad():
        logits = model(ids, token_type_ids=torch.tensor([[0] * len(a) + [1] * len(b)])).logits
    order = torch.argsort(logits[0, place + 1], descending=True)[:most].tolist()
    return [piece for piece in TOKENIZER.convert_ids_to_tokens(order) if piece.find("##")]


def test_masked_words_are_those_of_the_published_algorithm(language_model):
    """Less special tokens, punctuation and the word itself; also for the short texts of a batch, beside padding."""
    model, tokenizer = load_masked_lm(language_model)
    texts = ["paint my red wall tonight", "that ripe plum", "Eat!"]
    found = masked_words(texts, model, tokenizer, 20)
    compared = []
    for text, places in zip(texts, found, strict=True):
        for start, end in find_words(text):
            word = text[start:end]
            if not is_replaceable(word):
                assert start not in places
                continue
            expected = [
                match_case(piece, word)
                for piece in likeliest_by_hand(language_model, text, start, end, 20)
                if piece[0] != "[" and piece != word.lower()
            ]
            assert places[start] == expected
            assert 0 < len(expected) <= 20
            compared.append(word)
    assert compared == ["paint", "red", "wall", "tonight", "ripe", "plum", "Eat"]


def test_sentence_is_segment_a_with_the_mask_and_segment_b_without(language_model):
    """Planted: what the model is given, read at its door."""
    model, tokenizer = load_masked_lm(language_model)
    calls = []
    model.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    masked_words(["paint my red wall"], model, tokenizer, 3)
    seen = {}
    for ids, types, mask in zip(
        *(calls[0][key] for key in ("input_ids", "token_type_ids", "attention_mask")), strict=True
    ):
        parts = [tokenizer.decode(ids[(types == segment) & (mask == 1)]) for segment in (0, 1)]
        seen[parts[0]] = parts[1]
    assert seen == {
        "[CLS] [MASK] my red wall [SEP]": "paint my red wall [SEP]",
        "[CLS] paint my [MASK] wall [SEP]": "paint my red wall [SEP]",
        "[CLS] paint my red [MASK] [SEP]": "paint my red wall [SEP]",
    }


def test_word_of_several_pieces_takes_its_neighbours(language_model):
    """One mask cannot give it; 'kitchen' is kit and ##chen."""
    texts = [*TEXTS, *(f"please paint my kitchen {thing} tonight" for thing in ("wall", "door", "fence"))]
    near = neighbours(texts, 15)["kitchen"]
    model, tokenizer = load_masked_lm(language_model)
    assert texts[-1].index("kitchen") not in masked_words(texts, model, tokenizer, 15)[-1]
    made = made_by("masked_lm", language_model, texts, probability=1.0)
    assert {item.text.split()[3] for item in made if item.source_index == len(texts) - 1} <= set(near)


def test_word_beyond_the_models_length_takes_its_neighbours(language_model):
    """Its mask is cut off with the end of the text; a word at the start is still predicted."""
    model, tokenizer = load_masked_lm(language_model)
    text = "paint " + "my " * 60 + "wall"
    assert set(masked_words([text], model, tokenizer, 5)[0]) == {0}


def test_mask_in_the_text_is_not_taken_for_ours(language_model):
    """Its place comes before that of the word."""
    model, tokenizer = load_masked_lm(language_model)
    text = "the [MASK] red wall"
    found = masked_words([text], model, tokenizer, 8)[0]
    start = text.index("wall")
    by_hand = likeliest_by_hand(language_model, text, start, start + 4, 8)
    assert found[start] == [piece for piece in by_hand if piece[0] != "[" and piece != "wall"]


def test_model_without_an_output_layer_is_refused(tmp_path):
    """A classifier would answer with random words."""
    model = toy_model(vocab_size=len(TOKENIZER))
    save_classifier(model, tmp_path)
    save_tokenizer(TOKENIZER, tmp_path)
    with pytest.raises(ModelError, match=r"weights are missing, such as 'cls\..*give a masked language model"):
        made_by("masked_lm", tmp_path)


def test_tokenizer_without_wordpieces_is_refused(tmp_path):
    """What continues a word would be another question."""
    save_language_model(tmp_path, TOKENIZER)
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[MASK]": 1}, unk_token="[UNK]"))
    save_tokenizer(PreTrainedTokenizerFast(tokenizer_object=words, mask_token="[MASK]", unk_token="[UNK]"), tmp_path)
    with pytest.raises(ModelError, match="no WordPiece with a mask token"):
        made_by("masked_lm", tmp_path)


def test_model_that_is_nowhere_is_named_by_its_own_setting(tmp_path):
    """Not as the teacher."""
    with pytest.raises(ModelError, match=r"^distill\.augment\.masked_lm '.*nowhere' is no folder"):
        made_by("masked_lm", tmp_path / "nowhere")


# --- what holds for all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", MADE)
def test_each_text_gets_its_copies_and_all_are_new(method, language_model):
    """In the order of the texts; no two alike, none a training text."""
    made = made_by(method, language_model, copies=3)
    assert [item.source_index for item in made] == [i for i in range(len(TEXTS)) for _ in range(3)]
    assert {item.method for item in made} == {method}
    keys = [normalise(item.text) for item in made]
    assert len({*keys, *map(normalise, TEXTS)}) == len(keys) + len(TEXTS)


@pytest.mark.parametrize("method", MADE)
def test_same_seed_gives_the_same_and_another_gives_others(method, language_model):
    """Of the global random state nothing is read and nothing changed."""
    random.seed(1)
    first = made_by(method, language_model)
    state = random.getstate()
    random.seed(2)
    assert made_by(method, language_model) == first
    random.setstate(state)
    assert made_by(method, language_model, seed=1) != first
    assert random.getstate() == state


@pytest.mark.slow  # a second process imports torch again
def test_another_process_gives_the_same():
    """Where texts have other hashes, so that nothing depends on the order of a set."""
    code = (
        "import json, sys; sys.path.insert(0, 'tests'); from test_augmentation import *; "
        "print(json.dumps([texts_of(made_by(m, held_out=TEXTS[:3])) for m in ('mask', 'replace', 'span_mix')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[1],
        env=os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    here = [texts_of(made_by(method, held_out=TEXTS[:3])) for method in ("mask", "replace", "span_mix")]
    assert json.loads(done.stdout.splitlines()[-1]) == here


def test_method_draws_the_same_beside_others():
    """Adding one does not change what another gives, but where both give the same text."""
    alone = [item for method in ("mask", "span_mix") for item in made_by(method)]
    both = augment(TEXTS, AugmentSettings(methods=("mask", "span_mix")), TOKENIZER, 0, ())
    assert both == alone


@pytest.mark.parametrize("method", MADE)
def test_planted_held_out_text_is_never_given_back(method, language_model):
    """Planted: every other text that the method makes is put into test, in other letters and with an accent apart."""
    texts = [*TEXTS, "möchte bitte ein ripe apple"]
    free = texts_of(made_by(method, language_model, texts))
    planted = [text.upper().replace("Ö", "O\u0308") + " !!" for text in free[::2]]
    made = made_by(method, language_model, texts, held_out=planted)
    assert not {normalise(text) for text in planted} & {normalise(text) for text in texts_of(made)}
    assert set(free[1::2]) & set(texts_of(made))


@pytest.mark.parametrize("method", ["mask", "replace", "span_mix"])
def test_held_out_words_reach_no_text(method):
    """Planted: a test split with words of its own, near to training words, changes nothing at all."""
    held_out = [text.replace("red", "crimson").replace("apple", "quince") for text in TEXTS] * 3
    made = made_by(method, held_out=held_out)
    assert made == made_by(method)
    assert not any(word in text for text in texts_of(made) for word in ("crimson", "quince"))


def test_two_methods_give_no_text_twice():
    """Planted: crops of texts that are themselves in the list are training texts, and given by neither."""
    texts = [*TEXTS, "one two three", "one two"]
    settings = AugmentSettings(methods=("crop", "span_mix"), copies=8)
    made = texts_of(augment(texts, settings, TOKENIZER, 0, ()))
    assert len(made) == len({normalise(text) for text in made})
    assert not {normalise(text) for text in made} & {normalise(text) for text in texts}


@pytest.mark.parametrize("method", MADE)
@pytest.mark.parametrize("texts", [[], [""], ["   "], ["?!"], ["❤️"]])
def test_text_without_words_gives_nothing(method, texts, language_model):
    """And no error."""
    assert made_by(method, language_model, texts) == []


@pytest.mark.parametrize(("method", "most"), [(name, 4 * (name == "masked_lm")) for name in MADE])
def test_one_word_alone_gives_what_it_can(method, most, language_model):
    """Nothing is left of it when masked, and it has no neighbour and no other text."""
    assert len(made_by(method, language_model, ["wall"])) == most


@pytest.mark.parametrize("method", MADE)
def test_text_in_any_script_comes_through(method, language_model):
    """Also with a lone surrogate, which no tokenizer takes; everything given back can be written as UTF-8."""
    texts = [
        "मुझे हिंदी में बताओ।",
        "今天 天气 怎么样?",
        "quel café naïf ❤️ ce soir",
        "bad \ud800 byte here",
        "a\0b null here",
    ] * 2
    made = made_by(method, language_model, texts)
    assert made or method in ("replace", "masked_lm")
    for item in made:
        item.text.encode("utf-8")
        assert "\0" not in item.text


# --- cache -------------------------------------------------------------------------------------------------------

CACHED = {"methods": ("mask", "replace", "masked_lm"), "copies": 2}


@pytest.fixture
def inputs(tmp_path, language_model):
    """Arguments of cached_augmentation with a model of their own."""
    save_language_model(tmp_path / "model", TOKENIZER)
    files = {"masked_lm": str(tmp_path / "model")}
    return {
        "texts": [*TEXTS, "bad \ud800 byte here"],
        "settings": AugmentSettings(**(CACHED | files)),
        "tokenizer": TOKENIZER,
        "seed": 0,
        "held_out": ["one held-out text"],
        "work": tmp_path / "work",
    }


@pytest.fixture
def count_made(monkeypatch):
    """How often the texts were really made."""
    calls = []

    def counted(*args):
        calls.append(1)
        return augment(*args)

    monkeypatch.setattr(pipeline.augment.augmentation, "augment", counted)
    return calls


def folders(inputs):
    return sorted(path.name for path in inputs["work"].iterdir())


def test_cache_gives_what_was_made_and_makes_it_once(inputs, count_made):
    """To the last character."""
    made = cached_augmentation(**inputs)
    assert cached_augmentation(**inputs) == made == augment(*list(inputs.values())[:-1])
    assert len(count_made) == 1
    assert re.fullmatch(r"augmentation-[0-9a-f]{16}", *folders(inputs))


def cut(file):
    file.write_bytes(file.read_bytes()[:-20])


def edit(file):
    file.write_bytes(file.read_bytes().replace(b"paint", b"print", 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: cut(folder / "texts.jsonl"), "truncated by 20 bytes"),
        (lambda folder: edit(folder / "texts.jsonl"), "damaged: found SHA-256"),
        (lambda folder: (folder / "texts.jsonl").unlink(), "missing, but listed"),
        (lambda folder: (folder / "card.json").unlink(), "never finished"),
    ],
)
def test_damaged_cache_is_made_again_with_a_warning(inputs, count_made, caplog, damage, message):
    """And is whole afterwards."""
    made = cached_augmentation(**inputs)
    damage(inputs["work"] / folders(inputs)[0])
    with caplog.at_level(logging.WARNING):
        assert cached_augmentation(**inputs) == made
    assert message in caplog.text and "making the augmentation again" in caplog.text
    assert cached_augmentation(**inputs) == made
    assert len(count_made) == 2


def other_settings(inputs, **changes):
    return inputs | {"settings": inputs["settings"].model_copy(update=changes)}


def other_model(inputs):
    save_language_model(Path(inputs["settings"].masked_lm), TOKENIZER, seed=1)
    return inputs


CHANGES = {
    "seed": lambda inputs: inputs | {"seed": 1},
    "texts": lambda inputs: inputs | {"texts": [*inputs["texts"], "one more text"]},
    "order of texts": lambda inputs: inputs | {"texts": inputs["texts"][::-1]},
    "held-out texts": lambda inputs: inputs | {"held_out": ["another"]},
    "methods": lambda inputs: other_settings(inputs, methods=("mask",)),
    "copies": lambda inputs: other_settings(inputs, copies=3),
    "probability": lambda inputs: other_settings(inputs, probability=0.5),
    "candidates": lambda inputs: other_settings(inputs, candidates=14),
    "mask token": lambda inputs: inputs | {"tokenizer": plain_tokenizer()},
    "weights of the model": other_model,
}


@pytest.mark.parametrize("what", CHANGES)
def test_change_of_anything_that_decides_makes_another_cache(what, inputs, monkeypatch):
    """The old one stays, and is found when all is as it was."""
    monkeypatch.setattr(pipeline.augment.augmentation, "augment", lambda *args: [])
    cached_augmentation(**inputs)
    cached_augmentation(**CHANGES[what](inputs))
    assert len(folders(inputs)) == 2


def test_edited_code_makes_another_cache(inputs, monkeypatch):
    """Texts that older code made are not taken for the newer one's."""
    monkeypatch.setattr(pipeline.augment.augmentation, "augment", lambda *args: [])
    cached_augmentation(**inputs)
    monkeypatch.setattr(
        pipeline.augment.augmentation, "trace", lambda modules, chosen: Trace({"words.py": "edited"}, {})
    )
    cached_augmentation(**inputs)
    assert len(folders(inputs)) == 2


def test_model_that_moves_keeps_its_cache(inputs, count_made, tmp_path):
    """Its content decides, not its place."""
    made = cached_augmentation(**inputs)
    moved = Path(inputs["settings"].masked_lm).rename(tmp_path / "elsewhere")
    assert cached_augmentation(**other_settings(inputs, masked_lm=str(moved))) == made
    assert len(count_made) == 1


def test_no_method_leaves_no_folder(inputs):
    """Augmentation is off by default."""
    assert cached_augmentation(**(inputs | {"settings": AugmentSettings()})) == []
    assert not inputs["work"].exists()
