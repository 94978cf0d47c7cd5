"""The tokenizers of Transformers.js, the package @huggingface/tokenizers, on tokenizer.json as a bundle has it."""

import json
from collections.abc import Sequence
from pathlib import Path

from eval.tokenizers import PACKAGES, run_program, why_no_node

TITLE = "@huggingface/tokenizers, as Transformers.js has it"
PACKAGE = PACKAGES / "@huggingface" / "tokenizers"
# It cuts nothing by itself: Transformers.js does, and keeps the last special token.
SCRIPT = """
import { readFileSync } from "node:fs";
const { Tokenizer } = await import(process.argv[1]);
const read = (name) => JSON.parse(readFileSync(`${process.argv[2]}/${name}`, "utf8"));
const config = read("tokenizer_config.json");
const tokenizer = new Tokenizer(read("tokenizer.json"), config);
const longest = config.model_max_length;
const texts = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(texts.map((text) => {
  const { ids } = tokenizer.encode(text);
  return ids.length > longest ? [...ids.slice(0, longest - 1), ids.at(-1)] : ids;
})));
"""


def why_unusable() -> str | None:
    """The reason why it cannot run here, or None."""
    if (reason := why_no_node()) is not None:
        return reason
    return None if (PACKAGE / "package.json").is_file() else "not installed: @huggingface/tokenizers; run: make clients"


def version() -> str:
    """Its version."""
    return json.loads((PACKAGE / "package.json").read_text("utf-8"))["version"]


def encode(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """What Node.js makes of it."""
    module = PACKAGE / "dist" / "tokenizers.mjs"
    return run_program(["node", "--input-type=module", "-e", SCRIPT, module.as_uri(), str(folder.resolve())], texts)
