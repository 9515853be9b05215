"""How a sweep stands: its worth in a number, a line about it, a table of the best, and pictures.

Shapes: K trials, M objectives.
"""

import logging
import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from warnings import catch_warnings, simplefilter

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hydra_plugins.prismatic_optuna.study import (
    best_trials,
    finished_trials,
    is_feasible,
    number,
    objectives,
    search_space,
)
from prismatic.tracking import SCORE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

FIRST = 10  # trials that the reference is taken from
MOST_PARAMETERS = 6  # that one picture has room for


def signs(study: Study) -> Floats:
    """What turns values into losses, of which less is better, and back (M,)."""
    return np.where([d is StudyDirection.MAXIMIZE for d in study.directions], -1.0, 1.0)


def compute_reference(study: Study) -> Floats | None:
    """The point (M,) from which hypervolume is measured; None before there is a result.

    0 for a score, of anything else the worst value among the first ten results. So a hypervolume
    never shrinks, and soon grows by better trials alone.
    """
    complete = [t for t in finished_trials(study) if t.state is TrialState.COMPLETE][:FIRST]
    if not complete:
        return None
    worst_M = (signs(study) * [trial.values for trial in complete]).max(0)
    score_M = [name.startswith(SCORE) for name in objectives(study)]
    return np.where(score_M, 0.0, signs(study) * worst_M)


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


def compute_worth(
    study: Study, trials: Iterable[FrozenTrial], reference_M: Floats | None = None
) -> float:
    """What trials are worth together: the best value, or the hypervolume; NaN without any.

    Those that are not complete and feasible count for nothing. The reference is the study's own
    unless another one is given.
    """
    reference_M = compute_reference(study) if reference_M is None else reference_M
    values = [t.values for t in trials if t.state is TrialState.COMPLETE and is_feasible(t)]
    if reference_M is None or not values:
        return math.nan
    sign_M = signs(study)
    losses_KM = np.unique(sign_M * values, axis=0)
    if len(sign_M) == 1:
        return float(sign_M[0] * losses_KM.min())
    beaten_K = [((losses_KM <= own_M).all(1)).sum() > 1 for own_M in losses_KM]  # not by itself
    return compute_hypervolume(losses_KM[~np.array(beaten_K)], sign_M * reference_M)


def summary(study: Study) -> str:
    """The best, or the size of the front and its hypervolume; empty before there is one."""
    best = best_trials(study)
    if not best:
        return ""
    if len(study.directions) == 1:
        return f"best {objectives(study)[0]}={number(best[0].value)} (trial {best[0].number})"
    return f"{len(best)} on the front, hypervolume {number(compute_worth(study, best))}"


def table(study: Study, count: int) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the front or the best trials: trial, objectives, parameters."""
    searched = list(search_space(study))
    rows = [
        [str(trial.number), *map(number, trial.values)]
        + [number(trial.params.get(name, "")) for name in searched]
        for trial in best_trials(study, count)
    ]
    return ["trial", *objectives(study), *searched], rows


def describe_distribution(distribution: BaseDistribution) -> str:
    """What a parameter may be, in a few words."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    bounds: Any = distribution
    text = f"{bounds.low:g} to {bounds.high:g}"
    text += ", logarithmic" if bounds.log else ""
    return text + (f" in steps of {bounds.step:g}" if bounds.step not in (None, 1) else "")


def draw_pictures(study: Study) -> dict[str, bytes]:
    """Optuna's pictures of a study as PNGs by file name, in the look of this project's own."""
    import matplotlib.style
    from matplotlib import pyplot

    from prismatic.report.style import STYLE, png

    pyplot.switch_backend("agg")  # no window, whatever the environment asks for
    look = patch.dict(matplotlib.style.library, ggplot=STYLE)  # the style that Optuna asks for
    drawn = {}
    with catch_warnings(), look, matplotlib.rc_context(STYLE):
        simplefilter("ignore")  # that they are experimental, or an axis has one value
        logging.getLogger("matplotlib.category").setLevel(logging.WARNING)
        for name, draw in pictures(study).items():
            figure = draw()
            drawn[name] = png(figure)
            pyplot.close(figure)
    return drawn


def pictures(study: Study) -> "dict[str, Callable[[], Figure]]":
    """What draws the history, the parameters and, of several objectives, the front."""
    names = objectives(study)
    if not any(t.state is TrialState.COMPLETE for t in study.get_trials(deepcopy=False)):
        return {"history.png": partial(draw_nothing, study)}
    drawn: dict[str, Callable[[], Figure]] = {"history.png": partial(draw_history, study)}
    for i, name in enumerate(names):
        suffix = f"_{i + 1}" if i else ""
        drawn[f"parameters{suffix}.png"] = partial(draw_parameters, study, i, name)
    if len(names) in (2, 3):  # Optuna draws no more
        drawn["front.png"] = partial(draw_front, study)
    return drawn


def draw_nothing(study: Study) -> "Figure":
    from matplotlib import pyplot

    from prismatic.report.style import explain

    figure = pyplot.figure()
    explain(figure, f"{study.study_name}: no trial is complete yet")
    return figure


def draw_history(study: Study) -> "Figure":
    """The best value, or the hypervolume, after each trial."""
    from optuna.visualization.matplotlib import plot_hypervolume_history, plot_optimization_history

    names, reference_M = objectives(study), compute_reference(study)
    axes: Any
    if reference_M is None or len(names) == 1:
        axes = plot_optimization_history(study, target_name=names[0])
        axes.set_title(f"{names[0]} of each trial, and the best so far")
        axes.legend(loc="best")  # Optuna puts it outside
    else:
        axes = plot_hypervolume_history(study, list(reference_M))
        axes.set_title("hypervolume of the front after each trial")
    axes.locator_params(axis="x", integer=True)
    return axes.figure


def draw_parameters(study: Study, objective: int, name: str) -> "Figure":
    """An objective over the searched parameters, of which six find room."""
    from matplotlib.ticker import NullFormatter
    from optuna.visualization.matplotlib import plot_slice

    complete = [t for t in study.get_trials(deepcopy=False) if t.state is TrialState.COMPLETE]
    tried = list(dict.fromkeys(key for trial in complete for key in trial.params))
    panels: Any = plot_slice(
        study,
        tried[:MOST_PARAMETERS],
        target=lambda trial: trial.values[objective],
        target_name=name,
    )
    figure = np.ravel(panels)[0].figure
    shown = f"{MOST_PARAMETERS} of {len(tried)} parameters" if tried[MOST_PARAMETERS:] else ""
    figure.suptitle(f"{name} over {shown or 'the parameters'}", x=0.01, ha="left")
    for axes in np.ravel(panels):
        axes.set_title("")
        if axes.get_xscale() == "log":
            axes.xaxis.set_minor_formatter(NullFormatter())  # its numbers cover one another
    return figure


def draw_front(study: Study) -> "Figure":
    """All trials, and the front with its trials' numbers."""
    from optuna.visualization.matplotlib import plot_pareto_front

    better = {"MINIMIZE": "less", "MAXIMIZE": "more"}
    names = [
        f"{name} ({better[d.name]} is better)"
        for name, d in zip(objectives(study), study.directions, strict=True)
    ]
    axes: Any = plot_pareto_front(study, target_names=names)
    front = best_trials(study)
    for trial in front:
        place = dict(zip(("x", "y", "z"), trial.values, strict=False))
        axes.text(*place.values(), f" {trial.number}", fontsize=9, va="bottom")
    axes.set_title(f"front: {len(front)} trials")
    return axes.figure
