"""Two ways to run composed trials: processes of their own, or this process."""

import atexit
import json
import logging
import os
import pickle
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import spawn
from pathlib import Path

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.errors import CompactHydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from ._command import arguments_of, program_of, texts
from ._job import LOG, RESULT, ByName, run
from ._server import LOST, Ended, ForkServer, Load, Order
from ._slots import environment_of

log = logging.getLogger(__name__)

DIED = (*range(-64, 0), 128 + signal.SIGTERM)  # by a signal, or its handler
TAIL = 20  # lines of a failed trial's log that its reason shows


class TrialError(ChildProcessError):
    """A trial without a result. `lost`: its process died, and not because it was told to."""

    def __init__(self, reason: str, lost: bool) -> None:
        super().__init__(reason)
        self.lost = lost


class Inline:
    """Runs each trial to its end in this process."""

    def __init__(self, context: HydraContext, task: TaskFunction, sweep: DictConfig) -> None:
        self.context, self.task, self.hydra = context, task, sweep.hydra
        self.running: dict[int, object] = {}  # none: each has ended before another call
        self.ended: list[tuple[int, JobReturn]] = []

    def start(self, number: int, trial: DictConfig, overrides: Sequence[str]) -> None:
        """Run a trial."""
        self.ended.append((number, run(trial, self.task, self.context)))
        configure_log(self.hydra.hydra_logging, self.hydra.verbose)

    def finished(self, timeout: float | None) -> list[tuple[int, JobReturn]]:
        """All that ran since the last call."""
        ended, self.ended = self.ended, []
        return ended

    def stop(self, number: int) -> None:
        """None runs that could be stopped."""

    def close(self) -> None:
        """Nothing is left behind."""


class Processes:
    """Runs each trial in a process of its own, which a fork server starts.

    It is a fork of the server, which has loaded the task and the modules in `preload`; or, with
    `preload` None, a fresh python with the program's own command line. Where the sweep was not
    started by one, it is then a fork of a server that has loaded the task alone.
    """

    def __init__(
        self,
        task: TaskFunction,
        sweep: DictConfig,
        slots: Sequence[Mapping[str, str]],
        preload: Sequence[str] | None,
        timeout: float | None,
    ) -> None:
        self.slots, self.timeout = slots, timeout
        self.program = program_of(sweep) if preload is None else None
        if preload is None and self.program is None:
            log.warning(
                "the sweep was not started by this program's command line: trials of "
                "hydra.launcher.executor=process are forks, which cannot start further ranks"
            )
        self.load = None if self.program else load_of(task, list(preload or ()))
        self.running: dict[int, tuple[int, JobReturn]] = {}  # slot and what will be returned
        self.server: ForkServer | None = None
        self.serve()

    def serve(self) -> ForkServer:
        """The fork server, which is started if it does not run."""
        if self.server is None:
            self.server = ForkServer(environment_of(self.slots[0], os.environ), self.load)
            atexit.register(self.close)
        return self.server

    def start(self, number: int, trial: DictConfig, overrides: Sequence[str]) -> None:
        """Start a trial in a free slot, in its folder, without what an earlier one left there."""
        slot = min(set(range(len(self.slots))) - {taken for taken, _ in self.running.values()})
        folder = Path(trial.hydra.run.dir)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (RESULT, LOG):
            (folder / name).unlink(missing_ok=True)
        program = self.program or [os.path.abspath(sys.argv[0])]
        order = Order(
            number=number,
            arguments=[*program, *arguments_of(overrides, trial)],
            environment=environment_of(self.slots[slot], os.environ),
            log=str(folder / LOG),
            config=self.pickled(trial) if self.load else None,
            timeout=self.timeout,
        )
        job = JobReturn(
            overrides=texts(trial.hydra.overrides.task),
            cfg=OmegaConf.masked_copy(trial, [str(key) for key in trial if key != "hydra"]),
            hydra_cfg=OmegaConf.masked_copy(trial, "hydra"),
            working_dir=str(folder),
            task_name=trial.hydra.job.name,
        )
        self.serve().send(order)
        self.running[number] = slot, job

    def pickled(self, trial: DictConfig) -> bytes:
        """A configuration; its types are the main module's own where the server has loaded it."""
        own = self.load is not None and self.load.main
        return pickle.dumps(trial) if own else cloudpickle.dumps(trial)

    def finished(self, timeout: float | None) -> list[tuple[int, JobReturn]]:
        """Wait until a trial ended, or `timeout` seconds; all that ended."""
        if not self.running:
            return []
        try:
            ended = self.serve().ended(timeout)
        except (EOFError, OSError):  # the server died, all that ran with it; the next is new
            self.shut_down()
            ended = [Ended(number, -signal.SIGKILL, LOST) for number in self.running]
        return [(end.number, returned(self.running.pop(end.number)[1], end)) for end in ended]

    def stop(self, number: int) -> None:
        """Ask the server to end a trial."""
        if number in self.running and self.server is not None:
            self.server.send(number)

    def close(self) -> None:
        """End every trial and the server, and wait until they are gone."""
        self.running.clear()
        self.shut_down()

    def shut_down(self) -> None:
        """End the server; it ends what it started."""
        server, self.server = self.server, None
        if server is not None:
            atexit.unregister(self.close)
            server.close()


def load_of(task: TaskFunction, preload: Sequence[str]) -> Load:
    """The task for another process: by its name, if it has one there, or else as a copy."""
    main: dict[str, str] = {}
    sent: object = task
    with suppress(AttributeError, ImportError):
        if getattr(task, "__module__", None) == "__main__":
            data = spawn.get_preparation_data("server")
            main = {key: data[key] for key in data if key.startswith("init_main")}
        if main or task.__module__ != "__main__":
            sent = ByName(task)
    try:
        return Load(main, preload, cloudpickle.dumps((sent, Singleton.get_state())))
    except Exception as error:  # of whatever it refers to
        raise CompactHydraException(
            f"the task {task!r} cannot be sent to another process: {error}. Make it a function at "
            "the top of a module, or give hydra.launcher.executor=inline, or process in a script"
        ) from error


def returned(job: JobReturn, ended: Ended) -> JobReturn:
    """The job with its result; without one it has failed, whatever its exit status."""
    folder = Path(str(job.working_dir))
    printed, result = folder / LOG, folder / RESULT
    if result.exists():
        job.return_value = json.loads(result.read_text(encoding="utf-8"))
        job.status = JobStatus.COMPLETED
    else:
        reason = f"trial {ended.number} {ended.cause or meaning(ended.status)}: {printed}"
        lost = ended.cause == LOST or (not ended.cause and ended.status in DIED)
        job.return_value = TrialError(f"{reason}\n{tail(printed)}".rstrip(), lost)
        job.status = JobStatus.FAILED
    return job


def meaning(status: int) -> str:
    """An exit status in words; -n is killed by signal n."""
    if status == -signal.SIGKILL:
        return "was killed (out of memory?)"
    if status in DIED:
        number = -status if status < 0 else status - 128
        return f"was ended by signal {number} ({signal.strsignal(number)})"
    return "ended without a result" if status == 0 else f"failed with exit status {status}"


def tail(path: Path) -> str:
    """The last lines of a log."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 10_000))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-TAIL:])
