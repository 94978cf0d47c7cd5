"""JUnit XML, which every CI service shows: one test case for each budget, or for each figure that was compared.

A failed one is a failure, one that is undecided or was not measured an error, and one that is optional or
accepted for now skipped: none of them is ever a passed test.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree import ElementTree

from eval.wording import say_change, say_verdict
from pipeline.base.records import Comparison, Status, Verdict

# What XML 1.0 has no place for, escaped or not.
_IMPOSSIBLE = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Case:
    """One test case."""

    target: str
    name: str
    status: Status
    required: bool
    line: str


def of_verdict(verdict: Verdict) -> str:
    """Every budget of a verdict, and what could not be read."""
    cases = [
        Case(one.target, one.budget, one.status, one.required and one.accepted is None, say_verdict(one))
        for one in verdict.budgets
    ]
    cases += [Case("evidence", problem, Status.NOT_MEASURED, True, problem) for problem in verdict.problems]
    return render("decant.budgets", cases)


def of_comparison(comparison: Comparison) -> str:
    """Every figure that was judged against the base, and each target that could not be."""
    cases = [
        Case(one.target, one.what, one.status, one.required and one.accepted is None, say_change(one))
        for one in comparison.changes
        if one.status is not None
    ]
    cases += [
        Case(target, "compared", Status.NOT_MEASURED, target in comparison.required_not_compared, reason)
        for target, reason in comparison.not_compared.items()
    ]
    return render("decant.compare", cases)


def render(suite: str, cases: Iterable[Case]) -> str:
    """The file's content."""
    found = list(cases)
    root = ElementTree.Element("testsuite", name=suite, tests=str(len(found)))
    counts = {"failure": 0, "error": 0, "skipped": 0}
    for case in found:
        element = ElementTree.SubElement(
            root, "testcase", classname=f"{suite}.{_clean(case.target)}", name=_clean(case.name)
        )
        if case.status is not Status.PASS:
            kind = ("failure" if case.status is Status.FAIL else "error") if case.required else "skipped"
            counts[kind] += 1
            ElementTree.SubElement(element, kind, message=_clean(case.line))
    root.set("failures", str(counts["failure"]))
    root.set("errors", str(counts["error"]))
    root.set("skipped", str(counts["skipped"]))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _clean(text: str) -> str:
    return _IMPOSSIBLE.sub("?", text)
