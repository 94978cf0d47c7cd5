"""The table of a byte-level BPE tokenizer is the tokenizer, for every port that can run; a fault in it is seen."""

import functools
import json

import pytest
from fakes import port_of
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from eval.hard_texts import HARD, fuzz
from pipeline.base.errors import ExportError
from pipeline.data.texts import clean
from pipeline.formats import byte_pairs, tokenizer_rules

LONGEST = 32
TEXTS = [
    *HARD,
    "it's they'll I'VE 'm 'd''re ' s",
    "a <mask> b <mask>",
    "a \n\u3000<mask>  b<mask>",
    "<s>x</s>  <pad>",
    "  two  blanks  ",
    "\ttab\n\n new",
    " ".join(map(str, range(60))),
    *fuzz(5, 1_500),
]


@functools.cache
def make(blank_first=False, takes_right=False):
    """(tokenizer, its table), as RoBERTa's is made, trained on hard texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=blank_first)
    trainer = trainers.BpeTrainer(
        vocab_size=1_500,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*["play the song it's they've 123 the the"] * 5, *HARD * 3, *fuzz(1, 900)], trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=takes_right, special=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=blank_first)
    rules = byte_pairs.read(tokenizer, LONGEST, 1)
    tokenizer.enable_truncation(LONGEST)
    return tokenizer, rules


def encode(tokenizer, texts):
    return [found.ids for found in tokenizer.encode_batch(list(map(clean, texts)))]


@pytest.mark.parametrize("port", ["javascript", "kotlin", "swift"])
@pytest.mark.parametrize("options", [{}, {"blank_first": True, "takes_right": True}], ids=["as RoBERTa", "blank first"])
def test_every_port_gives_the_tokenizers_ids(tmp_path, port, options):
    module = port_of(port)
    tokenizer, rules = make(**options)
    assert tokenizer_rules.write(rules, tmp_path) == "byte_pairs.json"
    texts = [*TEXTS, "half \ud83d of a pair"]
    found = module.encode(tmp_path, texts)
    wrong = [text for text, one, other in zip(texts, found, encode(tokenizer, texts), strict=True) if one != other]
    assert wrong == []


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["merges"].reverse(),
        lambda value: value["merges"].clear(),
        lambda value: value["letters"].clear(),
        lambda value: value["numbers"].clear(),
        lambda value: value["others"].clear(),
        lambda value: value["bytes"].reverse(),
        lambda value: value.update(blank_first=True),
        lambda value: value["special"]["<mask>"].update(takes_left=False),
        lambda value: value["special"].clear(),
        lambda value: value["vocabulary"].insert(300, "no token"),
    ],
    ids=["ranks", "merges", "letters", "numbers", "others", "bytes", "blank", "spaces of a token", "special", "ids"],
)
def test_a_fault_in_the_table_is_seen_in_the_ids(tmp_path, change):
    """Planted one at a time, in the table that a port follows."""
    module = port_of("javascript")
    tokenizer, rules = make()
    tokenizer_rules.write(rules, tmp_path)
    path = tmp_path / "byte_pairs.json"
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), "utf-8")
    texts = TEXTS[:300]
    assert module.encode(tmp_path, texts) != encode(tokenizer, texts)


def test_a_long_text_without_a_blank_takes_no_more_than_its_length_asks(tmp_path):
    """Chinese without punctuation is one word: 60,000 bytes of it, where all pairs one by one would take minutes."""
    module = port_of("javascript")
    tokenizer, rules = make()
    tokenizer_rules.write(rules, tmp_path)
    texts = ["天气怎么样" * 4_000, "ab" * 100_000]
    assert module.encode(tmp_path, texts) == encode(tokenizer, texts)


def test_merges_in_an_order_that_was_not_learned_are_refused():
    """Ports merge all pairs of one rank at once."""
    state = json.loads(make()[0].to_str())
    state["model"]["merges"].reverse()
    with pytest.raises(ExportError, match="before they are made, or into no token, which no port"):
        byte_pairs.read(Tokenizer.from_str(json.dumps(state)), LONGEST, 1)


def test_what_no_port_can_do_is_refused_by_name():
    """A normalizer, another way of splitting, bytes that have no token."""
    state = json.loads(make()[0].to_str())
    for part, value, message in (
        ("normalizer", normalizers.NFC(), "has a normalizer NFC, which no port for apps does"),
        ("pre_tokenizer", pre_tokenizers.Whitespace(), "has a pre_tokenizer Whitespace, which no port"),
    ):
        tokenizer = Tokenizer.from_str(json.dumps(state))
        setattr(tokenizer, part, value)
        with pytest.raises(ExportError, match=message):
            byte_pairs.read(tokenizer, LONGEST, 1)
    bare = Tokenizer(models.BPE({"a": 0}, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel()
    with pytest.raises(ExportError, match="has no token for 255 of 256 bytes"):
        byte_pairs.read(bare, LONGEST, 1)
