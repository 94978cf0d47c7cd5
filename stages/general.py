"""Distils a student on general text before any task, on request.

Run as `python -m stages.general`; on several GPUs as `accelerate launch --multi_gpu -m stages.general`.
"""

from pipeline.base import guard
from pipeline.base.workspace import Workspace
from pipeline.distillation.general import distil_general
from pipeline.settings.params import load


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params)
    with guard.lock(workspace.general):
        distil_general(params, workspace)


if __name__ == "__main__":
    guard.run(main)
