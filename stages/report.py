"""Judges every budget, shows what was found: verdict, ledger, tables, plots, one page.

Always finishes and measures nothing: a record that is missing or damaged makes its budgets "not measured".
Run as `python -m stages.report`.
"""

import json
import logging

from eval.budgets import overall
from pipeline.base import guard, records
from pipeline.base.files import output_folder
from pipeline.base.records import Verdict, seal
from pipeline.base.workspace import Workspace
from pipeline.settings.params import Params, load
from stages.gating import junit
from stages.reporting.evidence import gather
from stages.reporting.models import compare_models
from stages.reporting.numbers import metrics, plots
from stages.reporting.page import render_page
from stages.reporting.summary import render_summary

log = logging.getLogger(__name__)
KIND = "report"


def run(params: Params, workspace: Workspace) -> Verdict:
    """Writes `artifacts/report/` and gives the verdict. The same records give the same bytes."""
    evidence = gather(params, workspace)
    verdict = Verdict(
        status=overall(evidence.verdicts, evidence.problems),
        first_line=evidence.first_line,
        budgets=evidence.verdicts,
        problems=evidence.problems,
        evidence=dict(evidence.digests),
    )
    rows = compare_models(evidence)
    with output_folder(workspace.report) as partial:
        records.write(verdict, partial / "verdict.json")
        records.write(evidence.ledger, partial / "ledger.json")
        files = {
            "metrics.json": json.dumps(metrics(evidence, rows), indent=1, sort_keys=True) + "\n",
            "junit.xml": junit.of_verdict(verdict),
            "summary.md": render_summary(evidence, verdict, rows),
            "index.html": render_page(evidence, verdict, rows),
            **{f"plots/{name}": text for name, text in plots(evidence, rows).items()},
        }
        (partial / "plots").mkdir()
        for name, text in files.items():
            (partial / name).write_text(text, "utf-8", newline="\n")
        seal(partial, KIND, facts={"status": verdict.status.value})
    log.info("%s", verdict.first_line)
    log.info("%s; see %s", verdict.status, workspace.report / "index.html")
    return verdict


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params, with_plugins=False)
    with guard.lock(workspace.report):
        run(params, workspace)


if __name__ == "__main__":
    guard.run(main)
