"""The plugin as Hydra sees it. Hydra imports this file at every start: Optuna waits for `sweep`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

DIRECTIONS = ("minimize", "maximize")
RANKS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID")


@dataclass
class Options:
    """The keys of `hydra.sweeper`. A ValueError names a bad value, what is valid, what to do."""

    # tpe, gp, nsgaii, nsgaiii, random, qmc, cmaes, grid; or a node with a _target_.
    sampler: Any = "tpe"
    sampler_options: dict[str, Any] = field(default_factory=dict)  # Optuna's own arguments
    seed: int | None = None  # with one job at a time, the same seed gives the same search

    direction: Any = "minimize"  # or maximize, or a list of them
    objectives: list[str] = field(default_factory=list)  # metrics, aligned with direction
    constraints: dict[str, float] = field(default_factory=dict)  # metric: upper bound

    # Null is the file study.journal in the sweep's folder; else journal:///path,
    # sqlite:///file, postgresql://..., or a node with a _target_.
    storage: Any = None
    study_name: str | None = None  # null: the name of the sweep's folder
    shared: bool = False  # several sweeps may work on one study in a database

    n_trials: int = 20  # the study's total, over all its sweeps
    n_jobs: Any = "${oc.select:hydra.launcher.n_jobs,1}"
    params: dict[str, Any] = field(default_factory=dict)  # override: what follows its "="
    enqueue: list[Any] = field(default_factory=list)  # mappings of parameters, asked first

    # null, dominated, median, hyperband; or a mapping with `rule` and the rule's options.
    pruning: Any = None
    grace_seconds: float = 60.0  # from asking a trial to stop to killing it
    max_retries: int = 2  # of a trial that was lost with its process
    max_failure_rate: float = 0.5  # of the trials that end in this sweep
    callbacks: Any = field(default_factory=list)  # nodes with a _target_, see callback.py

    def __post_init__(self) -> None:
        given = self.direction
        self.direction = [given] if isinstance(given, str) else list(given)
        wrong = [name for name in self.direction if name not in DIRECTIONS]
        if wrong or not self.direction:
            raise ValueError(
                f"direction={given!r}: give {' or '.join(DIRECTIONS)}, or a list of them"
            )
        self._check_names()
        self._check_numbers()
        database = str(self.storage).partition(":")[0] not in ("None", "journal")
        if self.shared and not database and not isinstance(self.storage, Mapping):
            raise ValueError(
                f"shared=true with storage={self.storage!r}: several sweeps on one study need a "
                "database; give storage=postgresql://user@host/name"
            )

    def _check_names(self) -> None:
        if self.objectives and len(self.objectives) != len(self.direction):
            raise ValueError(
                f"objectives={self.objectives!r} has {len(self.objectives)} names, "
                f"direction={self.direction!r} has {len(self.direction)}: give one for each"
            )
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives={self.objectives!r}: name each metric once")

    def _check_numbers(self) -> None:
        if self.n_trials < 1:
            raise ValueError(f"n_trials={self.n_trials}: it is the study's total, 1 or more")
        if self.n_jobs is not None and not isinstance(self.n_jobs, int):
            raise ValueError(
                f"n_jobs={self.n_jobs!r}: give a whole number; below 1 stands for all cores"
            )
        if self.max_retries < 0:
            raise ValueError(f"max_retries={self.max_retries}: give 0 or more")
        if not 0 <= self.max_failure_rate <= 1:
            raise ValueError(
                f"max_failure_rate={self.max_failure_rate}: give a share from 0 (the first "
                "failure ends the sweep) to 1 (none does)"
            )


@dataclass
class OptunaSweeperConf(Options):
    _target_: str = "hydra_plugins.prismatic_optuna.sweeper.OptunaSweeper"
    _recursive_: bool = False  # nodes with a _target_ are built when the sweep begins
    _convert_: str = "all"


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="prismatic_optuna",
    node=OptunaSweeperConf,
    provider="prismatic_optuna",
)


def refuse_ranks() -> None:
    """Raise in a process that a distributed run started: its rank 0 sweeps already."""
    for name in RANKS:
        if os.environ.get(name, "0") not in ("", "0"):
            raise HydraException(
                f"a sweep was started with {name}={os.environ[name]}: each rank would search on "
                "its own. Start the sweep as one plain process; its trials start their ranks."
            )


class OptunaSweeper(Sweeper):
    """Searches with Optuna; options as in `Options`."""

    hydra_context: HydraContext
    config: DictConfig

    def __init__(self, **options: Any) -> None:
        self.given = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        refuse_ranks()
        self.options = Options(**self.given)  # here its errors reach the user as they are
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the study to its total; `arguments` are the overrides of the command line."""
        from ._search import search
        from ._space import Space

        loader = self.hydra_context.config_loader
        space = Space.parse(self.options.params, arguments, loader)
        self.validate_batch_is_legal(space.examples())
        sweep_dir = Path(self.config.hydra.sweep.dir).absolute()
        sweep_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, sweep_dir / "multirun.yaml")
        search(self.options, space, self.config, self.launcher)
