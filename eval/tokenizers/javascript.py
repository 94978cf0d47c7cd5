"""Decant's port in JavaScript, as bundles for web pages ship it."""

from collections.abc import Sequence
from pathlib import Path

from eval.tokenizers import run_program, why_no_node

TITLE = "Decant's port in JavaScript"
FOLLOWS_RULES = True
PORT = (Path(__file__).parent / "../../export/bundles/clients/javascript/word_pieces.js").resolve()
SCRIPT = """
import { readFileSync } from "node:fs";
const { WordPieces } = await import(process.argv[1]);
const tokenizer = new WordPieces(JSON.parse(readFileSync(process.argv[2], "utf8")));
const texts = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(texts.map((text) => tokenizer.encode(text))));
"""

why_unusable = why_no_node


def version() -> None:
    """It is of this project."""


def encode(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """What Node.js makes of it."""
    arguments = (PORT.as_uri(), str((folder / "word_pieces.json").resolve()))
    return run_program(["node", "--input-type=module", "-e", SCRIPT, *arguments], texts)
