"""Routing and attention over the two tokens of a mixed task.

Shapes: X and Y tokens, E views, M heads, K either.
"""

import numpy as np
from matplotlib.figure import Figure

from .missing import Floats, require_last, require_views
from .record import Record
from .routing import WEIGHT
from .style import left_out, panels, styled, title, view_name

NO_TABLE = "The task is no mixed function of two tokens."


def compute_routing_table(record: Record) -> Floats:
    """Routing weights at the last position by the two tokens: (X, Y, E)."""
    require_views(record)
    return require_last(record, "table/routing_XYE", NO_TABLE)


def compute_attention_table(record: Record) -> Floats:
    """Attention of the last position to x by the two tokens and head: (X, Y, M)."""
    return require_last(record, "table/attention_XYM", NO_TABLE)


@styled
def draw_routing_table(figure: Figure, record: Record) -> None:
    """The routing weight of each view for every pair of tokens."""
    table_XYE = compute_routing_table(record)
    names = [view_name(view) for view in range(table_XYE.shape[2])]
    title(figure, f"Routing at the last position by the two tokens{left_out(len(names))}")
    draw_tables(figure, table_XYE, names, WEIGHT)


@styled
def draw_attention_table(figure: Figure, record: Record) -> None:
    """The attention weight on x of each head for every pair of tokens."""
    table_XYM = compute_attention_table(record)
    names = [f"head {head}" for head in range(table_XYM.shape[2])]
    title(figure, f"Attention to x at the last position by the two tokens{left_out(len(names))}")
    draw_tables(figure, table_XYM, names, "attention weight (share)")


def draw_tables(figure: Figure, table_XYK: Floats, names: list[str], unit: str) -> None:
    """A heat map over (x, y) per name, all on one scale."""
    low, high = np.nanmin(table_XYK), np.nanmax(table_XYK)
    grid = panels(figure, len(names))
    for axes, name, table_XY in zip(grid, names, np.moveaxis(table_XYK, 2, 0), strict=False):
        image = axes.imshow(table_XY, vmin=low, vmax=high, origin="lower")
        axes.set(xlabel="token y", ylabel="token x", title=name)
        axes.grid(False)
        axes.label_outer()
    figure.colorbar(image, ax=grid, label=unit, shrink=0.8)
