"""The launcher: `n_jobs` trials at a time, each in a process of its own."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import (
    JobReturn,
    JobStatus,
    configure_log,
    filter_overrides,
    setup_globals,
)
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, open_dict

from . import _command, _slots
from ._job import LOG as LOG
from ._job import context_of as context_of
from ._slots import cores as cores
from .streaming import NumberedJob, run_jobs

EXECUTORS = ("fork", "process", "inline")
INTERRUPTED = 130  # a shell's exit status after Ctrl-C

log = logging.getLogger(__name__)


@dataclass
class LauncherConf:
    """`hydra.launcher`: see `LocalLauncher`."""

    _target_: str = "hydra_plugins.prismatic_local.launcher.LocalLauncher"
    n_jobs: int = 1
    executor: str = "fork"
    threads: int | None = None
    gpus_per_job: int = 1
    preload: list[str] = field(default_factory=lambda: ["torch", "pytorch_lightning"])
    timeout: float | None = None


ConfigStore.instance().store(
    group="hydra/launcher", name="prismatic_local", node=LauncherConf, provider="prismatic_local"
)


class LocalLauncher(Launcher):
    """Runs trials side by side on this machine: a grid by `launch`, or one by one by `start`.

    `executor` is one of:

    - `fork`: forks of a server that has loaded the script, the modules in `preload` and the task;
      ready in a moment. A task that has no name in its module is sent as a copy.
    - `process`: a fresh python each that runs the sweep's own program, for trials on several
      devices: Lightning's ddp runs `sys.argv` again for its further ranks.
    - `inline`: in this process, one after another, for a debugger.

    Each process of a trial has `threads` OpenMP threads (null: OMP_NUM_THREADS of the environment,
    or else the cores shared out among trials). A trial has, where there are CUDA devices,
    `gpus_per_job` of them, its slot's own unless there are too few (0: none). It is ended after
    `timeout` seconds, if given.

    A trial is a plain run (`hydra.mode=RUN`) with `hydra.job.num` and `hydra.job.id` set, in the
    folder `hydra.sweep.dir`/`hydra.sweep.subdir`; what it prints is in `trial.log` there, and what
    it returned in `result.json`. It has failed if there is no result; its `JobReturn` then holds a
    `ChildProcessError` with the end of the log, whose `lost` is true if the trial's process died.
    """

    def __init__(
        self,
        n_jobs: int = 1,
        executor: str = "fork",
        threads: int | None = None,
        gpus_per_job: int = 1,
        preload: Sequence[str] = ("torch", "pytorch_lightning"),
        timeout: float | None = None,
    ) -> None:
        one = "give a whole number >= 1"
        _require(n_jobs >= 1, "n_jobs", n_jobs, one)
        _require(executor in EXECUTORS, "executor", executor, f"choose one of {EXECUTORS}")
        posix = "processes are forked, which needs Linux or macOS: choose inline"
        _require(hasattr(os, "fork") or executor == "inline", "executor", executor, posix)
        _require(threads is None or threads >= 1, "threads", threads, f"{one}, or null")
        _require(gpus_per_job >= 0, "gpus_per_job", gpus_per_job, "give a whole number >= 0")
        _require(timeout is None or timeout > 0, "timeout", timeout, "give seconds > 0, or null")
        self.n_jobs = 1 if executor == "inline" else n_jobs
        self.executor, self.threads, self.gpus_per_job = executor, threads, gpus_per_job
        self.preload, self.timeout = list(preload), timeout

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra. A fork server loads its modules while the sweeper gets ready."""
        from ._trials import Inline, Processes

        _slots.refuse_ranks(os.environ)
        self._context, self._config = hydra_context, config
        self._sweep_dir = Path(config.hydra.sweep.dir).absolute()
        gpus = _slots.visible_gpus(os.environ)
        slots = _slots.slots(self.n_jobs, self.threads, self.gpus_per_job, gpus)
        if 0 < len(gpus) < self.n_jobs * self.gpus_per_job:
            log.warning(f"{self.n_jobs} trials at a time share {len(gpus)} CUDA devices")
        preload = self.preload if self.executor == "fork" else None
        self._trials: Inline | Processes = (
            Inline(hydra_context, task_function, config)
            if self.executor == "inline"
            else Processes(
                task_function, config, slots=slots, preload=preload, timeout=self.timeout
            )
        )

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run all jobs and return them in order; one that fails does not stop the others.

        An interrupt ends all and exits.
        """
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        log.info(f"{len(job_overrides)} trials, {self.n_jobs} at a time, in {self._sweep_dir}")
        waiting = _announced(enumerate(job_overrides, initial_job_idx))
        returns: dict[int, JobReturn] = {}
        try:
            for ended in run_jobs(self, lambda: next(waiting, None)):
                returns.update(ended)
                for number, job in ended:
                    if job.status == JobStatus.FAILED:
                        reason, *_ = str(job._return_value).split("\n")
                        log.error(f"\t#{number} failed: {reason}")
        except BaseException as error:
            self.close()
            if isinstance(error, KeyboardInterrupt):
                raise SystemExit(INTERRUPTED) from None
            raise
        return [returns[number] for number in sorted(returns)]

    @property
    def omp_threads(self) -> int | None:
        """The OpenMP threads of each process of a trial; None leaves it to the environment."""
        return _slots.omp_threads(self.n_jobs, self.threads)

    def start(self, number: int, overrides: Sequence[str]) -> Path:
        """Start a trial in a free slot; inline: run it. Raises if Hydra cannot compose it.

        Returns the trial's folder.
        """
        assert len(self._trials.running) < self.n_jobs, "no slot is free"
        config = self.composed(number, overrides)
        self._trials.start(number, config, overrides)
        return Path(config.hydra.run.dir)

    def finished(self, timeout: float | None = None) -> list[tuple[int, JobReturn]]:
        """Trials that ended since the last call: waits for one, or `timeout` seconds (None: ever).

        Empty after `timeout`, and if none runs. Raises if `preload`, the script or the task
        cannot be loaded.
        """
        return self._trials.finished(timeout)

    def stop(self, number: int) -> None:
        """End a trial: SIGTERM to its process group, SIGKILL 5 s later. `finished` returns it."""
        self._trials.stop(number)

    def close(self) -> None:
        """End every trial and the fork server, and wait until they are gone."""
        self._trials.close()

    def composed(self, number: int, overrides: Sequence[str]) -> DictConfig:
        """The configuration of a trial: that of a plain run in its folder.

        Raises if Hydra cannot compose it.
        """
        loader = self._context.config_loader
        config = loader.load_sweep_config(self._config, list(overrides))
        with open_dict(config):
            hydra = config.hydra
            hydra.mode = RunMode.RUN
            hydra.job.num, hydra.job.id = number, str(number)
            hydra.sweep.dir = str(self._sweep_dir)
            folder = str(self._sweep_dir / str(hydra.sweep.subdir))
            hydra.run.dir = hydra.runtime.output_dir = folder
            hydra.callbacks[_command.KEY] = {"_target_": _command.CALLBACK}
        return config


def _announced(jobs: Iterable[NumberedJob]) -> Iterator[NumberedJob]:
    """The jobs, each written to the log as it is taken."""
    for number, overrides in jobs:
        log.info(f"\t#{number} : {' '.join(filter_overrides(overrides))}")
        yield number, overrides


def _require(valid: bool, key: str, value: object, wanted: str) -> None:
    if not valid:
        raise ValueError(f"hydra.launcher.{key}={value!r} is not valid: {wanted}")
