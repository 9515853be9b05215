"""The runs of a sweep as a tidy table, which every other account of it is computed from."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from hydra_plugins.prismatic_optuna.configurations import REPLICATE, is_replicate
from hydra_plugins.prismatic_optuna.study import (
    CONFIG,
    load_study,
    objectives,
    read_trials,
    search_space,
    short_reason,
    state_of,
)
from prismatic.config.paths import absolute
from prismatic.run_folder.contents import read_metrics, seed_folder

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial
    from pandas import DataFrame

FACTS = ("trial", "state", "reason", "folder", "seconds")  # the first columns


def results(sweep_dir: str | Path) -> "DataFrame":
    """A finished or running sweep as a tidy pandas frame, with a row for each run.

    A trial of several seeds is as many runs. Columns: `trial`, `state` (complete, pruned, failed,
    lost, retried, running, waiting), `reason` (of its end, one line), `folder` (below the sweep's),
    `seconds` (of the trial), the searched parameters, `seed`, and every last metric. Raises
    `FileNotFoundError` or `ValueError` for a folder that is no sweep of this project's sweeper.
    """
    folder = absolute(sweep_dir)
    study = load_study(folder)
    config = OmegaConf.load(folder / CONFIG)
    assert isinstance(config, DictConfig)
    return read_runs(study, config, folder)


def read_runs(study: "Study", config: DictConfig, folder: Path) -> "DataFrame":
    """The same from what a sweep has at hand; `config` is that of the sweep."""
    from pandas import DataFrame

    trials, names = read_trials(study), objectives(study)
    rows = [row for trial in trials for row in rows_of(trial, names, config, folder)]
    first = [*FACTS, *parameters(study), REPLICATE, *names]
    columns = dict.fromkeys([*first, *(key for row in rows for key in row)])
    return DataFrame(rows, columns=list(columns))


def parameters(study: "Study") -> list[str]:
    """What is searched, as a run's configuration calls it; a seed is none of it."""
    return [name.lstrip("+") for name in search_space(study) if not is_replicate(name)]


def rows_of(
    trial: "FrozenTrial", names: list[str], config: DictConfig, folder: Path
) -> Iterator[dict[str, Any]]:
    """The runs of a trial; `names` are those of the objectives."""
    attrs, state = trial.user_attrs, state_of(trial)
    facts = {
        "trial": trial.number,
        "state": state,
        "reason": short_reason(trial),
        "folder": attrs.get("folder"),
        "seconds": trial.duration.total_seconds() if trial.duration else None,
        **{key.lstrip("+"): value for key, value in trial.params.items()},
    }
    place = folder / attrs["folder"] if "folder" in attrs else None
    seeds = config.get("seeds")
    if not seeds:
        known = dict(zip(names, trial.values or (), strict=False))
        metrics = (read_metrics(place) if place else {}) | attrs.get("metrics", {}) | known
        yield {REPLICATE: config.get(REPLICATE, 0), **facts, **metrics}
        return
    for seed in seeds:
        own = place and seed_folder(place, seed)
        metrics = read_metrics(own) if own else {}
        run = {**facts, REPLICATE: seed, "folder": own and str(own.relative_to(folder)), **metrics}
        if state == "complete" and not metrics:
            run |= {"state": "failed", "reason": "this seed diverged"}
        yield run
