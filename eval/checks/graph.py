"""The graph is lean: no shape arithmetic, no casts and no mask plumbing that two inputs of known layout do not need."""

from collections import Counter

from eval.checks import Subject, failed, passed
from pipeline.base.records import Check
from pipeline.formats.onnx_files import check_onnx_file

TITLE = "lean graph"
FORMATS = ("onnx",)
# Operators that only compute shapes, or that spread a mask over heads and positions that broadcasting covers.
PLUMBING = ("ConstantOfShape", "Expand", "If", "Loop", "NonZero", "Range", "ScatterND", "Tile", "Trilu", "Where")
# A length that is free is read to cut the position table; RoBERTa counts positions by comparing ids with padding.
SOME = {"Shape": 1, "Equal": 1}


def applies(subject: Subject) -> bool:
    """ONNX files; other formats compile shapes away before they ship."""
    return subject.artefact.format in FORMATS


def check(subject: Subject) -> Check:
    """Counts operators in the file as shipped."""
    counts = Counter(node.op_type for node in check_onnx_file(subject.folder / subject.artefact.file).graph.node)
    spare = {name: counts[name] for name in PLUMBING if counts[name]}
    spare |= {name: counts[name] for name, most in SOME.items() if counts[name] > most}
    facts = {"nodes": counts.total(), "operators": dict(sorted(counts.items()))}
    if spare:
        named = ", ".join(f"{count} {name}" for name, count in spare.items())
        return failed(
            TITLE,
            f"{counts.total()} nodes, among them {named}: arithmetic on shapes and masks that the two inputs do not "
            "need; export it again with this version",
            **facts,
        )
    return passed(TITLE, f"{counts.total()} nodes, none of them arithmetic on shapes", **facts)
