"""Where things are, whatever the working directory, and whether a sweep runs this."""

import secrets
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[3]


def root(*parts: str) -> str:
    """A path inside the project: `${prismatic.root:outputs}`."""
    return str(ROOT.joinpath(*parts))


def register() -> None:
    """Register the resolvers; needed before a configuration is composed."""
    OmegaConf.register_new_resolver("prismatic.root", root, replace=True)
    # Kept for the life of the process: two runs that start in one second get two folders.
    OmegaConf.register_new_resolver(
        "prismatic.unique", lambda: secrets.token_hex(2), use_cache=True, replace=True
    )


def in_sweep() -> bool:
    """Whether this process runs a trial of a sweep."""
    return HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")
