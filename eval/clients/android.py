"""The bundle for Android on this machine's Java: its tokenizer, answers and self-test, from recorded outputs.

LiteRT's library for Android does not run here. What the model answers to token ids was recorded in the target's
runtime; a row whose ids the Kotlin code gets otherwise has no outputs, and that is an error.
"""

from collections.abc import Sequence
from pathlib import Path

from eval.clients import Recorded, Used, limit_s
from eval.tokenizers import ask_program, kotlin
from pipeline.formats.bundles import read_manifest

NEEDS_RECORDED = True


def why_unusable() -> str | None:
    """The reason why Kotlin cannot be compiled and run here, or None."""
    return kotlin.why_unusable()


def use(folder: Path, texts: Sequence[tuple[str, ...]], recorded: Recorded) -> Used:
    """What its Kotlin code answers, compiled as it lies in the bundle."""
    sources = sorted((folder / "classifier" / "src" / "main" / "kotlin").rglob("*.kt"))
    command = kotlin.program("test", str(folder / read_manifest(folder).home), sources=sources)
    given = {"outputs": recorded, "texts": [text[0] for text in texts]}
    found = ask_program(command, given, timeout_s=limit_s(len(texts)), what="its Kotlin code")
    return Used(answers=found["answers"], failures=found["failures"], engine="Java, from recorded outputs")
