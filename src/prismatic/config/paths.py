"""Where things are, whatever the working directory, and whether a sweep runs this.

A variable of the environment that is empty counts as unset.
"""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[3]


def root(*parts: str) -> str:
    """A path inside the project: `${prismatic.root:sweeps}`."""
    return str(ROOT.joinpath(*parts))


def outputs(*parts: str) -> str:
    """A path inside PRISMATIC_OUTPUTS, or the project's `outputs`: `${prismatic.outputs:runs}`."""
    folder = Path(os.environ.get("PRISMATIC_OUTPUTS") or ROOT / "outputs")
    return str(folder.expanduser().absolute().joinpath(*parts))


def sqlite_uri(path: Path | str) -> str:
    """The address of a sqlite database, whatever characters its path has."""
    from sqlalchemy import URL, make_url

    plain = f"sqlite:///{path}"
    if make_url(plain).database == str(path):
        return plain
    # MLflow makes a folder of the escaped name, too, unless the address names its driver.
    return str(URL.create("sqlite+pysqlite", database=str(path)))


def store() -> str:
    """The address of MLflow's store: MLFLOW_TRACKING_URI, or a database among the outputs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(outputs("mlflow.db"))


def variable(name: str) -> str | None:
    """A variable of the environment: `${prismatic.env:PRISMATIC_DATA}`."""
    return os.environ.get(name) or None


def register() -> None:
    """Register the resolvers; needed before a configuration is composed."""
    resolvers: dict[str, Callable[..., Any]] = {
        "root": root,
        "outputs": outputs,
        "store": store,
        "env": variable,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(f"prismatic.{name}", resolver, replace=True)
    # Kept for the life of the process: two runs that start in one second get two folders.
    OmegaConf.register_new_resolver(
        "prismatic.unique", lambda: secrets.token_hex(2), use_cache=True, replace=True
    )


def in_sweep() -> bool:
    """Whether this process runs a trial of a sweep."""
    return HydraConfig.initialized() and not OmegaConf.is_missing(HydraConfig.get().job, "num")
