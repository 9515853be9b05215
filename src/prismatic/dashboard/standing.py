"""How a sweep stands: its worth in a number, and a line about it.

Shapes: K trials, M objectives.
"""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hydra_plugins.prismatic_optuna.configurations import candidates, configurations
from hydra_plugins.prismatic_optuna.results import describe_best
from hydra_plugins.prismatic_optuna.study import finished_trials, number, objectives, read_trials
from prismatic.tracking import SCORE

Floats = NDArray[np.float64]

FIRST = 10  # trials that the reference is taken from


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

    Those that differ in their seed count with their mean, and what is not complete and feasible for
    nothing. The reference is the study's own unless another one is given.
    """
    reference_M = compute_reference(study) if reference_M is None else reference_M
    values = [one.values for one in candidates(configurations(trials))]
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
    best = describe_best(study)
    if not best or len(study.directions) == 1:
        return best
    worth = compute_worth(study, read_trials(study))
    return f"{best}, hypervolume {number(worth)}"


def describe_distribution(distribution: BaseDistribution) -> str:
    """What a parameter may be, in a few words."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    bounds: Any = distribution
    text = f"{bounds.low:g} to {bounds.high:g}"
    text += ", logarithmic" if bounds.log else ""
    return text + (f" in steps of {bounds.step:g}" if bounds.step not in (None, 1) else "")
