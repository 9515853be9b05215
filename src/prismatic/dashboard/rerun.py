"""The commands that run one trial of a sweep again, alone, or those that failed."""

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

from hydra_plugins.prismatic_optuna.configurations import best_configurations
from prismatic.config.command_line import quote, texts

SWEEP = re.compile(r"\+{0,2}(grid|optuna)=")
MODE, FOLDER, RETRY = "hydra.mode=MULTIRUN", "hydra.sweep.dir=", "hydra.sweeper.retry=failed"
NESTING = "logger.parent_run_id"  # under the sweep's run in MLflow, where it does not belong alone


def command(study: Study, sweep_dir: Path) -> str:
    """The command for the first trial of the best configuration, or of the front's first."""
    best = best_configurations(study)
    folder = best[0].complete[0].user_attrs.get("folder") if best else None
    return command_of(sweep_dir / folder) if folder else ""


def retry_command(config: DictConfig) -> str:
    """The sweep's own command, for the trials that failed; `config` is the sweep's."""
    hydra = config.hydra
    return shlex.join([*program(), "-m", *config_options(hydra), *own_overrides(hydra), RETRY])


def own_overrides(hydra: DictConfig) -> list[str]:
    """Those that a sweep's command has itself: the last folder is what the sweeper added."""
    typed = [*texts(hydra.overrides.task), *texts(hydra.overrides.hydra)]
    folders = [text for text in typed if text.startswith(FOLDER)]
    return [text for text in typed if text not in (MODE, RETRY, *folders[-1:])]


def program() -> list[str]:
    """How training is started from here."""
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    return [python, str(Path(sys.argv[0]).with_name("train.py"))]


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
    words = [*program(), *config_options(hydra)]
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
