"""The student's tokenizer: the teacher's, trimmed to what the training text needs, or with a distillation token.

Greedy longest-match tokenization gives the same pieces with the smaller vocabulary on every text whose pieces were all
kept, so teacher and student see the same positions on training text. Every single character that the teacher knows is
kept too, alone and as a continuation: a word that was never seen is spelled out rather than lost.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pipeline.base.errors import ModelError, first_line
from pipeline.data.texts import encode

BATCH = 10_000  # texts whose ids are in memory at once
DISTILLATION_PIECE = "[DIST]"


def needed_tokens(tokenizer: PreTrainedTokenizerBase, collections: Sequence[Sequence[tuple[str, ...]]]) -> list[int]:
    """Ids to keep, ascending: special and added tokens, single characters, and every piece of all texts (uncut).

    Raises:
        ModelError: the tokenizer is not WordPiece.
    """
    state = _state(tokenizer)
    model = state["model"]
    if model["type"] != "WordPiece":
        raise ModelError(
            f"student.vocabulary is 'trimmed', but the tokenizer is {model['type']}; only WordPiece can be trimmed "
            "without changing how kept text is split; set it to 'full'"
        )
    prefix = model["continuing_subword_prefix"]
    keep = {*tokenizer.all_special_ids, *(token["id"] for token in state["added_tokens"])}
    keep |= {number for piece, number in model["vocab"].items() if len(piece.removeprefix(prefix)) == 1}
    for texts in collections:
        for start in range(0, len(texts), BATCH):
            for ids in encode(tokenizer, texts[start : start + BATCH], max_length=1_000_000):
                keep.update(ids)
    return sorted(keep)


def trim(tokenizer: PreTrainedTokenizerBase, keep: Sequence[int]) -> PreTrainedTokenizerBase:
    """The same tokenizer over `keep` only; the new id of a token is its place in `keep`."""
    state = _state(tokenizer)
    pieces = {number: piece for piece, number in state["model"]["vocab"].items()}
    new_id = {old: new for new, old in enumerate(keep)}
    state["model"]["vocab"] = {pieces[old]: new for old, new in new_id.items() if old in pieces}
    for token in state["added_tokens"]:
        token["id"] = new_id[token["id"]]
    _renumber(state["post_processor"], new_id)
    return _rebuilt(tokenizer, state)


def with_distillation_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same tokenizer, which sets one more special token right behind the class token, with the next free id.

    [CLS] text [SEP] becomes [CLS] [DIST] text [SEP]; text pairs and other families alike.

    Raises:
        ModelError: a tokenizer that is neither WordPiece nor BPE, sets no class token, or has gaps between its ids.
    """
    state = _state(tokenizer)
    model, vocabulary = state["model"], tokenizer.get_vocab()
    if model["type"] not in ("WordPiece", "BPE"):
        raise ModelError(
            f"student.distillation_token is true, but the tokenizer is {model['type']}, whose pieces compete, so that "
            "a text could hold the token; only WordPiece and BPE can have one; set it to false"
        )
    if DISTILLATION_PIECE in vocabulary:
        raise ModelError(
            f"student.distillation_token is true, but the tokenizer has a token '{DISTILLATION_PIECE}' of its own; "
            "set it to false"
        )
    number = len(vocabulary)
    if set(vocabulary.values()) != set(range(number)):
        raise ModelError("student.distillation_token is true, but the tokenizer's ids have gaps; set it to false")
    # Not among the added tokens, which are found in text too: what a user writes never reaches this piece, neither
    # here nor in an app. Tokens that were added move into the vocabulary, or they would be numbered behind it anew.
    model["vocab"] |= {token["content"]: token["id"] for token in state["added_tokens"]}
    model["vocab"][DISTILLATION_PIECE] = number
    state["post_processor"] = _with_second_token(state["post_processor"], number)
    made = _rebuilt(tokenizer, state)
    for text in ("", DISTILLATION_PIECE):
        places = [place for place, found in enumerate(encode(made, [text], max_length=1_000)[0]) if found == number]
        if places != [1]:
            raise ModelError(
                f"student.distillation_token is true, but the text '{text}' would have the token at {places}, expected "
                "only behind a class token, at 1; set it to false"
            )
    return made


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes tokenizer files without the machine's paths in them."""
    tokenizer.name_or_path = ""
    # Encoding leaves its last length in the tokenizer's state; whoever loads the file decides anew.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(str(folder))


def cut_at(folder: Path, max_length: int) -> None:
    """Has a saved tokenizer cut texts where the model beside it ends, in both files that may be asked, in place."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_length)
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    if path.is_file():
        config = json.loads(path.read_text("utf-8"))
        # `max_length` is what an earlier caller of somebody's tokenizer left there
        config |= {key: max_length for key in ("model_max_length", "max_length") if key in config}
        path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer saved by `save_tokenizer`, or one beside a model.

    Raises:
        ModelError: the folder has none that can be read.
    """
    try:
        return AutoTokenizer.from_pretrained(str(folder), use_fast=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder}: no tokenizer that can be read ({first_line(error)}); expected tokenizer.json beside the model"
        ) from error


def _state(tokenizer: PreTrainedTokenizerBase) -> dict:
    if not tokenizer.is_fast:
        raise ModelError("the tokenizer has no fast version; expected a tokenizer.json beside the model")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Length is decided at each call; a length kept in the state would cut text unasked.
    state["truncation"] = state["padding"] = None
    return state


def _rebuilt(tokenizer: PreTrainedTokenizerBase, state: dict) -> PreTrainedTokenizerBase:
    """The tokenizer with another state."""
    from tokenizers import Tokenizer

    # The plain fast class takes its state as given; family classes would write their own vocabulary back.
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=list(tokenizer.model_input_names),
        **tokenizer.special_tokens_map,
    )


def _with_second_token(post_processor: dict | None, number: int) -> dict | None:
    """The post-processor with one more token behind the class token, as a template."""
    kind = post_processor["type"] if post_processor is not None else None
    if post_processor is None or kind == "ByteLevel":  # such a part of a sequence sets no tokens
        return post_processor
    if kind == "Sequence":
        return post_processor | {
            "processors": [_with_second_token(part, number) for part in post_processor["processors"]]
        }
    if kind != "TemplateProcessing":
        post_processor = _as_template(post_processor)
    for name in ("single", "pair"):
        second = {"SpecialToken": {"id": DISTILLATION_PIECE, "type_id": 0}}
        post_processor[name].insert(1, second)
    post_processor["special_tokens"][DISTILLATION_PIECE] = _special_token(DISTILLATION_PIECE, number)
    return post_processor


def _as_template(post_processor: dict) -> dict:
    """BERT's or RoBERTa's own post-processor as the template that says the same about ids and their types."""
    cls, sep = post_processor["cls"], post_processor["sep"]
    is_bert = post_processor["type"] == "BertProcessing"

    def part(kind: str, name: str, type_id: int = 0) -> dict:
        return {kind: {"id": name, "type_id": type_id}}

    first = [part("SpecialToken", cls[0]), part("Sequence", "A"), part("SpecialToken", sep[0])]
    if is_bert:
        second = [part("Sequence", "B", 1), part("SpecialToken", sep[0], 1)]
    else:
        second = [part("SpecialToken", sep[0]), part("Sequence", "B"), part("SpecialToken", sep[0])]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second],
        "special_tokens": {name: _special_token(name, number) for name, number in (cls, sep)},
    }


def _special_token(name: str, number: int) -> dict:
    return {"id": name, "ids": [number], "tokens": [name]}


def _renumber(post_processor: dict | None, new_id: dict[int, int]) -> None:
    """Gives the special tokens of a template or BERT post-processor their new ids, in place; also inside a sequence."""
    if post_processor is None:
        return
    for inner in post_processor.get("processors") or ():
        _renumber(inner, new_id)
    for token in (post_processor.get("special_tokens") or {}).values():
        token["ids"] = [new_id[old] for old in token["ids"]]
    for end in ("sep", "cls"):
        if end in post_processor:
            text, old = post_processor[end]
            post_processor[end] = [text, new_id[old]]
