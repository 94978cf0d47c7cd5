"""Where the data files and the base model lie, without importing anything heavy: the machine check runs every time."""

import functools
import hashlib
from importlib import metadata, util
from pathlib import Path

from pipeline.base.errors import IntegrityError, ModelError
from pipeline.base.files import sha256_of
from pipeline.base.records import CARD_NAME, Card, read
from pipeline.settings.data import DataSettings, FilesSource

BUNDLED = Path("data/assistant")
MODELS = "models"  # on the card of a teacher or student: those that it was made of
MODEL_SUFFIXES = {".safetensors", ".json", ".txt", ".model"}


def files_source(settings: DataSettings, root: Path) -> FilesSource:
    """The files to read for a bundled or files source, with a root relative to the current folder."""
    if settings.source == "bundled":
        return FilesSource(root=str(root / BUNDLED), dev="dev.csv", id="id", slice="style")
    assert settings.files.root is not None  # a validator of DataSettings
    return settings.files.model_copy(update={"root": str(root / settings.files.root)})


def split_files(source: FilesSource) -> dict[str, Path]:
    """Split name -> file."""
    assert source.root is not None
    names = {"train": source.train, "dev": source.dev, "test": source.test}
    return {split: Path(source.root) / name for split, name in names.items() if name is not None}


def data_files(settings: DataSettings, root: Path) -> dict[str, Path]:
    """Split name -> local file that it is read from; empty for a hub source."""
    return {} if settings.source == "hub" else split_files(files_source(settings, root))


def local_model_folder(source: str) -> Path | None:
    """The folder of a model given as folder or `pypi:PACKAGE/FOLDER`; None when it can only be a hub id.

    Raises:
        ModelError: the package is not installed or has no such folder.
    """
    if not source.startswith("pypi:"):
        return Path(source) if Path(source).is_dir() else None
    package, _, inside = source.removeprefix("pypi:").partition("/")
    # __main__ and its like have no spec, for which find_spec raises.
    spec = util.find_spec(package) if package.isidentifier() and not package.startswith("__") else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"no installed package '{package}'; install the one that carries the model, or give a folder")
    root = Path(spec.submodule_search_locations[0]).resolve()
    folder = (root / inside).resolve()
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise ModelError(f"package '{package}' has no folder '{inside}'")
    return folder


def base_model_files(source: str) -> list[Path]:
    """The files of a local model that decide what it answers, sorted; empty for a hub id."""
    folder = local_model_folder(source)
    if folder is None:
        return []
    return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in MODEL_SUFFIXES)


@functools.cache  # a stage asks for the same model several times, and the machine check for all of them
def model_digest(source: str, revision: str | None = None) -> str:
    """One hash of a model: of its files where they are local, of name and revision where not."""
    files = base_model_files(source)
    if not files:
        return f"{source}@{revision}"
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.name} {sha256_of(file)}\n".encode())
    return found.hexdigest()


def models_behind(*sources: str) -> list[str]:
    """Models in words, each once; in place of one that Decant has made those that it was made of, as its card says."""
    found: list[str] = []
    for source in sources:
        folder = local_model_folder(source)
        found += (folder is not None and _made_of(folder)) or [describe_source(source)]
    return list(dict.fromkeys(found))


def _made_of(folder: Path) -> list[str]:
    """What the card of a folder says of it; nothing where there is none, or another's file of that name."""
    try:
        return list(read(Card, folder / CARD_NAME).facts.get(MODELS, ()))
    except (IntegrityError, OSError):
        return []


def describe_source(source: str) -> str:
    """Where a model comes from, without a path of this machine: 'name==version' for a package, else as written.

    Of a folder that is named from the root, its own name.
    """
    if not source.startswith("pypi:"):
        return Path(source).name if Path(source).is_absolute() else source
    package = source.removeprefix("pypi:").partition("/")[0]
    owners = metadata.packages_distributions().get(package, [package])
    return f"{owners[0]}=={metadata.version(owners[0])}"
