"""How a study is read: its question, and where each trial stands.

The user attributes of a study say what it asks: `question` (params, objectives, directions,
constraints), `fixed` (the overrides of every job), `total` (the trials it shall finish),
`compare_to` (the baseline's values) and `retried` (those that failed and were asked again). Those
of a trial, besides Optuna's own: `owner` (who runs it), `folder` (below the sweep's), `reason` (of
its end), `again` (lost, and not counted since its parameters are asked again), `retry_of` and
`retries`, `enqueued`, `reused` (whose result it has), `metrics`, `progress:<step>`.
"""

import json
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

PROGRESS = "progress:"
RESULTS, CONFIG = "optimization_results.yaml", "multirun.yaml"
FINISHED = ("complete", "pruned", "failed")
AGAIN = LOST, RETRIED = "lost", "retried"
STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


def load_study(folder: Path) -> "Study":
    """The study of a sweep's folder. FileNotFoundError or ValueError where there is none."""
    import optuna

    from ._storage import open_storage

    for name in (CONFIG, RESULTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}: give the folder of a sweep, such as "
                "outputs/sweeps/<study>"
            )
    storage = OmegaConf.select(OmegaConf.load(folder / CONFIG), "hydra.sweeper.storage")
    name = yaml.safe_load((folder / RESULTS).read_text(encoding="utf-8"))["study_name"]
    try:
        given = OmegaConf.to_container(storage) if OmegaConf.is_config(storage) else storage
        return optuna.load_study(study_name=name, storage=open_storage(given, folder))
    except KeyError:
        raise ValueError(f"{folder}: its storage has no study {name!r} any more") from None


def objectives(study: "Study") -> list[str]:
    """The objectives' names, or value, or value_0, value_1, ..."""
    count = len(study.directions)
    generic = ["value"] if count == 1 else [f"value_{i}" for i in range(count)]
    return study.user_attrs["question"]["objectives"] or generic


def search_space(study: "Study") -> dict[str, "BaseDistribution"]:
    """What the study searches."""
    from optuna.distributions import json_to_distribution

    params = study.user_attrs["question"]["params"]
    return {name: json_to_distribution(json.dumps(node)) for name, node in params.items()}


def read_trials(study: "Study") -> list["FrozenTrial"]:
    """All trials in order; in `again` also those that were retried, which Optuna cannot note."""
    trials = list(study.get_trials(deepcopy=False))
    for number in study.user_attrs.get(RETRIED, ()):
        trials[number] = copy(trials[number])
        trials[number].user_attrs = {**trials[number].user_attrs, "again": RETRIED}
    return trials


def is_finished(trial: "FrozenTrial") -> bool:
    """Does the trial count towards `n_trials`?"""
    return trial.state.is_finished() and not trial.user_attrs.get("again")


def is_feasible(trial: "FrozenTrial") -> bool:
    """Does it keep to its constraints?"""
    return all(distance <= 0 for distance in trial.constraints.values())


def state_of(trial: "FrozenTrial") -> str:
    """complete, pruned, failed, running or waiting; lost or retried for one that is asked again."""
    if trial.state.is_finished() and not is_finished(trial):
        return trial.user_attrs["again"]
    return STATES.get(trial.state.name, "waiting")


def count_trials(study: "Study") -> dict[str, int]:
    """Trials by their state, and under `finished` those that are complete, pruned or failed."""
    found = dict.fromkeys(["finished", *STATES.values(), *AGAIN, "waiting"], 0)
    for trial in read_trials(study):
        found[state_of(trial)] += 1
    return found | {"finished": sum(found[state] for state in FINISHED)}


def finished_trials(study: "Study") -> list["FrozenTrial"]:
    """The finished trials in the order in which they ended."""
    trials = [trial for trial in read_trials(study) if is_finished(trial)]
    return sorted(trials, key=lambda trial: (trial.datetime_complete, trial.number))


def describe(trial: "FrozenTrial", names: list[str]) -> str:
    """A finished trial in one line: number, state, values or reason, parameters."""
    done = trial.state.name == "COMPLETE"
    what = pairs(dict(zip(names, trial.values, strict=True))) if done else short_reason(trial)
    limit = "" if is_feasible(trial) else " (infeasible)"
    return f"trial {trial.number} {state_of(trial)}: {what}{limit} | {pairs(trial.params)}"


def short_reason(trial: "FrozenTrial") -> str:
    """The line of the reason that says most: a log's tail ends with the exception."""
    reason = str(trial.user_attrs.get("reason", "")).strip().partition("\nfull_key: ")[0]  # Hydra's
    lines = reason.splitlines() or [""]
    return lines[0 if state_of(trial) == LOST else -1][:300]


def pairs(values: Mapping[str, Any]) -> str:
    """Names and values in a line."""
    return " ".join(f"{key}={number(value)}" for key, value in values.items())


def number(value: Any) -> str:
    """A value as a table shows it."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
