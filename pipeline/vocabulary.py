"""Trimming a WordPiece vocabulary to what the training text needs, with an open fallback.

Greedy longest-match tokenization gives the same pieces with the smaller vocabulary on every text whose pieces were all
kept, so teacher and student see the same positions on training text. Every single character that the teacher knows is
kept too, alone and as a continuation: a word that was never seen is spelled out rather than lost.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pipeline.data import encode
from pipeline.errors import ModelError, first_line


def needed_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Ids to keep, ascending: special and added tokens, single characters, and every piece of the texts (uncut).

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
    for ids in encode(tokenizer, texts, max_length=1_000_000):
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
    from tokenizers import Tokenizer

    # The plain fast class takes its state as given; family classes would write their own vocabulary back.
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=list(tokenizer.model_input_names),
        **tokenizer.special_tokens_map,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes tokenizer files without the machine's paths in them."""
    tokenizer.name_or_path = ""
    # Encoding leaves its last length in the tokenizer's state; whoever loads the file decides anew.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(str(folder))


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
