"""Ending trials early: what they report while they run, and the rules that judge it.

A job appends lines {"step": 10, "values": {"loss": 1.5}} to `progress.jsonl` in its folder, and
ends when a file `stop` appears there, which holds the reason. A value whose name begins with
`alarm/` says that the job has gone wrong.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, SuccessiveHalvingPruner
from optuna.study import Study, StudyDirection
from optuna.trial import Trial, TrialState

from .study import PROGRESS, is_feasible

log = logging.getLogger(__name__)

PRUNERS: dict[str, type[BasePruner]] = {
    "median": MedianPruner,
    "asha": SuccessiveHalvingPruner,
    "hyperband": HyperbandPruner,
}
ALARM = "alarm/"


class Progress:
    """The lines that a running job has added since the last look, each step once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read, self._step = 0, -1

    def new(self) -> list[tuple[int, dict[str, float]]]:
        """(step, values) of complete lines with a step above all before."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                whole = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._read += len(whole[0]) + len(whole[1])
        return [entry for line in whole[0].splitlines() if (entry := self._entry(line))]

    def _entry(self, line: bytes) -> tuple[int, dict[str, float]] | None:
        try:
            entry = json.loads(line)
            step = int(entry["step"])
            values = {str(k): _float(v) for k, v in entry["values"].items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            log.warning("%s: a line is not {step, values}: %r", self.path, line[:200])
            return None
        if step <= self._step:
            return None
        self._step = step
        return step, values


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def storable(values: Mapping[str, float]) -> dict[str, float | str]:
    """The values for a user attribute: JSON proper has no NaN."""
    return {name: v if math.isfinite(v) else str(v) for name, v in values.items()}


class PruningRule(Protocol):
    def __call__(self, trial: Trial, step: int, values: Mapping[str, float]) -> str | None:
        """The reason to prune the trial after this step, or None."""


def no_rule(trial: Trial, step: int, values: Mapping[str, float]) -> None:
    """Every trial goes on."""


def guard(values: Mapping[str, float]) -> str | None:
    """Always on: a trial with an alarm, or a value that is not finite, has nothing more to tell."""
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    alarms = [name for name in values if name.startswith(ALARM)]
    return ", ".join([*alarms, *bad]) or None


class ByPruner:
    """One of Optuna's own pruners, for one objective."""

    def __init__(self, objective: str, name: str) -> None:
        self.objective, self.name = objective, name

    def __call__(self, trial: Trial, step: int, values: Mapping[str, float]) -> str | None:
        if self.objective not in values:
            return None
        trial.report(values[self.objective], step)
        if not trial.should_prune():
            return None
        return f"{self.name}: {self.objective}={values[self.objective]:g} at step {step}"


class Dominated:
    """Most other trials were better in every objective at the same step.

    Feasible trials count, complete or running. A trial that would stand on the front with the
    values it has now is never pruned. Intermediate values stay user attributes: Optuna's own ones
    make the next ask of TPE crash in a study of several objectives.
    """

    def __init__(
        self,
        study: Study,
        objectives: Sequence[str],
        share: float = 0.5,
        n_startup_trials: int = 5,
        n_warmup_steps: int = 0,
    ) -> None:
        """More than `share` of at least `n_startup_trials` others, from `n_warmup_steps` on."""
        if not 0 < share <= 1:
            raise ValueError(f"pruning: share={share}; give a number above 0, up to 1")
        self.study, self.objectives = study, list(objectives)
        self.share, self.startup, self.warmup = share, n_startup_trials, n_warmup_steps
        up = [d is StudyDirection.MAXIMIZE for d in study.directions]
        self.signs = np.where(up, -1.0, 1.0)

    def __call__(self, trial: Trial, step: int, values: Mapping[str, float]) -> str | None:
        own = self._vector(values)
        if own is None or step < self.warmup:
            return None
        others = [t for t in self.study.get_trials(deepcopy=False) if t.number != trial.number]
        ends = [t for t in others if t.state is TrialState.COMPLETE and is_feasible(t)]
        if not any(_dominates(self.signs * t.values, own) for t in ends):
            return None
        going = [t for t in others if t.state is TrialState.RUNNING]
        at_step = [self._vector(t.user_attrs.get(f"{PROGRESS}{step}")) for t in [*ends, *going]]
        peers = [vector for vector in at_step if vector is not None]
        worse = sum(_dominates(peer, own) for peer in peers)
        if len(peers) < self.startup or worse <= self.share * len(peers):
            return None
        return f"dominated at step {step} by {worse} of {len(peers)} trials"

    def _vector(self, values: Mapping[str, Any] | None) -> np.ndarray | None:
        if not values or not all(name in values for name in self.objectives):
            return None
        return self.signs * [float(values[name]) for name in self.objectives]


def _dominates(first: np.ndarray, second: np.ndarray) -> bool:
    return bool((first <= second).all() and (first < second).any())


def split(pruning: Any) -> tuple[str | None, dict[str, Any]]:
    """The rule's name and its options, from a name or a mapping with the key `rule`."""
    options = dict(pruning) if isinstance(pruning, Mapping) else {"rule": pruning}
    return options.pop("rule", None), options


def pruner_of(pruning: Any, objectives: Sequence[str], count: int) -> BasePruner | None:
    """Optuna's pruner, for the rules that are Optuna's. ValueError for a rule that cannot work."""
    name, options = split(pruning)
    if name is None and not options:
        return None
    if name != "dominated" and name not in PRUNERS:
        raise ValueError(f"pruning={name!r}: give null, dominated, {' or '.join(PRUNERS)}")
    if not objectives:
        raise ValueError(f"pruning={name} reads metrics by name: give hydra.sweeper.objectives")
    if name == "dominated":
        return None
    if count > 1:
        raise ValueError(f"pruning={name} knows one objective: give dominated for {count}")
    try:
        return PRUNERS[name](**options)
    except TypeError as error:
        raise ValueError(f"pruning={name}: {error}") from None


def rule_of(pruning: Any, study: Study, objectives: Sequence[str]) -> PruningRule:
    name, options = split(pruning)
    if name is None:
        return no_rule
    if name in PRUNERS:
        return ByPruner(objectives[0], name)
    try:
        return Dominated(study, objectives, **options)
    except TypeError as error:
        raise ValueError(f"pruning=dominated: {error}") from None
