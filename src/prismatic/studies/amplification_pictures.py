"""Pictures of how differences travel: over layers, and the Lyapunov exponent over the gain.

An arm is named by its norm, its gain and its initialisation: "pre, gain 4, xavier".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prismatic.report.missing import NothingToDrawError
from prismatic.report.style import ACCENT, MUTED, legend, plain, styled, title, view_style

from .growth import NAME, SATURATED, TINY, curve
from .spec import Findings

STATES = {"init": "at initialisation", "trained": "trained"}


def measured(table: pd.DataFrame, arms: Sequence[str]) -> list[str]:
    """The arms that have a run which did not diverge."""
    sound = table[table["diverged"] == 0]
    known = [arm for arm in arms if (sound["arm"] == arm).any()]
    if not known:
        raise NothingToDrawError("no arm of this picture has a run that did not diverge")
    return known


def parts(arm: str) -> tuple[str, float]:
    """The norm and the gain of an arm."""
    norm, gain, *_ = arm.split(", ")
    return norm, float(gain.removeprefix("gain "))


@dataclass(frozen=True)
class Growth:
    """ln D over the layer, and over its logarithm beside it: a row per gain, a line per norm.

    On the left an exponential is straight, on the right a power law is.
    """

    caption: str
    heading: str
    of: Sequence[str]
    state: str
    site: str = "all"
    size: float = 1e-4

    def draw(self, table: pd.DataFrame, findings: Findings) -> Figure:
        sound = table[table["diverged"] == 0]
        curves = {
            parts(arm): curve(sound, arm, self.state, self.site, self.size).clip(min=TINY)
            for arm in measured(table, self.of)
        }
        return draw_growth(curves, self.heading, self.site)


@styled
def draw_growth(
    figure: Figure, curves: dict[tuple[str, float], np.ndarray], heading: str, site: str
) -> None:
    title(figure, plain(heading))
    gains, norms = sorted({gain for _, gain in curves}), list(dict.fromkeys(n for n, _ in curves))
    figure.set_size_inches(8, 1.3 + 2.1 * len(gains))
    grid = figure.subplots(len(gains), 2, sharey=True, sharex="col", squeeze=False)
    first = 2 if site == "vo_mlp" else 1
    for row, gain in zip(grid, gains, strict=True):
        for axes in row:
            for norm, curve_NL in ((n, curves[n, gain]) for n in norms if (n, gain) in curves):
                look = view_style(norms.index(norm)) | {"markersize": 3.5}
                layer_L = np.arange(first, first + curve_NL.shape[1])
                axes.plot(layer_L, np.exp(np.log(curve_NL).mean(0)), label=norm, **look)
            axes.axhline(SATURATED, color=ACCENT, linestyle=":", linewidth=1.1)
            axes.set_yscale("log")
        row[0].set(title=f"gain {gain:g}", ylabel="D (total variation)")
        row[1].set_xscale("log")
        tick_layers(row[1], int(layer_L[-1]))
    grid[-1][0].set_xlabel("layer")
    grid[-1][1].set_xlabel("layer, logarithmic")
    legend(figure, grid[0][0])


def tick_layers(axes: Axes, last: int) -> None:
    """Powers of two, since logarithmic ticks would be one or two."""
    places = [2**k for k in range(last.bit_length()) if 2**k <= last]
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()


@dataclass(frozen=True)
class ExponentOverGain:
    """The Lyapunov exponent over the query-key gain: a panel per set of arms, a line per norm."""

    caption: str
    panels: dict[str, Sequence[str]]  # by initialisation
    states: Sequence[str] = ("init", "trained")

    def draw(self, table: pd.DataFrame, findings: Findings) -> Figure:
        sound = table[table["diverged"] == 0]
        panels = {}
        for name, arms in self.panels.items():
            for state in self.states:
                column = f"{NAME}/{state}/exponent"
                points = {
                    parts(arm): sound.loc[sound["arm"] == arm, column].to_numpy(dtype=float)
                    for arm in measured(table, arms)
                }
                panels[f"{name}, {STATES[state]}"] = points
        return draw_exponents(panels, columns=len(self.states))


@styled
def draw_exponents(
    figure: Figure, panels: dict[str, dict[tuple[str, float], np.ndarray]], columns: int
) -> None:
    title(figure, "Lyapunov exponent per layer, after the first")
    rows = -(-len(panels) // columns)
    figure.set_size_inches(8, 1.2 + 2.5 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (name, points) in zip(grid, panels.items(), strict=True):
        norms = list(dict.fromkeys(norm for norm, _ in points))
        for norm in norms:
            gains = sorted(gain for n, gain in points if n == norm)
            mean = [points[norm, gain].mean() for gain in gains]
            spread = [points[norm, gain].std() for gain in gains]
            axes.errorbar(
                gains, mean, yerr=spread, label=norm, capsize=2, **view_style(norms.index(norm))
            )
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.set(title=name, xscale="log", xlabel="gain of the query-key product")
        gains = sorted({gain for _, gain in points})
        axes.set_xticks(gains, [f"{gain:g}" for gain in gains])
        axes.minorticks_off()
        axes.label_outer()
    figure.supylabel("ln of growth per layer, mean and deviation over seeds", fontsize=10.5)
    legend(figure, grid[0])
