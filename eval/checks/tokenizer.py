"""The tokenizer that ships must give the ids that the model was trained on, on text that nobody would think of."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from eval.checks import Subject, failed, passed
from eval.hard_texts import HARD, random_texts
from pipeline.base.records import Check
from pipeline.data.texts import clean, encode
from pipeline.models.vocabulary import load_tokenizer

TITLE = "tokenizer"
RANDOM_TEXTS = 300
SHOWN = 3


def applies(subject: Subject) -> bool:
    """Where a tokenizer ships with the artefact: always."""
    return True


def check(subject: Subject) -> Check:
    """Compares the shipped tokenizer with the one that training text was encoded with."""
    parts = len(subject.texts[0])
    longest = subject.artefact.max_length
    too_long = " ".join(map(str, range(longest + 1)))  # or nobody would see that the end is not cut, or cut elsewhere
    odd = [*HARD, too_long, *random_texts(subject.seed, RANDOM_TEXTS)]
    texts = [*((text,) * parts for text in odd), *subject.texts]
    ours = encode(load_tokenizer(subject.tokenizer), texts, longest)
    shipped = {"tokenizer.json": _shipped_ids(subject.folder / "tokenizer.json", texts)}
    for file, theirs in shipped.items():
        wrong = [i for i, (one, other) in enumerate(zip(theirs, ours, strict=True)) if one != other]
        if wrong:
            # a text of the data by its place: a report may be public where the data are not
            names = [f"{odd[i][:40]!r}" if i < len(odd) else f"dev row {i - len(odd)}" for i in wrong[:SHOWN]]
            shown = "; ".join(
                f"{name}: {_where_they_part(theirs[i], ours[i])}" for name, i in zip(names, wrong, strict=False)
            )
            return failed(
                TITLE,
                f"{file} differs from the tokenizer that the student was trained with on {len(wrong)} of {len(texts)} "
                f"texts: {shown}; export it again from the student's own folder",
                different=len(wrong),
                texts=len(texts),
            )
    hard = f"{len(HARD) + 1} of them hard"
    return passed(TITLE, f"the same ids on {len(texts)} texts, {hard}, {RANDOM_TEXTS} random Unicode")


def _where_they_part(theirs: list[int], ours: list[int]) -> str:
    """Both around the first id that differs; a text may be cut at another place than the other."""
    pairs = enumerate(zip(theirs, ours, strict=False))
    first = next((i for i, (one, other) in pairs if one != other), min(len(theirs), len(ours)))
    part = slice(max(0, first - 2), first + 6)
    return f"{theirs[part]} for {ours[part]} from id {part.start} on, {len(theirs)} ids for {len(ours)}"


def _shipped_ids(file: Path, texts: Sequence[tuple[str, ...]]) -> list[list[int]]:
    """What an app gets that reads the file with the tokenizers library, as `decant predict` does."""
    tokenizer = Tokenizer.from_file(str(file))
    return [tokenizer.encode(*map(clean, text)).ids for text in texts]
