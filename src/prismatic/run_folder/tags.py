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
    """What a run is called in MLflow: its experiment, or what it is made of; a trial's number.

    Trials are read in a narrow column, so there the usual router goes without saying.
    """
    made_of = [tags[name] for name in ("router", "perturbation", "focal")]
    unsaid = ("none", "prismatic") if "trial" in tags else ("none",)
    name = " ".join(name for name in made_of if name not in unsaid) or "none"
    name = name if tags["experiment"] == NO_EXPERIMENT else tags["experiment"]
    return f"{tags['trial']}: {name}" if "trial" in tags else name
