"""The table that ports of a tokenizer follow: of word pieces or of byte pairs, whichever the tokenizer is."""

import functools
import json
from pathlib import Path

from tokenizers import Tokenizer

from pipeline.base.errors import ExportError
from pipeline.formats import byte_pairs, word_pieces

Rules = word_pieces.Rules | byte_pairs.Rules
ELSEWHERE = "make bundles of a platform that needs no port, such as python"
KINDS = {"WordPiece": word_pieces, "BPE": byte_pairs}


def of_file(path: Path, max_length: int, pad_id: int) -> Rules:
    """The table of a tokenizer.json; lengths that stand in the file count for nothing.

    Raises:
        ExportError: the tokenizer does something that no port does; the message says what.
    """
    return _of_text(path.read_text("utf-8"), max_length, pad_id)


@functools.cache  # it takes seconds, and bundles of one student share it
def _of_text(text: str, max_length: int, pad_id: int) -> Rules:
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    kind = json.loads(text)["model"]["type"]
    if kind not in KINDS:
        raise ExportError(
            f"tokenizer.json: its model is {kind}, and ports for apps have {' and '.join(KINDS)} alone; {ELSEWHERE}"
        )
    return KINDS[kind].read(tokenizer, max_length, pad_id)


def write(rules: Rules, folder: Path) -> str:
    """The table as one file, the same bytes for the same tokenizer; gives its name."""
    name = file_of(rules)
    text = json.dumps(_plain(rules), ensure_ascii=True, separators=(",", ":"), sort_keys=True)
    (folder / name).write_text(text + "\n", "utf-8", newline="\n")
    return name


def file_of(rules: Rules) -> str:
    """What the table is called."""
    return word_pieces.FILE if isinstance(rules, word_pieces.Rules) else byte_pairs.FILE


def find(folder: Path) -> Path:
    """The table in a folder."""
    return next(folder / one.FILE for one in (word_pieces, byte_pairs) if (folder / one.FILE).is_file())


def _plain(rules: Rules) -> dict[str, object]:
    """Without the versions of records, of which a port knows nothing."""
    found = rules.model_dump(exclude={"schema_version"})
    for token in found["special"].values():
        if isinstance(token, dict):
            token.pop("schema_version")
    return found
