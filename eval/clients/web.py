"""The bundle for web pages, in a headless browser: its module, from its folder, on a page that does nothing else."""

import json
from collections.abc import Sequence
from pathlib import Path

from eval.clients import Used
from eval.pages import LOOP, Page, why_missing

# The import map is that of the bundle's own page.
PAGE = """<!doctype html><meta charset="utf-8"><title>Decant</title>
<script type="importmap">{"imports": {"onnxruntime-web/wasm": "./vendor/ort.wasm.min.mjs"}}</script>
<script type="module">
import * as ort from "onnxruntime-web/wasm";
import { Classifier } from "./classifier.js";
ort.env.wasm.wasmPaths = new URL("./vendor/", import.meta.url).href;
ort.env.logLevel = "error";
const tasks = {
  async use({texts}) {
    const loading = performance.now();
    const classifier = await Classifier.load(new URL("./", import.meta.url));
    const answers = [], times = [];
    for (const text of texts) {
      answers.push((await classifier.classify(text)).index);
      times.push(performance.now());
    }
    const gaps = times.slice(1).map((time, place) => time - times[place]).sort((a, b) => a - b);
    const { failures } = await classifier.selfTest();
    // the size of what came over the network; that of a page that fetched all of it before is 0
    const fetched = performance.getEntriesByType("resource").filter((one) => !one.name.endsWith("/next"));
    return {
      answers, failures,
      cold_ms: times[0] - loading, warm_ms: gaps[gaps.length >> 1] ?? 0,
      first_bytes: fetched.reduce((sum, one) => sum + one.encodedBodySize, 0),
      engine: navigator.userAgent.match(/Chrom[a-z]*\\/[0-9.]+/)?.[0] ?? navigator.userAgent,
    };
  },
};
LOOP</script>""".replace("LOOP", LOOP)


def why_unusable() -> str | None:
    """The reason why there is no browser, or None."""
    return why_missing()


def use(folder: Path, texts: Sequence[tuple[str, ...]]) -> Used:
    """What its `classifier.js` answers."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    page = Page(PAGE, files)
    try:
        found = page.ask({"do": "use", "texts": [text[0] for text in texts]}, folder)
    finally:
        page.close()
    return Used.model_validate_json(json.dumps(found))
