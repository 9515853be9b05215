"""Several trainings as one run: a training per seed, and the dense twin beside it.

A run of one seed without a twin is one training of `experiment`.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from prismatic.config.checks import pinned
from prismatic.config.paths import in_sweep
from prismatic.experiment import build_logger, conclude, objectives, train
from prismatic.measures import diversity, over_seeds
from prismatic.run_folder.contents import METRICS
from prismatic.run_folder.summary import summarise_seeds
from prismatic.tracking.logger import MLflowLogger
from prismatic.training import PREDICTIONS, STOP, DivergedError, Objectives, TrialProgress

EXCESS = "loss/excess"  # of the validation loss over the dense twin's
RELATIVE = "diversity/relative"  # of the views to that of as many dense models

log = logging.getLogger(__name__)


def run(config: DictConfig, run_dir: str | Path) -> float | dict[str, float]:
    """What `src/train.py` does: `experiment.run`, and what `seeds`, `twin` and a sweep add to it.

    With `seeds`, trains them in turn in folders and under metric names of their own,
    `seed_{k}/...`, and returns means. With `twin`, also gives `loss/excess` over dense twins. A
    trial of a sweep tells the sweep how it goes and ends when the sweep asks it to.
    """
    run_dir, config = Path(run_dir), pinned(config)
    seeds = [config.seed] if config.seeds is None else list(config.seeds)
    twins = list(dense_twins(config, seeds)) if config.twin else []
    trial = TrialProgress(run_dir, objectives(config)) if in_sweep() else None
    tags = {} if trial is None else {"trial": str(HydraConfig.get().job.num)}
    logger = build_logger(config, run_dir, tags)
    if logger is not None and (trial is not None or config.seeds is not None):
        # A trial is recorded at once, whatever becomes of it; several seeds have one entry.
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    if config.seeds is None:
        metrics = train(config, run_dir, logger, callbacks_of(config, trial))
    else:
        metrics = train_seeds(config, run_dir, logger, trial)
    if logger is not None and trial is not None and trial.stopped:
        logger.set_tags({"pruned": (trial.folder / STOP).read_text()})
    if twins:
        metrics |= beside_twins(metrics, twins, config.router.get("num_experts", 1), len(seeds))
    if config.seeds is not None:
        names = objectives(config)
        summarise_seeds(metrics, names, run_dir, num_seeds=len(seeds), logger=logger)
    return conclude(config, metrics, logger)


def callbacks_of(
    config: DictConfig, trial: TrialProgress | None
) -> list[Objectives | TrialProgress]:
    """What watches each training, besides the configuration's own callbacks."""
    beside_twin = (EXCESS, RELATIVE) if config.twin else ()
    own = [name for name in objectives(config) if name not in beside_twin]
    return [Objectives(own), *([trial] if trial is not None else [])]


def train_seeds(
    config: DictConfig, run_dir: Path, logger: MLflowLogger | None, trial: TrialProgress | None
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
                folder = run_dir / f"seed_{seed}"
                ended.append(train(alone, folder, logger, callbacks_of(config, trial)))
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


def dense_twins(config: DictConfig, seeds: Sequence[int]) -> Iterator[Path]:
    """Folders of the dense model with the same data and budget: of each seed, and then of further
    ones, so that there are as many as views.

    Trained by the first process that asks, and kept in the folder `twin` for all others.
    """
    dense = config.copy()
    dense.seeds, dense.twin, dense.ckpt_path, dense.resume = None, None, None, None
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
    added = {EXCESS: metrics["loss/val"] - sum(losses) / num_seeds}
    if "objective/diversity" in metrics:
        predicted = [torch.load(twin / PREDICTIONS) for twin in twins[:num_views]]
        added[RELATIVE] = metrics["objective/diversity"] / diversity(torch.cat(predicted))
    return added
