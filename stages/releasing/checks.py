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
from pipeline.base.errors import IntegrityError, ModelError, UnusableRuntimeError
from pipeline.base.records import Artefact
from pipeline.data.texts import clean
from pipeline.formats.bundles import AGAIN, Manifest

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


def replay(folder: Path, manifest: Manifest) -> tuple[int, str]:
    """(golden vectors that were answered as they should be, the runtime).

    Raises:
        IntegrityError: ids, outputs or an answer are others than the bundle says, or its files do not fit each other.
        UnusableRuntimeError: the runtime is not installed here.
    """
    name = RUNTIMES.get(manifest.artefact.format)
    if name is None:
        raise UnusableRuntimeError(f"no runtime for {manifest.artefact.format} here")
    if (reason := plugins.load("runtime", name).why_unusable()) is not None:
        raise UnusableRuntimeError(reason)
    home, place = folder / manifest.home, PurePosixPath(manifest.model)
    artefact = manifest.artefact.model_copy(update={"file": place.name})
    try:
        golden, model = (json.loads((home / file).read_text("utf-8")) for file in ("golden.json", "model.json"))
        if (home / model["file"]).resolve() != (folder / manifest.model).resolve():
            raise IntegrityError(f"{home / 'model.json'}: names another model than the manifest; {AGAIN}")
        tokenizer = Tokenizer.from_file(str(home / "tokenizer.json"))
        with open_session(name, (folder / place).parent, artefact, 1) as session:
            failures = [
                said for row in golden["rows"] if (said := _differs(row, golden, model, tokenizer, session, artefact))
            ]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise IntegrityError(f"{home}: golden.json or model.json cannot be read: {error!r}; {AGAIN}") from error
    except (ModelError, WorkerError) as error:
        raise IntegrityError(f"{folder / manifest.model}: {error}") from error
    except Exception as error:  # the tokenizers library raises nothing narrower
        if type(error) is not Exception:
            raise
        raise IntegrityError(f"{home / 'tokenizer.json'}: cannot be read: {error}; {AGAIN}") from error
    if failures:
        shown = "; ".join(failures[:SHOWN])
        raise IntegrityError(
            f"{folder}: {len(failures)} of {len(golden['rows'])} golden vectors differ: {shown}; {AGAIN}"
        )
    return len(golden["rows"]), name


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
        return f"{texts[0][:40]!r}: answers {label}, expected {row['label']}"
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
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise IntegrityError(f"{path}: no bill of materials with a model in it: {error!r}; {AGAIN}") from error
    if digests != [manifest.sources["artefact"]]:
        raise IntegrityError(f"{path}: is of another artefact than {manifest.sources['artefact'][:16]}…; {AGAIN}")
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
