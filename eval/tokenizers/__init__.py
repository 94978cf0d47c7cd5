"""One implementation of the tokenizer a file: what an app's code makes of a text, to be held against training.

Such a file has:

- `TITLE`: what it is, and whose.
- `why_unusable()`: the reason why it cannot run on this machine, or None.
- `version()`: its version; None for code of our own.
- `FOLLOWS_RULES` (optional): True for a port that follows a table, which not every tokenizer has.
- `encode(folder, texts)`: token ids of each text, special tokens included and not cut shorter than the model's length,
  from the files of a bundle in `folder`. Raises ModelError when it fails.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval import dying
from pipeline.base.errors import ModelError

# Where `make clients` puts packages of npm's registry.
PACKAGES = Path(sys.prefix) / "share" / "decant" / "clients" / "node_modules"
TIMEOUT_S = 600


def why_no_node() -> str | None:
    """The reason why JavaScript cannot run here, or None."""
    return None if shutil.which("node") else "Node.js is not installed"


def ask_program(command: Sequence[str], given: Any, *, timeout_s: float = TIMEOUT_S, what: str = "") -> Any:
    """What a program prints as JSON that is given JSON.

    Args:
        command: the program and its words.
        given: for its standard input.
        timeout_s: how long it may take.
        what: what a message calls it; left out, its name.

    Raises:
        ModelError: it fails, takes too long, or prints something else.
    """
    words = dying.command(shutil.which(command[0]) or command[0], *command[1:])
    text, what = json.dumps(given).encode(), what or command[0]
    try:
        done = subprocess.run(words, input=text, capture_output=True, timeout=timeout_s, cwd=dying.ROOT, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(f"{what}: not done within {timeout_s:g} s") from None
    if done.returncode != 0:
        raise ModelError(f"{what} {dying.reason(done.returncode, done.stderr.decode('utf-8', 'replace'))}")
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise ModelError(f"{what}: printed no JSON") from error


def compile_program(command: Sequence[str], what: Path) -> None:
    """Runs a compiler.

    Raises:
        ModelError: it does not take the sources, or takes too long.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(f"{what}: not compiled within {TIMEOUT_S} s") from None
    if done.returncode != 0:
        raise ModelError(f"{what}: {dying.reason(done.returncode, done.stderr)}")


def run_program(command: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
    """Token ids from a program that reads a JSON list of texts and prints one of lists.

    Raises:
        ModelError: it fails, takes too long, or prints something else.
    """
    found: list[list[int]] = ask_program(command, list(texts))
    if len(found) != len(texts):
        raise ModelError(f"{command[0]}: gave ids of {len(found)} texts, expected {len(texts)}")
    return found
