"""A study that trains for a moment, and tables as its runs would give them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).with_name("conf")


def toy() -> DictConfig:
    """The toy study's YAML."""
    node = OmegaConf.load(CONF / "study" / "toy.yaml")
    assert isinstance(node, DictConfig)
    return node


def measured(means: Mapping[str, float], seeds: int = 6, spread: float = 0.01) -> pd.DataFrame:
    """A table of `loss/val` with these means; arms of one mean are equal seed by seed."""
    shared = np.random.default_rng(0).normal(0, spread, seeds)
    own = {mean: np.random.default_rng(1).normal(0, spread / 9, seeds) for mean in means.values()}
    rows = [
        {"arm": arm, "seed": s, "diverged": 0.0, "seconds": 1.0, "loss/val": m}
        for arm, mean in means.items()
        for s, m in enumerate(mean + shared + mean * own[mean])
    ]
    return pd.DataFrame(rows)
