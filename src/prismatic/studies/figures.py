"""Figures of a study: effects with their intervals, and measures with a dot per seed.

Shapes: N seeds.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prismatic.report.record import NothingToDrawError
from prismatic.report.style import ACCENT, COLOURS, MUTED, SIZE, plain, styled, title
from prismatic.stats import Finding

from .claims import UnjudgeableError

MARKERS = {"supported": "o", "refuted": "X"}  # filled: a verdict one can rest on
OTHER = "D"
ROW = 0.34  # inches
LABEL = 46  # characters


@dataclass(frozen=True, kw_only=True)
class StudyFigure(ABC):
    """What a study's YAML lists under `figures`."""

    caption: str

    @abstractmethod
    def fill(self, figure: Figure, table: pd.DataFrame) -> None:
        """Draw the table of runs. Raises `NothingToDrawError` where it has nothing for it."""

    def draw(self, table: pd.DataFrame) -> Figure:
        """The figure; where there is nothing to draw it holds the reason and no axes."""
        return styled(self.filled)(table)

    def filled(self, figure: Figure, table: pd.DataFrame) -> None:
        try:
            self.fill(figure, table)
        except (NothingToDrawError, UnjudgeableError) as reason:
            figure.clear()
            raise NothingToDrawError(str(reason)) from reason


@styled
def draw_forest(
    figure: Figure, findings: Mapping[str, Finding], heading: str, unit: str,
    smallest: float | None,
) -> None:  # fmt: skip
    """A row per effect: estimate, interval, verdict by marker; the band is of no interest."""
    known = {name: one for name, one in findings.items() if np.isfinite(one.estimate)}
    if not known:
        raise NothingToDrawError("no effect could be estimated")
    axes, place = rows_of(figure, [name or "all runs" for name in known], heading)
    if smallest is not None:
        axes.axvspan(-smallest, smallest, color="#EDEDED", zorder=0, label="too small to matter")
    axes.axvline(0, color=MUTED, linewidth=1)
    for y, one in zip(place, known.values(), strict=True):
        axes.plot(np.array(one.interval), [y, y], color=COLOURS[1], linewidth=2)
        axes.plot(
            one.estimate, y, MARKERS.get(one.verdict, OTHER), markersize=8, color=COLOURS[1],
            markerfacecolor=COLOURS[1] if one.verdict in MARKERS else "white",
        )  # fmt: skip
        axes.annotate(
            one.verdict, (1.01, y), xycoords=("axes fraction", "data"), va="center", color=MUTED,
            size=9,
        )  # fmt: skip
    axes.set_xlabel(f"effect{f', {plain(unit)}' if unit else ''} (the claim says > 0)")


@styled
def draw_dots(figure: Figure, runs: pd.DataFrame, measure: str, heading: str) -> None:
    """A row per arm: a dot per seed, and their mean."""
    finite = runs[np.isfinite(runs[measure])]
    known = {str(arm): one[measure].to_numpy() for arm, one in finite.groupby("arm", sort=False)}
    if not known:
        raise NothingToDrawError(f"no run has a value of {measure}")
    axes, place = rows_of(figure, list(known), heading)
    for y, value_N in zip(place, known.values(), strict=True):
        axes.plot(value_N, side_by_side(len(value_N), y), "o", markersize=4, color=COLOURS[1],
                  alpha=0.55)  # fmt: skip
        axes.plot([value_N.mean()] * 2, [y - 0.3, y + 0.3], color=ACCENT, linewidth=2.5)
    axes.set_xlabel(plain(measure))


def rows_of(figure: Figure, names: Sequence[str], heading: str) -> tuple[Axes, np.ndarray]:
    """Axes with a row per name, the first on top, and where the rows are."""
    figure.set_size_inches(SIZE[0], 1.5 + ROW * len(names))
    axes = figure.subplots()
    title(figure, plain(heading))
    place = np.arange(len(names))[::-1]
    short = [name if len(name) <= LABEL else f"{name[: LABEL - 1]}…" for name in names]
    axes.set_yticks(place, list(map(plain, short)))
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.grid(visible=False, axis="y")
    return axes, place


def side_by_side(size: int, centre: float) -> np.ndarray:
    """Places of dots around a centre."""
    return centre + (np.linspace(-0.16, 0.16, size) if size > 1 else np.zeros(1))
