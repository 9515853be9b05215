"""Which knob matters: importances of a search's parameters, and effects of a grid's factors."""

from functools import partial
from itertools import product
from typing import TYPE_CHECKING
from warnings import catch_warnings, simplefilter

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from hydra_plugins.prismatic_optuna.configurations import REPLICATE, is_replicate
from hydra_plugins.prismatic_optuna.study import number, objectives, search_space

from .runs import parameters
from .standing import signs

if TYPE_CHECKING:
    from pandas import DataFrame

FEW = 10  # complete trials before an importance means anything
METHODS = FANOVA, PED_ANOVA = "fANOVA", "PED-ANOVA"
LIMITS = (
    "fANOVA: the share of all variation, over the whole space, that a parameter explains. "
    "PED-ANOVA: how much it decides if a trial is among the best tenth. Neither tells in which "
    "direction a parameter acts, what it does outside of its range, or whether the differences are "
    "more than chance between seeds."
)


def compute_importance(study: Study) -> "DataFrame":
    """A row per objective and parameter: `fANOVA` and `PED-ANOVA`, shares of 1.

    Empty with fewer than 10 complete trials, or fewer than two parameters that vary.
    """
    from optuna.importance import (
        FanovaImportanceEvaluator,
        PedAnovaImportanceEvaluator,
        get_param_importances,
    )
    from pandas import DataFrame

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    names = [
        name
        for name in search_space(study)
        if not is_replicate(name) and len({t.params.get(name) for t in complete} - {None}) > 1
    ]
    if len(complete) < FEW or len(names) < 2:
        return DataFrame()
    rows = []
    with catch_warnings():
        simplefilter("ignore")  # that they are experimental
        evaluators = (FanovaImportanceEvaluator(seed=0), PedAnovaImportanceEvaluator())
        for i, (objective, sign) in enumerate(zip(objectives(study), signs(study), strict=True)):
            found = [
                get_param_importances(
                    study, evaluator=evaluator, params=names,
                    target=partial(loss_of, objective=i, sign=sign),
                )
                for evaluator in evaluators
            ]  # fmt: skip
            for name in names:
                shares = {m: float(f[name]) for m, f in zip(METHODS, found, strict=True)}
                rows.append({"objective": objective, "parameter": name, **shares})
    return DataFrame(rows)


def loss_of(trial: FrozenTrial, objective: int, sign: float) -> float:
    """An objective of which less is better, as PED-ANOVA expects."""
    return sign * trial.values[objective]


def compute_effects(study: Study, runs: "DataFrame", objective: str) -> "DataFrame":
    """Main effects and interactions of a grid that is whole for some seed; else an empty frame.

    Columns: `effect` (a value of a parameter, or two that meet), `order` (1 or 2), `estimate` in
    the objective's unit, `low` and `high` (each a 95 % interval of its own, over the seeds for
    which the grid is whole), `seeds`. Of two values the second's stands for both: the first's is
    its opposite.
    """
    from pandas import DataFrame, MultiIndex

    from prismatic.stats import factorial_effects, t_interval

    space = {name.lstrip("+"): d for name, d in search_space(study).items()}
    names = [name for name in parameters(study) if runs[name].nunique() > 1]
    choices = [getattr(space[name], "choices", (None,)) for name in names]
    if not names or any(None in values for values in choices):  # which pandas takes for missing
        return DataFrame()
    levels = [
        [v for v in values if (runs[n] == v).any()]
        for n, values in zip(names, choices, strict=True)
    ]
    complete = runs[runs["state"] == "complete"]
    means = complete.groupby([*names, REPLICATE])[objective].mean()
    axes = [*levels, sorted(complete[REPLICATE].unique())]
    table = means.reindex(MultiIndex.from_product(axes)).to_numpy().reshape(*map(len, axes))
    whole_N = np.isfinite(table).all(tuple(range(len(levels))))
    if not whole_N.any():
        return DataFrame()
    rows = []
    for factors, effects in factorial_effects(table[..., whole_N]).items():
        sizes = [len(levels[factor]) for factor in factors]
        shown = [range(1 if size == 2 else 0, size) for size in sizes]
        for place in product(*shown):
            sample_N = effects[place]
            low, high = t_interval(sample_N) if len(sample_N) > 1 else (np.nan, np.nan)
            values = zip(factors, place, strict=True)
            effect = " x ".join(f"{names[a]}={number(levels[a][i])}" for a, i in values)
            rows.append(
                {"effect": effect, "order": len(factors), "estimate": sample_N.mean(), "low": low,
                 "high": high, "seeds": len(sample_N)}
            )  # fmt: skip
    return DataFrame(rows)


def most_important(importance: "DataFrame", objective: str, count: int = 2) -> list[str]:
    """The parameters that PED-ANOVA puts first for an objective."""
    own = importance[importance["objective"] == objective]
    return list(own.nlargest(count, PED_ANOVA)["parameter"])
