"""The one place where a configuration becomes objects: build, run, load."""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint, ProgressBar

from prismatic.data import Task
from prismatic.files import write_text
from prismatic.models import Transformer
from prismatic.paths import ROOT, in_sweep
from prismatic.perturb import one_of, require
from prismatic.provenance import provenance
from prismatic.runs import (
    CHECKPOINTS,
    CONFIG,
    MANIFEST,
    read_checkpoint,
    read_run,
    require_resumable,
)
from prismatic.summary import report_strength, summarise
from prismatic.tags import choice_tags, run_name
from prismatic.tracking import MLflowLogger
from prismatic.training import (
    DivergedError,
    Learner,
    Objectives,
    Optimization,
    TaskData,
    Trial,
    over_seeds,
)

GROUPS = (
    "data", "model", "router", "perturbation", "focal", "loss", "optim", "trainer", "callbacks",
    "logger",
)  # fmt: skip
VALUES = ("seed", "seeds", "ckpt_path", "objective", "tags")

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


def check(config: DictConfig) -> None:
    """Refuse what would fail late, and root keys that nothing reads (misspelt, added with `+`)."""
    for key in config:
        one_of("root key", str(key), (*GROUPS, *VALUES))
    objective, seeds = config.objective, [config.seed, *(config.seeds or ())]
    for seed in seeds:
        whole = isinstance(seed, int) and 0 <= seed < 2**32
        require(whole, "seed", seed, "give a whole number from 0 to 2**32 - 1")
    wanted = "name a metric such as loss/val, or a list of metrics"
    require(bool(objective), "objective", objective, wanted)
    for group in ("perturbation", "focal"):
        instantiate(config[group])  # a value that no router reads must be a good one, too


def pinned(config: DictConfig) -> DictConfig:
    """A copy that means the same from any working directory, and that fits itself."""
    config = config.copy()
    if config.data.get("path"):
        config.data.path = str(Path(config.data.path).expanduser().absolute())
    if config.trainer.accelerator == "auto" and not torch.cuda.is_available():
        config.trainer.accelerator = "cpu"  # Apple's GPU has no float64, which positions need
    trainer = config.trainer
    interval, steps = trainer.val_check_interval, trainer.max_steps
    counted = isinstance(steps, int) and (steps >= 1 or steps == -1)
    require(counted, "trainer.max_steps", steps, "give a whole number >= 1, or -1 for no end")
    whole = isinstance(interval, int) and interval >= 1
    require(whole, "trainer.val_check_interval", interval, "give a whole number >= 1")
    if 0 < steps * trainer.accumulate_grad_batches < interval:
        trainer.val_check_interval = steps * trainer.accumulate_grad_batches
    return config


def build_model(config: DictConfig, vocab_size: int, seq_len: int) -> Transformer:
    """The model alone, initialised from the global random state."""
    taken = signature(get_class(config.router._target_)).parameters
    for key in config.router:
        if not str(key).startswith("_"):
            one_of("router key", str(key), tuple(taken))
    router = instantiate(config.router)
    return instantiate(config.model, vocab_size=vocab_size, seq_len=seq_len, router=router)


def build(config: DictConfig, run_dir: Path, logger: MLflowLogger | None = None) -> Parts:
    """Turn a composed configuration into objects, but for a `logger` that is there already.

    Seeds the global random state.
    """
    check(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    task: Task = instantiate(config.data)
    optim: Optimization = instantiate(config.optim)
    model = build_model(config, task.vocab_size, task.seq_len)
    learner = Learner(model, task, optim, instantiate(config.loss))
    logger = logger or build_logger(config)
    callbacks = [instantiate(callback) for callback in config.callbacks.values()]
    callbacks.append(Objectives(objectives(config)))
    if in_sweep():
        callbacks.append(Trial(objectives(config)))
    trainer = instantiate(
        config.trainer,
        callbacks=callbacks,
        logger=logger or False,
        default_root_dir=str(run_dir),
        # Lightning adds its own where there is none: callbacks=none means none.
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
    )
    data = TaskData(task, optim.batch_size, config.seed)
    return Parts(task, model, learner, data, trainer, logger)


def build_logger(config: DictConfig) -> MLflowLogger | None:
    """The logger that a configuration describes; it writes nothing before its first use."""
    if not config.logger or config.trainer.fast_dev_run:
        return None
    tags = choice_tags(config)
    name = config.logger.get("run_name") or run_name(tags)
    return instantiate(config.logger, tags=tags, run_name=name)


def run(config: DictConfig, run_dir: str | Path) -> float | dict[str, float]:
    """Train what a configuration describes and return its objective, or objectives by name.

    Writes checkpoints, the resolved configuration and the data's manifest to `run_dir`, and the
    same with metrics, code state and versions to the logger. With `seeds`, trains them in turn in
    folders and under metric names of their own, `seed_{k}/...`, and returns means. Raises
    `ValueError` for a configuration that cannot be, `DivergedError` for a loss that is not finite.
    """
    run_dir, config = Path(run_dir), pinned(config)
    metrics = train(config, run_dir) if config.seeds is None else train_seeds(config, run_dir)
    values = {name: metrics[name] for name in objectives(config)}
    return metrics[config.objective] if isinstance(config.objective, str) else values


def train(
    config: DictConfig, run_dir: Path, logger: MLflowLogger | None = None
) -> dict[str, float]:
    """One training; its last metrics."""
    parts = build(config, run_dir, logger)
    if config.ckpt_path is not None:
        limit = parts.trainer.max_steps
        require_resumable(Path(config.ckpt_path), parts.learner.state_dict(), limit)
    try:
        record(config, run_dir, parts)
        report_strength(parts.model, parts.logger)
        parts.trainer.fit(parts.learner, parts.data, ckpt_path=config.ckpt_path, weights_only=True)
        metrics = {name: float(value) for name, value in parts.trainer.callback_metrics.items()}
        for name in objectives(config):
            one_of("objective", name, tuple(sorted(metrics)))
    except BaseException:
        if parts.logger is not None:
            parts.logger.finalize("failed")
        raise
    summarise(parts.task, metrics, run_dir, parts.logger)
    return metrics


def train_seeds(config: DictConfig, run_dir: Path) -> dict[str, float]:
    """A training per seed in one run of the logger, and the means over those that stayed finite.

    Raises `DivergedError` where none did.
    """
    logger = build_logger(config)
    if logger is not None:
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    try:
        metrics = over_seeds(list(each_seed(config, run_dir, logger)), len(config.seeds))
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
    config: DictConfig, run_dir: Path, logger: MLflowLogger | None
) -> Iterator[dict[str, float]]:
    """The last metrics of every seed that stays finite; `DivergedError` if none does."""
    diverged = []
    for seed in config.seeds:
        alone = OmegaConf.merge(config, {"seed": seed, "seeds": None})
        assert isinstance(alone, DictConfig)
        if logger is not None:
            logger.prefix = f"seed_{seed}/"
        try:
            yield train(alone, run_dir / f"seed_{seed}", logger)
        except DivergedError as error:
            diverged.append(error)
            log.warning(f"seed {seed} diverged and counts as unstable: {error}")
    if len(diverged) == len(config.seeds):
        raise diverged[-1]


def record(config: DictConfig, run_dir: Path, parts: Parts) -> None:
    """Keep what is needed to rebuild the run, beside it and in the logger."""
    if parts.trainer.global_rank:
        return
    task, resolved = parts.task, OmegaConf.to_yaml(config, resolve=True)
    manifest = {
        "vocab_size": task.vocab_size,
        "seq_len": task.seq_len,
        "domains": task.domains,
        "sources": task.manifest,
        "baselines": task.baselines,
        "bayes_loss": task.bayes_loss,
    }
    write_text(run_dir / CONFIG, resolved)
    write_text(run_dir / MANIFEST, json.dumps(manifest, indent=2))
    if parts.logger is None:
        return
    code = provenance(ROOT)
    if not parts.logger.prefix:
        parts.logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    parts.logger.log_artifact_text(CONFIG, resolved)
    parts.logger.log_artifact_json(MANIFEST, manifest)
    parts.logger.log_artifact_json(
        "provenance.json", {k: v for k, v in asdict(code).items() if k != "diff"}
    )
    parts.logger.log_artifact_text("dirty.diff", code.diff)
    if task.predicts == "next" and not all(router.causal for router in parts.model.routers):
        parts.logger.set_tags({"leaky": "true"})
    parts.logger.set_tags({"git_commit": code.commit, "dirty": bool(code.diff), "run_dir": run_dir})
    known = {f"baseline/{name}": value for name, value in task.baselines.items()}
    if task.bayes_loss is not None:
        known["loss/bayes"] = task.bayes_loss
    parts.logger.log_metrics(known, 0)


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
