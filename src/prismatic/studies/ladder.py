"""Pictures of losses on tables P(x, y, z): what can be known of z, and what models reach.

Shapes: X, Y the two tokens, Z what is predicted, N seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prismatic.report.style import (
    ACCENT,
    COLOURS,
    MUTED,
    SIZE,
    panels,
    plain,
    styled,
    title,
    view_style,
)

# What each rung is called, and how its line looks: the floor is the one that stands out.
RUNGS: dict[str, dict[str, Any]] = {
    "H(Z)": {"color": MUTED, "linestyle": ":", "linewidth": 1.4},
    "H(Z|X)": {"color": MUTED, "linestyle": "--", "linewidth": 1.2},
    "H(Z|Y)": {"color": MUTED, "linestyle": "-.", "linewidth": 1.2},
    "additive floor": {"color": "black", "linestyle": "-", "linewidth": 2.6},
    "H(Z|X,Y)": {"color": ACCENT, "linestyle": "-", "linewidth": 1.4},
}
NAMES = {"H(Z|X,Y)": "Bayes loss H(Z|X,Y)"}
ROW = 0.3  # inches
Ladder = Mapping[str, float]


@styled
def draw_design(
    figure: Figure, tables: Mapping[str, np.ndarray], ladders: Mapping[str, Ladder]
) -> None:
    """The likeliest z of every pair of tokens, a panel per task, above the task's exact losses."""
    columns = min(5, len(tables))
    rows = -(-len(tables) // columns)
    figure.set_size_inches(1.2 + 2.0 * columns, 0.7 + 3.0 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    title(figure, "The tasks: likeliest z by the two tokens, and what can be known of it (nats)")
    for axes, (name, joint_XYZ) in zip(grid, tables.items(), strict=False):
        axes.imshow(joint_XYZ.argmax(2), origin="lower")
        show_uneven(axes, joint_XYZ.sum(2))
        ladder = ladders[name]
        lines = [f"{NAMES.get(rung, rung)}  {ladder[rung]:.3f}" for rung in RUNGS]
        axes.set(title=plain(name), xticks=[], yticks=[], ylabel="token x")
        axes.set_xlabel("token y\n" + "\n".join(lines), size=9)
        axes.grid(False)
    for spare in grid[len(tables) :]:
        spare.remove()


def show_uneven(axes: Axes, weight_XY: np.ndarray) -> None:
    """A circle at every pair, its area the pair's probability, where these are not all alike."""
    if np.ptp(weight_XY) > 1e-9:
        x_C, y_C = np.indices(weight_XY.shape).reshape(2, -1)
        area_C = 400 * (weight_XY / weight_XY.max()).ravel() / len(weight_XY)
        axes.scatter(y_C, x_C, area_C, color="white", edgecolors="black", linewidths=0.8)


@styled
def draw_ladder(
    figure: Figure,
    ladders: Mapping[str, Ladder],
    losses: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
    """A ladder of known losses per task, and beside it a dot per seed of each kind of model."""
    figure.set_size_inches(max(SIZE[0], 1.15 * len(ladders)), 5.4)
    axes = figure.subplots()
    title(figure, "What can be known of z, and the exact loss of each seed")
    kinds = list(dict.fromkeys(kind for found in losses.values() for kind in found))
    for place, (task, ladder) in enumerate(ladders.items()):
        for rung, look in RUNGS.items():
            axes.plot([place - 0.42, place + 0.42], [ladder[rung]] * 2, **look)
        for kind, loss_N in losses[task].items():
            k = kinds.index(kind)
            centre = place + 0.44 * (k - (len(kinds) - 1) / 2)
            axes.plot(spread(len(loss_N), centre), loss_N, **dots(k))
    axes.set_xticks(range(len(ladders)), [plain(task).replace(" ", "\n") for task in ladders])
    axes.tick_params(axis="x", labelsize=9)
    axes.grid(visible=False, axis="x")
    axes.set(ylabel="loss (nats)", ylim=(-0.06, None))
    known = [Line2D([], [], **look, label=NAMES.get(rung, rung)) for rung, look in RUNGS.items()]
    found = [Line2D([], [], **dots(k), label=f"{plain(kind)}") for k, kind in enumerate(kinds)]
    figure.legend(handles=[*known, *found], loc="outside lower center", ncols=4)


@styled
def draw_variants(
    figure: Figure, losses: Mapping[str, Sequence[float]], ladder: Ladder, heading: str
) -> None:
    """A row per model on one task, a dot per seed, beside the floor and the Bayes loss."""
    figure.set_size_inches(SIZE[0], 1.7 + ROW * len(losses))
    axes = figure.subplots()
    title(figure, plain(heading))
    for rung in ("additive floor", "H(Z|X,Y)"):
        axes.axvline(ladder[rung], **RUNGS[rung], label=NAMES.get(rung, rung))
    place = np.arange(len(losses))[::-1]
    for y, loss_N in zip(place, losses.values(), strict=True):
        axes.plot(loss_N, spread(len(loss_N), y), **dots(1))
    axes.set_yticks(place, [plain(name) for name in losses])
    axes.set_ylim(-0.7, len(losses) - 0.3)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("exact loss after training (nats)")
    figure.legend(loc="outside lower center", ncols=2)


@styled
def draw_escapes(figure: Figure, steps: Mapping[str, Sequence[float]], total: float) -> None:
    """The share of seeds that are below the floor by each of `total` steps; infinite is never."""
    axes = figure.subplots()
    title(figure, "When losses fall below the additive floor (by more than .01 nats)")
    for k, (name, step_N) in enumerate(steps.items()):
        passed = np.sort([step for step in step_N if np.isfinite(step)])
        share = np.arange(len(passed) + 1) / len(step_N)
        look = {**view_style(k), "marker": None}
        x = [1, *np.maximum(passed, 1), total]
        axes.step(x, [*share, share[-1]], where="post", **look, label=plain(name))
    first = min(step for step_N in steps.values() for step in [*step_N, total])
    axes.set(
        xscale="log", xlim=(max(1, 0.7 * first), 1.05 * total), ylim=(-0.03, 1.03),
        xlabel="step", ylabel="share of seeds below the floor",
    )  # fmt: skip
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)


@styled
def draw_pairs(figure: Figure, tables: Mapping[str, np.ndarray], heading: str, unit: str) -> None:
    """A heat map over pairs of tokens per name, from 0 to 1."""
    title(figure, plain(heading))
    grid = panels(figure, len(tables))
    columns = -(-len(grid) // -(-len(grid) // 4))
    figure.set_size_inches(SIZE[0], 0.6 + (0.6 + 6.6 / columns) * (len(grid) // columns))
    for axes, (name, table_XY) in zip(grid, tables.items(), strict=False):
        image = axes.imshow(table_XY, vmin=0, vmax=1, origin="lower")
        axes.set(xlabel="token y", ylabel="token x", title=plain(name))
        axes.grid(False)
        axes.label_outer()
    figure.colorbar(image, ax=grid, label=unit, shrink=0.8)


def spread(size: int, centre: float) -> np.ndarray:
    """Places of dots side by side."""
    return centre + (np.linspace(-0.16, 0.16, size) if size > 1 else np.zeros(1))


def dots(kind: int) -> dict[str, Any]:
    """Open circles, filled squares, filled triangles: apart in print, too."""
    face = "white" if kind == 0 else COLOURS[kind % len(COLOURS)]
    return {
        "linestyle": "none", "marker": "os^D"[kind % 4], "markersize": 4.5,
        "color": COLOURS[kind % len(COLOURS)], "markerfacecolor": face, "alpha": 0.8,
    }  # fmt: skip
