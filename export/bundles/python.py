"""For Python and embedded Linux: one folder, NumPy, the runtime, and the tokenizers library; no Decant."""

from pathlib import Path

from export.bundles import Contents, Part, Shipped, ship_client, ship_model
from pipeline.base.errors import UnusableRuntimeError
from pipeline.base.machine import version_of
from pipeline.settings.base import Settings

TITLE = "Python and embedded Linux"
FORMATS = ("onnx", "ort", "openvino", "litert")
TOKENIZERS = ("tokenizers",)
# format -> (the file that opens it, the package that executes it)
RUNTIMES = {
    "onnx": ("clients/python/session_onnxruntime.py", "onnxruntime"),
    "ort": ("clients/python/session_onnxruntime.py", "onnxruntime"),
    "openvino": ("clients/python/session_openvino.py", "openvino"),
    "litert": ("clients/python/session_litert.py", "ai-edge-litert"),
}
LICENSES = {
    "ai-edge-litert": "Apache-2.0",
    "numpy": "BSD-3-Clause",
    "onnxruntime": "MIT",
    "openvino": "Apache-2.0",
    "tokenizers": "Apache-2.0",
}

HOME = ""
LIMIT_BYTES = 2**32 - 1  # a zip without its 64-bit extension
HOW = """    pip install -r requirements.txt
    python classifier.py --self-test
    python classifier.py "wake me at six"

In a program: `from classifier import Classifier; Classifier().classify("wake me at six").label`."""


class Params(Settings):
    """`bundles.python.options`: there is nothing to say."""


def write(folder: Path, contents: Contents, options: Params) -> Shipped:
    """The code that classifies, the file that opens this format, and what pip has to bring."""
    session, package = RUNTIMES[contents.artefact.format]
    ship_client(folder, "clients/python/classifier.py")
    ship_client(folder, session, "session.py")
    needed = [_part(name) for name in ("numpy", package, "tokenizers")]
    lines = "".join(f"{part.name}=={part.version}\n" for part in needed)
    (folder / "requirements.txt").write_text(lines, "utf-8", newline="\n")
    return Shipped(ship_model(folder, contents, contents.artefact.file), tuple(needed))


def _part(package: str) -> Part:
    """A package in the version that the golden vectors were made with."""
    version = version_of(package)
    if version is None:
        raise UnusableRuntimeError(f"not installed: {package}, so its version cannot be named")
    return Part(package, version, LICENSES[package], f"pkg:pypi/{package}@{version}")
