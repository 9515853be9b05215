"""What runs in a trial's process, and the file that its result comes back in."""

import atexit
import inspect
import json
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, run_job, setup_globals
from hydra.experimental.callback import Callback
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

RESULT = "result.json"
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")


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


def main(pickled: bytes) -> NoReturn:
    """Run the job that another process composed, and end this process.

    As python does, but without taking all modules apart: with torch that costs half a second.
    """
    status = 1
    try:
        status = status_of(*pickle.loads(pickled))
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


def status_of(config: DictConfig, name: str) -> int:
    """Run a job of the main module; 1 after an error, which is printed.

    The task is named, not sent: `hydra.main` puts another function in its place, which wraps it.
    """
    JobRuntime.instance().set("name", config.hydra.job.name)
    context = HydraContext(cast(ConfigLoader, None), Callbacks(config))  # composing is done
    job = run(config, inspect.unwrap(getattr(sys.modules["__main__"], name)), context)
    if job.status == JobStatus.COMPLETED:
        return 0
    error = job._return_value
    traceback.print_exception(error.with_traceback(error.__traceback__.tb_next))  # the task's
    return 1


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
