"""Two ways to run composed trials: processes of their own, or this process."""

import atexit
import os
import pickle
import signal
import sys
from collections.abc import Mapping, Sequence

from hydra.core.utils import JobReturn, configure_log
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from . import _job
from ._command import arguments_of, source_of
from ._outcome import Running
from ._server import LOST, Ended, ForkServer, Order
from ._slots import environment_of


class Inline:
    """Runs each trial to its end in this process."""

    def __init__(self, context: HydraContext, task: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.hydra = context, task, config.hydra
        self.running: dict[int, Running] = {}
        self.ended: list[tuple[int, JobReturn]] = []

    def start(self, number: int, config: DictConfig, overrides: Sequence[str]) -> None:
        """Run a trial."""
        self.ended.append((number, _job.run(config, self.task, self.context)))
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
    """Runs each trial in a process, forked from a server or (`preload` None) a fresh python."""

    def __init__(
        self,
        task: TaskFunction,
        config: DictConfig,
        slots: Sequence[Mapping[str, str]],
        preload: Sequence[str] | None,
        timeout: float | None,
    ) -> None:
        self.task, self.hydra, self.slots = task, config.hydra, slots
        self.preload, self.timeout = preload, timeout
        self.module, self.file = source_of(task)
        self.running: dict[int, Running] = {}
        self.server: ForkServer | None = None
        self.serve()

    def serve(self) -> ForkServer:
        """The fork server, which is started if it does not run."""
        if self.server is None:
            name, path = "init_main_from_name", "init_main_from_path"
            main = {name: self.module} if self.module else {path: self.file}
            load = None if self.preload is None else (main, list(self.preload))
            self.server = ForkServer(environment_of(self.slots[0], os.environ), load)
            atexit.register(self.close)
        return self.server

    def start(self, number: int, config: DictConfig, overrides: Sequence[str]) -> None:
        """Start a trial in a free slot."""
        taken = {running.slot for running in self.running.values()}
        slot = min(set(range(len(self.slots))) - taken)
        running = self.running[number] = Running.begun(slot, config)
        forked = self.preload is not None
        script = ["-m", self.module] if self.module and not forked else [self.file]
        arguments = arguments_of(sys.argv[1:], self.hydra.overrides.hydra, overrides, config.hydra)
        order = Order(
            number=number,
            arguments=[*script, *arguments],
            environment=environment_of(self.slots[slot], os.environ),
            log=str(running.log),
            job=pickle.dumps((config, self.task.__qualname__)) if forked else None,
            timeout=self.timeout,
        )
        self.serve().order(order)

    def finished(self, timeout: float | None) -> list[tuple[int, JobReturn]]:
        """Wait until a trial ended, or `timeout` seconds; all that ended."""
        if not self.running:
            return []
        ended = self.reports(timeout)
        return [(end.number, self.running.pop(end.number).returned(end)) for end in ended]

    def reports(self, timeout: float | None) -> list[Ended]:
        """What the server reports. If it died, all that ran died with it, and the next is new."""
        try:
            return self.serve().ended(timeout)
        except (EOFError, OSError):
            self.shut_down()
            return [Ended(number, -signal.SIGKILL, LOST) for number in self.running]

    def stop(self, number: int) -> None:
        """Ask the server to end a trial."""
        if number in self.running and self.server is not None:
            self.server.order(Order(number))

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
