"""A name in params.yaml -> the module file of that name.

A new model family, loss, exporter, runtime or device is one new file; nothing is registered anywhere.
"""

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from pipeline.base.errors import SettingsError

# kind -> (package, prefix of the file name)
KINDS = {
    "family": ("pipeline.families", ""),
    "task": ("pipeline.tasks", ""),
    "reader": ("pipeline.data.readers", ""),
    "loss": ("pipeline.losses", ""),
    "format": ("export", "to_"),
    "runtime": ("eval.runtimes", ""),
    "device": ("eval.devices", ""),
    "check": ("eval.checks", ""),
    "bundle": ("export.bundles", ""),
    "client": ("eval.clients", ""),
    "tokenizer": ("eval.tokenizers", ""),
}


def names(kind: str) -> list[str]:
    """The names of a kind that can stand in params.yaml, found by listing files, importing none of them."""
    package, prefix = KINDS[kind]
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None, package
    found = (module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
    return sorted(name.removeprefix(prefix) for name in found if name.startswith(prefix) and not name.startswith("_"))


def load(kind: str, name: str) -> ModuleType:
    """Imports the file that implements `name`.

    Raises:
        SettingsError: there is no such file; the message names the nearest and all known names.
    """
    package, prefix = KINDS[kind]
    if name not in names(kind):
        raise SettingsError(unknown(kind, name))
    return importlib.import_module(f"{package}.{prefix}{name}")


def unknown(kind: str, name: str) -> str:
    """The message for a name that no file implements."""
    package, prefix = KINDS[kind]
    where = package.replace(".", "/")
    known = names(kind)
    return f"no {kind} '{name}' ({where}/{prefix}{name}.py does not exist){nearest(name, known)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean 'x'? known: ...' for the end of a message about a wrong name."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"; did you mean '{close[0]}'?" if close else ";"
    return f"{guess} known: {', '.join(known)}"
