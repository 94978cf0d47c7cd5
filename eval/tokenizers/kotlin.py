"""Decant's port in Kotlin, as bundles for Android ship it, compiled here and run on Java's machine."""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from eval.tokenizers import PACKAGES, compile_program, run_program
from pipeline.base.errors import ModelError
from pipeline.formats import tokenizer_rules

TITLE = "Decant's port in Kotlin"
FOLLOWS_RULES = True
HERE = Path(__file__).parent
# All that needs no class of Android.
SOURCES = tuple(
    (HERE / name).resolve()
    for name in (
        "../../export/bundles/clients/kotlin/BytePairs.kt",
        "../../export/bundles/clients/kotlin/Classifier.kt",
        "../../export/bundles/clients/kotlin/Json.kt",
        "../../export/bundles/clients/kotlin/Texts.kt",
        "../../export/bundles/clients/kotlin/Updates.kt",
        "../../export/bundles/clients/kotlin/WordPieces.kt",
    )
)
MAIN = HERE / "Main.kt"
COMPILER = PACKAGES / "kotlin-compiler"


def why_unusable() -> str | None:
    """The reason why it cannot run here, or None."""
    if not (COMPILER / "package.json").is_file():
        return "not installed: kotlin-compiler; run: make clients"
    return None if shutil.which("java") else "Java is not installed (Debian: default-jre-headless)"


def version() -> None:
    """It is of this project."""


def encode(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """What Java's machine makes of it."""
    return run_program(program("ids", str(tokenizer_rules.find(folder).resolve())), texts)


def program(*words: str, sources: Sequence[Path] = SOURCES) -> list[str]:
    """The command that runs Main.kt with these words, compiled where its sources changed.

    Args:
        words: what Main.kt is asked for.
        sources: the client's code, of any package; of a bundle, those that need Android are left out.

    Raises:
        ModelError: the sources cannot be compiled.
    """
    picked = [file for file in sources if file.name in {known.name for known in SOURCES}]
    package = re.search(r"^package (\S+)$", picked[0].read_text("utf-8"), re.MULTILINE) if picked else None
    if package is None or len(picked) < len(SOURCES):
        raise ModelError(f"found {[file.name for file in picked]}, expected {[file.name for file in SOURCES]}")
    main = MAIN.read_text("utf-8").replace("com.example.decant", package[1])
    digest = hashlib.sha256(main.encode() + b"\0".join(file.read_bytes() for file in picked)).hexdigest()[:16]
    jar = COMPILER.parent / ".decant" / f"{digest}.jar"
    if not jar.is_file():
        jar.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=jar.parent) as scratch:
            made = Path(scratch, "program.jar")
            Path(scratch, "Main.kt").write_text(main, "utf-8")
            files = [*map(str, picked), str(Path(scratch, "Main.kt"))]
            command = ["bash", str(COMPILER / "bin" / "kotlinc"), *files, "-include-runtime", "-d", str(made)]
            compile_program(command, picked[0].parent)
            made.rename(jar)
    return ["java", "-Xmx1g", "-Dfile.encoding=UTF-8", "-jar", str(jar), *words]
