"""Pictures of the study of normalisation: logits over layers, and loss over the learning rate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prismatic.report.missing import NothingToDrawError
from prismatic.report.style import ACCENT, MUTED, legend, panels, styled, title, view_style

from .layernorm import largest_of
from .spec import Findings

LIMITS = {20.0: ":", 88.7: "--"}  # from where exp counts for nothing, from where it overflows


@dataclass(frozen=True)
class LogitsOverLayers:
    """The largest attention logit by layer: a panel per name, a line per arm, before and after."""

    caption: str
    panels: Mapping[str, Mapping[str, str]]  # arms by the name of the line, by panel

    def draw(self, table: pd.DataFrame, findings: Findings) -> Figure:
        sound = table[table["diverged"] == 0]
        found: dict[str, dict[str, np.ndarray]] = {}
        for panel, lines in self.panels.items():
            for name, arm in lines.items():
                runs = sound[sound["arm"] == arm]
                for state, when in (("init", "before training"), ("trained", "after")):
                    if len(runs):
                        logit_NL = largest_of(runs, arm, state)
                        found.setdefault(panel, {})[f"{name}, {when}"] = logit_NL
        if not found:
            raise NothingToDrawError("no arm of this picture has a run that did not diverge")
        return draw_logits(found)


@styled
def draw_logits(figure: Figure, found: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    title(figure, "Largest attention logit by layer")
    names = list(dict.fromkeys(name for lines in found.values() for name in lines))
    grid = panels(figure, len(found))
    for axes, (panel, lines) in zip(grid, found.items(), strict=True):
        for name, logit_NL in lines.items():
            layer_L = np.arange(1, logit_NL.shape[1] + 1)
            look = view_style(names.index(name)) | {"markersize": 3.5}
            axes.plot(layer_L, np.median(logit_NL, 0), label=name, **look)
        for limit, line in LIMITS.items():
            axes.axhline(limit, color=ACCENT, linestyle=line, linewidth=1.1, label=f"{limit:g}")
        axes.axvspan(2.5, 4.5, color="#EDEDED", zorder=0)
        axes.set(title=panel, yscale="log", xlabel="layer")
        axes.label_outer()
    figure.supylabel("magnitude (nats), median over seeds", fontsize=10.5)
    legend(figure, grid[0])


@dataclass(frozen=True)
class LossOverRate:
    """The validation loss over the learning rate: a panel per name, a line per group of arms.

    A loss above `worst` is drawn as that.
    """

    caption: str
    panels: Mapping[str, Mapping[str, str]]  # groups by the name of the line, by panel
    rates: Sequence[str]
    worst: float
    measure: str = "loss/val"

    def draw(self, table: pd.DataFrame, findings: Findings) -> Figure:
        found: dict[str, dict[str, np.ndarray]] = {}
        for panel, lines in self.panels.items():
            for name, group in lines.items():
                points = [
                    (float(rate), loss_N.mean(), loss_N.std())
                    for rate in self.rates
                    if len(loss_N := self.losses(table, f"{group}, rate {rate}"))
                ]
                if points:
                    found.setdefault(panel, {})[name] = np.array(points)
        if not found:
            raise NothingToDrawError("no arm of this picture was run")
        return draw_losses(found, self.worst)

    def losses(self, table: pd.DataFrame, arm: str) -> np.ndarray:
        return table.loc[table["arm"] == arm, self.measure].clip(upper=self.worst).to_numpy()


@styled
def draw_losses(
    figure: Figure, found: Mapping[str, Mapping[str, np.ndarray]], worst: float
) -> None:
    title(figure, "Validation loss over the learning rate")
    names = list(dict.fromkeys(name for lines in found.values() for name in lines))
    grid = panels(figure, len(found))
    rates = sorted({p for lines in found.values() for one in lines.values() for p in one[:, 0]})
    for axes, (panel, lines) in zip(grid, found.items(), strict=True):
        for name, point_A3 in lines.items():
            rate_A, mean_A, spread_A = point_A3.T
            look = view_style(names.index(name)) | {"markersize": 4}
            axes.errorbar(rate_A, mean_A, yerr=spread_A, capsize=2, label=name, **look)
        axes.axhline(worst, color=MUTED, linestyle=":", linewidth=1)
        axes.set(title=panel, xscale="log", xlabel="learning rate")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=90)
        axes.xaxis.minorticks_off()
        axes.label_outer()
    figure.supylabel("nats per byte, mean and deviation", fontsize=10.5)
    legend(figure, grid[0])
