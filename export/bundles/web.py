"""For web pages: an ES module on onnxruntime-web, a page that shows it, and the layout that Transformers.js reads.

Nothing is fetched from elsewhere: onnxruntime-web's own files lie in the folder, so that the page works without a
network after its first load.
"""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field

from export.bundles import Contents, Part, Shipped, ship_client, ship_model, write_json
from pipeline.settings.base import Settings

TITLE = "web pages"
FORMATS = ("onnx",)
TOKENIZERS = ("javascript",)
BESIDE = ("transformers_js",)
# Where `make browser` puts it.
LIBRARY = Path(sys.prefix) / "share" / "decant" / "browser" / "node_modules" / "onnxruntime-web"
VENDORED = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
CLIENTS = (
    "clients/javascript/byte_pairs.js",
    "clients/javascript/classifier.js",
    "clients/javascript/index.html",
    "clients/javascript/page.css",
    "clients/javascript/page.js",
    "clients/javascript/texts.js",
    "clients/javascript/tokenizer.js",
    "clients/javascript/updates.js",
    "clients/javascript/word_pieces.js",
    "clients/javascript/worker.js",
)

HOME = ""
LIMIT_BYTES = 2**31 - 1  # what WebAssembly's memory of 32 bits may hold beside the model's own
HOW = """Serve the folder (`npx serve .`) and open it: type a sentence, or press "Self-test".

In a page: `import { Classifier } from "./classifier.js"`, `await Classifier.load(new URL("./", import.meta.url))`, then
`await classifier.classify("wake me at six")`. With a bundler, `onnxruntime-web` comes from npm; without one, an import
map names vendor/, as index.html has it.

Transformers.js reads the folder as well: `pipeline("text-classification", "<folder>")`, with `env.allowLocalModels` and
`env.localModelPath` set."""


class Params(Settings):
    """`bundles.web.options`."""

    package: str = Field(
        default="text-classifier",
        pattern=r"^(@[a-z0-9-]+/)?[a-z0-9][a-z0-9._-]*$",
        description="The npm package's name.",
    )


def why_unusable() -> str | None:
    """The reason why it cannot be made here, or None."""
    return None if (LIBRARY / "package.json").is_file() else "not installed: onnxruntime-web; run: make browser"


def version() -> str:
    """That of onnxruntime-web, which lies in the bundle."""
    return json.loads((LIBRARY / "package.json").read_text("utf-8"))["version"]


def write(folder: Path, contents: Contents, options: Params) -> Shipped:
    """The module, the page, onnxruntime-web, and config.json as Transformers.js reads it."""
    for name in CLIENTS:
        ship_client(folder, name)
    (folder / "vendor").mkdir()
    for name in VENDORED:
        shutil.copyfile(LIBRARY / "dist" / name, folder / "vendor" / name)
    write_json(folder / "package.json", _package(options, version()))
    write_json(folder / "config.json", {**contents.config, "transformers.js_config": _hints(contents)})
    inside = Part(
        "onnxruntime-web",
        version(),
        "MIT",
        f"pkg:npm/onnxruntime-web@{version()}",
        tuple(f"vendor/{name}" for name in VENDORED),
        _notice(),
    )
    return Shipped(ship_model(folder, contents, f"onnx/{_model_name(contents)}"), (inside,))


def stamp(folder: Path, version: str) -> None:
    """Writes a release's version into package.json."""
    path = folder / "package.json"
    write_json(path, {**json.loads(path.read_text("utf-8")), "version": version})


def _notice() -> str:
    """onnxruntime's licence and those of what it contains, which its npm package leaves out and its Python one has."""
    spec = find_spec("onnxruntime")
    assert spec is not None and spec.origin is not None, "it is one of Decant's own dependencies"
    folder = Path(spec.origin).parent
    return "\n\n".join((folder / name).read_text("utf-8").strip() for name in ("LICENSE", "ThirdPartyNotices.txt"))


def _model_name(contents: Contents) -> str:
    """As Transformers.js looks for it."""
    return "model.onnx" if contents.artefact.precision == "fp32" else "model_quantized.onnx"


def _hints(contents: Contents) -> dict[str, Any]:
    return {"dtype": "fp32" if contents.artefact.precision == "fp32" else "q8", "device": "wasm"}


def _package(options: Params, version: str) -> dict[str, Any]:
    return {
        "name": options.package,
        "version": "0.0.0",
        "private": True,
        "type": "module",
        "exports": {".": "./classifier.js", "./updates": "./updates.js", "./*": "./*"},
        "dependencies": {"onnxruntime-web": version},
    }
