"""ONNX Runtime's WebAssembly in a real browser: what runs .onnx and .ort files on a web page.

A headless Chromium opens a page from a server on this machine. The page loads the artefact, answers, and times itself:
the way between here and the page is in no figure. SIMD is always on, since onnxruntime-web ships no other build; more
threads than one need the page to be isolated from other origins, so the server isolates it.
"""

import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil
from jaxtyping import Int8

from eval.pages import LOOP, Page, why_missing
from eval.runtimes import Arrays, onnxruntime, settings_of, take
from pipeline.base.errors import ModelError
from pipeline.base.records import Artefact
from pipeline.formats.onnx_files import check_file

FORMATS = ("onnx", "ort")
STAND_IN = None
SETTINGS = {"threads": ""}  # as many as the caller asks for
# Where `make browser` puts it: in the environment, so that every workspace finds it.
LIBRARY = Path(sys.prefix) / "share" / "decant" / "browser" / "node_modules" / "onnxruntime-web"
# What a page fetches to run on the CPU; the other builds in the package are for GPUs.
SERVED = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = """<!doctype html><meta charset="utf-8"><title>Decant</title><script type="module">
import * as ort from "./ort.wasm.min.mjs";
ort.env.wasm.wasmPaths = "./";
ort.env.wasm.numThreads = THREADS;
ort.env.logLevel = "error";
const sessions = new Map();
const columns = {
  int64: (rows) => BigInt64Array.from(rows.flat(), BigInt),
  int32: (rows) => Int32Array.from(rows.flat()),
};
const tasks = {
  async load({number, file, types}) {
    const bytes = new Uint8Array(await (await fetch(file)).arrayBuffer());
    const session = await ort.InferenceSession.create(bytes, {executionProviders: ["wasm"]});
    sessions.set(number, {session, types});
    return {inputs: session.inputNames, outputs: session.outputNames, isolated: self.crossOriginIsolated};
  },
  async run({number, inputs}) {
    const {session, types} = sessions.get(number);
    const start = performance.now();
    const feeds = {};
    for (const [name, rows] of Object.entries(inputs))
      feeds[name] = new ort.Tensor(types[name], columns[types[name]](rows), [rows.length, rows[0].length]);
    const found = await session.run(feeds);
    const ms = performance.now() - start;
    const outputs = {};
    for (const [name, {data, dims}] of Object.entries(found))
      outputs[name] = {data: Array.from(data, (one) => Number.isFinite(one) ? one : null), shape: dims};
    return {ms, outputs};
  },
  async close({number}) {
    await sessions.get(number).session.release();
    sessions.delete(number);
    return {};
  },
};
LOOP</script>""".replace("LOOP", LOOP)


def why_unusable() -> str | None:
    """The reason why it cannot run here, or None."""
    if not (LIBRARY / "package.json").is_file():
        return "not installed: onnxruntime-web; run: make browser"
    return why_missing()


def version() -> str:
    """Its version; the browser's own is another."""
    return json.loads((LIBRARY / "package.json").read_text("utf-8"))["version"]


def variants(artefact: Artefact) -> dict[str, dict[str, str]]:
    """Settings worth timing beside those that ship."""
    return {}  # threads belong to the page, so two numbers of them cannot be timed in turn


def library_files() -> list[Path]:
    """What a page downloads before it can load a model, uncompressed."""
    return [LIBRARY / "dist" / name for name in SERVED]


def resident_bytes() -> int:
    """Memory of the processes that run this process's pages."""
    total = 0
    for child in psutil.Process().children(recursive=True):
        try:
            if "--type=renderer" in child.cmdline():
                total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def pair_summed_weights(folder: Path, artefact: Artefact) -> dict[str, Int8[np.ndarray, "rows columns"]]:
    """As onnxruntime has them: relaxed SIMD of WebAssembly becomes the same instruction on x86."""
    return onnxruntime.pair_summed_weights(folder, artefact.model_copy(update={"settings": {}}))


def open_session(folder: Path, artefact: Artefact, threads: int) -> "BrowserSession":
    """A session on the artefact's file, once that file has been checked.

    Raises:
        ModelError: the file is damaged, hostile, or not what the artefact's record says; the browser does not start.
    """
    prepare(folder, artefact)
    return open_prepared(folder, artefact, threads)


def prepare(folder: Path, artefact: Artefact) -> None:
    """Checks the file and starts the browser, which a visitor has open before: that is no part of the load time."""
    check_file(folder / artefact.file)
    _page(_threads(artefact, int(os.environ.get("OMP_NUM_THREADS", "1"))))


def open_prepared(folder: Path, artefact: Artefact, threads: int) -> "BrowserSession":
    """A session on a file that `prepare` has checked."""
    return BrowserSession(folder / artefact.file, artefact, _page(_threads(artefact, threads)))


def _threads(artefact: Artefact, threads: int) -> int:
    return int(settings_of(artefact, SETTINGS)["threads"] or threads)


class BrowserSession:
    """A model that a page has loaded. `last_call_ns` is the page's own time of the last call."""

    def __init__(self, path: Path, artefact: Artefact, page: "OnnxPage") -> None:
        self._page, self._path, self._max_length = page, path, artefact.max_length
        self.last_call_ns = 0
        types = {fact.name: fact.dtype for fact in artefact.inputs}
        self._number, found = page.load(path, types)
        self.input_names, self.output_names = tuple(found["inputs"]), tuple(found["outputs"])
        expected = tuple(types), tuple(fact.name for fact in artefact.outputs)
        if (self.input_names, self.output_names) != expected:
            raise ModelError(
                f"{path}: found inputs {list(self.input_names)} and outputs {list(self.output_names)}, expected "
                f"{list(expected[0])} and {list(expected[1])} as in its card; export it again"
            )

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """The outputs for a padded batch, float32."""
        given = take(inputs, self.input_names, self._max_length)
        task = {"do": "run", "number": self._number, "inputs": {name: rows.tolist() for name, rows in given.items()}}
        found = self._page.ask(task, self._path)
        self.last_call_ns = max(1, round(found["ms"] * 1e6))
        # null, which JSON has for what is not finite, is nan
        return {
            name: np.array(one["data"], dtype=np.float32).reshape(one["shape"])
            for name, one in found["outputs"].items()
        }

    def close(self) -> None:
        """Frees the model."""
        self._page.ask({"do": "close", "number": self._number}, self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# --- the page ----------------------------------------------------------------------------------------------------

_pages: dict[int, "OnnxPage"] = {}


def _page(threads: int) -> "OnnxPage":
    """The page of this process with so many threads; one serves all sessions."""
    if threads not in _pages:
        _pages[threads] = OnnxPage(threads)
    return _pages[threads]


class OnnxPage(Page):
    """A page that has onnxruntime-web."""

    speaker = "onnxruntime-web"

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._loaded = 0
        super().__init__(PAGE.replace("THREADS", str(threads)), {name: LIBRARY / "dist" / name for name in SERVED})

    def load(self, path: Path, types: dict[str, str]) -> tuple[int, dict[str, Any]]:
        """(number of the session, what the page says of the model)."""
        self._loaded += 1
        file = f"model-{self._loaded}"
        self.files[file] = path
        found = self.ask({"do": "load", "number": self._loaded, "file": file, "types": types}, path)
        if self.threads > 1 and not found["isolated"]:
            raise ModelError(
                f"{path}: the page is not isolated, so it has one thread of {self.threads}; update the browser"
            )
        return self._loaded, found
