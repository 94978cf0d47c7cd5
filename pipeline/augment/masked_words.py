"""What a masked language model would put in place of each word of a text.

Source: TinyBERT (Jiao et al. 2020), algorithm 1, and `data_augmentation.py` of its release. The sentence with one word
masked is segment A and the untouched sentence segment B, so that the model sees what the word was.
Where we differ: special tokens, punctuation and the word itself are no replacement, so `probability` is that of a
change; one text too long for the model is cut on both sides, not on B's alone.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.augment.words import find_words, is_replaceable, key_of, match_case, substitute
from pipeline.base.errors import ModelError, first_line
from pipeline.data.batches import batches_by_length
from pipeline.models.checkpoints import check_finite, check_vocabulary, positions_of, read_config
from pipeline.models.vocabulary import load_tokenizer

BATCH = 32  # sentences a step; only one position of each reaches the output layer, so it needs little memory


def load_masked_lm(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A masked language model in eval mode, and its tokenizer, from a folder that `find_model` checked.

    Raises:
        ModelError: no language model's output layer, damaged weights, or no WordPiece tokenizer with a mask.
    """
    from tokenizers.models import WordPiece

    config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer.mask_token is None or not isinstance(tokenizer.backend_tokenizer.model, WordPiece):
        raise ModelError(f"{folder}: its tokenizer is no WordPiece with a mask token; use a model of BERT's kind")
    check_vocabulary(config, len(tokenizer))
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(
            str(folder), config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be loaded: {first_line(error)}") from error
    if info["missing_keys"]:  # transformers would go on with random weights
        raise ModelError(
            f"{folder}: {len(info['missing_keys'])} weights are missing, such as '{min(info['missing_keys'])}'; "
            "give a masked language model, not a classifier or a sentence encoder"
        )
    check_finite(model, str(folder))
    return model.eval(), tokenizer


def masked_words(
    texts: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, most: int
) -> list[dict[int, list[str]]]:
    """For each text the replacements of each of its words, by the place where the word starts.

    Only replaceable words of one piece are in it. Of the `most` likeliest pieces those stay that are words: fewer than
    `most`, or none.
    """
    from tqdm import tqdm

    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    nn.Module.to(model, device)
    distinct = list(dict.fromkeys(texts))
    found: dict[str, dict[int, list[str]]] = {text: {} for text in distinct}
    jobs = _jobs(distinct, tokenizer)
    batches = batches_by_length([len(text) for text, _, _ in jobs], BATCH)
    for rows in tqdm(batches, desc="masked words", disable=None, leave=False):
        batch = [jobs[i] for i in rows]
        for (text, start, end), pieces in zip(batch, _likeliest(batch, model, tokenizer, most, device), strict=True):
            if pieces is not None:
                found[text][start] = _whole_words(pieces, text[start:end], tokenizer)
    return [found[text] for text in texts]


def _jobs(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, int, int]]:
    """(text, start, end) of each word to mask."""
    spans = [(text, start, end) for text in texts for start, end in find_words(text) if is_replaceable(text[start:end])]
    is_single: dict[str, bool] = {}
    for text, start, end in spans:
        word = text[start:end]
        if word not in is_single:
            pieces = tokenizer.tokenize(word)
            is_single[word] = len(pieces) == 1 and pieces[0] not in tokenizer.all_special_tokens
    return [(text, start, end) for text, start, end in spans if is_single[text[start:end]]]


def _likeliest(
    batch: Sequence[tuple[str, int, int]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    most: int,
    device: torch.device,
) -> list[list[str] | None]:
    """The likeliest pieces at each masked word, best first; None where the mask was cut off with the text's end."""
    masked = [substitute(text, [(start, end, tokenizer.mask_token)]) for text, start, end in batch]
    encoded = tokenizer(
        masked,
        [text for text, _, _ in batch],
        truncation="longest_first",
        max_length=positions_of(model.config),
        padding=True,
        return_tensors="pt",
    )
    # By its place in the text, since a text may hold a mask token of its own.
    places = [encoded.char_to_token(row, start, sequence_index=0) for row, (_, start, _) in enumerate(batch)]
    positions = torch.tensor([place or 0 for place in places], device=device)
    rows = torch.arange(len(batch), device=device)

    def only_masked(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # The output layer is as wide as the vocabulary: at every position it would cost the most time and memory.
        return (inputs[0][rows, positions],)

    hook = model.get_output_embeddings().register_forward_pre_hook(only_masked)
    try:
        with torch.no_grad():
            logits = model(**{key: value.to(device) for key, value in encoded.items()}).logits  # (B, V)
    finally:
        hook.remove()
    # A model may have more logits than its tokenizer has tokens.
    best = logits[:, : len(tokenizer)].float().topk(min(most, len(tokenizer))).indices.tolist()
    return [
        None if place is None else tokenizer.convert_ids_to_tokens(ids) for place, ids in zip(places, best, strict=True)
    ]


def _whole_words(pieces: Sequence[str], word: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    prefix = tokenizer.backend_tokenizer.model.continuing_subword_prefix
    return [
        match_case(piece, word)
        for piece in pieces
        if not piece.startswith(prefix)
        and piece not in tokenizer.all_special_tokens
        and any(c.isalpha() for c in piece)
        and key_of(piece) != key_of(word)
    ]
