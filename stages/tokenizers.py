"""Holds tokenizers of apps against that of training, on 100,000 hard and random texts.

Those are the ones that bundles of params.yaml name: our ports, and others' that read the same folder. `package` refuses
a bundle whose code uses one that differs. Run as `python -m stages.tokenizers`.
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from eval.hard_texts import HARD, fuzz
from pipeline.base import guard, plugins, records
from pipeline.base.errors import ExportError, ModelError
from pipeline.base.records import TokenizerFacts, Tokenizers, digest_of
from pipeline.base.workspace import Workspace
from pipeline.data.prepared import open_data
from pipeline.data.texts import encode
from pipeline.formats import tokenizer_rules
from pipeline.models.vocabulary import cut_at, load_tokenizer, save_tokenizer
from pipeline.settings.params import Params, load
from stages.packaging.tokenizers import named

log = logging.getLogger(__name__)
RANDOM_TEXTS = 100_000
SHOWN = 3


def run(params: Params, workspace: Workspace, random_texts: int = RANDOM_TEXTS) -> None:
    """Writes `artifacts/tokenizers.json`."""
    pad_id = open_data(workspace).facts["encoding"]["pad_ids"]
    longest = params.data.max_length
    too_long = " ".join(map(str, range(longest + 1)))
    texts = [*HARD, too_long, *fuzz(params.seed, random_texts)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trained = load_tokenizer(workspace.data / "tokenizer")
        expected = encode(trained, texts, longest)
        save_tokenizer(trained, folder)
        cut_at(folder, longest)
        why_no_rules = None
        try:
            pad = pad_id.get("student", pad_id["teacher"])
            tokenizer_rules.write(tokenizer_rules.of_file(folder / "tokenizer.json", longest, pad), folder)
        except ExportError as error:
            why_no_rules = str(error)
        found = {name: _compare(name, folder, texts, expected, why_no_rules) for name in named(params)}
    records.write(Tokenizers(sources={"data": digest_of(workspace.data)}, found=found), workspace.tokenizers)


def _compare(
    name: str, folder: Path, texts: Sequence[str], expected: Sequence[Sequence[int]], why_no_rules: str | None
) -> TokenizerFacts:
    one = plugins.load("tokenizer", name)
    reason = one.why_unusable() or (why_no_rules if getattr(one, "FOLLOWS_RULES", False) else None)
    if reason is None:
        try:
            theirs = one.encode(folder, texts)
        except ModelError as error:
            reason = str(error)
    if reason is not None:
        log.warning("%s: not compared: %s", one.TITLE, reason)
        return TokenizerFacts(title=one.TITLE, not_compared=reason)
    pairs = zip(texts, theirs, expected, strict=True)
    wrong = [(text, tuple(ids), tuple(ours)) for text, ids, ours in pairs if list(ids) != list(ours)]
    facts = TokenizerFacts(
        title=one.TITLE, version=one.version(), texts=len(texts), different=len(wrong), shown=tuple(wrong[:SHOWN])
    )
    log.info("%s: %s", one.TITLE, facts.said)
    return facts


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params)
    with guard.lock(workspace.tokenizers):
        run(params, workspace)


if __name__ == "__main__":
    guard.run(main)
