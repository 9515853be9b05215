"""How a study stands: its trials as data for pictures, the leaders, one line about them."""

import json
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    json_to_distribution,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hydra_plugins.prismatic_optuna._reading import best_trials, is_finished, names_of

from .front import Trials, compute_front, compute_worth


def objectives(study: Study) -> list[str]:
    """The names of the objectives."""
    return names_of(study, study.user_attrs["question"]["objectives"])


def space(study: Study) -> dict[str, BaseDistribution]:
    """What the study searches."""
    params = study.user_attrs["question"]["params"]
    return {name: json_to_distribution(json.dumps(node)) for name, node in params.items()}


def ended(study: Study) -> list[FrozenTrial]:
    """The finished trials in the order in which they ended."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if is_finished(trial)]
    return sorted(trials, key=lambda trial: (trial.datetime_complete, trial.number))


def trials_of(study: Study) -> Trials:
    """The study as pictures take it."""
    names, trials = objectives(study), ended(study)
    values = [t.values if t.state is TrialState.COMPLETE else [np.nan] * len(names) for t in trials]
    return Trials(
        objectives=tuple(names),
        maximise_M=np.array([d is StudyDirection.MAXIMIZE for d in study.directions]),
        number_T=tuple(trial.number for trial in trials),
        values_TM=np.array(values, dtype=np.float64).reshape(-1, len(names)),
        feasible_T=np.array([feasible(trial) for trial in trials], dtype=np.bool_),
        params_T=tuple(trial.params for trial in trials),
        logarithmic=frozenset(n for n, d in space(study).items() if getattr(d, "log", False)),
    )


def feasible(trial: FrozenTrial) -> bool:
    """Whether a trial keeps to its constraints."""
    return all(distance <= 0 for distance in trial.constraints.values())


def leaders(study: Study, count: int) -> list[FrozenTrial]:
    """The front by its first objective; of one objective the best `count` trials."""
    if len(study.directions) > 1:
        return sorted(best_trials(study), key=lambda trial: trial.values[0])
    done = [t for t in ended(study) if t.state is TrialState.COMPLETE and feasible(t)]
    downwards = study.direction is StudyDirection.MAXIMIZE
    return sorted(done, key=lambda trial: trial.value or 0.0, reverse=downwards)[:count]


def summary(study: Study) -> str:
    """The best, or the size of the front and its hypervolume; empty before there is one."""
    names, first = objectives(study), leaders(study, 1)
    if not first:
        return ""
    if len(names) == 1:
        return f"best {names[0]}={number(first[0].value)} (trial {first[0].number})"
    trials = trials_of(study)
    volume = compute_worth(trials, trials.losses_TM[compute_front(trials)])
    return f"{len(first)} on the front, hypervolume {number(volume)}"


def table(study: Study, count: int) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the leaders: trial, objectives, parameters."""
    names, searched = objectives(study), list(space(study))
    rows = [
        [str(trial.number), *map(number, trial.values)]
        + [number(trial.params.get(name, "")) for name in searched]
        for trial in leaders(study, count)
    ]
    return ["trial", *names, *searched], rows


def number(value: Any) -> str:
    """A value as a table shows it."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def described(distribution: BaseDistribution) -> str:
    """What a parameter may be, in a few words."""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    bounds: Any = distribution
    text = f"{bounds.low:g} to {bounds.high:g}"
    text += ", logarithmic" if bounds.log else ""
    return text + (f" in steps of {bounds.step:g}" if bounds.step not in (None, 1) else "")
