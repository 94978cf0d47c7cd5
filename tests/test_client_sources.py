"""Code for apps that no compiler here knows is at least of its language, and has one name for everything that ships."""

import re

import pytest
import tree_sitter
import tree_sitter_kotlin
import tree_sitter_swift
from fakes import ROOT

from eval.tokenizers import kotlin, swift
from pipeline.formats import byte_pairs, word_pieces

CLIENTS = ROOT / "export" / "bundles" / "clients"
# Kotlin that a compiler reads is left out: the grammar does not know all of the language.
COMPILED = {file.name for file in kotlin.SOURCES}
FILES = [
    *((tree_sitter_swift, file) for file in (*sorted((CLIENTS / "swift").glob("*.swift")), swift.SOURCES[1])),
    *((tree_sitter_kotlin, file) for file in sorted((CLIENTS / "kotlin").glob("*.kt*")) if file.name not in COMPILED),
]


def faults(language, text):
    """Lines that are not of a language."""
    tree = tree_sitter.Parser(tree_sitter.Language(language.language())).parse(text)
    found, todo = [], [tree.root_node]
    while todo:
        node = todo.pop()
        if node.is_error or node.is_missing:
            found.append(node.start_point[0] + 1)
        todo += node.children
    return sorted(found)


@pytest.mark.parametrize(("language", "file"), FILES, ids=[file.name for _, file in FILES])
def test_it_is_read_without_a_fault_and_one_is_seen(language, file):
    """Planted: the last closing bracket is gone."""
    text = file.read_bytes()
    assert faults(language, text) == []
    place = max(text.rfind(b")"), text.rfind(b"}"))
    assert faults(language, text[:place] + text[place + 1 :])


@pytest.mark.parametrize("name", ["BytePairs", "Classifier", "Texts", "Updates", "WordPieces"])
def test_the_three_clients_have_the_same_files(name):
    """What is mended in one is looked for in the others."""
    assert (CLIENTS / "kotlin" / f"{name}.kt").is_file() and (CLIENTS / "swift" / f"{name}.swift").is_file()
    javascript = re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()
    assert (CLIENTS / "javascript" / f"{javascript}.js").is_file()


@pytest.mark.parametrize(("name", "rules"), [("WordPieces", word_pieces.Rules), ("BytePairs", byte_pairs.Rules)])
def test_swift_and_kotlin_read_every_field_of_the_rules(name, rules):
    """One that is not decoded would be a rule that is not followed."""
    text = (CLIENTS / "swift" / f"{name}.swift").read_text("utf-8")
    kotlin_text = (CLIENTS / "kotlin" / f"{name}.kt").read_text("utf-8")
    for field in set(rules.model_fields) - {"schema_version"}:
        assert f'"{field}"' in text or f" {field}:" in text, field
        assert f'"{field}"' in kotlin_text or field == "pad_id", field
