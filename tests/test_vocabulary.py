"""Trimmed vocabularies: the same pieces on kept text, spelled-out words elsewhere, and files that say the same."""

import json

import pytest
from tiny_project import make_rows, make_tokenizer
from tokenizers import AddedToken, Tokenizer, models, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from pipeline.base.errors import ModelError
from pipeline.data.texts import encode
from pipeline.models.vocabulary import load_tokenizer, needed_tokens, save_tokenizer, trim

TEXTS = [text for text, _ in make_rows(60, seed=1)]


@pytest.fixture
def full():
    """A tokenizer with more words than the texts have."""
    return make_tokenizer(extra=[f"word{i}" for i in range(50)])


@pytest.fixture
def trimmed(full):
    """The same tokenizer over what the texts need."""
    return trim(full, needed_tokens(full, [TEXTS]))


def pieces(tokenizer, text):
    """The text's tokens with special tokens around them."""
    return tokenizer.convert_ids_to_tokens(encode(tokenizer, [text], 64)[0])


def test_training_texts_are_cut_into_the_same_pieces(full, trimmed):
    """By another number each, and the numbers are without gaps."""
    assert len(trimmed) < len(full)
    assert sorted(trimmed.get_vocab().values()) == list(range(len(trimmed)))
    for text in TEXTS:
        assert pieces(trimmed, text) == pieces(full, text)


def test_kept_ids_lead_from_the_new_number_to_the_old(full, trimmed):
    """The student's embedding rows are the teacher's rows at these places."""
    keep = needed_tokens(full, [TEXTS])
    for text in TEXTS:
        assert [keep[i] for i in encode(trimmed, [text], 64)[0]] == encode(full, [text], 64)[0]


def test_unseen_words_are_spelled_out(full, trimmed):
    """Also one that the full vocabulary has as a whole; nothing turns to [UNK] while its letters are known."""
    assert pieces(full, "kitchen") == ["[CLS]", "kit", "##chen", "[SEP]"]
    assert pieces(trimmed, "kitchen") == ["[CLS]", "k", "##i", "##t", "##c", "##h", "##e", "##n", "[SEP]"]
    assert pieces(trimmed, "zebra") == pieces(full, "zebra")
    assert pieces(trimmed, "é日") == pieces(full, "é日")


def test_unknown_characters_are_unknown_in_both(full, trimmed):
    """A character that the teacher does not know either."""
    assert pieces(full, "日")[1:-1] == pieces(trimmed, "日")[1:-1] == ["[UNK]"]


def test_special_tokens_have_their_own_numbers(full, trimmed):
    """Text pairs take them from the post-processor, which has numbers of its own."""
    for name in ("pad", "unk", "cls", "sep", "mask"):
        number = getattr(trimmed, f"{name}_token_id")
        assert trimmed.convert_ids_to_tokens(number) == getattr(full, f"{name}_token")
    assert trimmed.convert_ids_to_tokens(trimmed("play", "song")["input_ids"]) == [
        "[CLS]",
        "play",
        "[SEP]",
        "song",
        "[SEP]",
    ]
    assert trimmed.model_max_length == full.model_max_length


def test_numbers_move_in_every_kind_of_post_processor():
    """Of BERT's own tokenizer, of a template, and of several in a sequence; planted: [CLS] and [SEP] come last."""
    vocabulary = ["[PAD]", "[UNK]", "[MASK]", "unused", "lamp", "play", "song", "[CLS]", "[SEP]"]
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    cls, sep = ("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])
    template = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[cls, sep])
    for processor in (
        processors.BertProcessing(sep, cls),
        template,
        processors.Sequence([template, processors.ByteLevel(trim_offsets=True)]),
    ):
        tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
        tokenizer.post_processor = processor
        full = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
        )
        small = trim(full, needed_tokens(full, [["play"]]))
        assert len(small) < len(full)
        assert pieces(small, "play") == ["[CLS]", "play", "[SEP]"]


def test_added_tokens_survive(full):
    """Words that someone added to the teacher's tokenizer, special or not, used in the texts or not."""
    full.add_tokens(["<phone>", "<mail>"])
    full.add_special_tokens({"additional_special_tokens": [AddedToken("<user>", special=True)]})
    small = trim(full, needed_tokens(full, [["play <phone>"]]))
    for text in ("play <phone>", "play <mail>", "<user> play"):
        assert pieces(small, text) == pieces(full, text)
    assert small.additional_special_tokens == ["<user>"]


def test_saved_tokenizer_reads_back_equal(tmp_path, full, trimmed):
    """By transformers and by the `tokenizers` library, which is what an app uses."""
    for name, tokenizer in (("full", full), ("trimmed", trimmed)):
        save_tokenizer(tokenizer, tmp_path / name)
        again = load_tokenizer(tmp_path / name)
        plain = Tokenizer.from_file(str(tmp_path / name / "tokenizer.json"))
        assert again.get_vocab() == tokenizer.get_vocab()
        for text in [*TEXTS, "kitchen zebra", "", "日", "PLAY  a song!"]:
            expected = encode(tokenizer, [text], 64)[0]
            assert encode(again, [text], 64)[0] == expected
            assert plain.encode(text).ids == expected


def test_saved_tokenizer_cuts_and_pads_nothing(tmp_path, full):
    """Planted: the tokenizer was last used with a length of 4, which stays in its state."""
    encode(full, ["play some song now"], 4)
    full(["play", "play a song"], padding=True)
    small = trim(full, needed_tokens(full, [TEXTS]))
    encode(small, ["play some song now"], 4)
    for name, tokenizer in (("full", full), ("small", small)):
        save_tokenizer(tokenizer, tmp_path / name)
        state = json.loads((tmp_path / name / "tokenizer.json").read_text())
        assert (state["truncation"], state["padding"]) == (None, None)
        plain = Tokenizer.from_file(str(tmp_path / name / "tokenizer.json"))
        assert len(plain.encode("play some song now please").ids) == 7


def test_needed_tokens_are_those_of_whole_texts(full):
    """A text longer than any length setting is not cut first."""
    long = " ".join(["play"] * 100 + ["lamp"])
    assert full.convert_tokens_to_ids("lamp") in needed_tokens(full, [[long]])


def test_saved_twice_gives_the_same_bytes_and_no_path_of_this_machine(tmp_path, trimmed):
    """Faults row 37."""
    for name in ("a", "b"):
        save_tokenizer(trimmed, tmp_path / name)
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert "tokenizer.json" in files
    for file in files:
        content = (tmp_path / "a" / file).read_bytes()
        assert content == (tmp_path / "b" / file).read_bytes()
        assert str(tmp_path).encode() not in content


def test_only_wordpiece_can_be_trimmed():
    """Merges of a BPE vocabulary depend on one another."""
    bpe = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])))
    with pytest.raises(ModelError, match=r"'trimmed', but the tokenizer is BPE; only WordPiece .* set it to 'full'"):
        needed_tokens(bpe, [["ab"]])


def test_folder_without_tokenizer_is_named(tmp_path):
    """With what was expected there."""
    with pytest.raises(ModelError, match=r"no tokenizer that can be read .* expected tokenizer.json beside the model"):
        load_tokenizer(tmp_path)


def test_bert_tokenizer_from_a_plain_word_list_is_trimmed_too(tmp_path):
    """The class that most checkpoints name, which would write its own vocabulary back if it were kept."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "unused", "a", "##a", "play", "song"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    full = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    small = trim(full, needed_tokens(full, [["play"]]))
    save_tokenizer(small, tmp_path / "small")
    assert set(load_tokenizer(tmp_path / "small").get_vocab()) == set(words) - {"unused", "song"}
    assert pieces(load_tokenizer(tmp_path / "small"), "Play aa") == ["[CLS]", "play", "a", "##a", "[SEP]"]
