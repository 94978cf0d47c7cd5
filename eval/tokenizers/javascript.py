"""Decant's port in JavaScript, as bundles for web pages ship it."""

from collections.abc import Sequence
from pathlib import Path

from eval.tokenizers import run_program, why_no_node
from pipeline.formats import tokenizer_rules

TITLE = "Decant's port in JavaScript"
FOLLOWS_RULES = True
HERE = Path(__file__).parent
PORT = (HERE / "../../export/bundles/clients/javascript/tokenizer.js").resolve()
# What it imports, so that a change of them is seen: none of it is Python.
PARTS = (
    "../../export/bundles/clients/javascript/byte_pairs.js",
    "../../export/bundles/clients/javascript/texts.js",
    "../../export/bundles/clients/javascript/word_pieces.js",
)
SCRIPT = """
import { readFileSync } from "node:fs";
const { makeTokenizer } = await import(process.argv[1]);
const tokenizer = makeTokenizer(JSON.parse(readFileSync(process.argv[2], "utf8")));
const texts = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(texts.map((text) => tokenizer.encode(text))));
"""

why_unusable = why_no_node


def version() -> None:
    """It is of this project."""


def encode(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """What Node.js makes of it."""
    arguments = (PORT.as_uri(), str(tokenizer_rules.find(folder).resolve()))
    return run_program(["node", "--input-type=module", "-e", SCRIPT, *arguments], texts)
