"""Pictures of routing over trips: the course of it, and periodicity beside success."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prismatic.report.missing import NothingToDrawError
from prismatic.report.style import COLOURS, MARKERS, MUTED, legend, panels, styled, title

from .oscillation import points
from .spec import Findings
from .unrolled import ALPHA, BURN_IN


@dataclass(frozen=True)
class Courses:
    """The clean view's mean weight over the trips of an unrolled model: a panel per arm."""

    caption: str
    of: Sequence[str]
    trained: int  # trips that the model was trained with

    def draw(self, table: pd.DataFrame, findings: Findings) -> Figure:
        sound = table[table["diverged"] == 0]
        arms = [arm for arm in self.of if (sound["arm"] == arm).any()]
        if not arms:
            raise NothingToDrawError("no arm of this picture has a run that did not diverge")
        return draw_courses(sound, arms, self.trained)


@styled
def draw_courses(figure: Figure, sound: pd.DataFrame, arms: Sequence[str], trained: int) -> None:
    title(figure, "Routing over the trips of the unrolled model")
    count = sum(str(name).startswith("oscillation/trip_") for name in sound.columns)
    trips = range(1, count + 1)
    columns = [f"oscillation/trip_{t}" for t in trips]
    for axes, arm in zip(panels(figure, len(arms)), arms, strict=False):
        for row in sound.loc[sound["arm"] == arm, columns].to_numpy():
            axes.plot(trips, row, color="black", linewidth=0.9, alpha=0.6)
        axes.axvspan(1, BURN_IN, color="#EDEDED", zorder=0)
        axes.axvline(trained, color=MUTED, linestyle="--", linewidth=1)
        axes.set_title(arm.replace(", ", "\n"), fontsize=8.5)
        axes.label_outer()
    figure.supxlabel("trip (dashed: trained so far; grey: dropped before testing)", fontsize=10.5)
    figure.supylabel("weight of the clean view, a line per seed", fontsize=10.5)


@dataclass(frozen=True)
class PeriodicityAndSuccess:
    """The share of periodic sequences beside the loss: a point per configuration, by blocks."""

    caption: str
    blocks: Mapping[str, Sequence[str]]
    measure: str
    outcome: str

    def draw(self, table: pd.DataFrame, findings: Findings) -> Figure:
        found = points(table, self.blocks, self.measure, self.outcome)
        if found.empty:
            raise NothingToDrawError("no configuration was measured")
        return draw_points(found, self.measure, self.outcome)


@styled
def draw_points(figure: Figure, found: pd.DataFrame, measure: str, outcome: str) -> None:
    title(figure, "Periodic routing and success, a point per configuration")
    axes: Axes = figure.subplots()
    for k, (name, block) in enumerate(found.groupby("block", sort=False)):
        axes.scatter(
            block[outcome], block[measure], s=44, alpha=0.8, label=name,
            color=COLOURS[k], marker=MARKERS[k],
        )  # fmt: skip
    axes.axhline(
        ALPHA, color=MUTED, linestyle="--", linewidth=1, label="noise with a memory, at most"
    )
    axes.set(xlabel="validation loss (nats per byte)", ylabel="share of sequences with a period")
    axes.set_ylim(-0.02, 1.02)
    legend(figure, axes)
