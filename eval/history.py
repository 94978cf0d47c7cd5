"""history.jsonl: what every accepted version measured, one line each, and where a figure changed for good.

The file is under git: each verdict that passed is a line, added on the main branch. Times belong to a machine and
8-bit answers to its instructions, so a series never goes from one kind of machine to another. Change points are for
people, who see a drift in them that no single change was large enough to be stopped for; no gate reads them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import median_filter

from eval.statistics import Samples
from pipeline.base import records
from pipeline.base.errors import IntegrityError
from pipeline.base.files import write_atomically
from pipeline.base.records import Record

FILE = "history.jsonl"
LEAST_POINTS = 8  # of a series, before anything is said of it
LEAST_BETWEEN = 3  # versions between two change points
# A change point costs so many times log(n) variances. Of series of noise alone 5 % then have one at 8 versions, 3 % at
# 20 and 0.3 % at 50 (1,000 simulated each), where the usual 2 gives 19 % at 20; of steps of three deviations 93 % are
# found.
PENALTY = 5.0


class Entry(Record):
    """An accepted version."""

    # in UTC, as 2027-01-31
    day: str
    # of git; empty outside a repository
    revision: str
    # digest of the verdict
    verdict: str
    # target -> what it was measured on
    machines: dict[str, str]
    # target -> figure -> value, as in metrics.json
    figures: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Series:
    """A figure of a target on one kind of machine, in the order of versions."""

    target: str
    figure: str
    machine: str
    entries: tuple[Entry, ...]
    values: tuple[float, ...]
    # places of the first value after each change
    changes: tuple[int, ...]

    def before_and_after(self, place: int) -> tuple[float, float]:
        """The medians up to a change, from the one before it, and after it, up to the next."""
        ends = (0, *self.changes, len(self.values))
        i = ends.index(place)
        return float(np.median(self.values[ends[i - 1] : place])), float(np.median(self.values[place : ends[i + 1]]))


def read(root: Path) -> list[Entry]:
    """Every line of a project's history; none without a file.

    Raises:
        IntegrityError: a line is not one of these.
    """
    lines, ignored = records.read_lines(root / FILE)
    if ignored is not None:
        raise IntegrityError(f"{root / FILE}: its last line is not JSON; restore the file from git")
    try:
        return [Entry.model_validate_json(json.dumps(line)) for line in lines]
    except ValueError as error:
        raise IntegrityError(
            f"{root / FILE}: not a history of schema version {records.SCHEMA_VERSION}: {str(error).splitlines()[0]}; "
            "take the line out, or restore the file from git"
        ) from error


def add(root: Path, entry: Entry) -> bool:
    """Adds a line; False where the same verdict is the last one already."""
    before = read(root)
    if before and before[-1].verdict == entry.verdict:
        return False
    path = root / FILE
    # an editor may have left the last line without its end
    text = "".join(f"{line}\n" for line in path.read_text("utf-8").splitlines()) if path.is_file() else ""
    write_atomically(path, f"{text}{json.dumps(entry.model_dump(mode='json'), sort_keys=True)}\n")
    return True


def series_of(entries: Sequence[Entry]) -> list[Series]:
    """Every figure of every target, by machine."""
    taken: dict[tuple[str, str, str], list[tuple[Entry, float]]] = {}
    for entry in entries:
        for target, figures in entry.figures.items():
            for figure, value in figures.items():
                key = (target, figure, entry.machines.get(target, ""))
                taken.setdefault(key, []).append((entry, value))
    found = []
    for (target, figure, machine), points in sorted(taken.items(), key=lambda item: item[0]):
        versions, values = zip(*points, strict=True)
        found.append(Series(target, figure, machine, versions, values, tuple(change_points(values))))
    return found


def change_points(values: Samples) -> list[int]:
    """Places from which on the mean is another, by the pruned exact search for the least squares with a penalty.

    The scatter is that of differences from one value to the next, which a step does not enlarge. Where most values are
    the one before them, as sizes are, there is none: any lasting step counts, and what lasted one version does not.

    Source: Killick et al., Optimal detection of changepoints with a linear computational cost (JASA 2012), in ruptures.
    """
    import ruptures

    signal = np.asarray(values, dtype=np.float64)
    if len(signal) < LEAST_POINTS:
        return []
    steps = np.abs(np.diff(signal))
    deviation = float(np.median(steps)) / (0.6745 * 2**0.5)  # of normal noise
    if deviation == 0:
        signal = median_filter(signal, LEAST_BETWEEN, mode="nearest")
        deviation = 1e-9 * float(np.abs(signal).max() or 1.0)
    search = ruptures.Pelt(model="l2", min_size=LEAST_BETWEEN, jump=1).fit(signal)
    return list(search.predict(pen=PENALTY * np.log(len(signal)) * deviation**2))[:-1]
