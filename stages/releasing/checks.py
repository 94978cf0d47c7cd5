"""What `decant verify` holds a bundle against, without running any code that the bundle brings.

The golden vectors are replayed in Decant's own runtime for the format, and its own tokenizers library.
"""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from eval.isolated import open_session
from eval.padding import pad
from eval.worker import WorkerError
from pipeline.base import plugins
from pipeline.base.errors import IntegrityError, ModelError, PipelineError, UnusableRuntimeError
from pipeline.base.records import Artefact
from pipeline.data.texts import clean
from pipeline.formats.bundles import AGAIN, MIN_GOLDEN, Manifest

BILL = "sbom.cdx.json"
# What stands in for a platform's own runtime here.
RUNTIMES = {
    "onnx": "onnxruntime",
    "ort": "onnxruntime",
    "litert": "litert",
    "openvino": "openvino",
    "coreml": "coreml_reference",
}
SHOWN = 3
MAX_TOLERANCE = 0.05  # of the spread of the golden vectors' outputs


def replay(folder: Path, manifest: Manifest) -> tuple[int, str]:
    """(golden vectors that were answered as they should be, the runtime).

    Raises:
        IntegrityError: ids, outputs or an answer are others than the bundle says, or its files do not fit each other.
        UnusableRuntimeError: the runtime is not installed here.
    """
    name = RUNTIMES.get(manifest.artefact.format)
    if name is None:
        raise UnusableRuntimeError(f"no runtime for {manifest.artefact.format!r} here")
    if (reason := plugins.load("runtime", name).why_unusable()) is not None:
        raise UnusableRuntimeError(reason)
    home, place = folder / manifest.home, PurePosixPath(manifest.model)
    artefact = manifest.artefact.model_copy(update={"file": place.name})
    try:
        golden, model = (json.loads((home / file).read_text("utf-8")) for file in ("golden.json", "model.json"))
        if (home / model["file"]).resolve() != (folder / manifest.model).resolve():
            raise IntegrityError(f"{home / 'model.json'}: names another model than the manifest; {AGAIN}")
        _refuse_blunt(home, golden)
        tokenizer = Tokenizer.from_file(str(home / "tokenizer.json"))
        with open_session(name, (folder / place).parent, artefact, 1) as session:
            failures = [
                said for row in golden["rows"] if (said := _differs(row, golden, model, tokenizer, session, artefact))
            ]
    except (ModelError, WorkerError) as error:
        raise IntegrityError(f"{folder / manifest.model}: {error}") from error
    except PipelineError:
        raise
    except Exception as error:  # whatever a hostile file makes of the code that reads it
        raise IntegrityError(
            f"{home}: golden.json, model.json or tokenizer.json cannot be read: {str(error)[:200]!r}; {AGAIN}"
        ) from error
    if failures:
        shown = "; ".join(failures[:SHOWN])
        raise IntegrityError(
            f"{folder}: {len(failures)} of {len(golden['rows'])} golden vectors differ: {shown}; {AGAIN}"
        )
    return len(golden["rows"]), name


def _refuse_blunt(home: Path, golden: dict[str, Any]) -> None:
    """Raises IntegrityError for golden vectors that could not fail: too few, none that must be answered, any output."""
    path, rows = home / "golden.json", golden["rows"]
    outputs = np.array([row["outputs"] for row in rows], dtype=np.float64)
    widest = MAX_TOLERANCE * float(outputs.max() - outputs.min()) if len(rows) else 0.0
    if not any(row["sure"] for row in rows) and len(rows) >= MIN_GOLDEN:
        raise IntegrityError(f"{path}: no golden vector must be answered, so any answer would do; {AGAIN}")
    if len(rows) < MIN_GOLDEN:
        raise IntegrityError(
            f"{home / 'golden.json'}: found {len(rows)} golden vectors, expected {MIN_GOLDEN}; {AGAIN}"
        )
    if not 0 < golden["tolerance"] <= widest:  # written so that a NaN fails
        allowed = f"{golden['tolerance']:.3g}"
        raise IntegrityError(f"{path}: lets outputs be {allowed} off, expected at most {widest:.3g}; {AGAIN}")
    for tie in golden["ties"]:
        if int(np.argmax(tie["outputs"])) != tie["answer"]:
            raise IntegrityError(f"{path}: of level outputs it takes another than the first; {AGAIN}")


def _differs(
    row: dict[str, Any],
    golden: dict[str, Any],
    model: dict[str, Any],
    tokenizer: Tokenizer,
    session: Any,
    artefact: Artefact,
) -> str | None:
    """What is not as a golden vector says, in words."""
    texts = row["text"] if isinstance(row["text"], list) else [row["text"]]
    ids = tokenizer.encode(*map(clean, texts)).ids
    if ids != row["ids"]:
        return f"{texts[0][:40]!r}: token ids {ids[:8]}, expected {row['ids'][:8]}"
    logits = session.run(pad([ids], model["pad_id"], artefact))[model["output"]][0]
    worst = float(np.abs(logits - np.array(row["outputs"])).max())
    if not worst <= golden["tolerance"]:  # written so that a NaN fails
        return f"{texts[0][:40]!r}: outputs {worst:.3g} away, at most {golden['tolerance']:.3g} allowed"
    label = model["labels"][int(logits.argmax())]
    if row["sure"] and label != row["label"]:
        return f"{texts[0][:40]!r}: answers {label!r}, expected {row['label']!r}"
    return None


def check_bill(folder: Path, manifest: Manifest) -> str | None:
    """Checks the bill of materials against its schema and against the manifest; why not, where it cannot be done here.

    Raises:
        IntegrityError: it does not follow the schema, or is of another artefact or lists a part twice.
    """
    path = folder / BILL
    try:
        text = path.read_text("utf-8")
        bill = json.loads(text)
        model = next(one for one in bill["components"] if one["type"] == "machine-learning-model")
        digests = [one["content"] for one in model["hashes"]]
    except Exception as error:  # whatever a hostile file makes of the code that reads it
        raise IntegrityError(
            f"{path}: no bill of materials with a model in it: {str(error)[:200]!r}; {AGAIN}"
        ) from error
    ours = manifest.sources.get("artefact", "")
    if digests != [ours]:
        raise IntegrityError(f"{path}: is of another artefact than {ours[:16]!r}…; {AGAIN}")
    if find_spec("cyclonedx") is None:
        return 'not installed: cyclonedx-python-lib; run: pip install -e ".[release]"'
    if problems := list(_schema_problems(text)):
        raise IntegrityError(f"{path}: not CycloneDX 1.7: {problems[0]}; {AGAIN}")
    return None


def _schema_problems(text: str) -> Iterator[str]:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    for error in JsonStrictValidator(SchemaVersion.V1_7).validate_str(text, all_errors=True) or ():
        yield str(error.data.message if hasattr(error.data, "message") else error)[:200]
