"""The one place where a configuration becomes objects: build, run, load."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path

import pytorch_lightning as pl
import torch
from filelock import FileLock
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint, ProgressBar

from prismatic.checks import check, pinned
from prismatic.data import Task
from prismatic.files import write_text
from prismatic.models import Transformer
from prismatic.paths import ROOT, in_sweep
from prismatic.perturb import one_of
from prismatic.provenance import provenance
from prismatic.runs import (
    CHECKPOINTS,
    CONFIG,
    MANIFEST,
    METRICS,
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

EXCESS = "loss/excess"  # of the validation loss over the dense twin's

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
    names = [name for name in objectives(config) if name != EXCESS]
    callbacks.append(Objectives(names))
    if in_sweep():
        callbacks.append(Trial(names))
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

    Writes checkpoints, the resolved configuration, the data's manifest and the last metrics to
    `run_dir`, and the same with code state and versions to the logger. With `seeds`, trains them in
    turn in folders and under metric names of their own, `seed_{k}/...`, and returns means. Raises
    `ValueError` for a configuration that cannot be, `DivergedError` for a loss that is not finite.
    """
    run_dir, config = Path(run_dir), pinned(config)
    seeds = [config.seed] if config.seeds is None else config.seeds
    twins = [twin_loss(config, seed) for seed in seeds if config.twin]
    metrics = train(config, run_dir) if config.seeds is None else train_seeds(config, run_dir)
    if twins:
        metrics[EXCESS] = metrics["loss/val"] - sum(twins) / len(twins)
    for name in objectives(config):
        one_of("objective", name, tuple(sorted(metrics)))
    values = {name: metrics[name] for name in objectives(config)}
    return metrics[config.objective] if isinstance(config.objective, str) else values


def twin_loss(config: DictConfig, seed: int) -> float:
    """The validation loss of the dense model with the same seed, data and budget.

    Trained by the first process that asks, and kept in the folder `twin` for all others.
    """
    dense = config.copy()
    dense.seed, dense.seeds, dense.twin, dense.ckpt_path = seed, None, None, None
    dense.objective, dense.tags, dense.logger, dense.callbacks = "loss/val", {}, {}, {}
    dense.router = {"_target_": "prismatic.routers.DenseRouter", "_partial_": True}
    dense.perturbation = {"_target_": "prismatic.perturb.Perturbation"}
    dense.focal = {"_target_": "prismatic.perturb.Focal"}
    dense.trainer.strategy, dense.trainer.devices = "auto", 1  # before other processes are there
    text = OmegaConf.to_yaml(dense, resolve=True)
    path = Path(config.twin) / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            metrics = train(dense, path.with_suffix(""))
            write_text(path, json.dumps(metrics, indent=2))
    return json.loads(path.read_text())["loss/val"]


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
        begun = time.perf_counter()
        parts.trainer.fit(parts.learner, parts.data, ckpt_path=config.ckpt_path, weights_only=True)
        metrics = {name: float(value) for name, value in parts.trainer.callback_metrics.items()}
        metrics["time/fit"] = time.perf_counter() - begun
    except BaseException:
        if parts.logger is not None:
            parts.logger.finalize("failed")
        raise
    if parts.trainer.is_global_zero:
        write_text(run_dir / METRICS, json.dumps(metrics, indent=2) + "\n")
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
