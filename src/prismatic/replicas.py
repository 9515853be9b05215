"""Several trainings as one run: a training per seed, and the dense baseline beside it.

A run of one seed without a baseline is one training of `experiment`.
"""

import hashlib
import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from prismatic.config.checks import objectives, pinned
from prismatic.config.command_line import texts
from prismatic.config.paths import in_sweep, outputs
from prismatic.experiment import build_logger, conclude, train
from prismatic.measures import diversity, over_seeds
from prismatic.report.answer import DENSE, EXCESS, LOSS, SEEDS
from prismatic.report.record import FILE, amend
from prismatic.run_folder.contents import METRICS, seed_folder
from prismatic.run_folder.summary import summarise, summarise_seeds
from prismatic.tracking.logger import MLflowLogger
from prismatic.training import (
    PREDICTIONS,
    STOP,
    DivergedError,
    Objectives,
    TrialProgress,
    publish,
)

RELATIVE = "diversity/relative"  # of the views to that of as many dense models

log = logging.getLogger(__name__)


def run(config: DictConfig, run_dir: str | Path) -> float | dict[str, float]:
    """What `src/train.py` does: `experiment.run`, and what `seeds`, `baseline` and a sweep add.

    With `seeds`, trains them in turn in folders and under metric names of their own,
    `seed_{k}/...`, and returns means. With `baseline=dense`, also gives `loss/excess` over the
    dense model of the same seed, data and budget. A trial of a sweep tells the sweep how it goes
    and ends when the sweep asks it to.
    """
    run_dir, config = Path(run_dir), pinned(config)
    seeds = [config.seed] if config.seeds is None else list(config.seeds)
    beside = compare(config, seeds)
    trial = TrialProgress(run_dir, objectives(config)) if in_sweep() else None
    tags = {} if trial is None else {"trial": str(HydraConfig.get().job.num)}
    logger = build_logger(config, run_dir, tags)
    if logger is not None and (trial is not None or config.seeds is not None):
        # A trial is recorded at once, whatever becomes of it; several seeds have one entry.
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    if config.seeds is None:
        metrics = train(config, run_dir, logger, callbacks_of(config, trial, beside))
        summarise(metrics, run_dir, logger, settling_command(config))
    else:
        metrics = train_seeds(config, run_dir, logger, trial=trial, beside=beside)
    if logger is not None and trial is not None and trial.stopped:
        logger.set_tags({"pruned": (trial.folder / STOP).read_text()})
    if config.seeds is not None:
        names = objectives(config)
        summarise_seeds(metrics, names, run_dir, seeds=seeds, logger=logger)
    return conclude(config, metrics, logger)


def compare(config: DictConfig, seeds: Sequence[int]) -> dict[int, "BesideDense"]:
    """What gives each seed's run its comparison with the dense model, if one is asked for."""
    if config.baseline == "none":
        return {}
    missing = config.router.get("num_experts", 1) - len(seeds) if wants_relative(config) else 0
    further = range(max(seeds) + 1, max(seeds) + 1 + missing)
    folders = dense_baselines(config, [*seeds, *further])
    independent = folders[: config.router.get("num_experts", 1)] if wants_relative(config) else []
    settle = settling_command(config)
    return {
        seed: BesideDense(folder, independent, settle)
        for seed, folder in zip(seeds, folders, strict=False)
    }


def wants_relative(config: DictConfig) -> bool:
    """Whether as many dense models as views are needed, which takes their time."""
    return RELATIVE in objectives(config)


def callbacks_of(
    config: DictConfig, trial: TrialProgress | None, beside: Mapping[int, "BesideDense"]
) -> list[pl.Callback]:
    """What watches each training, besides the configuration's own callbacks."""
    at_last = (DENSE, EXCESS, RELATIVE) if beside else ()
    own = [name for name in objectives(config) if name not in at_last]
    watching = [Objectives(own), trial, beside.get(config.seed)]
    return [callback for callback in watching if callback is not None]


def train_seeds(
    config: DictConfig,
    run_dir: Path,
    logger: MLflowLogger | None,
    *,
    trial: TrialProgress | None,
    beside: Mapping[int, "BesideDense"],
) -> dict[str, float]:
    """A training per seed in one run of the logger, and the means over those that stayed finite.

    None comes after the one in which the sweep stopped the trial. Raises `DivergedError` where no
    seed stayed finite.
    """
    ended: list[dict[str, float]] = []
    diverged: list[DivergedError] = []
    try:
        for seed in config.seeds:
            if trial is not None and trial.stopped:
                break
            alone = OmegaConf.merge(config, {"seed": seed, "seeds": None})
            assert isinstance(alone, DictConfig)
            if logger is not None:
                logger.prefix = f"seed_{seed}/"
            try:
                folder = seed_folder(run_dir, seed)
                ended.append(train(alone, folder, logger, callbacks_of(alone, trial, beside)))
                summarise(ended[-1], folder, None)
            except DivergedError as error:
                diverged.append(error)
                rank_zero_only(log.warning)(f"seed {seed} diverged and counts as unstable: {error}")
        if len(diverged) == len(config.seeds):
            raise diverged[-1]
        metrics = over_seeds(ended, len(config.seeds))
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


def dense_baselines(config: DictConfig, seeds: Sequence[int]) -> list[Path]:
    """Folders of the dense model with the same data and budget, one per seed.

    Trained by the first process that asks, and kept among the outputs for all others.
    """
    dense = config.copy()
    dense.seeds, dense.baseline, dense.ckpt_path, dense.resume = None, "none", None, None
    dense.objective, dense.tags, dense.logger = LOSS, {}, {}
    dense.callbacks = {
        "progress": config.callbacks.get("progress"),
        "predictions": {"_target_": "prismatic.training.Predictions"},
    }
    dense.guard = {}
    dense.router = {"_target_": "prismatic.routers.DenseRouter", "_partial_": True}
    dense.perturbation = {"_target_": "prismatic.perturb.Perturbation"}
    dense.focal = {"_target_": "prismatic.perturb.Focal"}
    dense.trainer.strategy, dense.trainer.devices = "auto", 1  # before other processes are there
    folders = []
    for seed in seeds:
        dense.seed = seed
        text = OmegaConf.to_yaml(dense, resolve=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        folder = Path(outputs("baselines", digest))
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not (folder / METRICS).exists():  # a training writes it last
                rank_zero_only(log.info)(f"dense baseline of seed {seed}, kept in {folder}")
                train(dense, folder)
        folders.append(folder)
    return folders


class BesideDense(pl.Callback):
    """Says at last what a run is worth beside the dense model of its seed: `loss/excess`.

    With the predictions of as many dense models as views also `diversity/relative`, the views'
    diversity as a share of that of independent trainings.
    """

    def __init__(self, baseline: Path, seeds: Sequence[Path], settle: str | None = None) -> None:
        self.baseline, self.seeds, self.settle = baseline, seeds, settle

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        dense = json.loads((self.baseline / METRICS).read_text())[LOSS]
        found = {DENSE: dense}
        if LOSS in metrics:
            found[EXCESS] = float(metrics[LOSS]) - dense
        if self.seeds and "objective/diversity" in metrics:
            predicted = [torch.load(folder / PREDICTIONS) for folder in self.seeds]
            found[RELATIVE] = float(metrics["objective/diversity"]) / diversity(
                torch.cat(predicted)
            )
        publish(trainer, found)
        recorded = Path(trainer.default_root_dir) / FILE
        if self.settle and trainer.is_global_zero and recorded.is_file():
            amend(recorded, trainer.global_step, {"settle": self.settle})


def settling_command(config: DictConfig) -> str | None:
    """The command that compares this configuration with the dense model over several seeds."""
    if config.baseline == "none" or config.seeds is not None or in_sweep():
        return None
    if not HydraConfig.initialized():
        return None
    typed = texts(HydraConfig.get().overrides.task)
    kept = [word for word in typed if not word.startswith(("seed=", "baseline="))]
    seeds = f"seeds=[{','.join(map(str, range(SEEDS)))}]"
    return "python src/train.py " + shlex.join([*kept, "baseline=dense", seeds])
