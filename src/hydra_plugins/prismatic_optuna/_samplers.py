"""Samplers by name, and the one that Optuna's does not fit: a grid that is asked, not optimized."""

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from inspect import signature
from itertools import product
from math import prod
from typing import Any

import optuna
from hydra.utils import instantiate
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

CLASSES = {
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "nsgaii": "NSGAIISampler",
    "nsgaiii": "NSGAIIISampler",
    "random": "RandomSampler",
    "qmc": "QMCSampler",
    "cmaes": "CmaEsSampler",
}
NEEDED = {"gp": "torch", "cmaes": "cmaes"}  # imported by Optuna at the first ask


def build(
    sampler: Any,
    options: Mapping[str, Any],
    seed: int | None,
    space: Mapping[str, BaseDistribution],
    stream: int,
) -> BaseSampler:
    """The sampler called `sampler`, or built from a node with a `_target_`.

    Each `stream` is another sequence of random numbers: a study that goes on would get its first
    trials again from the first one.
    """
    if isinstance(sampler, Mapping):
        return instantiate(dict(sampler))
    if sampler == "grid":
        return Grid(space)
    if sampler not in CLASSES:
        names = ", ".join([*CLASSES, "grid"])
        raise ValueError(f"sampler={sampler!r}: give one of {names}, or a node with a _target_")
    package = NEEDED.get(sampler)
    if package and not find_spec(package):
        raise ValueError(f"sampler={sampler} needs the package {package}: pip install {package}")
    target = getattr(optuna.samplers, CLASSES[sampler])
    valid = sorted(signature(target).parameters)
    unknown = sorted(set(options) - set(valid))
    if unknown:
        raise ValueError(f"sampler_options: {sampler} takes no {unknown[0]!r}; valid: {valid}")
    # A quasi-random sequence counts its points in the study, and must stay the same one.
    further = 0 if sampler == "qmc" else stream
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # so Optuna calls half of them
        return target(**{"seed": None if seed is None else seed + further, **options})


class Grid(BaseSampler):
    """Every combination once, the last parameter fastest, as in Hydra's own grids."""

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = dict(space)
        self.levels = {name: _levels(name, d) for name, d in space.items()}

    def __len__(self) -> int:
        return prod(map(len, self.levels.values()))

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The first combination that no trial has, waits to have, or is about to get."""
        trials = study.get_trials(deepcopy=False)
        others = [t for t in trials if t.number != trial.number and not t.user_attrs.get("again")]
        known = [t.system_attrs.get("fixed_params", {}) | t.params for t in others]
        taken = {tuple(map(params.get, self.levels)) for params in known}
        points = list(product(*self.levels.values()))
        free = [point for point in points if point not in taken] or points
        # Other sweeps that ask at this moment see the same list, and take in the trials' order.
        turn = sum(
            t.state is TrialState.RUNNING and t.number < trial.number and len(params) < len(free[0])
            for t, params in zip(others, known, strict=True)
        )
        return dict(zip(self.levels, free[min(turn, len(free) - 1)], strict=True))

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self.levels[param_name][0]


def _levels(name: str, d: BaseDistribution) -> list[Any]:
    if isinstance(d, CategoricalDistribution):
        return list(d.choices)
    if isinstance(d, IntDistribution):
        return list(range(d.low, d.high + 1, d.step))
    if isinstance(d, FloatDistribution) and d.step:
        return [d.low + i * d.step for i in range(round((d.high - d.low) / d.step) + 1)]
    raise ValueError(
        f"sampler=grid: {name} varies without steps; give choice(...) or range(low, high, step)"
    )
