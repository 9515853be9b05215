"""The one place where a configuration becomes objects: build, run, load."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from prismatic.data import Task
from prismatic.files import write_text
from prismatic.models import Transformer
from prismatic.paths import ROOT
from prismatic.perturb import Focal, Perturbation, one_of, require
from prismatic.provenance import provenance
from prismatic.runs import (
    CHECKPOINTS,
    CONFIG,
    MANIFEST,
    read_checkpoint,
    read_run,
    require_resumable,
)
from prismatic.tracking import MLflowLogger
from prismatic.training import Learner, Objectives, Optimization, TaskData, view_measures

GROUPS = (
    "data", "model", "router", "perturbation", "focal", "loss", "optim", "trainer", "callbacks",
    "logger",
)  # fmt: skip
VALUES = ("seed", "ckpt_path", "objective", "tags")
NO_EXPERIMENT = "-"  # "none" is an experiment
WEAK = 0.02  # a perturbation below this relative norm is next to none

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
    seed, objective = config.seed, config.objective
    whole = isinstance(seed, int) and 0 <= seed < 2**32
    require(whole, "seed", seed, "give a whole number from 0 to 2**32 - 1")
    wanted = "name a metric such as loss/val, or a list of metrics"
    require(bool(objective), "objective", objective, wanted)


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


def build(config: DictConfig, run_dir: Path) -> Parts:
    """Turn a composed configuration into objects; seeds the global random state."""
    check(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    task: Task = instantiate(config.data)
    optim: Optimization = instantiate(config.optim)
    model = build_model(config, task.vocab_size, task.seq_len)
    learner = Learner(model, task, optim, instantiate(config.loss))
    logged = config.logger and not config.trainer.fast_dev_run
    tags = choice_tags(config)
    if task.predicts == "next" and not all(router.causal for router in model.routers):
        tags["leaky"] = "true"
    name = config.logger.get("run_name") or run_name(tags)
    logger = instantiate(config.logger, tags=tags, run_name=name) if logged else None
    callbacks = [instantiate(callback) for callback in config.callbacks.values()]
    callbacks.append(Objectives(objectives(config)))
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


def choice_tags(config: DictConfig) -> dict[str, str]:
    """What a run is found by in MLflow: resolved values, and the names of whole choices."""
    perturbation: Perturbation = instantiate(config.perturbation)
    focal: Focal = instantiate(config.focal)
    chosen: Mapping[str, Any] = {}
    if HydraConfig.initialized():
        chosen = HydraConfig.get().runtime.choices
    tags = {
        group: chosen.get(group) or str(config[group].get("_target_", group)).rsplit(".")[-1]
        for group in ("router", "data")
    }
    tags["experiment"] = chosen.get("experiment") or NO_EXPERIMENT
    views = {
        "perturbation": perturbation.mode,
        "focal": focal.pattern,
        "strategy": perturbation.strategy,
        "sparsity": perturbation.sparsity,
    }
    routed = "perturbation" in config.router
    tags |= {name: str(value) if routed else "none" for name, value in views.items()}
    return tags | {key: str(value) for key, value in config.tags.items()}


def run_name(tags: Mapping[str, str]) -> str:
    """What a run is called in MLflow: its experiment, or what it is made of."""
    if tags["experiment"] != NO_EXPERIMENT:
        return tags["experiment"]
    made_of = [tags[name] for name in ("router", "perturbation", "focal")]
    return " ".join(name for name in made_of if name != "none") or "none"


def run(config: DictConfig, run_dir: str | Path) -> float | list[float]:
    """Train what a configuration describes and return its objective, or objectives.

    Writes checkpoints, the resolved configuration and the data's manifest to `run_dir`, and the
    same with metrics, code state and versions to the logger. Raises `ValueError` for a
    configuration that cannot be, `DivergedError` for a loss that is not finite.
    """
    run_dir, config = Path(run_dir), pinned(config)
    parts = build(config, run_dir)
    if config.ckpt_path is not None:
        limit = parts.trainer.max_steps
        require_resumable(Path(config.ckpt_path), parts.learner.state_dict(), limit)
    try:
        record(config, run_dir, parts)
        report_strength(parts)
        parts.trainer.fit(parts.learner, parts.data, ckpt_path=config.ckpt_path, weights_only=True)
        metrics = {name: float(value) for name, value in parts.trainer.callback_metrics.items()}
        for name in objectives(config):
            one_of("objective", name, tuple(sorted(metrics)))
    except BaseException:
        if parts.logger is not None:
            parts.logger.finalize("failed")
        raise
    summarise(parts, metrics, run_dir)
    values = [metrics[name] for name in objectives(config)]
    return values[0] if isinstance(config.objective, str) else values


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
    parts.logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    parts.logger.log_artifact_text(CONFIG, resolved)
    parts.logger.log_artifact_json(MANIFEST, manifest)
    parts.logger.log_artifact_json(
        "provenance.json", {k: v for k, v in asdict(code).items() if k != "diff"}
    )
    parts.logger.log_artifact_text("dirty.diff", code.diff)
    parts.logger.set_tags({"git_commit": code.commit, "dirty": bool(code.diff), "run_dir": run_dir})
    known = {f"baseline/{name}": value for name, value in task.baselines.items()}
    if task.bayes_loss is not None:
        known["loss/bayes"] = task.bayes_loss
    parts.logger.log_metrics(known, 0)


@rank_zero_only
def report_strength(parts: Parts) -> None:
    """Say and record how strong the perturbation really is."""
    measured = view_measures(parts.model)
    if not measured:
        return
    norm, matrices = measured["views/relative_norm"], measured["views/relative_norm_matrices"]
    log.info(
        f"perturbation: the strongest view changes the wrapped weights by {norm:.2%} of their norm "
        f"(the matrices alone by {matrices:.2%}) and moves {measured['views/share_moved']:.2%} of "
        "them by more than 1 %"
    )
    if min(norm, matrices) < WEAK:
        log.warning(
            f"warning: under {WEAK:.0%} the views hardly differ from the base. A lens has an "
            "absolute width of a few hundred weights, next to nothing of a large matrix. Make it "
            "relative to each tensor with focal.units=fraction focal.length=0.1 "
            "focal.wavelength=1; or use focal=none; or raise perturbation.scale"
        )
    if parts.logger is not None:
        parts.logger.log_metrics(measured, 0)


@rank_zero_only
def summarise(parts: Parts, metrics: dict[str, float], run_dir: Path) -> None:
    """Print the result beside what it is to be compared with, and where to look next."""
    rows: dict[str, float] = {}
    rows |= {name: metrics[name] for name in ("loss/val", "loss/bits_per_byte") if name in metrics}
    rows |= {f"{name} (baseline)": value for name, value in parts.task.baselines.items()}
    if parts.task.bayes_loss is not None:
        rows["bayes (least possible)"] = parts.task.bayes_loss
    width = max(map(len, rows), default=0) + 2
    lines = [f"  {name:<{width}}{value:.4f}" for name, value in rows.items()]
    log.info("\n".join(["", "result, in nats per token unless named otherwise", *lines]))
    log.info(f"run folder:   {run_dir}\nlook closer:  python src/eval.py run={run_dir}")
    if parts.logger is not None:
        log.info(f"browse:       make ui, or {parts.logger.url()}")


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
