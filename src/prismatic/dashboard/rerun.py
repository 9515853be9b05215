"""The command that runs one trial of a sweep again, alone."""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.study import Study

from hydra_plugins.prismatic_optuna.study import best_trials
from prismatic.config.command_line import quote, texts

SWEEP = re.compile(r"\+{0,2}(grid|optuna)=")
NESTING = "logger.parent_run_id"  # under the sweep's run in MLflow, where it does not belong alone


def command(study: Study, sweep_dir: Path) -> str:
    """The command for the best trial, or the first one of the front; empty where there is none."""
    best = best_trials(study)
    return command_of(sweep_dir / best[0].user_attrs["folder"]) if best else ""


@cache
def command_of(folder: Path) -> str:
    """The shell command that repeats the trial of this folder; empty if it has not run.

    What the sweep's file sets is written out, since a sweep's file needs -m. The last bits of a
    result depend on the number of threads, so the command sets that of the sweep, if it had one.
    """
    kept = folder / ".hydra"
    if not (kept / "overrides.yaml").exists():
        return ""
    hydra = OmegaConf.load(kept / "hydra.yaml").hydra
    typed = texts(OmegaConf.load(kept / "overrides.yaml"))
    overrides = [override for override in typed if NESTING not in override]
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    words = [python, sys.argv[0], *config_options(hydra)]
    words += [*written_out(overrides, hydra), *(o for o in overrides if not SWEEP.match(o))]
    threads = getattr(instantiate(hydra.launcher), "omp_threads", None)
    prefix = f"OMP_NUM_THREADS={threads} " if threads else ""
    return prefix + shlex.join(words)


def config_options(hydra: DictConfig) -> list[str]:
    """What else the sweep's command needed to find its configuration."""
    sources = hydra.runtime.config_sources
    extra = [s.path for s in sources if s.provider == "command-line"]
    return [f"--config-dir={path}" for path in extra]


def written_out(overrides: list[str], hydra: DictConfig) -> list[str]:
    """Overrides for what the sweep's file sets in a trial with these overrides."""
    alone = [override for override in overrides if not SWEEP.match(override)]
    if alone == overrides:
        return []
    place = [f"hydra.sweep.dir={quote(hydra.sweep.dir)}", f"hydra.job.num={hydra.job.num}"]
    swept = compose(hydra.job.config_name, [*overrides, *place], return_hydra_config=True)
    plain = compose(hydra.job.config_name, [*alone, *place], return_hydra_config=True)
    # As written: what is interpolated from elsewhere follows of itself, and may refuse to be set.
    now, was = (dict(flat(OmegaConf.to_container(config))) for config in (swept, plain))
    changed = [key for key in now if now[key] != was.get(key, ...)]
    values = resolved(swept)
    added = [f"{'' if key in was else '++'}{key}={quote(values[key])}" for key in changed]
    return [*(f"~{key}" for key in was if key not in now), *added]


def resolved(config: DictConfig) -> dict[str, Any]:
    """A run's configuration by dotted names, with every interpolation resolved."""
    holder = HydraConfig.instance()
    before = holder.cfg
    holder.set_config(config)
    try:
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        return dict(flat(OmegaConf.to_container(own, resolve=True)))
    finally:
        holder.cfg = before


def flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings but for `hydra`; a list is one, and so is an empty mapping."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.") if key != "hydra" or prefix else ()
        else:
            yield f"{prefix}{key}", value
