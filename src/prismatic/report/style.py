"""How every picture looks: a colour and a line style per view, readable in greyscale."""

import io
from collections.abc import Callable
from functools import wraps
from itertools import cycle, islice
from typing import Any, Concatenate, ParamSpec

import matplotlib
from matplotlib.figure import Figure

P = ParamSpec("P")

# The palette of Okabe and Ito, which colour-blind readers can tell apart; view 0, the clean one, is
# black. Line styles tell the views apart in print, where the colours' greys are near each other.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
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


def styled(draw: Callable[Concatenate[Figure, P], None]) -> Callable[P, Figure]:
    """Make a function that fills a figure one that returns it, drawn in this style."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(7.2, 4.2))
            draw(figure, *args, **kwargs)
        return figure

    return drawn


def explain(figure: Figure, reason: str) -> None:
    """Instead of a picture, the reason why there is none."""
    figure.text(0.5, 0.5, reason, ha="center", va="center", wrap=True, color=MUTED, size=12)


def png(figure: Figure, dpi: float = 110) -> bytes:
    """The figure as a PNG."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi)
    return data.getvalue()
