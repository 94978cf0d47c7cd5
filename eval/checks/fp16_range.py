"""Does anything overflow in fp16: the saved program on every dev row, by the reference interpreter.

What it finds is compared with what the lint foretold before the conversion (`fp16.json` beside the artefact): an
overflow that nobody foretold is a fault of the lint, and is said.
"""

import json
import re

from eval.checks import Subject, failed, passed
from eval.runtimes import coreml_reference
from pipeline.base.records import Check
from pipeline.data.batches import batches_by_length
from pipeline.mil.interpreter import Overflow

TITLE = "fp16 range"
FORMATS = ("coreml",)
LINT = "fp16.json"  # written by export/fp16_lint.py


def applies(subject: Subject) -> bool:
    """Core ML programs that compute in fp16."""
    return subject.artefact.format in FORMATS and subject.artefact.precision != "fp32"


def check(subject: Subject) -> Check:
    """Counts what becomes infinite or NaN, from which operation on, over dev."""
    found: dict[str, Overflow] = {}
    with coreml_reference.open_session(subject.folder, subject.artefact, subject.threads) as session:
        bad_constants = session.interpreter.bad_constants
        for batch in batches_by_length([len(row) for row in subject.sequences], coreml_reference.BATCH):
            inputs = session.inputs(subject.padded([subject.sequences[i] for i in batch]))
            for one in session.interpreter.overflows(inputs):
                old = found.get(one.place, Overflow(one.place, 0, 0))
                found[one.place] = Overflow(one.place, old.elements + one.elements, old.texts + one.texts)
    foretold = _foretold(subject)
    advice = "export with precision auto, which keeps it in fp32"
    if subject.artefact.precision == "auto":
        advice = "calibrate on more rows (quantize.calibration.examples), or export fp32"
    facts = {
        "rows": len(subject.sequences),
        "overflows": {one.place: {"elements": one.elements, "texts": one.texts} for one in found.values()},
        "foretold": foretold,
    }
    if bad_constants:
        return failed(TITLE, f"{bad_constants[0]} is not finite in fp16: export with precision auto or fp32", **facts)
    if found:
        first = next(iter(found.values()))
        module = None if foretold is None else _module(first.place, foretold)
        where = f"{first.place}{f' ({module})' if module else ''}"
        surprise = "; the lint did not foretell it" if foretold is not None and module is None else ""
        return failed(
            TITLE,
            f"{where} overflows in {first.texts} of {len(subject.sequences)} dev rows ({first.elements} numbers)"
            f"{f', and {len(found) - 1} operations more' if len(found) > 1 else ''}{surprise}: {advice}",
            **facts,
        )
    said = "" if foretold is None else f"; the lint foretold {len(foretold)}"
    return passed(TITLE, f"nothing overflows on {len(subject.sequences)} dev rows{said}", **facts)


def _foretold(subject: Subject) -> dict[str, str] | None:
    """Operations that the lint expects to overflow, with their modules; None when it was not asked."""
    file = subject.folder / LINT
    if not file.is_file():
        return None
    findings = json.loads(file.read_text("utf-8"))["findings"]
    return {one["operation"]: one["module"] for one in findings if one["kind"] == "overflow"}


def _module(place: str, foretold: dict[str, str]) -> str | None:
    """The module of an operation of the fp16 program, whose name carries on that of the fp32 program."""
    result = re.search(r"'(.*)'", place)
    # what the fp16 passes of coremltools append
    return None if result is None else foretold.get(re.sub(r"((_cast|_to)_(fp16|fp32|u?int16))+$", "", result[1]))
