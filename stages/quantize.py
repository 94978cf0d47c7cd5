"""Makes the quantization plan: for each scheme in use, which modules stay in float.

Ranges come from training rows, choices from dev; test is for reporting only.
Run as `python -m stages.quantize`.
"""

import logging
import random
from pathlib import Path

import torch

from pipeline import tasks
from pipeline.base import guard
from pipeline.base.files import output_folder
from pipeline.base.records import open_folder, seal
from pipeline.base.workspace import Workspace
from pipeline.data.prepared import read_encoded
from pipeline.models.checkpoints import load_classifier
from pipeline.quantization.plan import Plans, make_plans
from pipeline.settings.params import Params, load
from stages.plans import schemes_of

log = logging.getLogger(__name__)
KIND = "quantized"


def run(params: Params, workspace: Workspace) -> None:
    """Writes `artifacts/quantized/plan.json`."""
    student = open_folder(workspace.student, "student")
    plans = plans_for(params, workspace, workspace.student)
    with output_folder(workspace.quantized) as partial:
        (partial / "plan.json").write_text(plans.model_dump_json(indent=1) + "\n", "utf-8")
        seal(partial, KIND, {"student": student.digest})
    for name, plan in plans.entries.items():
        for warning in plan.warnings:
            log.warning("activations %s: %s", name, warning)
        log.info("activations %s: kept in float: %s", name, ", ".join(plan.exclude) or "nothing")


def plans_for(params: Params, workspace: Workspace, model: Path) -> Plans:
    """The plan for one model folder on the workspace's data, for what the targets need."""
    torch.set_num_threads(params.threads)
    _, train = read_encoded(workspace, "train", params.data.max_length)
    _, dev = read_encoded(workspace, "dev", params.data.max_length)
    rows = random.Random(params.seed).sample(range(len(train)), min(params.quantize.calibration.examples, len(train)))
    task = tasks.of(params, workspace.data)
    return make_plans(load_classifier(model), dev, train.take(rows), task, params.quantize, schemes_of(params))


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params)
    with guard.lock(workspace.quantized):
        run(params, workspace)


if __name__ == "__main__":
    guard.run(main)
