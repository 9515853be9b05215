"""What a study compares: configurations, of which trials that differ in their seed are replicates.

The best is the best mean. A seed's luck is no merit of the configuration that it was tried with.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .study import is_finished, read_trials

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

REPLICATE = "seed"  # what repeats a configuration and is none of its parameters


@dataclass(frozen=True, eq=False)
class Configuration:
    """What was tried, and the finished trials that tried it, one of them complete at least.

    `values` are the means of the complete ones, as are the distances to its constraints, by which
    it is `feasible`. A configuration that is not `sound` has failed or was pruned on some seed.
    """

    params: dict[str, Any]
    trials: list["FrozenTrial"]
    values: list[float]
    feasible: bool
    sound: bool

    @property
    def complete(self) -> list["FrozenTrial"]:
        return [trial for trial in self.trials if trial.state.name == "COMPLETE"]


def is_replicate(name: str) -> bool:
    """Is the searched parameter of this name a seed?"""
    return name.lstrip("+") == REPLICATE


def key_of(params: Mapping[str, Any]) -> str:
    """The same text for the same configuration; JSON tells 1 from true."""
    own = {name: value for name, value in params.items() if not is_replicate(name)}
    return json.dumps(own, sort_keys=True)


def configurations(trials: Iterable["FrozenTrial"]) -> list[Configuration]:
    """The configurations that have a result, in the order of their first trials."""
    groups: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        if is_finished(trial) and "reused" not in trial.user_attrs:
            groups.setdefault(key_of(trial.params), []).append(trial)
    found = []
    for group in groups.values():
        complete = [trial for trial in group if trial.state.name == "COMPLETE"]
        if not complete:
            continue
        values = [trial.values for trial in complete]
        distances = [list(trial.constraints.values()) for trial in complete]
        params = {k: v for k, v in complete[0].params.items() if not is_replicate(k)}
        found.append(
            Configuration(
                params, group,
                values=[fmean(column) for column in zip(*values, strict=True)],
                feasible=all(fmean(column) <= 0 for column in zip(*distances, strict=True)),
                sound=len(complete) == len(group),
            )
        )  # fmt: skip
    return found


def candidates(found: Sequence[Configuration]) -> list[Configuration]:
    """Those that may be the best: feasible and sound; where none is sound, all feasible ones."""
    feasible = [one for one in found if one.feasible]
    return [one for one in feasible if one.sound] or feasible


def ranked(study: "Study") -> tuple[list[Configuration], int]:
    """All configurations, the best first, and how many of them are the best.

    Of one objective that is one; of several it is the front, by its first objective.
    """
    import numpy as np

    found = configurations(read_trials(study))
    signs = [-1.0 if d.name == "MAXIMIZE" else 1.0 for d in study.directions]
    loss_CM = np.array([c.values for c in found]).reshape(len(found), len(signs)) * signs
    fit = set(candidates(found))
    fit_C = np.array([c in fit for c in found], dtype=bool)
    best_C = fit_C.copy()
    for i in np.flatnonzero(fit_C):
        others_CM = loss_CM[fit_C]
        better = (others_CM <= loss_CM[i]).all(1) & (others_CM < loss_CM[i]).any(1)
        best_C[i] = not better.any()
    order = sorted(range(len(found)), key=lambda i: (not best_C[i], not fit_C[i], *loss_CM[i]))
    count = int(best_C.sum())
    return [found[i] for i in order], count if len(signs) > 1 else min(count, 1)


def best_configurations(study: "Study") -> list[Configuration]:
    """The best configuration, or the front; empty where none is complete and feasible."""
    found, count = ranked(study)
    return found[:count]
