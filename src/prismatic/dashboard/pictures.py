"""Pictures of a sweep: what it searched and found, and what its runs on several seeds say.

Optuna draws what it can, in the look of this project's own pictures.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from warnings import catch_warnings, simplefilter

import numpy as np
import optuna
from optuna.study import Study
from optuna.trial import TrialState

from hydra_plugins.prismatic_optuna.configurations import best_configurations, is_replicate
from hydra_plugins.prismatic_optuna.study import objectives, pairs, search_space

from .knobs import LIMITS, METHODS, compute_effects, compute_importance, most_important
from .ranking import MOST_ROWS, is_repeated
from .runs import parameters
from .standing import compute_reference

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

MOST_PARAMETERS = 6  # that one picture has room for
MOST_EFFECTS = 16  # of each kind
READINGS = {
    "seeds": "A dot is a run on one seed, the mark the mean with its 95 % interval. Where the dots "
    "of two configurations mix, their order is chance's.",
    "history": "A dot is a trial. A line that has been flat for long has found what it can find.",
    "front": "No other trial beats one of the front in all objectives. Chance helps each of its "
    "points: on fresh seeds the front recedes.",
    "effects": "Left: what a value of one factor adds to the mean of all. Right: what two values "
    "add together beyond that. An interval that holds 0 may be chance; each is right in 95 % of "
    "cases by itself, so among many a few miss.",
    "importance": LIMITS,
    "parameters": "Every trial at its value of each parameter; later ones are darker. What its "
    "other parameters were is hidden here.",
    "contour": "The two parameters that PED-ANOVA puts first. Between the dots it is interpolated, "
    "and far from them nothing is known.",
    "parallel": "A line is a trial. Where the good ones run together, that parameter matters; "
    "where they spread, it does not.",
}  # by the picture's name without a number


Drawings = dict[str, "Callable[[], Figure]"]


def draw_pictures(drawings: Drawings) -> dict[str, bytes]:
    """The pictures as PNGs, by their names."""
    import matplotlib.style
    from matplotlib import pyplot

    from prismatic.report.style import STYLE, png

    pyplot.switch_backend("agg")  # no window, whatever the environment asks for
    look = patch.dict(matplotlib.style.library, ggplot=STYLE)  # the style that Optuna asks for
    drawn = {}
    with catch_warnings(), look, matplotlib.rc_context(STYLE), quiet_optuna():
        simplefilter("ignore")  # that they are experimental, or an axis has one value
        logging.getLogger("matplotlib.category").setLevel(logging.WARNING)
        for name, draw in drawings.items():
            figure = draw()
            drawn[name] = png(figure)
            pyplot.close(figure)
    return drawn


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without its warnings of what the pictures show: that no trial is feasible yet, say."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def progress_drawings(study: Study, runs: "DataFrame", ranking: "DataFrame") -> Drawings:
    """What is worth drawing while a sweep runs: the seeds or the search so far, and the front."""
    found: Drawings = {}
    if not ranking.empty and is_repeated(ranking):
        found["seeds"] = partial(draw_seeds, study, runs, ranking)
    if ranking.empty or not any(map(is_replicate, search_space(study))):
        found["history"] = partial(draw_history, study)
    if len(study.directions) in (2, 3) and not ranking.empty:  # Optuna draws no more
        found["front"] = partial(draw_front, study)
    return found


def knob_drawings(study: Study, runs: "DataFrame") -> Drawings:
    """Which parameter matters: the effects of a grid that is whole, or a search's importances.

    Those of a second objective have its number behind their names.
    """
    names = objectives(study)
    numbered = {f"_{i + 1}" if i else "": i for i in range(len(names))}
    effects = [compute_effects(study, runs, name) for name in names]
    if all(map(len, effects)):
        return {
            f"effects{suffix}": partial(draw_effects, effects[i], names[i])
            for suffix, i in numbered.items()
        }
    found: Drawings = {}
    importance = compute_importance(study)
    if len(importance):
        found["importance"] = partial(draw_importance, importance)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    searched = [name for name in search_space(study) if not is_replicate(name)]
    varied = [name for name in searched if len({t.params.get(name) for t in complete}) > 1]
    for suffix, i in numbered.items() if varied else ():
        found[f"parameters{suffix}"] = partial(draw_parameters, study, varied, i)
        if len(importance):
            two = most_important(importance, names[i])
            found[f"contour{suffix}"] = partial(draw_contour, study, two, i)
            found[f"parallel{suffix}"] = partial(draw_parallel, study, varied, i)
    return found


def draw_nothing(study: Study) -> "Figure":
    from matplotlib import pyplot

    from prismatic.report.style import explain

    figure = pyplot.figure()
    explain(figure, f"{study.study_name}: no trial is complete yet")
    return figure


def draw_seeds(study: Study, runs: "DataFrame", ranking: "DataFrame") -> "Figure":
    """The best configurations: a dot per seed, the mean and its interval; a panel per objective."""
    from matplotlib import pyplot

    from prismatic.report.style import ACCENT, MUTED, plain, title

    shown = ranking.head(MOST_ROWS).to_dict("records")
    names, complete = objectives(study), runs[runs["state"] == "complete"]
    figure = pyplot.figure(figsize=(8, 1.6 + 0.42 * len(shown)))
    grid = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(grid, names, strict=True):
        for y, row in enumerate(shown):
            own = complete[complete["trial"].isin(list(map(int, row["trials"].split())))]
            axes.plot(own[name], [y] * len(own), "o", color=MUTED, alpha=0.7, markersize=5)
            axes.plot(row[name], y, "D", color=ACCENT, markersize=6)
            axes.plot([row.get(f"{name}:low"), row.get(f"{name}:high")], [y, y], color=ACCENT)
        axes.set(xlabel=plain(name))
    labels = [plain(pairs({p: row[p] for p in parameters(study)})) for row in shown]
    grid[0].set_yticks(
        range(len(shown)),
        [label.replace(" ", "\n", 1) if len(label) > 40 else label for label in labels],
    )
    grid[0].invert_yaxis()
    more = f", the best {len(shown)} of {len(ranking)}" if len(ranking) > len(shown) else ""
    title(figure, f"Configurations over their seeds{more}")
    return figure


def draw_effects(effects: "DataFrame", objective: str) -> "Figure":
    """Main effects, and the largest interactions, with intervals."""
    from matplotlib import pyplot

    from prismatic.report.style import ACCENT, plain, title

    kinds = {"one factor": 1, "two factors beyond that": 2}
    parts = {kind: effects[effects["order"] == order] for kind, order in kinds.items()}
    parts = {kind: part for kind, part in parts.items() if len(part)}
    tallest = min(max(map(len, parts.values())), MOST_EFFECTS)
    figure = pyplot.figure(figsize=(5.2 * len(parts), 1.6 + 0.36 * tallest))
    grid = figure.subplots(1, len(parts), sharex=True, squeeze=False)[0]
    for axes, (kind, part) in zip(grid, parts.items(), strict=True):
        largest = part["estimate"].abs().nlargest(MOST_EFFECTS).index
        rows = part[part.index.isin(largest)].to_dict("records")
        for y, row in enumerate(rows):
            axes.plot([row["low"], row["high"]], [y, y], color=ACCENT)
            axes.plot(row["estimate"], y, "o", color=ACCENT)
        axes.axvline(0, color="#222222", linewidth=0.8)
        axes.set_yticks(
            range(len(rows)), [plain(row["effect"]).replace(" x ", " x\n") for row in rows]
        )
        axes.invert_yaxis()
        axes.set(title=kind, xlabel=plain(f"added to {objective}"))
        axes.locator_params(axis="x", nbins=5)
    title(figure, f"Effects on {plain(objective)}")
    return figure


def draw_importance(importance: "DataFrame") -> "Figure":
    """Shares of each parameter by both methods; a panel per objective."""
    from matplotlib import pyplot

    from prismatic.report.style import COLOURS, plain, title

    names = list(importance["objective"].unique())
    height = 0.5 + importance["parameter"].nunique() * 0.5
    figure = pyplot.figure(figsize=(8, 1.4 + height))
    grid = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(grid, names, strict=True):
        part = importance[importance["objective"] == name]
        for k, method in enumerate(METHODS):
            place = np.arange(len(part)) + 0.2 * (2 * k - 1)
            axes.barh(place, part[method], 0.38, label=method, color=COLOURS[k + 1])
        axes.set_yticks(np.arange(len(part)), list(map(plain, part["parameter"])))
        axes.set(xlabel=plain(f"share for {name}"), xlim=(0, 1))
    grid[0].invert_yaxis()
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    title(figure, "Which parameter matters?")
    return figure


def draw_history(study: Study) -> "Figure":
    """The best value, or the hypervolume, after each trial."""
    from optuna.visualization.matplotlib import plot_hypervolume_history, plot_optimization_history

    names, reference_M = objectives(study), compute_reference(study)
    if reference_M is None:
        return draw_nothing(study)
    axes: Any
    if len(names) == 1:
        axes = plot_optimization_history(study, target_name=names[0])
        axes.set_title(f"{names[0]} of each trial, and the best so far")
        axes.legend(loc="best")  # Optuna puts it outside
    else:
        axes = plot_hypervolume_history(study, list(reference_M))
        axes.set_title("hypervolume of the front after each trial")
    axes.locator_params(axis="x", integer=True)
    return axes.figure


def target_of(study: Study, objective: int) -> dict[str, Any]:
    """What Optuna's pictures of one objective are given."""
    return {"target": lambda t: t.values[objective], "target_name": objectives(study)[objective]}


def draw_parameters(study: Study, varied: list[str], objective: int) -> "Figure":
    """An objective over the searched parameters, of which six find room."""
    from matplotlib.ticker import NullFormatter
    from optuna.visualization.matplotlib import plot_slice

    target = target_of(study, objective)
    panels: Any = plot_slice(study, varied[:MOST_PARAMETERS], **target)
    figure = np.ravel(panels)[0].figure
    figure.set_size_inches(2.0 + 1.8 * len(np.ravel(panels)), 3.4)
    more = f"{MOST_PARAMETERS} of {len(varied)} parameters" if varied[MOST_PARAMETERS:] else ""
    figure.suptitle(f"{target['target_name']} over {more or 'the parameters'}", x=0.01, ha="left")
    for axes in np.ravel(panels):
        axes.set_title("")
        if axes.get_xscale() == "log":
            axes.xaxis.set_minor_formatter(NullFormatter())  # its numbers cover one another
    return figure


def draw_contour(study: Study, two: list[str], objective: int) -> "Figure":
    """An objective over two parameters."""
    from optuna.visualization.matplotlib import plot_contour

    target = target_of(study, objective)
    axes: Any = plot_contour(study, two, **target)
    axes.set_title(f"{target['target_name']} over {' and '.join(two)}")
    return axes.figure


def draw_parallel(study: Study, varied: list[str], objective: int) -> "Figure":
    """A line per trial through its parameters and an objective."""
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    target = target_of(study, objective)
    axes: Any = plot_parallel_coordinate(study, varied, **target)
    axes.set_title(f"{target['target_name']} and the parameters of each trial")
    axes.figure.set_size_inches(max(8.0, 1.5 * len(varied)), 4.6)
    return axes.figure


def draw_front(study: Study) -> "Figure":
    """All trials, and the front with its trials' numbers."""
    from optuna.visualization.matplotlib import plot_pareto_front

    better = {"MINIMIZE": "less", "MAXIMIZE": "more"}
    names = [
        f"{name} ({better[d.name]} is better)"
        for name, d in zip(objectives(study), study.directions, strict=True)
    ]
    axes: Any = plot_pareto_front(study, target_names=names)
    front = best_configurations(study)
    for one in front:
        place = dict(zip(("x", "y", "z"), one.values, strict=False))
        axes.text(*place.values(), f" {one.complete[0].number}", fontsize=9, va="bottom")
    axes.set_title(f"front: {len(front)} configurations")
    return axes.figure
