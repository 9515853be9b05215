"""Where things are, whatever the working directory; the name of a sweep, and whether one runs.

A variable of the environment that is empty counts as unset.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import to_absolute_path
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).resolve().parents[3]


def root(*parts: str) -> str:
    """A path inside the project: `${prismatic.root:sweeps}`."""
    return str(ROOT.joinpath(*parts))


def absolute(typed: object) -> Path:
    """A path as its user meant it: `~` is home, and a relative one starts where the command did.

    That is not the working directory where Hydra changed to the run's folder.
    """
    return Path(to_absolute_path(str(Path(str(typed)).expanduser())))


def outputs(*parts: str) -> str:
    """A path inside PRISMATIC_OUTPUTS, or the project's `outputs`: `${prismatic.outputs:runs}`."""
    folder = os.environ.get("PRISMATIC_OUTPUTS") or ROOT / "outputs"
    return str(absolute(folder).joinpath(*parts))


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


def study_name(*, _root_: DictConfig) -> str:
    """`${prismatic.study_name:}`: a sweep's file, or what varies, and a digest of what is asked.

    The same command finds its study again, another one does not meet it.
    """
    # Their texts as they were typed: an interpolation in them is for the jobs to resolve.
    hydra = _root_.hydra
    typed: Any = _unresolved(hydra.overrides.task)
    overrides = OverridesParser.create().parse_overrides(typed)
    varies = [o.get_key_element() for o in overrides if o.is_sweep_override()]
    digest = _digest([_own(_root_), _unresolved(hydra.sweeper.params), sorted(typed)])
    label = hydra.runtime.choices.get("grid") or "_x_".join(varies) or "sweep"
    label = re.sub(r"[^\w.-]", ".", label)[:60]
    return f"{label}-{digest[:6]}"


def _unresolved(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=False)


def _own(config: DictConfig) -> dict[str, Any]:
    """A configuration without Hydra's part, as it was typed."""
    return {str(key): node for key, node in _unresolved(config).items() if key != "hydra"}


def _digest(asked: Any) -> str:
    text = json.dumps(asked, default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def study_or(otherwise: str, *, _root_: DictConfig) -> str:
    """`${prismatic.study_or:...}`: what the sweeper calls its study, or else this name."""
    return OmegaConf.select(_root_, "hydra.sweeper.study_name") or otherwise


def run_folder(new: str, *, _root_: DictConfig) -> str:
    """`${prismatic.run_folder:...}`: this, or with resume=auto what the same command has again."""
    if _root_.get("resume") != "auto":
        return new
    return f"auto/{_digest(_own(_root_))}"


def register() -> None:
    """Register the resolvers; needed before a configuration is composed."""
    resolvers: dict[str, Callable[..., Any]] = {
        "root": root,
        "outputs": outputs,
        "store": store,
        "env": variable,
        "study_name": study_name,
        "study_or": study_or,
        "run_folder": run_folder,
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
