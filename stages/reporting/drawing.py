"""What every figure of the report is drawn with: one style, labels that keep apart, and SVG made for an HTML page.

Figures are as wide as a phone's column, so that one size serves both. Text stays text, nothing depends on the date or
on chance, and colours become CSS variables, so that a figure follows the page's theme.
"""

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

WIDTH, HEIGHT = 440, 300  # in units of 1/72 inch, which become the SVG's own units
LETTER_WIDTH, LETTER_HEIGHT = 6.4, 14.0  # of 12-unit text, for keeping labels apart
# Colours as drawn -> CSS variables of the page. Okabe and Ito's palette, which colour-blind readers can tell apart.
INK, MUTED, GRID = "#1a1c1f", "#5c6570", "#dde1e6"
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#56b4e9"
VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", BLUE: "blue", ORANGE: "orange", GREEN: "green", PURPLE: "purple",
    SKY: "sky",
}  # fmt: skip
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, MUTED)
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)))
STYLE: Any = {  # Any, since matplotlib's stubs want the keys as literals
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "text.color": INK,
    "text.parse_math": False,  # a class may have '$' in its name
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "lines.linewidth": 2,
}


def new_axes(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
    return figure, figure.subplots()


def label_ends(axes: Axes, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Names each line to the right of its last point, kept apart where lines end close together."""
    first = min(points[0][0] for points in lines.values())
    last = max(points[-1][0] for points in lines.values())
    room = min(0.45, (LETTER_WIDTH * max(map(len, lines)) + 24) / (WIDTH - 60))  # share of the axes' width
    span = max(last - first, 1e-9)
    axes.set_xlim(first - 0.02 * span, last + span * room / (1 - room))
    _settle(axes)
    ends = {label: axes.transData.transform(points[-1])[1] for label, points in lines.items()}
    lowest = -1e9
    for label in sorted(lines, key=lambda label: ends[label]):
        i = list(lines).index(label)
        y = max(ends[label], lowest)
        lowest = y + 1.1 * LETTER_HEIGHT
        _write(axes, label, lines[label][-1], (6, y - ends[label]), "left", "center", SERIES[i % len(SERIES)])


def place_labels(axes: Axes, places: Sequence[tuple[str, float, float]]) -> None:
    """Writes each point's name to its right, left, above or below: the first side where nothing else is."""
    _settle(axes)
    spots = [axes.transData.transform((x, y)) for _, x, y in places]
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in spots]
    frame = axes.get_window_extent()
    for (label, x, y), (px, py) in sorted(zip(places, spots, strict=True), key=lambda one: -one[1][1]):
        width = LETTER_WIDTH * len(label)
        sides = [(dx, dy) for step in (0, 1, -1, 2, -2, 3, -3) for dx in (9, -9) for dy in (15 * step,)]
        boxes = []
        for dx, dy in sides:
            left = px + dx - (width if dx < 0 else 0)
            boxes.append((left, py + dy - LETTER_HEIGHT / 2, left + width, py + dy + LETTER_HEIGHT / 2))
        is_free = [
            box[0] >= frame.x0 and box[2] <= frame.x1 and not any(_overlap(box, other) for other in taken)
            for box in boxes
        ]
        chosen = is_free.index(True) if True in is_free else 0
        taken.append(boxes[chosen])
        _write(axes, label, (x, y), sides[chosen], "left" if sides[chosen][0] > 0 else "right", "center", INK)


def _settle(axes: Axes) -> None:
    """Lays the figure out, so that it is known where on it a point will be."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()


def _write(
    axes: Axes,
    label: str,
    point: tuple[float, float],
    offset: tuple[float, float],
    ha: Literal["left", "right"],
    va: Literal["center"],
    colour: str,
) -> None:
    weight = "normal" if colour == INK else "bold"
    text = axes.annotate(label, point, offset, "data", "offset points", ha=ha, va=va, color=colour, weight=weight)
    text.set_in_layout(False)  # or the axes would shrink to make room, away from where labels were placed


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def log_axis(axes: Axes, values: Sequence[float], axis: str = "x", margin: float = 1.3) -> None:
    """A log scale over the values whose ticks are 1, 2, 5 as plain numbers."""
    getattr(axes, f"set_{axis}scale")("log")
    low, high = min(values) / margin, max(values) * margin
    getattr(axes, f"set_{axis}lim")(low, high)
    one = getattr(axes, f"{axis}axis")
    one.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)))
    one.set_minor_locator(NullLocator())
    one.set_minor_formatter(NullFormatter())
    one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def clip(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an `<svg>` element: no ids but those it refers to, no addresses, colours as CSS variables."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # The browser has a font for emoji and other scripts, whether or not the one used for measuring does.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")), dpi=72)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = text.replace("xlink:href=", "href=").replace("'DejaVu Sans'", "var(--sans)")
    text = re.sub(r"\bfont: ([^;\"]*?)(?:'[^']*', )*var\(--sans\)[^;\"]*", r"font: \1var(--sans)", text)
    for colour, variable in VARIABLES.items():
        text = re.sub(rf"(fill|stroke): {colour}\b", rf"\1: var(--{variable})", text)
    opening = re.match(r"<svg[^>]*>", text)
    assert opening is not None
    box = re.search(r'viewBox="[^"]*"', opening.group())
    assert box is not None
    described = html.escape(title, quote=False)
    title_id = "figure-" + re.sub(r"[^a-z0-9]+", "-", name.lower())
    head = f'<svg class="figure" {box.group()} role="img" aria-labelledby="{title_id}"><title id="{title_id}">'
    head += f"{described}</title>"
    return head + re.sub(r"\s*\n\s*", "\n", text[opening.end() :]).strip()
