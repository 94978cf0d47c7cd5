"""Further training text for the student: variants of training text, which the teacher labels later.

The statistics (vocabulary, neighbours) are those of training text alone, and no text of dev or test is ever given back.
A variant keeps no label: what it now means is the teacher's to say.

Sources: `mask` is Tang et al. 2019, "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks", section
3.3; `masked_lm` TinyBERT (Jiao et al. 2020), section 3.2, where `replace` stands in for the GloVe vectors;
`span_mix` and `crop` are this project's own, nearer relatives of Tang's n-gram sampling than of mixing labels. Where we
differ from both: a variant that is no new text is tried again, so that `copies` are made where a text has that many.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from transformers import PreTrainedTokenizerBase

from pipeline.augment.masked_words import load_masked_lm, masked_words
from pipeline.augment.text_changes import crop, mask_text, mask_words, mix_spans, swap_words
from pipeline.augment.words import Slots, Span, find_words, is_replaceable, key_of, match_case, neighbours
from pipeline.base.dependencies import trace
from pipeline.base.errors import IntegrityError
from pipeline.base.files import output_folder, sha256_of
from pipeline.base.records import open_folder, seal
from pipeline.data.inputs import MODEL_SUFFIXES
from pipeline.data.texts import clean, normalise
from pipeline.models.model_files import find_model
from pipeline.settings.augment import SECTION, AugmentSettings

log = logging.getLogger(__name__)

KIND = "augmentation"
ATTEMPTS = 5  # tries for each copy: a short text soon has no further variant

Maker = Callable[[int, Random], str]  # a variant of the text with this number, which may be no new text


@dataclass(frozen=True)
class Augmented:
    """One further text. `source_index` is the training text it was made of."""

    text: str
    source_index: int
    method: str


def augment(
    texts: Sequence[str],
    settings: AugmentSettings,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    held_out: Collection[str],
) -> list[Augmented]:
    """New texts by each method in the order of the settings, then by training text.

    No two are alike, none is a training text, and none is a held-out text, all compared as `normalise` leaves them.
    The same arguments give the same texts; a method's random numbers do not depend on what methods stand beside it.

    Args:
        texts: the training texts.
        settings: the methods and how strongly they change a text.
        tokenizer: the teacher's, for the text of its mask token.
        seed: of all random choices.
        held_out: every text of dev and test; read for this comparison only.

    Raises:
        ModelError: the masked language model cannot be used.
    """
    texts = [clean(text) for text in texts]
    banned = {normalise(clean(text)) for text in held_out}
    seen = banned | {normalise(text) for text in texts}
    out: list[Augmented] = []
    for method in settings.methods:
        out += _variants(method, _maker(method, texts, settings, tokenizer), texts, settings.copies, seed, seen)
    return out


def cached_augmentation(
    texts: Sequence[str],
    settings: AugmentSettings,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    held_out: Collection[str],
    work: Path,
) -> list[Augmented]:
    """What `augment` gives, made once and kept under `work`; a damaged file is made again, with a warning."""
    if not settings.methods:
        return []
    key = _cache_key(texts, settings, tokenizer, seed, held_out)
    folder = work / f"{KIND}-{key[:16]}"
    try:
        open_folder(folder, KIND)
    except IntegrityError as error:
        if folder.exists():
            log.warning("%s; making the augmentation again", error)
        made = augment(texts, settings, tokenizer, seed, held_out)
        lines = "".join(json.dumps(asdict(item), ensure_ascii=True) + "\n" for item in made)
        with output_folder(folder, expected_bytes=len(lines)) as partial:
            (partial / "texts.jsonl").write_text(lines, "utf-8", newline="\n")
            seal(partial, KIND, facts={"key": key, "texts": dict(Counter(item.method for item in made))})
    with (folder / "texts.jsonl").open(encoding="utf-8") as file:
        return [Augmented(**json.loads(line)) for line in file]


def _cache_key(
    texts: Sequence[str],
    settings: AugmentSettings,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    held_out: Collection[str],
) -> str:
    """Digest of everything that decides the texts: of files their content, since the same path may hold another."""
    methods = settings.methods
    content = [
        trace(["pipeline.augment.augmentation"], {}).digest,
        seed,
        texts,
        sorted({normalise(clean(text)) for text in held_out}),
    ]
    content += [settings.model_dump(mode="json", exclude={"masked_lm"})]
    content += [mask_text(tokenizer) if "mask" in methods else None]
    content += [_model_digests(settings) if "masked_lm" in methods else None]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _model_digests(settings: AugmentSettings) -> list[tuple[str, str]]:
    files = sorted(_find_masked_lm(settings).iterdir())
    return [(file.name, sha256_of(file)) for file in files if file.is_file() and file.suffix in MODEL_SUFFIXES]


def _find_masked_lm(settings: AugmentSettings) -> Path:
    assert settings.masked_lm is not None  # a validator of AugmentSettings
    return find_model(settings.masked_lm, setting=f"{SECTION}.masked_lm")


# --- variants of a training text ---------------------------------------------------------------------------------


def _variants(
    method: str, make: Maker, texts: Sequence[str], copies: int, seed: int, seen: set[str]
) -> Iterator[Augmented]:
    """Up to `copies` new texts of each training text; each goes into `seen`."""
    random = Random(f"{seed} {method}")
    total = 0
    for index in range(len(texts)):
        made = 0
        for _ in range(ATTEMPTS * copies):
            if made == copies:
                break
            variant = make(index, random)
            if _is_new(variant, seen):
                made += 1
                yield Augmented(variant, index, method)
        total += made
    log.info("augmentation: %s made %d texts of %d, asked for %d", method, total, len(texts), copies * len(texts))


def _is_new(text: str, seen: set[str]) -> bool:
    """Whether this is a text that was not there yet; from now on it is."""
    key = normalise(text)
    if key in seen:
        return False
    seen.add(key)
    return True


def _maker(method: str, texts: Sequence[str], settings: AugmentSettings, tokenizer: PreTrainedTokenizerBase) -> Maker:
    """The method as a function of a text's number and random numbers; what it needs is computed here, once."""
    spans = [find_words(text) for text in texts]
    probability = settings.probability
    if method == "mask":
        mask = mask_text(tokenizer)
        if mask is None:
            log.warning("augmentation: no text gives the tokenizer's mask token, so mask drops words instead")
        return lambda i, random: mask_words(texts[i], spans[i], mask, probability, random)
    if method == "span_mix":
        others = [i for i in range(len(texts)) if spans[i]]
        return lambda i, random: mix_spans(i, texts, spans, others, probability, random)
    if method == "crop":
        return lambda i, random: crop(texts[i], spans[i], random)
    slots = _slots(method, texts, spans, settings)
    return lambda i, random: swap_words(texts[i], slots[i], probability, random)


def _slots(
    method: str, texts: Sequence[str], spans: Sequence[Sequence[Span]], settings: AugmentSettings
) -> list[Slots]:
    """The words of each text that may be replaced, each with what may stand there."""
    near = neighbours(texts, settings.candidates)
    predicted: Sequence[dict[int, list[str]]] = [{}] * len(texts)
    if method == "masked_lm":
        model, its_tokenizer = load_masked_lm(_find_masked_lm(settings))
        predicted = masked_words(texts, model, its_tokenizer, settings.candidates)
    out: list[Slots] = []
    for text, words, by_start in zip(texts, spans, predicted, strict=True):
        slots: Slots = []
        for start, end in words:
            word = text[start:end]
            if not is_replaceable(word):
                continue
            # A word of several pieces is none that one mask could give: its neighbours stand in.
            found = by_start.get(start)
            choices = [match_case(other, word) for other in near.get(key_of(word), [])] if found is None else found
            slots += [(start, end, choices)] if choices else []
        out.append(slots)
    return out
