"""What docs/architecture.md promises of the code: tasks and families are named in their rooms, and hardly elsewhere."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pipeline", "export", "eval", "stages")
ROOMS = ("pipeline/tasks/", "pipeline/families/")
NAMED = re.compile(
    r"accurac|classification|single_label|(?<![a-z])(bert|roberta|electra|distilbert|albert|mpnet|modernbert)(?![a-z])",
    re.IGNORECASE,
)
# Where code still names a task or a family, and why that is no decision about one.
KNOWN = {
    "pipeline/mil/interpreter.py": {"classification"},  # Core ML's operation `classify`, and its file
    "pipeline/models/checkpoints.py": {  # transformers' own names for the kinds of heads
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
    },
    "pipeline/models/vocabulary.py": {"is_bert"},  # kinds of post-processors in tokenizers' files
    "pipeline/settings/task.py": {"single_label"},  # the task of a params.yaml that names none
}


def words_of(path: Path) -> set[str]:
    """Names and short texts in a file's code: comments, docstrings and sentences for people are left out."""
    tree = ast.parse(path.read_text("utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "module"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                found |= set(value.split("."))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value.strip():
            found.add(node.value)
    return found


def test_code_outside_tasks_and_families_names_neither():
    """But for this list, which may only become shorter."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(ROOMS) and (named := {word for word in words_of(path) if NAMED.search(word)}):
                found[name] = named
    assert found == KNOWN


def test_a_name_in_code_is_found():
    """Planted: a check that cannot fail would hold nothing."""
    planted = ROOT / "pipeline/tasks/single_label.py"
    assert {"accuracy", "single_label_classification"} <= {word for word in words_of(planted) if NAMED.search(word)}
    assert "bert" in {word for word in words_of(ROOT / "pipeline/families/bert.py") if NAMED.search(word)} or any(
        "bert." in word for word in words_of(ROOT / "pipeline/families/bert.py")
    )


def test_every_room_is_in_the_picture():
    """With its one idea, in the order of imports that import-linter checks."""
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    rooms = sorted(path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py"))
    assert [room for room in rooms if f"`{room}/`" not in page] == []
