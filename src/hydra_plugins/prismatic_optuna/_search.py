"""A sweep put together: options looked at, study opened and claimed, then the loop."""

from collections.abc import Mapping
from pathlib import Path
from secrets import randbits
from typing import Any

import optuna
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler
from optuna.study import Study

from . import _pruning, _samplers, _study
from ._launchers import Folders, adapt
from ._loop import Search
from ._owner import Claim
from ._space import Space
from ._storage import open_storage
from .callback import Callback
from .sweeper import Options


def search(options: Options, space: Space, config: DictConfig, launcher: Any) -> None:
    """Bring the study to `n_trials` finished trials; see `Options` for the rest."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    jobs = adapt(launcher, options.n_jobs)
    try:
        folders = Folders(config)
        callbacks = build_callbacks(options.callbacks)
        for params in options.enqueue:
            space.check(params)
        study = open_study(options, space, folders.root)
        with Claim(study, options.shared) as claim:
            prepare(study, options, space, claim)
            Search(options, space, study, claim, jobs, folders, callbacks).run(config)
    except StorageInternalError as error:
        reason, *_ = str(error.__cause__).splitlines()
        raise HydraException(
            f"the study's storage failed: {reason}\nOnce it works, the same command goes on"
        ) from error
    finally:
        jobs.close()


def prepare(study: Study, options: Options, space: Space, claim: Claim) -> None:
    """What an earlier sweep left is put in order, the sampler chosen, baselines queued."""
    _study.recover(study, claim, options.max_retries)
    # Sweeps that share a study must not all ask for the same trials.
    stream = randbits(31) if options.shared else len(study.get_trials(deepcopy=False))
    study.sampler = build_sampler(options, space, stream)
    _study.warn_of_other_overrides(study, space.fixed)
    if claim.leads():
        _study.enqueue(study, options.enqueue)


def build_callbacks(nodes: Any) -> list[Callback]:
    return [instantiate(n) for n in (nodes.values() if isinstance(nodes, Mapping) else nodes or ())]


def open_study(options: Options, space: Space, sweep_dir: Path) -> Study:
    """Open the study, after a look at what needs no storage to be found wrong."""
    pruner = _pruning.pruner_of(options.pruning, options.objectives, len(options.direction))
    if options.sampler == "cmaes" and len(options.direction) > 1:
        raise ValueError("sampler=cmaes knows one objective: give tpe, gp, nsgaii or nsgaiii")
    build_sampler(options, space, 0)  # tried before the storage is touched
    question = {
        "params": space.described(),
        "objectives": options.objectives,
        "directions": options.direction,
        "constraints": options.constraints,
    }
    storage = open_storage(options.storage, sweep_dir)
    return _study.open_study(storage, options.study_name or sweep_dir.name, question, pruner)


def build_sampler(options: Options, space: Space, stream: int) -> BaseSampler:
    return _samplers.build(
        options.sampler, options.sampler_options, options.seed, space.params, stream
    )
