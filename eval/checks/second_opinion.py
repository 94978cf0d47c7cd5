"""An ONNX file must mean the same to another engine: OpenVINO, or the reference evaluator of onnx itself."""

from eval.checks import Subject, difference, failed, passed
from pipeline.base import plugins
from pipeline.base.records import Check

TITLE = "second opinion"
FORMATS = ("onnx",)
ROWS = 16
# The browser's engine is onnxruntime, compiled to WebAssembly.
OTHERS = {"openvino": ("onnxruntime", "onnx_reference")}
OF_ONNXRUNTIME = ("openvino", "onnx_reference")


def applies(subject: Subject) -> bool:
    """ONNX files: other formats have one engine."""
    return subject.artefact.format in FORMATS


def check(subject: Subject) -> Check:
    """Compares answers to dev rows, one at a time."""
    others = OTHERS.get(subject.runtime, OF_ONNXRUNTIME)
    other = next(name for name in others if plugins.load("runtime", name).why_unusable() is None)
    rows = list(subject.sequences[:: max(1, len(subject.sequences) // ROWS)][:ROWS])
    with subject.open() as candidate, subject.open(other) as second:
        found, expected = subject.answers(candidate, rows), subject.answers(second, rows)
        version = second.runtime_version
    off = difference(found, expected)
    engine = f"{other} {version}"
    if not off <= subject.tolerance:
        return failed(
            TITLE,
            f"{engine} answers {off:.2g} of the spread away on {len(rows)} dev rows, expected at most "
            f"{subject.tolerance:g}: the file means different things to two engines; look for an operator on which "
            "they disagree",
            engine=engine,
            difference=off,
        )
    return passed(TITLE, f"{engine} agrees to {off:.1g} of the spread", engine=engine, difference=off)
