"""What runs in a trial's process: how the task gets there, and how its result comes back."""

import atexit
import json
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable, Mapping
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig

LOG, RESULT = "trial.log", "result.json"
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")


class ByName:
    """A function of a module, pickled as such even where a decorator has taken its name.

    `hydra.main` is one, so that neither `pickle` nor `cloudpickle` find the function itself; the
    latter would copy it without its module.
    """

    def __init__(self, task: TaskFunction) -> None:
        """Raises `AttributeError` for what is no function of a module that can be imported."""
        module, name, depth = task.__module__, task.__qualname__, 0
        while find(module, name, depth) is not task:
            depth += 1
        self.place = module, name, depth

    def __reduce__(self) -> tuple[Any, ...]:
        return find, self.place


def find(module: str, name: str, depth: int) -> TaskFunction:
    """What a module has by that name, within so many decorators."""
    found = attrgetter(name)(import_module(module))
    for _ in range(depth):
        found = found.__wrapped__
    return cast(TaskFunction, found)


def context_of(config: DictConfig, loader: ConfigLoader | None = None) -> HydraContext:
    """What Hydra needs to run a job, where no sweep of Hydra's has made it: the job's callbacks.

    `loader` is for whoever composes.
    """
    return HydraContext(cast(ConfigLoader, loader), cast(Any, JobCallbacks(config)))


class JobCallbacks:
    """The callbacks in a job's `hydra.callbacks`, told of its start and end as Hydra does.

    An error in one of them is a warning.
    """

    def __init__(self, config: DictConfig) -> None:
        self.callbacks = [instantiate(node) for node in config.hydra.callbacks.values()]

    def on_job_start(self, **arguments: Any) -> None:
        """Tell all, in order."""
        self._tell(self.callbacks, "on_job_start", arguments)

    def on_job_end(self, **arguments: Any) -> None:
        """Tell all, the last one first."""
        self._tell(self.callbacks[::-1], "on_job_end", arguments)

    def _tell(self, callbacks: list[Any], event: str, arguments: dict[str, Any]) -> None:
        for callback in callbacks:
            try:
                getattr(callback, event)(**arguments)
            except Exception as error:
                warnings.warn(f"{event} of {type(callback).__name__}: {error!r}", stacklevel=2)


class TrialCallback(Callback):
    """What a trial does beside its task, in whatever process it runs.

    SIGTERM ends it as an error would, so that loggers are closed. What it returns is written to
    `result.json` in its folder, on global rank 0 alone: a number, a text, null, or a list or
    mapping of those; NaN and infinities are kept. Of a job that fails there is no such file.
    """

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the task."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Called by Hydra after the task."""
        first = all(os.environ.get(name, "0") == "0" for name in RANKS)
        if first and job_return.status == JobStatus.COMPLETED:
            folder = Path(config.hydra.runtime.output_dir)
            text = json.dumps(job_return.return_value, default=_plain)
            draft = folder / f".{RESULT}.{os.getpid()}"
            draft.write_text(text, encoding="utf-8")
            draft.replace(folder / RESULT)


def _plain(value: Any) -> Any:
    """What stands in JSON for arrays and scalars of numpy or torch, and for other containers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    raise TypeError(
        f"a trial returned {value!r:.80}, which cannot be recorded: return a number, or a list or "
        "mapping of numbers"
    )


def run(config: DictConfig, task: TaskFunction, context: HydraContext) -> JobReturn:
    """Run a composed job as Hydra does, in the folder `hydra.run.dir`; its error is returned."""
    setup_globals()
    return run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.run.dir",
        job_subdir_key=None,
    )


def run_and_exit(task: TaskFunction, pickled: bytes) -> NoReturn:
    """Run the job that another process composed, print its error, and end this process.

    As python does, but without taking all modules apart: with torch that costs half a second.
    """
    status = 1
    try:
        config: DictConfig = pickle.loads(pickled)
        job = run(config, task, context_of(config))
        if job.status == JobStatus.COMPLETED:
            status = 0
        else:
            error = job._return_value
            traceback.print_exception(error.with_traceback(error.__traceback__.tb_next))
    except SystemExit as end:
        print(f"SystemExit: {end}", file=sys.stderr)
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
