"""Trains the student, more seeds of it and its controls, and ships the best on dev.

Run as `python -m stages.distill`; on several GPUs as `accelerate launch --multi_gpu -m stages.distill`.
"""

import shutil
import statistics
from typing import Any

from pipeline.base import guard
from pipeline.base.files import output_folder
from pipeline.base.records import Card, seal
from pipeline.base.workspace import Workspace
from pipeline.distillation.distil import KIND, Distillation
from pipeline.distillation.variants import variants_of
from pipeline.settings.params import Params, load
from pipeline.training import processes


def run(params: Params, workspace: Workspace) -> None:
    """Writes `artifacts/variants/` with every student trained and `artifacts/student/` with the one that ships."""
    distillation = Distillation(params, workspace)
    variants = variants_of(params.distill, distillation.task.TARGET_LOSS, params.seed)
    # All variants are checked against the teacher's shape before the first one trains.
    for variant in variants:
        distillation.check(variant)
    cards = {v.name: distillation.train(v, workspace.work("distill") / v.name) for v in variants}
    sign = 1 if distillation.task.METRIC.is_greater_better else -1
    shipped = max(
        (v.name for v in variants if v.kind == "distilled"),
        key=lambda name: (sign * cards[name].facts["dev_score"], -cards[name].facts["seed"]),
    )
    processes.by_first(lambda: _ship(shipped, cards, workspace, distillation.sources))


def _ship(shipped: str, cards: dict[str, Card], workspace: Workspace, sources: dict[str, str]) -> None:
    """Copies the finished variants under their names, and the chosen one as the student."""
    summary = {
        kind: _summary([c.facts for c in cards.values() if c.facts["kind"] == kind])
        for kind in sorted({str(c.facts["kind"]) for c in cards.values()})
    }
    with output_folder(workspace.variants) as partial:
        for name in cards:
            shutil.copytree(workspace.work("distill") / name / "model", partial / name)
        seal(partial, "variants", sources, {"summary": summary, "shipped": shipped})
    with output_folder(workspace.student) as partial:
        shutil.copytree(workspace.work("distill") / shipped / "model", partial, dirs_exist_ok=True)
        seal(partial, KIND, sources, {**cards[shipped].facts, "variants": summary})


def _summary(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds; the deviation is None for one seed."""
    test = [f["test_score"] for f in facts]
    dev = [f["dev_score"] for f in facts]
    return {
        "seeds": sorted(f["seed"] for f in facts),
        "steps": facts[0]["steps"],
        "parameters": facts[0]["parameters"],
        "test_score": test,
        "test_mean": statistics.mean(test),
        "test_sd": statistics.stdev(test) if len(test) > 1 else None,
        "dev_mean": statistics.mean(dev),
        "dev_sd": statistics.stdev(dev) if len(dev) > 1 else None,
    }


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params)
    with guard.lock(workspace.student):
        run(params, workspace)


if __name__ == "__main__":
    guard.run(main)
