"""Samplers by name."""

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from inspect import signature
from typing import Any

import optuna
from hydra.utils import instantiate
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler

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


def build_sampler(
    sampler: Any, options: Mapping[str, Any], seed: int | None, *, stream: int = 0
) -> BaseSampler:
    """The sampler called `sampler`, or built from a node with a `_target_`.

    Each `stream` is another sequence of random numbers: a study that goes on would get its first
    trials again from the first one.
    """
    if isinstance(sampler, Mapping):
        return instantiate(dict(sampler))
    if sampler == "grid":
        return optuna.samplers.RandomSampler()  # for form's sake: all points wait in the queue
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
