"""One platform a file: the folder that an app of that platform adds.

A platform's file has:

- `TITLE`: what it is for, in a few words.
- `FORMATS`: the formats of artefacts that it ships.
- `TOKENIZERS`: names of the tokenizers that its code calls, files of eval/tokenizers; one that answers otherwise than
  the tokenizer of training is refused.
- `BESIDE` (optional): further tokenizers that read its folder; what they do otherwise is told.
- `HOME`: the folder within it that the code reads at run time, model, rules and golden vectors; '' for the whole.
- `LIMIT_BYTES`: how large a model the platform takes at most.
- `HOW`: how an app uses the folder, in Markdown, for its first page.
- `Params`: a frozen model of `bundles.<platform>.options`.
- `why_unusable()` (optional): the reason why it cannot be made here, or None.
- `version()` (optional): that of somebody else's code that lies in the bundle.
- `stamp(folder, version)` (optional): writes a release's version where the platform looks for it.
- `write(folder, contents, options)`: writes all that is its own, and gives `Shipped`: where the model lies, and which
  parts of others are inside or have to be there.

What every bundle has is written by `stages.package`: model.json, golden.json, the tokenizers' files, the card, notices,
the list of parts, and the manifest last. Code for apps lies in clients/, as it ships.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.records import Artefact
from pipeline.formats.tokenizer_rules import Rules

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Contents:
    """What a platform's file has to work with."""

    # the folder of the exported target
    exported: Path
    artefact: Artefact
    labels: tuple[str, ...]
    # the student's own configuration, as it lies beside its weights
    config: Mapping[str, Any]
    pad_id: int
    # for ports of the tokenizer; None where none of them is used
    rules: Rules | None


@dataclass(frozen=True)
class Part:
    """Something of somebody else's that a bundle has inside, or that an app brings besides."""

    name: str
    version: str | None
    # SPDX id
    license: str
    # package URL, as lists of parts name it
    purl: str
    # its files in the bundle; none: it is not inside
    files: tuple[str, ...] = ()
    # its licence in full, where it is inside
    notice: str = ""


@dataclass(frozen=True)
class Shipped:
    """What a platform's file has written."""

    model: str
    parts: tuple[Part, ...]


def ship_model(folder: Path, contents: Contents, place: str) -> str:
    """Copies the artefact, a file or a folder, to a place within the bundle, and gives that."""
    source, target = contents.exported / contents.artefact.file, folder / place
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    return place


def ship_client(folder: Path, name: str, place: str | None = None, changes: Mapping[str, str] | None = None) -> None:
    """Copies a file of clients/ into the bundle.

    Args:
        folder: the bundle.
        name: beside this file, in full, so that what depends on it is found: clients/<language>/<file>.
        place: below the bundle; left out, the file's own name.
        changes: words of the file, such as a package's name, and what stands in their place.
    """
    target = folder / (place or Path(name).name)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = (HERE / name).read_text("utf-8")
    for word, other in (changes or {}).items():
        text = text.replace(word, other)
    target.write_text(text, "utf-8", newline="\n")


def write_json(path: Path, value: object) -> None:
    """The same bytes for the same value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8", newline="\n")
