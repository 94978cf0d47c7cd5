"""What a result depends on besides data and settings: the code that made it, and the packages under that code.

Code is found by following imports: those of a module, of what it imports, of the modules that it runs as processes
(their names stand in it as text), and of the plug-ins of each kind that it loads. A file counts by its syntax without
comments and docstrings, so that editing those makes nothing anew. Modules of settings do not count: DVC follows their
values. The same digests are the keys of training and of caches.
"""

import ast
import functools
import hashlib
import json
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base import plugins
from pipeline.base.files import write_atomically
from pipeline.base.machine import version_of

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("pipeline", "export", "eval", "stages")
SETTINGS = "pipeline.settings"
# Packages that are imported under another name, or that bring others whose versions decide results.
DISTRIBUTIONS = {
    "google": ("protobuf",),
    "sklearn": ("scikit-learn",),
    "transformers": ("transformers", "tokenizers"),
    "yaml": ("pyyaml",),
}
# They show what is going on and decide nothing.
COSMETIC = {"rich", "tqdm", "typer"}

Chosen = Mapping[str, Collection[str]]


@dataclass(frozen=True)
class Source:
    """What one file says of what it needs."""

    digest: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    # Names of the project's modules and of files beside it that stand in it as text.
    texts: tuple[str, ...]
    # (kind, name); no name where it is only known from the settings.
    plugins: tuple[tuple[str, str | None], ...]
    # Texts of assignments outside functions: a list of plug-ins to choose from stands there.
    listed: tuple[str, ...]
    # Formats that a check is for; none: all.
    formats: tuple[str, ...]


@dataclass(frozen=True)
class Trace:
    """Everything that a set of modules runs."""

    # file, relative to the project -> digest
    code: dict[str, str]
    # distribution -> version, None where it is not installed
    packages: dict[str, str | None]

    @property
    def digest(self) -> str:
        """One hash of both."""
        return hashlib.sha256(json.dumps([self.code, self.packages], sort_keys=True).encode()).hexdigest()


def trace(modules: Iterable[str], chosen: Chosen, root: Path = ROOT) -> Trace:
    """What these modules run.

    Args:
        modules: where to start, such as 'stages.distill'.
        chosen: kind -> names of its plug-ins that the settings choose, for modules that load one by a name they do not
            know. Checks are all of those for the chosen formats.
        root: the project's folder.
    """
    todo, done = [file for name in modules if (file := _file_of(name, root)) is not None], set[Path]()
    code: dict[str, str] = {}
    packages: set[str] = set()
    while todo:
        file = todo.pop()
        if file in done:
            continue
        done.add(file)
        if file.suffix != ".py":
            code[file.relative_to(root).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
            continue
        source = read_source(file, root)
        if source.digest != EMPTY:
            code[file.relative_to(root).as_posix()] = source.digest
        packages |= set(source.packages)
        todo += [found for name in source.modules if (found := _file_of(name, root)) is not None]
        # a package cannot be run as a process, and where plug-ins lie is also written as text
        run = [_file_of(name, root) for name in source.texts]
        todo += [found for found in run if found is not None and found.name != "__init__.py"]
        beside = ((file.parent / name).resolve() for name in source.texts)
        todo += [found for found in beside if found.is_relative_to(root) and found.is_file()]
        for kind, name in source.plugins:
            known = _plugin_files(kind, root)
            wanted = [name] if name is not None else [*chosen.get(kind, ()), *source.listed]
            if kind == "check" and name is None:
                wanted = [check for check, path in known.items() if _is_for(path, chosen, root)]
            if kind == "family":  # which one a model is of stands in the model
                wanted = list(chosen.get(kind, known))
            todo += [known[one] for one in wanted if one in known]
    names = {dist for name in packages - COSMETIC for dist in DISTRIBUTIONS.get(name, (name.replace("_", "-"),))}
    return Trace(dict(sorted(code.items())), {name: version_of(name) for name in sorted(names)})


def _is_for(check: Path, chosen: Chosen, root: Path) -> bool:
    formats = read_source(check, root).formats
    return not formats or not set(formats).isdisjoint(chosen.get("format", ()))


def _plugin_files(kind: str, root: Path) -> dict[str, Path]:
    package, prefix = plugins.KINDS[kind]
    files = (root / package.replace(".", "/")).glob(f"{prefix}[a-z]*.py")
    return {file.stem.removeprefix(prefix): file for file in files}


@functools.cache
def _file_of(module: str, root: Path) -> Path | None:
    """The file of a module of the project; None for others, and for settings."""
    if module.split(".")[0] not in FOLDERS or f"{module}.".startswith(f"{SETTINGS}."):
        return None
    path = root.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


# --- one file ----------------------------------------------------------------------------------------------------

EMPTY = hashlib.sha256(ast.dump(ast.Module([], [])).encode()).hexdigest()
_parsed: dict[tuple[str, str], Source] = {}


def read_source(file: Path, root: Path) -> Source:
    """What a file says, parsed once for its content."""
    text = file.read_text("utf-8")
    key = (file.relative_to(root).as_posix(), hashlib.sha256(text.encode()).hexdigest())
    if key not in _parsed:
        _parsed[key] = _parse(text)
    return _parsed[key]


def remember(path: Path) -> None:
    """Takes what an earlier process parsed from a file of `keep`; one that cannot be read is as good as none."""
    try:
        held = json.loads(path.read_text("utf-8"))
        if held["python"] != sys.version:
            return  # another Python may write a syntax tree otherwise
        for name, content, fields in held["files"]:
            pairs = tuple((kind, plugin) for kind, plugin in fields.pop("plugins"))
            texts = {key: tuple(value) for key, value in fields.items() if key != "digest"}
            _parsed.setdefault((name, content), Source(digest=fields["digest"], plugins=pairs, **texts))
    except (OSError, ValueError, KeyError, TypeError):
        return


def keep(path: Path) -> None:
    """Writes what was parsed, so that the next process need not."""
    files = [[*key, source.__dict__] for key, source in sorted(_parsed.items(), key=lambda item: item[0])]
    write_atomically(path, json.dumps({"python": sys.version, "files": files}))


def _parse(text: str) -> Source:
    tree = ast.parse(text)
    _strip(tree)
    modules: set[str] = set()
    packages: set[str] = set()
    texts: set[str] = set()
    loaded: set[tuple[str, str | None]] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                modules |= {alias.name for alias in names}
            case ast.ImportFrom(module=str(module), names=names):
                modules |= {module, *(f"{module}.{alias.name}" for alias in names)}
            case ast.Constant(value=str(value)) if len(value) < 100 and "\n" not in value:
                texts.add(value)
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="plugins"), attr="load"), args=[ast.Constant(value=kind), name]
            ):
                loaded.add((str(kind), str(name.value) if isinstance(name, ast.Constant) else None))
    packages = {name.split(".")[0] for name in modules} - set(FOLDERS) - sys.stdlib_module_names
    outside = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    constants = {
        target.id: node.value
        for node in outside
        for target in _targets(node)
        if isinstance(target, ast.Name) and node.value is not None
    }
    return Source(
        digest=hashlib.sha256(ast.dump(tree).encode()).hexdigest(),
        modules=tuple(sorted(name for name in modules if name.split(".")[0] in FOLDERS)),
        packages=tuple(sorted(packages)),
        texts=tuple(sorted(one for one in texts if "." in one and " " not in one and not one.startswith("/"))),
        plugins=tuple(sorted(loaded, key=lambda pair: (pair[0], pair[1] or ""))),
        listed=tuple(sorted({text for value in constants.values() for text in _texts_in(value)})) if loaded else (),
        formats=tuple(sorted(_texts_in(constants["FORMATS"]))) if "FORMATS" in constants else (),
    )


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def _texts_in(value: ast.expr) -> set[str]:
    return {one.value for one in ast.walk(value) if isinstance(one, ast.Constant) and isinstance(one.value, str)}


def _strip(tree: ast.Module) -> None:
    """Takes docstrings and what only a type checker reads out, in place."""
    for node in ast.walk(tree):
        body: Any = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        is_documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        first = body[0] if body else None
        if is_documented and isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            del body[0]
        body[:] = [one for one in body if not (isinstance(one, ast.If) and _asks_for_types(one.test))]


def _asks_for_types(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"
