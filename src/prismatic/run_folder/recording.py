"""What is kept of a run before it trains: its name and tags, and all that rebuilds it."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from prismatic.config.paths import ROOT, in_sweep
from prismatic.data import Task
from prismatic.files import write_text
from prismatic.models import RoutedModel
from prismatic.perturb import Focal, Perturbation
from prismatic.tracking.logger import MLflowLogger

from .contents import CONFIG, MANIFEST
from .provenance import provenance

NO_EXPERIMENT = "-"  # "none" is an experiment


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
    """What a run is called in MLflow: its experiment, or what it is made of; a trial's number.

    Trials are read in a narrow column, so there the usual router goes without saying.
    """
    made_of = [tags[name] for name in ("router", "perturbation", "focal")]
    unsaid = ("none", "prismatic") if "trial" in tags else ("none",)
    name = " ".join(name for name in made_of if name not in unsaid) or "none"
    name = name if tags["experiment"] == NO_EXPERIMENT else tags["experiment"]
    return f"{tags['trial']}: {name}" if "trial" in tags else name


@rank_zero_only
def record(
    config: DictConfig,
    run_dir: Path,
    task: Task,
    *,
    model: RoutedModel,
    logger: MLflowLogger | None,
) -> None:
    """Keep the configuration and the data's manifest in the folder, and in the logger.

    The logger also gets the state of the code, and the losses that this one is compared with.
    """
    resolved = OmegaConf.to_yaml(config, resolve=True)
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
    if logger is None:
        return
    if not (logger.prefix or in_sweep()):  # a trial's are there already
        logger.log_hyperparams(OmegaConf.to_container(config, resolve=True))
    logger.log_artifact_text(CONFIG, resolved)
    logger.log_artifact_json(MANIFEST, manifest)
    code = asdict(provenance(ROOT))
    diff = code.pop("diff")
    if diff is not None:
        logger.log_artifact_text("dirty.diff", diff)
    logger.log_artifact_json("provenance.json", code)
    git = {"git_commit": code["commit"], "dirty": "unknown" if diff is None else bool(diff)}
    logger.set_tags({**git, "run_dir": run_dir})
    if task.predicts == "next" and not all(router.causal for router in model.routers):
        logger.set_tags({"leaky": "true"})
    known = {f"baseline/{name}": value for name, value in task.baselines.items()}
    if task.bayes_loss is not None:
        known["loss/bayes"] = task.bayes_loss
    logger.log_metrics(known, 0)
