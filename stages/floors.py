"""Scores what a student must beat: majority class, and TF-IDF with a linear classifier.

Its latency belongs to the machine, so the machine's facts are a dependency. Run as `python -m stages.floors`.
"""

import logging

from eval.floors import measure_floors
from pipeline import tasks
from pipeline.base import guard, records
from pipeline.base.records import open_folder
from pipeline.base.workspace import Workspace
from pipeline.data.examples import read_prepared
from pipeline.settings.params import Params, load

log = logging.getLogger(__name__)


def run(params: Params, workspace: Workspace) -> None:
    """Writes floors.json."""
    data = open_folder(workspace.data, "data")
    train, test = read_prepared(workspace.data, "train"), read_prepared(workspace.data, "test")
    floors = measure_floors(tasks.of(params, workspace.data), train, test, params.seed)
    records.write(floors.model_copy(update={"sources": {"data": data.digest}}), workspace.floors)
    for floor in floors.floors:
        log.info("floor '%s': %s on test", floor.name, floors.metric.say(floor.primary.value))


def main() -> None:
    workspace = Workspace()
    params = load(workspace.params, with_plugins=False)
    with guard.lock(workspace.floors):
        run(params, workspace)


if __name__ == "__main__":
    guard.run(main)
