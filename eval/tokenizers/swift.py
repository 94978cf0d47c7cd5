"""Decant's port in Swift, as bundles for iOS ship it, compiled here and run on this machine."""

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from eval.tokenizers import PACKAGES, compile_program, run_program
from pipeline.formats import tokenizer_rules

TITLE = "Decant's port in Swift"
FOLLOWS_RULES = True
HERE = Path(__file__).parent
SOURCES = (
    (HERE / "../../export/bundles/clients/swift/BytePairs.swift").resolve(),
    (HERE / "../../export/bundles/clients/swift/Texts.swift").resolve(),
    (HERE / "../../export/bundles/clients/swift/WordPieces.swift").resolve(),
    HERE / "main.swift",
)


def why_unusable() -> str | None:
    """The reason why it cannot run here, or None."""
    return None if shutil.which("swiftc") else "no Swift compiler here (swift.org has one for Linux)"


def version() -> None:
    """It is of this project."""


def encode(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """What the compiled port makes of it."""
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in SOURCES)).hexdigest()[:16]
    program = PACKAGES.parent / "swift" / digest
    if not program.is_file():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
            made = Path(scratch, "program")
            command = ["swiftc", "-O", *map(str, SOURCES), "-o", str(made)]
            compile_program(command, SOURCES[0])
            made.rename(program)
    return run_program([str(program), str(tokenizer_rules.find(folder).resolve())], texts)
