"""What a run is called, and found by, in MLflow."""

from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from prismatic.perturb import Focal, Perturbation

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
    """What a run is called in MLflow: its experiment, or what it is made of."""
    if tags["experiment"] != NO_EXPERIMENT:
        return tags["experiment"]
    made_of = [tags[name] for name in ("router", "perturbation", "focal")]
    return " ".join(name for name in made_of if name != "none") or "none"
