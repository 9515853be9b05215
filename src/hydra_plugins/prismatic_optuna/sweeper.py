"""The plugin as Hydra sees it. Hydra imports this file at every start: Optuna waits for `sweep`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from .options import SweeperOptions

RANKS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID")


@dataclass
class OptunaSweeperConf(SweeperOptions):
    _target_: str = "hydra_plugins.prismatic_optuna.sweeper.OptunaSweeper"
    _recursive_: bool = False  # nodes with a _target_ are built when the sweep begins
    _convert_: str = "all"


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="prismatic_optuna",
    node=OptunaSweeperConf,
    provider="prismatic_optuna",
)


class OptunaSweeper(Sweeper):
    """Searches with Optuna; options as in `SweeperOptions`."""

    hydra_context: HydraContext
    config: DictConfig

    def __init__(self, **options: Any) -> None:
        self.given = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        refuse_ranks()
        self.options = SweeperOptions(**self.given)  # here its errors reach the user as they are
        self.hydra_context, self.config = hydra_context, config
        fix_sweep_dir(config)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the study to its total; `arguments` are the overrides of the command line."""
        from ._search import search
        from ._space import Space

        loader = self.hydra_context.config_loader
        grid = self.options.sampler == "grid"
        space = Space.parse(self.options.params, arguments, loader=loader, grid=grid)
        self.validate_batch_is_legal(space.examples())
        search(self.options, space, self.config, loader=loader, launcher=self.launcher)


def refuse_ranks() -> None:
    """Raise in a process that a distributed run started: its rank 0 sweeps already."""
    for name in RANKS:
        if os.environ.get(name, "0") not in ("", "0"):
            raise HydraException(
                f"a sweep was started with {name}={os.environ[name]}: each rank would search on "
                "its own. Start the sweep as one plain process; its trials start their ranks."
            )


def fix_sweep_dir(config: DictConfig) -> None:
    """Decide the sweep's folder once, for jobs that are composed by any launcher, too."""
    hydra, folder = config.hydra, str(Path(config.hydra.sweep.dir).absolute())
    with read_write(hydra), open_dict(hydra):
        hydra.sweep.dir = folder
        written = QuotedString(folder, Quote.single).with_quotes()
        hydra.overrides.hydra.append(f"hydra.sweep.dir={written}")
