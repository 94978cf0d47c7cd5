"""The table that ports follow is the tokenizer: followed here in Python, and by every port that can run."""

import functools
import json

import pytest
from fakes import port_of, slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from eval.hard_texts import HARD, fuzz
from pipeline.base.errors import ExportError, ModelError
from pipeline.data.texts import clean
from pipeline.formats import tokenizer_rules, word_pieces

LONGEST = 32
PORTS = ("javascript", "kotlin", "swift")
TEXTS = [*HARD, " ".join(map(str, range(60))), *fuzz(3, 1_500)]


def make(**normalizer):
    """A tokenizer with many single characters of several scripts, so that ids tell what became of each."""
    letters = "abcdefghijklmnopqrstuvwxyzABCÉéäßøıİ0123456789.,!?中京さカ한글ᄒ̈ᅡ̀́־𠀀़〮〯\U0001d165"
    words = ["un", "##ing", "the", "play", "한국", "##국", "##é", *(f"##{letter}" for letter in letters)]
    vocabulary = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *words])
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=20))
    tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return tokenizer


KINDS = {
    "uncased": {"lowercase": True},
    "cased": {"lowercase": False},
    "uncased with accents": {"lowercase": True, "strip_accents": False},
    "cased without accents": {"lowercase": False, "strip_accents": True},
    "neither clean nor apart": {"clean_text": False, "handle_chinese_chars": False},
}


@functools.cache  # a table takes seconds
def make_pair(kind):
    """(tokenizer, its table)."""
    tokenizer = make(**KINDS[kind])
    return tokenizer, word_pieces.read(tokenizer, LONGEST, 0)


def uncased():
    return make_pair("uncased")


@pytest.fixture(params=slow_but(tuple(KINDS), "uncased", "cased without accents"))
def pair(request):
    return make_pair(request.param)


def follow(rules, text):
    """Ids by the table alone, as its description has it: written apart from the ports."""

    def has(ends, code):
        return any(first <= code <= last for first, last in zip(ends[::2], ends[1::2], strict=True))

    def effect(code):
        if str(code) in rules.other:
            return rules.other[str(code)]
        for name, made in (("nothing", ""), ("space", " "), ("word", f" {chr(code)} ")):
            if has(getattr(rules, name), code):
                return made
        if rules.hangul and 0xAC00 <= code <= 0xD7A3:
            return word_pieces._letters(code - 0xAC00)
        return chr(code)

    def words(part):
        out, wall = [], 0
        for code in map(ord, part):
            wall = len(out) if has(rules.walls, code) else wall
            for one in effect(code):
                place, mark = len(out), rules.marks.get(str(ord(one)), 0)
                while mark and place > wall and rules.marks.get(str(ord(out[place - 1])), 0) > mark:
                    place -= 1
                out.insert(place, one)
        return [word for word in "".join(out).split(" ") if word]

    def pieces(word):
        found, rest = [], word if len(word) <= rules.longest_word else None
        while rest:
            prefix = rules.prefix if found else ""
            size = next((n for n in range(len(rest), 0, -1) if prefix + rest[:n] in known), 0)
            found, rest = ([*found, known[prefix + rest[:size]]], rest[size:]) if size else ([], None)
        return found if rest == "" else [rules.unknown]

    known = {piece: number for number, piece in enumerate(rules.vocabulary)}
    ids, rest = [], clean(text)
    while rest:
        at = {token: rest.find(token) for token in rules.special if token in rest}
        token = min(at, key=lambda one: (at[one], -len(one)), default=None)
        part, rest = (rest[: at[token]], rest[at[token] + len(token) :]) if token else (rest, "")
        ids += [number for word in words(part) for number in pieces(word)]
        ids += [rules.special[token]] if token else []
    room = rules.max_length - len(rules.before) - len(rules.after)
    return [*rules.before, *ids[:room], *rules.after]


def encode(tokenizer, texts):
    tokenizer.enable_truncation(LONGEST)
    return [found.ids for found in tokenizer.encode_batch(list(map(clean, texts)))]


def test_the_table_followed_by_hand_gives_the_tokenizers_ids(pair):
    tokenizer, rules = pair
    texts = TEXTS[:600]
    assert [follow(rules, text) for text in texts] == encode(tokenizer, texts)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=12))
def test_so_it_does_on_any_text(text):
    tokenizer, rules = uncased()
    assert [follow(rules, text)] == encode(tokenizer, [text])


@pytest.mark.parametrize("port", PORTS)
def test_every_port_gives_the_tokenizers_ids(pair, tmp_path, port):
    module = port_of(port)
    tokenizer, rules = pair
    tokenizer_rules.write(rules, tmp_path)
    texts = [*TEXTS, "half \ud83d of a pair", "\udc00"]
    found = module.encode(tmp_path, texts)
    wrong = [text for text, one, other in zip(texts, found, encode(tokenizer, texts), strict=True) if one != other]
    assert wrong == []


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["other"].pop(str(ord("É"))),
        lambda value: value["space"].clear(),
        lambda value: value["word"].clear(),
        lambda value: value["nothing"].clear(),
        lambda value: value.update(hangul=False),
        lambda value: value.update(longest_word=200),
        lambda value: value["marks"].clear(),
        lambda value: value["special"].clear(),
        lambda value: value["vocabulary"].reverse(),
    ],
    ids=["an accent", "spaces", "punctuation", "controls", "hangul", "long words", "marks", "special", "vocabulary"],
)
def test_a_fault_in_the_table_is_seen_in_the_ids(change):
    """Planted one at a time: the texts that ports are held against tell each of them."""
    rules = uncased()[1]
    value = json.loads(rules.model_dump_json())
    change(value)
    wrong = word_pieces.Rules.model_validate_json(json.dumps(value))
    # the last: a stem of music, of a lower class than the tone mark before it
    texts = [*TEXTS[:600], "É", "[SEP]", "a" * 25, "하", "a〮\U0001d165"]
    assert [follow(wrong, text) for text in texts] != [follow(rules, text) for text in texts]


def test_a_port_that_fails_says_so(tmp_path):
    module = port_of("javascript")
    (tmp_path / "word_pieces.json").write_text('{"kind": "word pieces 2"}')
    with pytest.raises(ModelError, match=r"node failed"):
        module.encode(tmp_path, ["a"])


def test_the_file_is_the_same_bytes_for_the_same_tokenizer(tmp_path):
    again = word_pieces.read(make(lowercase=True), LONGEST, 0)
    for name, rules in (("a", uncased()[1]), ("b", again)):
        (tmp_path / name).mkdir()
        tokenizer_rules.write(rules, tmp_path / name)
    assert (tmp_path / "a" / word_pieces.FILE).read_bytes() == (tmp_path / "b" / word_pieces.FILE).read_bytes()


def test_what_no_port_can_do_is_refused_by_name(tmp_path):
    """Another model, another normalizer, a token that takes the blanks around it."""
    Tokenizer(models.Unigram([("a", 0.0)])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ExportError, match="its model is Unigram, and ports for apps have WordPiece and BPE alone"):
        tokenizer_rules.of_file(tmp_path / "tokenizer.json", LONGEST, 0)
    tokenizer = make(lowercase=True)
    tokenizer.normalizer = normalizers.NFKC()
    with pytest.raises(ExportError, match="its normalizer is NFKC, and ports for apps have BertNormalizer alone"):
        word_pieces.read(tokenizer, LONGEST, 0)
    tokenizer = make(lowercase=True)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    with pytest.raises(ExportError, match="token '<mask>' is marked lstrip, which no port for apps does"):
        word_pieces.read(tokenizer, LONGEST, 0)
