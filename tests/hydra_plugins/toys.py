"""A Hydra app in a folder, swept in this process; launchers that take simulated time."""

import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from hydra_plugins.prismatic_optuna.sweeper import OptunaSweeper

CONFIG = """\
defaults:
  - _self_
  - model: small
  - override hydra/sweeper: prismatic_optuna

x: 0.5
y: 0.5
n: 1
name: none
hydra:
  sweep:
    dir: {folder}/sweep
    subdir: ${{hydra.job.num}}
"""
BASE = ["x=interval(0,1)", "y=interval(0,1)"]

Job = Callable[..., Any]


def app(folder: Path) -> Path:
    """A config root with a few keys and the group `model`."""
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "config.yaml").write_text(CONFIG.format(folder=folder))
    for name in ("small", "large"):
        (folder / "conf" / "model" / f"{name}.yaml").write_text(f"kind: {name}\n")
    return folder


def returned(value: Any) -> JobReturn:
    """A job's return: its value, or the error it raised."""
    failed = isinstance(value, BaseException)
    status = JobStatus.FAILED if failed else JobStatus.COMPLETED
    return JobReturn(status=status, _return_value=value)


def outcome(job: Job, *arguments: Any) -> JobReturn:
    try:
        return returned(job(*arguments))
    except Exception as error:
        return returned(error)


def parsed(overrides: Sequence[str]) -> dict[str, Any]:
    pairs = (override.partition("=") for override in overrides)
    return {key.lstrip("+"): yaml.safe_load(value) for key, _, value in pairs}


class Stepwise:
    """Streams; each call of `finished` lets every job take one step, and takes no real time.

    A job is called with its parameters and its folder. A generator yields once per step and
    returns its result; a plain function is done in one step.
    """

    def __init__(self, job: Job, folder: Path, n_jobs: int = 1) -> None:
        self.job, self.folder, self.n_jobs = job, folder, n_jobs
        self.going: dict[int, Iterator[Any]] = {}
        self.log: list[tuple[str, int]] = []
        self.overrides: dict[int, list[str]] = {}
        self.most = 0

    def start(self, number: int, overrides: Sequence[str]) -> Path:
        self.log.append(("start", number))
        self.overrides[number] = list(overrides)
        folder = self.folder / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        self.going[number] = self._run(parsed(overrides), folder)
        self.most = max(self.most, len(self.going))
        return folder

    def _run(self, params: dict[str, Any], folder: Path) -> Generator[None, None, JobReturn]:
        try:
            value = self.job(params, folder)
            return returned((yield from value) if inspect.isgenerator(value) else value)
        except Exception as error:
            return returned(error)

    def finished(self, timeout: float | None = None) -> list[tuple[int, JobReturn]]:
        done = []
        for number, steps in list(self.going.items()) if timeout != 0 else ():
            try:
                next(steps)
            except StopIteration as end:
                done.append((number, end.value))
                del self.going[number]
        self.log += [("end", number) for number, _ in done]
        return done

    def stop(self, number: int) -> None:
        def killed() -> Generator[None, None, JobReturn]:
            yield from ()
            return returned(RuntimeError("killed"))

        self.log.append(("stop", number))
        if number in self.going:
            self.going[number] = killed()

    def close(self) -> None:
        self.going.clear()


class Batched:
    """Knows only `launch`, as Hydra's own launchers do."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.batches: list[list[int]] = []

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        self.batches.append(list(numbers))
        return [
            outcome(self.job, parsed(overrides), self.folder / str(number))
            for number, overrides in zip(numbers, job_overrides, strict=True)
        ]


class Sweep:
    """`run` sweeps the app with a job; `study` reads what was stored."""

    def __init__(self, folder: Path) -> None:
        self.folder = app(folder)
        self.launcher: Any = None

    @property
    def dir(self) -> Path:
        return self.folder / "sweep"

    def run(
        self, job: Job, arguments: Sequence[str] = BASE, launcher: Any = Stepwise, **options: Any
    ) -> Any:
        """Sweep with these overrides; `options` are those of hydra.sweeper, as in a file.

        Returns the study in the sweep's folder, None where it is kept elsewhere.
        """
        sweeper = self.sweeper(arguments, {"n_jobs": None, **options})
        folder = Path(sweeper.config.hydra.sweep.dir)
        self.launcher = sweeper.launcher = launcher(job, folder)
        sweeper.sweep(OmegaConf.to_container(sweeper.config.hydra.overrides.task))
        if "storage" in options:
            return None
        [name] = optuna.get_all_study_names(self.storage(folder))
        return optuna.load_study(study_name=name, storage=self.storage(folder))

    def sweeper(self, arguments: Sequence[str], options: dict[str, Any]) -> OptunaSweeper:
        """The plugin as Hydra makes it, with Hydra's own launcher."""
        loader, config = self.composed(arguments)
        with open_dict(config):
            config.hydra.sweeper = OmegaConf.merge(config.hydra.sweeper, options)
        sweeper = instantiate(config.hydra.sweeper)
        context = HydraContext(loader, Callbacks(config))
        sweeper.setup(hydra_context=context, task_function=print, config=config)
        return sweeper

    def composed(self, arguments: Sequence[str]) -> tuple[ConfigLoader, DictConfig]:
        GlobalHydra.instance().clear()
        path = create_config_search_path(str(self.folder / "conf"))
        hydra = Hydra.create_main_hydra2("app", path)
        return hydra.config_loader, hydra.compose_config(
            "config", list(arguments), RunMode.MULTIRUN
        )

    def storage(self, folder: Path | None = None) -> JournalStorage:
        backend = JournalFileBackend(str((folder or self.dir) / "study.journal"))
        return JournalStorage(backend)

    def study(self, name: str = "sweep") -> optuna.Study:
        return optuna.load_study(study_name=name, storage=self.storage())
