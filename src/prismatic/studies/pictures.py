"""Pictures of a study: effects with their intervals, and measures with a dot per seed.

Shapes: R rows (effects or arms), N seeds.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from prismatic.report.missing import NothingToDrawError
from prismatic.report.style import ACCENT, COLOURS, MUTED, SIZE, plain, styled, title

MARKERS = {"supported": "o", "refuted": "X"}  # filled: a verdict one can rest on
OTHER = "D"
ROW = 0.34  # inches
LABEL = 46  # characters


class Effect(NamedTuple):
    """An estimate with its interval and verdict."""

    name: str
    estimate: float
    low: float
    high: float
    verdict: str


def rows_high(figure: Figure, rows: int) -> None:
    figure.set_size_inches(SIZE[0], 1.5 + ROW * rows)


def short(name: str) -> str:
    return plain(name if len(name) <= LABEL else f"{name[: LABEL - 1]}…")


@styled
def draw_forest(
    figure: Figure, effects: Sequence[Effect], heading: str, unit: str, smallest: float | None
) -> None:
    """A row per effect: estimate, interval, verdict by marker; the band is of no interest."""
    known = [effect for effect in effects if np.isfinite(effect.estimate)]
    if not known:
        raise NothingToDrawError("no effect could be estimated")
    rows_high(figure, len(known))
    axes = figure.subplots()
    title(figure, plain(heading))
    if smallest is not None:
        axes.axvspan(-smallest, smallest, color="#EDEDED", zorder=0, label="too small to matter")
    axes.axvline(0, color=MUTED, linewidth=1)
    place = np.arange(len(known))[::-1]
    for y, effect in zip(place, known, strict=True):
        sure = effect.verdict in MARKERS
        axes.plot([effect.low, effect.high], [y, y], color=COLOURS[1], linewidth=2)
        axes.plot(
            effect.estimate, y, MARKERS.get(effect.verdict, OTHER), markersize=8,
            color=COLOURS[1], markerfacecolor=COLOURS[1] if sure else "white",
        )  # fmt: skip
        axes.annotate(
            effect.verdict, (1.01, y), xycoords=("axes fraction", "data"), va="center",
            color=MUTED, size=9,
        )  # fmt: skip
    axes.set_yticks(place, [short(effect.name or "all runs") for effect in known])
    axes.set_ylim(-0.7, len(known) - 0.3)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"effect{f', {plain(unit)}' if unit else ''} (the claim says > 0)")


@styled
def draw_dots(
    figure: Figure, values: Mapping[str, Sequence[float]], heading: str, measure: str
) -> None:
    """A row per arm: a dot per seed, and their mean."""
    found = {arm: np.asarray(v, float)[np.isfinite(v)] for arm, v in values.items()}
    known = {arm: value_N for arm, value_N in found.items() if value_N.size}
    if not known:
        raise NothingToDrawError(f"no run has a value of {measure}")
    rows_high(figure, len(known))
    axes = figure.subplots()
    title(figure, plain(heading))
    place = np.arange(len(known))[::-1]
    for y, value_N in zip(place, known.values(), strict=True):
        spread = np.linspace(-0.16, 0.16, value_N.size) if value_N.size > 1 else np.zeros(1)
        axes.plot(value_N, y + spread, "o", markersize=4, color=COLOURS[1], alpha=0.55)
        axes.plot([value_N.mean()] * 2, [y - 0.3, y + 0.3], color=ACCENT, linewidth=2.5)
    axes.set_yticks(place, [short(arm) for arm in known])
    axes.set_ylim(-0.7, len(known) - 0.3)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(plain(measure))
