"""A sweep in pictures: the front, the way there, and what the parameters have to do with it.

Shapes: T trials, M objectives, K points.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from prismatic.report.style import ACCENT, MUTED, STYLE, explain, styled
from prismatic.tracking import SCORE

FIRST = 10  # trials that the reference is taken from
PANELS = 6  # parameters that one picture has room for
NOTHING = "no trial is complete and feasible yet"
FEASIBLE, INFEASIBLE = "a trial", "infeasible"
LOOKS: dict[str, dict[str, Any]] = {
    INFEASIBLE: {"s": 24, "facecolors": "none", "edgecolors": MUTED},
    FEASIBLE: {"s": 24, "color": MUTED},
    "front": {"s": 42, "color": ACCENT, "zorder": 3},
    "best": {"s": 42, "color": ACCENT, "zorder": 3},
}

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Trials:
    """The finished trials of a sweep, in the order in which they ended."""

    objectives: tuple[str, ...]
    maximise_M: Bools
    number_T: tuple[int, ...]
    values_TM: Floats  # NaN for a trial without a result
    feasible_T: Bools
    params_T: tuple[Mapping[str, Any], ...]
    logarithmic: frozenset[str] = frozenset()  # parameters searched on a logarithmic scale

    @property
    def sign_M(self) -> Floats:
        """What turns values into losses, of which less is better, and back."""
        return np.where(self.maximise_M, -1.0, 1.0)

    @property
    def losses_TM(self) -> Floats:
        """The values with such signs."""
        return self.sign_M * self.values_TM

    @property
    def complete_T(self) -> Bools:
        """Which have a result."""
        return np.all(np.isfinite(self.values_TM), axis=1)


def compute_front(trials: Trials) -> list[int]:
    """Indices of the complete and feasible trials that none beats, by their first objective.

    A trial is beaten by one that is no worse in every objective and better in one.
    """
    candidates = np.flatnonzero(trials.complete_T & trials.feasible_T)
    losses_KM = trials.losses_TM[candidates]
    best = [int(i) for i in candidates if not beating(losses_KM, trials.losses_TM[i]).any()]
    return sorted(best, key=lambda i: trials.values_TM[i, 0])


def beating(losses_KM: Floats, own_M: Floats) -> Bools:
    """Which of the losses (K,) dominate a trial's own."""
    return np.all(losses_KM <= own_M, axis=1) & np.any(losses_KM < own_M, axis=1)


def compute_reference(trials: Trials) -> Floats | None:
    """The point (M,) from which hypervolume is measured; None before there is a result.

    0 for a score (see `prismatic.metrics`), of anything else the worst value among the first ten
    results. So a hypervolume never shrinks, and soon grows by better trials alone.
    """
    losses_KM = trials.losses_TM[trials.complete_T][:FIRST]
    if not len(losses_KM):
        return None
    score_M = [name.startswith(SCORE) for name in trials.objectives]
    return np.where(score_M, 0.0, trials.sign_M * losses_KM.max(0))


def compute_hypervolume(losses_KM: Floats, reference_M: Floats) -> float:
    """The volume of what the points dominate, up to the reference; less is better throughout.

    Exact: slices along the last objective, whose faces are volumes of one dimension less.
    """
    losses_KM = losses_KM[(losses_KM < reference_M).all(1)]
    if not len(losses_KM):
        return 0.0
    if len(reference_M) == 1:
        return float(reference_M[0] - losses_KM.min())
    losses_KM = losses_KM[losses_KM[:, -1].argsort()]
    edges = [*losses_KM[:, -1], reference_M[-1]]
    return sum(
        (high - low) * compute_hypervolume(losses_KM[: i + 1, :-1], reference_M[:-1])
        for i, (low, high) in enumerate(pairwise(edges))
        if high > low
    )


def compute_worth(trials: Trials, losses_KM: Floats) -> float:
    """What trials are worth together: the best value, or the hypervolume; NaN without any."""
    reference_M = compute_reference(trials)
    if reference_M is None or not len(losses_KM):
        return math.nan
    if len(reference_M) == 1:
        return float(trials.sign_M[0] * losses_KM.min())
    return compute_hypervolume(losses_KM, trials.sign_M * reference_M)


def compute_history(trials: Trials) -> Floats:
    """What the front was worth after each trial (T,); NaN before the first feasible result."""
    history_T = np.full(len(trials.number_T), np.nan)
    front_KM = np.empty((0, len(trials.objectives)))
    candidate_T = trials.complete_T & trials.feasible_T
    worth = math.nan
    for i, own_M in enumerate(trials.losses_TM):
        if candidate_T[i] and not beating(front_KM, own_M).any():
            kept_KM = [other_M for other_M in front_KM if not beating(own_M[None], other_M)]
            front_KM = np.array([*kept_KM, own_M])
            worth = compute_worth(trials, front_KM)
        history_T[i] = worth
    return history_T


def compute_outline(trials: Trials, front: Sequence[int]) -> Floats:
    """The polygon (K, 2) of what a front of two objectives dominates; it begins and ends at the
    reference."""
    reference_M = compute_reference(trials)
    assert reference_M is not None
    end = trials.sign_M * reference_M
    points = trials.losses_TM[front]
    points = points[points[:, 0].argsort()]
    steps = [np.array([points[0, 0], end[1]]), points[0]]
    for before, after in pairwise(points):
        steps += [np.maximum(before, after), after]
    return trials.sign_M * np.array([end, *steps, [end[0], points[-1, 1]], end])


def draw_dots(axes: Axes, x: Any, y: Any, kinds: Any) -> None:
    """Trials of each kind in its look."""
    for kind, look in LOOKS.items():
        shown = [i for i, own in enumerate(kinds) if own == kind]
        if shown:
            axes.scatter([x[i] for i in shown], [y[i] for i in shown], label=kind, **look)


def kinds_of(trials: Trials) -> list[str]:
    """What each trial is in a picture; empty for one without a result."""
    front, best = compute_front(trials), "best" if len(trials.objectives) == 1 else "front"
    kinds = [FEASIBLE if ok else INFEASIBLE for ok in trials.feasible_T]
    whole = [kind if done else "" for kind, done in zip(kinds, trials.complete_T, strict=True)]
    return [best if i in front else kind for i, kind in enumerate(whole)]


@styled
def draw_history(figure: Figure, trials: Trials) -> None:
    """The best value, or the hypervolume, over the trials as they finished."""
    history_T = compute_history(trials)
    if not np.isfinite(history_T).any():
        return explain(figure, NOTHING)
    axes, ended_T, last = figure.subplots(), np.arange(1, len(history_T) + 1), history_T[-1]
    name = trials.objectives[0] if len(trials.objectives) == 1 else "hypervolume"
    if name != "hypervolume":
        draw_dots(axes, ended_T, trials.values_TM[:, 0], kinds_of(trials))
    axes.step(ended_T, history_T, where="post", color=ACCENT)
    axes.annotate(
        f"{last:.5g}", (ended_T[-1], last), xytext=(0, 7), textcoords="offset points",
        ha="right", color=ACCENT,
    )  # fmt: skip
    none_T = ended_T[~trials.complete_T]
    axes.plot(
        none_T, np.full(len(none_T), 0.015), "|", color=MUTED, label="pruned or failed",
        transform=axes.get_xaxis_transform(),
    )  # fmt: skip
    axes.set(xlabel="finished trials", ylabel=name, title=f"{name} after {len(ended_T)} trials")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best")


@styled
def draw_front(figure: Figure, trials: Trials) -> None:
    """All trials in the planes of two objectives each, the front with its trials' numbers.

    Of two objectives, the area is the hypervolume; of more than three, the first three are drawn.
    """
    front, planes = compute_front(trials), list(combinations(range(len(trials.objectives)), 2))
    if not planes:
        return explain(figure, "one objective has a best trial, no front")
    if not front:
        return explain(figure, NOTHING)
    figure.set_size_inches(7.2 if len(planes) == 1 else 15, 4.2)
    panels = figure.subplots(1, len(planes[:3]), squeeze=False)[0]
    for axes, plane in zip(panels, planes, strict=False):
        draw_plane(axes, trials, front, plane)
    if len(planes) == 1:
        outline_K2 = compute_outline(trials, front)
        panels[0].autoscale_view()  # to the trials: the reference may be far away
        panels[0].autoscale(False)
        panels[0].fill(*outline_K2.T, color=ACCENT, alpha=0.08, linewidth=0)
        panels[0].plot(*outline_K2[1:-1].T, color=ACCENT, linewidth=1.2, zorder=1)
    title = f"front: {len(front)} of {int(trials.complete_T.sum())} complete trials"
    panels[0].set_title(title)
    panels[0].legend(loc="best")


def draw_plane(axes: Axes, trials: Trials, front: Sequence[int], plane: tuple[int, int]) -> None:
    """All trials in the plane of two objectives."""
    x_T, y_T = trials.values_TM[:, plane].T
    axes.margins(0.08)
    draw_dots(axes, x_T, y_T, kinds_of(trials))
    for i in front:
        axes.annotate(
            f"{trials.number_T[i]}", (x_T[i], y_T[i]), xytext=(5, 4), size=9, zorder=4,
            textcoords="offset points",
        )  # fmt: skip
    labels = [
        f"{trials.objectives[j]} ({'more' if trials.maximise_M[j] else 'less'} is better)"
        for j in plane
    ]
    axes.set(xlabel=labels[0], ylabel=labels[1])


@styled
def draw_parameters(figure: Figure, trials: Trials) -> None:
    """Each objective over each searched parameter, of which six find room."""
    names = list(dict.fromkeys(name for params in trials.params_T for name in params))
    if not (names and trials.complete_T.any()):
        return explain(figure, "no trial is complete yet")
    rows, columns, kinds = len(trials.objectives), len(names[:PANELS]), kinds_of(trials)
    figure.set_size_inches(max(4.2, 2.6 * columns), max(3.2, 2.6 * rows))
    panels = figure.subplots(rows, columns, sharey="row", sharex="col", squeeze=False)
    for column, name in enumerate(names[:PANELS]):
        x_T = positions(panels[-1, column], trials, name)
        panels[-1, column].set_xlabel(name)
        for row in range(rows):
            draw_dots(panels[row, column], x_T, trials.values_TM[:, row], kinds)
    for row, name in enumerate(trials.objectives):
        panels[row, 0].set_ylabel(name)
    panels[0, -1].legend(loc="best")
    shown = f"{PANELS} of {len(names)} parameters" if len(names) > PANELS else "the parameters"
    figure.suptitle(f"objectives over {shown}", x=0.01, ha="left", size=STYLE["axes.titlesize"])


def positions(axes: Axes, trials: Trials, name: str) -> list[float]:
    """Where each trial stands on the axis of a parameter, which is made ready; NaN without it."""
    given = [params.get(name, math.nan) for params in trials.params_T]
    if any(x is None or isinstance(x, str | bool) for x in given):
        labels = sorted({str(x) for x in given if x is not math.nan})
        axes.set_xticks(range(len(labels)), labels, rotation=20 if len(labels) > 2 else 0)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        return [x if x is math.nan else labels.index(str(x)) for x in given]
    if name in trials.logarithmic:
        axes.set_xscale("log")
    elif all(isinstance(x, int) for x in given):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return given
