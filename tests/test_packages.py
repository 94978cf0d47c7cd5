"""The project's packages have common names (`export`, `eval`): nothing else may be installed under them."""

import importlib.metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipeline", "stages", "export", "eval")


@pytest.mark.parametrize("name", PACKAGES)
def test_only_this_project_owns_the_name(name):
    """Another distribution of the name would be imported in its place, or lose its own files to ours."""
    owners = set(importlib.metadata.packages_distributions().get(name, []))
    assert owners <= {"decant"}


@pytest.mark.parametrize("name", PACKAGES)
def test_the_name_is_imported_from_this_folder(name):
    """Neither from site-packages nor from a folder of tests."""
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == ROOT / name / "__init__.py"


def test_tests_have_no_package_named_like_a_source_folder():
    """`tests/export/__init__.py` would take the place of `export`."""
    assert not [name for name in PACKAGES if (ROOT / "tests" / name).exists()]
    assert not (ROOT / "tests" / "__init__.py").exists()
