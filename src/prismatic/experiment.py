"""One training, whole: a configuration becomes objects, is trained, and can be loaded again."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint, ProgressBar

from prismatic.config.checks import check, check_ranks, objectives, pinned
from prismatic.config.paths import in_sweep
from prismatic.data import Task
from prismatic.errors import one_of, require
from prismatic.files import write_text
from prismatic.models import RoutedModel
from prismatic.run_folder.contents import (
    CHECKPOINTS,
    METRICS,
    earlier_part,
    read_checkpoint,
    read_run,
    require_resumable,
    require_same_data,
)
from prismatic.run_folder.recording import choice_tags, record, run_name
from prismatic.run_folder.summary import report_cost, report_strength, summarise
from prismatic.tracking import UNSENT, objective_metric
from prismatic.tracking.logger import MLflowLogger
from prismatic.training import EndTogether, Learner, Objectives, Optimization, TaskData

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a configuration describes."""

    task: Task
    model: RoutedModel
    learner: Learner
    data: TaskData
    trainer: pl.Trainer
    logger: MLflowLogger | None


def build_model(config: DictConfig, vocab_size: int, seq_len: int) -> RoutedModel:
    """The model alone, initialised from the global random state."""
    taken = get_class(config.router._target_).option_names()  # type: ignore[attr-defined]
    for key in config.router:
        if not str(key).startswith("_"):
            one_of("router key", str(key), taken)
    router = instantiate(config.router)
    return instantiate(config.model, vocab_size=vocab_size, seq_len=seq_len, router=router)


def build_logger(
    config: DictConfig, run_dir: Path, tags: Mapping[str, str] | None = None
) -> MLflowLogger | None:
    """The logger that a configuration describes, if any; it writes nothing before its first use.

    `tags` are further ones of the run.
    """
    if not config.logger or config.trainer.fast_dev_run:
        return None
    tags = choice_tags(config) | dict(tags or {})
    name = config.logger.get("run_name") or run_name(tags)
    return instantiate(config.logger, tags=tags, run_name=name, spool=run_dir / UNSENT)


def build(
    config: DictConfig,
    run_dir: Path,
    logger: MLflowLogger | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> Parts:
    """Turn a composed configuration into objects. Seeds the global random state.

    `callbacks` come after those of the configuration. Without a `logger` the run has none.
    """
    check(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    task: Task = instantiate(config.data)
    optim: Optimization = instantiate(config.optim)
    model = build_model(config, task.vocab_size, task.seq_len)
    learner = Learner(model, task, optim, instantiate(config.loss))
    configured = [instantiate(node) for node in config.callbacks.values() if node is not None]
    callbacks = [*configured, *callbacks, EndTogether()]
    options = config.trainer.copy()
    OmegaConf.set_struct(options, False)
    compiled = options.pop("compile", False)  # a run of before it was there has none
    trainer = instantiate(
        options,
        callbacks=callbacks,
        logger=logger or False,
        default_root_dir=str(run_dir),
        # Lightning adds its own where there is none: callbacks=none means none.
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
    )
    check_ranks(trainer, optim.batch_size, in_sweep())
    if compiled:
        learner.compile_training(trainer.strategy)
    data = TaskData(task, optim.batch_size, config.seed)
    return Parts(task, model, learner, data, trainer, logger)


def train(
    config: DictConfig,
    run_dir: Path,
    logger: MLflowLogger | None = None,
    callbacks: Sequence[pl.Callback] = (),
) -> dict[str, float]:
    """Train once and return the last metrics, which are also left in `run_dir`.

    With `resume=auto`, and as a trial that a sweep runs again, it goes on from its own checkpoint.
    A training that fails ends the logger's run as failed; one that does not leaves it open, since
    more may follow.
    """
    try:
        parts = build(config, run_dir, logger, callbacks)
        checkpoint, limit = config.ckpt_path, parts.trainer.max_steps
        again, alone = config.get("resume") == "auto", parts.trainer.world_size == 1
        require(alone or not again, "resume", "auto", "with several processes give a ckpt_path")
        if alone and checkpoint is None and (again or in_sweep()):
            checkpoint, metrics = earlier_part(run_dir, config)
            if again and metrics is not None:
                log.info(f"{run_dir} holds the finished run: remove the folder to train anew")
                if logger is not None:
                    logger.log_metrics(metrics, max(limit, 0))
                return metrics
        if checkpoint is not None:
            require_resumable(Path(checkpoint), parts.learner.state_dict(), limit)
            require_same_data(parts.task.manifest, Path(checkpoint).parent.parent)
        record(config, run_dir, parts.task, model=parts.model, logger=logger)
        report_strength(parts.model, logger)
        row, batch_size = parts.task.train_batch(0, 1, config.seed), config.optim.batch_size
        report_cost(parts.model, row, trainer=parts.trainer, batch_size=batch_size)
        begun = time.perf_counter()
        parts.trainer.fit(parts.learner, parts.data, ckpt_path=checkpoint, weights_only=True)
        metrics = {name: float(value) for name, value in parts.trainer.callback_metrics.items()}
        metrics["time/fit"] = time.perf_counter() - begun
    except BaseException:
        if logger is not None:
            logger.finalize("failed")
        raise
    if parts.trainer.is_global_zero:
        write_text(run_dir / METRICS, json.dumps(metrics, indent=2) + "\n")
    return metrics


def conclude(
    config: DictConfig, metrics: Mapping[str, float], logger: MLflowLogger | None
) -> float | dict[str, float]:
    """The objective among a run's metrics, or several by name; the logger's run ends with them."""
    try:
        for name in objectives(config):
            one_of("objective", name, tuple(sorted(metrics)))
    except ValueError:
        if logger is not None:
            logger.finalize("failed")
        raise
    values = {name: metrics[name] for name in objectives(config)}
    if logger is not None:
        renamed = {objective_metric(name): value for name, value in values.items()}
        logger.log_metrics({name: v for name, v in renamed.items() if name not in values})
        logger.finalize("success")
    return metrics[config.objective] if isinstance(config.objective, str) else values


def run(config: DictConfig, run_dir: str | Path) -> float | dict[str, float]:
    """Train what a configuration describes and return its objective, or objectives by name.

    Writes checkpoints, the resolved configuration, the data's manifest and the last metrics to
    `run_dir`, and the same with code state and versions to the logger. Raises `ValueError` for a
    configuration that cannot be, `DivergedError` for a loss that is not finite.
    """
    run_dir, config = Path(run_dir), pinned(config)
    logger = build_logger(config, run_dir)
    metrics = train(config, run_dir, logger, [Objectives(objectives(config))])
    summarise(metrics, run_dir, logger)
    return conclude(config, metrics, logger)


def load(run_dir: str | Path, checkpoint: str = "best") -> tuple[RoutedModel, DictConfig]:
    """Rebuild a finished run: its model in evaluation mode, and its resolved configuration.

    `checkpoint` is `best` (lowest validation loss) or `last`. Raises `FileNotFoundError` or
    `ValueError` for a folder that is no run. Nothing is unpickled but tensors and plain containers.
    """
    run_dir = Path(run_dir)
    config, manifest = read_run(run_dir)
    one_of("checkpoint", checkpoint, ("best", "last"))
    state = read_checkpoint(run_dir / CHECKPOINTS / f"{checkpoint}.ckpt")["state_dict"]
    with torch.random.fork_rng(devices=[]):
        model = build_model(config, manifest["vocab_size"], manifest["seq_len"])
    model.load_state_dict(
        {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}
    )
    return model.eval(), config
