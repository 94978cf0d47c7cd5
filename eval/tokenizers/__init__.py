"""One implementation of the tokenizer a file: what an app's code makes of a text, to be held against training.

Such a file has:

- `TITLE`: what it is, and whose.
- `why_unusable()`: the reason why it cannot run on this machine, or None.
- `version()`: its version; None for code of our own.
- `FOLLOWS_RULES` (optional): True for a port that follows word_pieces.json, which not every tokenizer has.
- `encode(folder, texts)`: token ids of each text, special tokens included and not cut shorter than the model's length,
  from the files of a bundle in `folder`. Raises ModelError when it fails.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from eval import dying
from pipeline.base.errors import ModelError

# Where `make clients` puts packages of npm's registry.
PACKAGES = Path(sys.prefix) / "share" / "decant" / "clients" / "node_modules"
TIMEOUT_S = 600


def why_no_node() -> str | None:
    """The reason why JavaScript cannot run here, or None."""
    return None if shutil.which("node") else "Node.js is not installed"


def locate(command: Sequence[str]) -> list[str]:
    """The command with the program's whole path."""
    return [shutil.which(command[0]) or command[0], *command[1:]]


def run_program(command: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
    """Token ids from a program that reads a JSON list of texts and prints one of lists.

    Raises:
        ModelError: it fails, or prints something else.
    """
    done = subprocess.run(
        dying.command(*locate(command)),
        input=json.dumps(list(texts)).encode(),
        capture_output=True,
        timeout=TIMEOUT_S,
        cwd=dying.ROOT,
        check=False,
    )
    if done.returncode != 0:
        raise ModelError(f"{command[0]}: {dying.reason(done.returncode, done.stderr.decode('utf-8', 'replace'))}")
    try:
        found = json.loads(done.stdout)
    except ValueError as error:
        raise ModelError(f"{command[0]}: printed no JSON") from error
    if len(found) != len(texts):
        raise ModelError(f"{command[0]}: gave ids of {len(found)} texts, expected {len(texts)}")
    return found
