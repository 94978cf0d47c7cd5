"""What the bundles of a finished project do here: tried, their tokenizers compared, and read by Transformers.js.

    python -m benchmarks.ship measure             of artifacts/ in this folder
    python -m benchmarks.ship measure FOLDER      of another project
    python -m benchmarks.ship table               docs/ship.md from the record

The record is docs/results/ship/demo.json.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.pages import fill
from eval.pages import LOOP, Page, why_missing
from eval.tokenizers import PACKAGES
from pipeline.base import guard, machine, records
from pipeline.base.errors import UnusableRuntimeError
from pipeline.base.files import write_atomically
from pipeline.base.records import Score, Tokenizers, Trial
from pipeline.base.workspace import Workspace
from pipeline.data.examples import read_prepared
from pipeline.formats.bundles import unpack

RECORD, PAGE = Path("docs/results/ship/demo.json"), Path("docs/ship.md")
COMMAND = "python -m benchmarks.ship table"
# As a page without a bundler has it: an import map in place of node_modules.
HTML = """<!doctype html><meta charset="utf-8"><title>Decant</title><script type="importmap">{"imports": {
  "onnxruntime-common": "./packages/onnxruntime-common/dist/esm/index.js",
  "onnxruntime-web/webgpu": "./packages/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs"
}}</script><script type="module">
import { env, pipeline } from "./packages/@huggingface/transformers/dist/transformers.web.js";
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "./";
env.useBrowserCache = false;
env.useWasmCache = false;
env.backends.onnx.wasm.wasmPaths = new URL("./packages/onnxruntime-web/dist/", import.meta.url).href;
env.backends.onnx.wasm.numThreads = 1;
const tasks = {
  async use({texts}) {
    const classify = await pipeline("text-classification", "bundle");
    const labels = [];
    for (const text of texts) labels.push((await classify(text))[0].label);
    return {labels};
  },
};
LOOP</script>""".replace("LOOP", LOOP)
COLUMNS = (
    "bundle",
    "of target",
    "zip, MB",
    "unpacked, MB",
    "tried in",
    "accuracy on test",
    "the target's",
    "rows that differ",
    "read before the first answer, MB",
    "first answer, ms",
    "then a text, ms",
)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def ask_transformers_js(folder: Path, texts: Sequence[str]) -> list[str]:
    """Labels of texts by Transformers.js's pipeline on a web bundle's folder, in a browser.

    Raises:
        UnusableRuntimeError: the package or a browser is missing.
        ModelError: the pipeline fails.
    """
    if (reason := why_not()) is not None:
        raise UnusableRuntimeError(reason)
    files = {f"bundle/{file.relative_to(folder).as_posix()}": file for file in folder.rglob("*") if file.is_file()}
    for package in ("@huggingface/transformers", "onnxruntime-common", "onnxruntime-web"):
        for file in (PACKAGES / package / "dist").rglob("*"):
            if file.suffix in (".js", ".mjs", ".wasm"):
                files[f"packages/{file.relative_to(PACKAGES).as_posix()}"] = file
    page = Page(HTML, files)
    try:
        return page.ask({"do": "use", "texts": list(texts)}, folder)["labels"]
    finally:
        page.close()


def why_not() -> str | None:
    """The reason why Transformers.js cannot be asked here, or None."""
    if not (PACKAGES / "@huggingface" / "transformers").is_dir():
        return "not installed: @huggingface/transformers; run: make clients"
    return why_missing()


@app.command()
def measure(folder: Annotated[Path, typer.Argument(help="A project with bundles.")] = Path()) -> None:
    """Collects the records of a project's bundles, and asks Transformers.js about the whole test split."""
    workspace = Workspace(folder)
    trials = [records.read(Trial, path) for path in sorted(workspace.bundles.glob("[a-z]*.json")) if _is_trial(path)]
    facts = machine.facts()
    found: dict[str, Any] = {"cpu": facts["cpu"], "isa": facts["isa"], "cores": facts["cores"], "trials": []}
    for trial in trials:
        archive = workspace.bundles / f"{trial.platform}.zip"
        files = [file for file in (workspace.bundles / trial.platform).rglob("*") if file.is_file()]
        sizes = {"zip_bytes": archive.stat().st_size, "bytes": sum(file.stat().st_size for file in files)}
        shown = trial.model_dump(mode="json", exclude={"schema_version", "sources", "manifest_digest"})
        found["trials"].append(shown | sizes | {"target_score": _score(workspace, trial)})
    tokenizers = records.read(Tokenizers, workspace.tokenizers).found
    found["tokenizers"] = {
        name: one.model_dump(mode="json", exclude={"schema_version"}) | {"said": one.said}
        for name, one in tokenizers.items()
    }
    found["transformers_js"] = _transformers_js(workspace)
    write_atomically(RECORD, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {RECORD}")


def _is_trial(path: Path) -> bool:
    return path.name != "not_made.json"


def _score(workspace: Workspace, trial: Trial) -> float | None:
    score = records.read(Score, workspace.scored(trial.target))
    return score.primary.value if score.primary is not None else None


def _transformers_js(workspace: Workspace) -> dict[str, Any]:
    """How it answers the test split, beside the target."""
    if (reason := why_not()) is not None:
        return {"not_tried": reason}
    test = read_prepared(workspace.data, "test")
    with tempfile.TemporaryDirectory() as scratch:
        unpack(workspace.bundles / "web.zip", Path(scratch) / "web")
        labels = json.loads((Path(scratch) / "web" / "model.json").read_text("utf-8"))["labels"]
        answers = ask_transformers_js(Path(scratch) / "web", [text for (text,) in test.texts])
    trial = records.read(Trial, workspace.bundles / "web.json")
    target = records.read(Score, workspace.scored(trial.target)).answers
    places = [labels.index(answer) for answer in answers]
    version = json.loads((PACKAGES / "@huggingface/transformers/package.json").read_text("utf-8"))["version"]
    return {
        "version": version,
        "examples": len(test),
        "right": sum(one == other for one, other in zip(places, test.numbers, strict=True)),
        "different": sum(one != other for one, other in zip(places, target, strict=True)),
    }


@app.command()
def table() -> None:
    """Writes the tables of docs/ship.md from the record."""
    write_atomically(PAGE, with_table(PAGE.read_text("utf-8"), RECORD))
    print(f"wrote the tables into {PAGE}")


def with_table(text: str, record: Path) -> str:
    """The page with its tables made anew."""
    return fill(text, PAGE, "ship", COMMAND, f"\n{render(json.loads(record.read_text('utf-8')))}\n")


def render(record: dict[str, Any]) -> str:
    """Two tables: bundles as they were tried, tokenizers as they compare."""
    lines = [
        f"On **{record['cpu']}** ({', '.join(record['isa'])}), {record['cores']} cores:\n",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
        *(_trial_line(one) for one in record["trials"]),
    ]
    told = record["transformers_js"]
    if "not_tried" not in told:
        lines.append(
            f"\nTransformers.js {told['version']} on the web bundle's folder: {told['right']} of {told['examples']} "
            f"rows right, {told['different']} answered otherwise than by the target.\n"
        )
    lines += [
        "| tokenizer | version | texts | other ids | such as |",
        "|---|---|---|---|---|",
        *(_tokenizer_line(one) for one in record["tokenizers"].values()),
    ]
    return "\n".join(lines)


def _trial_line(one: dict[str, Any]) -> str:
    def show(value: float | None, form: str, factor: float = 1.0) -> str:
        return "" if value is None else format(value * factor, form)

    primary = one["primary"]
    score = f"{100 * primary['value']:.2f} %" if primary else ""
    cells = (
        one["platform"],
        one["target"],
        show(one["zip_bytes"], ".1f", 1e-6),
        show(one["bytes"], ".1f", 1e-6),
        one["engine"] or f"not here: {one['not_tried']}",
        score,
        show(one["target_score"], ".2f", 100) + " %",
        str(one["different"]) if primary else "",
        show(one["first_bytes"], ".1f", 1e-6),
        show(one["cold_ms"], ".0f"),
        show(one["warm_ms"], ".2f"),
    )
    return f"| {' | '.join(cells)} |"


def _tokenizer_line(one: dict[str, Any]) -> str:
    shown = ""
    if one["shown"]:
        text, theirs, ours = one["shown"][0]
        shown = f"{text!a}: {list(theirs)}, training {list(ours)}".replace("|", "\\|")
    texts, different = (f"{one['texts']:,}", f"{one['different']:,}") if one["texts"] else ("", one["said"])
    return f"| {one['title']} | {one['version'] or ''} | {texts} | {different} | {shown} |"


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
