"""How every picture looks: a colour and a line style per view, readable in greyscale."""

import io
from collections.abc import Callable
from functools import wraps
from itertools import cycle, islice
from typing import Any, Concatenate, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .record import NothingToDrawError

P = ParamSpec("P")

# The palette of Okabe and Ito, which colour-blind readers can tell apart; view 0, the clean one, is
# black. Line styles tell the views apart in print, where the colours' greys are near each other.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SIZE = (8.0, 4.2)  # inches
MOST_PANELS = 8
STEP = "training step"
ACCENT, MUTED = COLOURS[2], "#8A8A8A"

STYLE: dict[Any, Any] = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "image.cmap": "cividis",
}


def view_style(view: int) -> dict[str, Any]:
    """Colour, line style and marker of a view: the same in every picture, none like another's."""
    looks = zip(cycle(COLOURS), cycle(LINES), cycle(MARKERS), strict=False)
    colour, line, marker = next(islice(looks, view, None))
    return {"color": colour, "linestyle": line, "marker": marker}


def view_name(view: int) -> str:
    """What a view is called in legends."""
    return "view 0 (clean)" if view == 0 else f"view {view}"


def plain(text: str) -> str:
    """The text as matplotlib draws it literally: dollars would begin a formula."""
    return text.replace("$", r"\$")


def styled(draw: Callable[Concatenate[Figure, P], None]) -> Callable[P, Figure]:
    """Make a function that fills a figure one that returns it, drawn in this style.

    Where there is nothing to draw, the figure holds the reason and no axes.
    """

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=SIZE)
            try:
                draw(figure, *args, **kwargs)
                for axes in figure.axes:
                    if axes.get_xlabel() == STEP:
                        axes.locator_params(axis="x", integer=True)
            except NothingToDrawError as reason:
                explain(figure, str(reason))
        return figure

    return drawn


def explain(figure: Figure, reason: str) -> None:
    """Instead of a picture, the reason why there is none."""
    figure.text(0.5, 0.5, reason, ha="center", va="center", wrap=True, color=MUTED, size=12)


def title(figure: Figure, text: str) -> None:
    """What a figure shows, above all of its panels."""
    figure.suptitle(text, x=0.01, ha="left", size=12.5, weight="bold")


def legend(figure: Figure, axes: Axes) -> None:
    """The names of a panel's lines, below all panels."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 3 if max(map(len, labels)) > 16 else 5
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def panels(figure: Figure, number: int) -> list[Axes]:
    """Up to eight panels with shared axes, at most four in a row."""
    number = min(number, MOST_PANELS)
    rows = -(-number // 4)
    columns = -(-number // rows)
    figure.set_size_inches(SIZE[0], 0.9 + 2.5 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for spare in grid[number:]:
        spare.remove()
    return list(grid[:number])


def left_out(number: int) -> str:
    """For a title: that not all of so many have a panel."""
    return f", the first {MOST_PANELS} of {number}" if number > MOST_PANELS else ""


def png(figure: Figure, dpi: float = 110) -> bytes:
    """The figure as a PNG."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi)
    return data.getvalue()
