"""index.html of a project's history: every figure over the accepted versions, and where it changed for good."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import jinja2
import matplotlib as mpl
from markupsafe import Markup

from eval.history import LEAST_POINTS, Entry, Series, series_of
from stages.reporting import drawing

SHOWN = 8  # letters of a revision


@dataclass(frozen=True)
class Chart:
    """A series as a picture."""

    svg: Markup
    caption: str


def changes_of(entries: Sequence[Entry]) -> list[str]:
    """A sentence for each change point, the newest last."""
    found = [
        (one.entries[place].day, one.target, one.figure, _say(one, place))
        for one in series_of(entries)
        for place in one.changes
    ]
    return [sentence for *_, sentence in sorted(found)]


def _say(one: Series, place: int) -> str:
    before, after = one.before_and_after(place)
    share = f" ({100 * (after / before - 1):+.1f} %)" if before else ""
    entry = one.entries[place]
    where = f" on {one.machine}" if one.machine else ""
    return (
        f"{one.target}: {one.figure} from {before:.6g} to {after:.6g}{share} with {_version(entry)} of "
        f"{entry.day}{where}"
    )


def _version(entry: Entry) -> str:
    return entry.revision[:SHOWN] or entry.verdict[:SHOWN]


def render(entries: Sequence[Entry]) -> str:
    """The whole page."""
    series = series_of(entries)
    charts: dict[str, list[Chart]] = {}
    for number, one in enumerate(series):
        caption = f"{one.figure}, {len(one.values)} versions{f', {one.machine}' if one.machine else ''}"
        charts.setdefault(one.target, []).append(Chart(Markup(_draw(one, number)), caption))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stages.reporting", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("history.html.jinja").render(
        count=len(entries),
        first=entries[0].day if entries else "",
        last=entries[-1].day if entries else "",
        changes=changes_of(entries),
        enough=any(len(one.values) >= LEAST_POINTS for one in series),
        least=LEAST_POINTS,
        series=len(series),
        charts=charts,
    )


def _draw(one: Series, number: int) -> str:
    """Values by version, with the median of each part between two changes."""
    with mpl.rc_context(drawing.STYLE):
        figure, axes = drawing.new_axes(height=drawing.HEIGHT * 0.6)
        axes.plot(range(len(one.values)), one.values, color=drawing.BLUE, marker="o", markersize=4, linewidth=1)
        ends = (0, *one.changes, len(one.values))
        for start, end in pairwise(ends):
            if one.changes:
                axes.hlines(
                    median(one.values[start:end]), start, end - 1, color=drawing.ORANGE, linewidth=2, linestyle="--"
                )
        axes.set_xticks([])
        axes.set_ylabel(one.figure)
    return drawing.svg(figure, f"history-{number}", f"{one.figure} of {one.target} over {len(one.values)} versions")
