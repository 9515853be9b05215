"""The one place where a configuration becomes objects: build, run, load."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import pytorch_lightning as pl
import torch
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from prismatic.config.checks import check, check_ranks, pinned
from prismatic.config.paths import in_sweep
from prismatic.data import Task
from prismatic.errors import one_of
from prismatic.files import write_text
from prismatic.measures import diversity, over_seeds
from prismatic.models import Transformer
from prismatic.run_folder.contents import (
    CHECKPOINTS,
    METRICS,
    read_checkpoint,
    read_run,
    require_resumable,
)
from prismatic.run_folder.recording import record
from prismatic.run_folder.summary import report_strength, summarise, summarise_seeds
from prismatic.run_folder.tags import choice_tags, run_name
from prismatic.tracking import UNSENT
from prismatic.tracking.logger import MLflowLogger
from prismatic.tracking.names import final
from prismatic.training import (
    PREDICTIONS,
    STOP,
    DivergedError,
    Learner,
    Objectives,
    Optimization,
    TaskData,
    Trial,
)

EXCESS = "loss/excess"  # of the validation loss over the dense twin's
RELATIVE = "diversity/relative"  # of the views to that of as many dense models

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a configuration describes."""

    task: Task
    model: Transformer
    learner: Learner
    data: TaskData
    trainer: pl.Trainer
    logger: MLflowLogger | None


def build_model(config: DictConfig, vocab_size: int, seq_len: int) -> Transformer:
    """The model alone, initialised from the global random state."""
    taken = signature(get_class(config.router._target_)).parameters
    for key in config.router:
        if not str(key).startswith("_"):
            one_of("router key", str(key), tuple(taken))
    router = instantiate(config.router)
    return instantiate(config.model, vocab_size=vocab_size, seq_len=seq_len, router=router)


def build(
    config: DictConfig,
    run_dir: Path,
    trial: Trial | None = None,
    logger: MLflowLogger | None = None,
) -> Parts:
    """Turn a composed configuration into objects, but for those that are there already.

    Seeds the global random state.
    """
    check(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    task: Task = instantiate(config.data)
    optim: Optimization = instantiate(config.optim)
    model = build_model(config, task.vocab_size, task.seq_len)
    learner = Learner(model, task, optim, instantiate(config.loss))
    logger = logger or build_logger(config, run_dir)
    callbacks = [instantiate(node) for node in config.callbacks.values() if node is not None]
    names = [name for name in objectives(config) if name not in (EXCESS, RELATIVE)]
    callbacks.append(Objectives(names))
    if trial is not None:
        callbacks.append(trial)
    trainer = instantiate(
        config.trainer,
        callbacks=callbacks,
        logger=logger or False,
        default_root_dir=str(run_dir),
        # Lightning adds its own where there is none: callbacks=none means none.
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
    )
    check_ranks(trainer, optim.batch_size, in_sweep())
    data = TaskData(task, optim.batch_size, config.seed)
    return Parts(task, model, learner, data, trainer, logger)


def build_logger(config: DictConfig, run_dir: Path) -> MLflowLogger | None:
    """The logger that a configuration describes; it writes nothing before its first use.

    But a trial of a sweep is recorded at once, whatever becomes of it.
    """
    if not config.logger or config.trainer.fast_dev_run:
        return None
    tags = choice_tags(config)
    if in_sweep():
        tags["trial"] = str(HydraConfig.get().job.num)
    name = config.logger.get("run_name") or run_name(tags)
    logger = instantiate(config.logger, tags=tags, run_name=name, spool=run_dir / UNSENT)
    if in_sweep():
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    return logger


def run(config: DictConfig, run_dir: str | Path) -> float | dict[str, float]:
    """Train what a configuration describes and return its objective, or objectives by name.

    Writes checkpoints, the resolved configuration, the data's manifest and the last metrics to
    `run_dir`, and the same with code state and versions to the logger. With `seeds`, trains them in
    turn in folders and under metric names of their own, `seed_{k}/...`, and returns means. Raises
    `ValueError` for a configuration that cannot be, `DivergedError` for a loss that is not finite.
    """
    run_dir, config = Path(run_dir), pinned(config)
    seeds = [config.seed] if config.seeds is None else config.seeds
    twins = list(dense_twins(config, seeds)) if config.twin else []
    trial = Trial(run_dir, objectives(config)) if in_sweep() else None
    logger = build_logger(config, run_dir)
    trained = train if config.seeds is None else train_seeds
    metrics = trained(config, run_dir, trial, logger)
    if twins:
        metrics |= beside_twins(metrics, twins, config.router.get("num_experts", 1), len(seeds))
    for name in objectives(config):
        one_of("objective", name, tuple(sorted(metrics)))
    values = {name: metrics[name] for name in objectives(config)}
    if config.seeds is not None:
        summarise_seeds(metrics, list(values), run_dir, len(seeds), logger)
    if logger is not None:
        logger.log_metrics({final(n): value for n, value in values.items() if final(n) != n})
        logger.finalize("success")
    return metrics[config.objective] if isinstance(config.objective, str) else values


def dense_twins(config: DictConfig, seeds: Sequence[int]) -> Iterator[Path]:
    """Folders of the dense model with the same data and budget: of each seed, and then of further
    ones, so that there are as many as views.

    Trained by the first process that asks, and kept in the folder `twin` for all others.
    """
    dense = config.copy()
    dense.seeds, dense.twin, dense.ckpt_path = None, None, None
    dense.objective, dense.tags, dense.logger = "loss/val", {}, {}
    dense.callbacks = {"predictions": {"_target_": "prismatic.training.Predictions"}}
    dense.guard = {}
    dense.router = {"_target_": "prismatic.routers.DenseRouter", "_partial_": True}
    dense.perturbation = {"_target_": "prismatic.perturb.Perturbation"}
    dense.focal = {"_target_": "prismatic.perturb.Focal"}
    dense.trainer.strategy, dense.trainer.devices = "auto", 1  # before other processes are there
    missing = config.router.get("num_experts", 1) - len(seeds)
    for seed in [*seeds, *range(max(seeds) + 1, max(seeds) + 1 + missing)]:
        dense.seed = seed
        text = OmegaConf.to_yaml(dense, resolve=True)
        folder = Path(config.twin) / hashlib.sha256(text.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not (folder / METRICS).exists():  # a training writes it last
                train(dense, folder)
        yield folder


def beside_twins(
    metrics: Mapping[str, float], twins: Sequence[Path], num_views: int, num_seeds: int
) -> dict[str, float]:
    """What a run's metrics are beside those of its dense twins, of which the first are its own."""
    losses = [json.loads((twin / METRICS).read_text())["loss/val"] for twin in twins[:num_seeds]]
    found = {EXCESS: metrics["loss/val"] - sum(losses) / num_seeds}
    if "objective/diversity" in metrics:
        predicted = [torch.load(twin / PREDICTIONS) for twin in twins[:num_views]]
        found[RELATIVE] = metrics["objective/diversity"] / diversity(torch.cat(predicted))
    return found


def train(
    config: DictConfig,
    run_dir: Path,
    trial: Trial | None = None,
    logger: MLflowLogger | None = None,
) -> dict[str, float]:
    """One training; its last metrics."""
    try:
        parts = build(config, run_dir, trial, logger)
        if config.ckpt_path is not None:
            limit = parts.trainer.max_steps
            require_resumable(Path(config.ckpt_path), parts.learner.state_dict(), limit)
        record(config, run_dir, parts.task, parts.model, logger)
        report_strength(parts.model, parts.logger)
        begun = time.perf_counter()
        parts.trainer.fit(parts.learner, parts.data, ckpt_path=config.ckpt_path, weights_only=True)
        metrics = {name: float(value) for name, value in parts.trainer.callback_metrics.items()}
        metrics["time/fit"] = time.perf_counter() - begun
    except BaseException:
        if logger is not None:
            logger.finalize("failed")
        raise
    if parts.trainer.is_global_zero:
        write_text(run_dir / METRICS, json.dumps(metrics, indent=2) + "\n")
    if logger is not None and trial is not None and trial.stopped:
        logger.set_tags({"pruned": (trial.folder / STOP).read_text()})
    summarise(parts.task, metrics, run_dir, logger)
    return metrics


def train_seeds(
    config: DictConfig, run_dir: Path, trial: Trial | None, logger: MLflowLogger | None
) -> dict[str, float]:
    """A training per seed in one run of the logger, and the means over those that stayed finite.

    Raises `DivergedError` where none did.
    """
    if logger is not None:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    try:
        metrics = over_seeds(list(each_seed(config, run_dir, trial, logger)), len(config.seeds))
    except BaseException:
        if logger is not None:
            logger.prefix = ""
            logger.finalize("failed")
        raise
    if logger is not None:
        logger.prefix = ""
        logger.log_metrics(metrics, config.trainer.max_steps)
        logger.finalize("success")
    return metrics


def each_seed(
    config: DictConfig, run_dir: Path, trial: Trial | None, logger: MLflowLogger | None
) -> Iterator[dict[str, float]]:
    """The last metrics of every seed that stays finite; `DivergedError` if none does.

    None comes after the one in which the sweep stopped the trial.
    """
    diverged = []
    for seed in config.seeds:
        if trial is not None and trial.stopped:
            return
        alone = OmegaConf.merge(config, {"seed": seed, "seeds": None})
        assert isinstance(alone, DictConfig)
        if logger is not None:
            logger.prefix = f"seed_{seed}/"
        try:
            yield train(alone, run_dir / f"seed_{seed}", trial, logger)
        except DivergedError as error:
            diverged.append(error)
            rank_zero_only(log.warning)(f"seed {seed} diverged and counts as unstable: {error}")
    if len(diverged) == len(config.seeds):
        raise diverged[-1]


def objectives(config: DictConfig) -> list[str]:
    """The names of the metrics that a run is judged by."""
    return [config.objective] if isinstance(config.objective, str) else list(config.objective)


def load_run(run_dir: str | Path, checkpoint: str = "best") -> tuple[Transformer, DictConfig]:
    """See `prismatic.load`."""
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
