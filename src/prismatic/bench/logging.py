"""What logging costs a training step: one training whose steps take turns between ways to log."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytorch_lightning as pl
from hydra import compose
from omegaconf import open_dict
from pytorch_lightning.loggers import Logger, MLFlowLogger
from pytorch_lightning.loggers.logger import DummyLogger

from prismatic.experiment import build
from prismatic.tracking.logger import MLflowLogger

from .paired import compare, table

WARM_UP = 5  # rounds


@dataclass(frozen=True)
class Way:
    """A way to log: a logger, given metrics through Lightning's connector or directly."""

    logger: Logger | None
    connected: bool = True


def ways(folder: Path) -> dict[str, Way]:
    """`none` logs nothing; `connector` is Lightning's own part, before a logger that does nothing.

    `prismatic` is this project's logger and `stock` Lightning's, each with a sqlite store that is
    open already; `direct` is this project's past the connector.
    """
    stores = {name: f"sqlite:///{folder}/{name}.db" for name in ("direct", "prismatic", "stock")}
    found = {
        "none": Way(None),
        "connector": Way(DummyLogger()),
        "direct": Way(MLflowLogger(stores["direct"]), connected=False),
        "prismatic": Way(MLflowLogger(stores["prismatic"])),
        "stock": Way(MLFlowLogger(tracking_uri=stores["stock"])),
    }
    for way in found.values():
        if way.logger is not None:
            _ = way.logger.version
    return found


class Turns(pl.Callback):
    """Gives every step to the next way of logging, and times it from its start to the next's."""

    def __init__(self, ways: Sequence[Way], num_metrics: int) -> None:
        self.ways, self.num_metrics = ways, num_metrics
        self.seconds: list[float] = []
        self.begun: float | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.begun is not None:
            self.seconds.append(time.perf_counter() - self.begun)
        self.way = self.ways[trainer.global_step % len(self.ways)]
        logger = self.way.logger if self.way.connected else None
        trainer.loggers = [] if logger is None else [logger]
        self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        value = float(trainer.global_step)
        metrics = {f"bench/{k}": value for k in range(self.num_metrics)}
        if trainer.loggers:
            pl_module.log_dict(metrics)
        elif self.way.logger is not None:
            self.way.logger.log_metrics(metrics, trainer.global_step)


def step_seconds(
    overrides: Sequence[str], num_metrics: int, rounds: int
) -> tuple[list[str], np.ndarray]:
    """Names of the ways to log, and seconds of a step: (rounds, ways)."""
    config = compose("train", overrides=["logger=none", "callbacks=none", *overrides])
    with TemporaryDirectory() as folder:
        choices = ways(Path(folder))
        with open_dict(config):
            config.objective = "loss/train"
            config.trainer.update(
                {
                    "max_steps": (WARM_UP + rounds) * len(choices) + 1,
                    "log_every_n_steps": 1,
                    "limit_val_batches": 0,
                }
            )
        parts = build(config, Path(folder))
        turns = Turns(list(choices.values()), num_metrics)
        parts.trainer.callbacks.append(turns)  # type: ignore[attr-defined]
        parts.trainer.fit(parts.learner, parts.data)
    return list(choices), np.reshape(turns.seconds, (-1, len(choices)))[WARM_UP:]


def bench(overrides: Sequence[str], num_metrics: int, rounds: int) -> tuple[dict[str, Any], str]:
    """Time the default training's steps; each is compared with the one that logs nothing."""
    names, seconds_RC = step_seconds(overrides, num_metrics, rounds)
    rows = compare(names, seconds_RC)
    title = f"{num_metrics} metrics at every step, {rounds} rounds; per step, beside no logging"
    return {"num_metrics": num_metrics, "rounds": rounds, "cases": rows}, table(title, rows)
