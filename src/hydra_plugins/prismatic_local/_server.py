"""The fork server: a process of its own that starts trials, ends them and says when they ended.

It has the task and its libraries loaded, so that a fork of it is ready to train at once. It never
starts threads, OpenMP or CUDA, which do not survive a fork. It owns the process group of every
trial: when its connection closes, whatever the reason, it ends them all and then itself, so that
nothing outlives a sweep that is killed. `multiprocessing`'s fork server ends no group.
"""

import ctypes
import gc
import math
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import Pipe, spawn
from multiprocessing.connection import Connection
from typing import Any, NoReturn, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.errors import CompactHydraException
from hydra.types import TaskFunction

from . import _job

GRACE = 5.0  # seconds between SIGTERM and SIGKILL
POLL = 0.02  # seconds between two looks at the trials
PR_SET_PDEATHSIG = 1
LOST = "was lost with the fork server (out of memory?)"


@dataclass(frozen=True)
class Load:
    """What a server loads for its forks."""

    main: Mapping[str, str]  # the main module, as `multiprocessing.spawn.prepare` takes it
    preload: Sequence[str]  # modules
    task: bytes  # pickled, with the state of Hydra's singletons


@dataclass(frozen=True)
class Order:
    """A trial to start; to stop one, its number alone is sent."""

    number: int
    arguments: Sequence[str]  # of python, or what `sys.argv` shall be in a fork
    environment: Mapping[str, str]
    log: str
    config: bytes | None  # pickled, for the task in a fork; None is a fresh python
    timeout: float | None


@dataclass(frozen=True)
class Ended:
    """How a trial ended. `cause` is empty if it did so by itself."""

    number: int
    status: int  # the exit status; -n is killed by signal n
    cause: str = ""


class ForkServer:
    """The sweep's end: starts the server process.

    Without a `load` it starts fresh pythons only. `environment` should be that of the trials:
    OpenMP reads its number of threads as it is loaded.
    """

    def __init__(self, environment: Mapping[str, str], load: Load | None) -> None:
        self.connection, theirs = Pipe()
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main"
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{code}({theirs.fileno()})"],
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C is for the sweep, which then closes this
        )
        theirs.close()
        self.send(load)

    def send(self, order: Load | Order | int | None) -> None:
        """Load, start a trial, or stop one; if the server is gone, `ended` will say so."""
        with suppress(OSError):
            self.connection.send(order)

    def ended(self, timeout: float | None) -> list[Ended]:
        """Wait until a trial ended, or `timeout` seconds; `EOFError` if the server is gone."""
        ended: list[Ended] = []
        while self.connection.poll(0 if ended else timeout):
            message = self.connection.recv()
            if isinstance(message, Exception):
                raise message
            ended.append(message)
        return ended

    def close(self) -> None:
        """End every trial and the server; takes up to `GRACE` seconds if one does not listen."""
        self.connection.close()
        self.process.terminate()  # while it loads; later the closed connection tells it
        self.process.wait()


def main(fd: int) -> None:
    """What the server process runs."""
    connection = Connection(fd)
    try:
        load = connection.recv()
        task = None if load is None else prepare(load)
    except EOFError:
        return
    except CompactHydraException as error:
        connection.send(error)
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # now there may be trials to end first
    Server(connection, task).serve()


def prepare(load: Load) -> TaskFunction:
    """Import the script, the libraries and the task with Hydra's state, once for all forks."""
    gc.disable()  # it would take a third of the time, and modules leave next to nothing to collect
    # In a script without `if __name__ == "__main__"` Hydra starts; now it raises an error instead.
    GlobalHydra.instance().hydra = cast(Any, "a server of trials")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    what = "the script"
    try:
        spawn.prepare(dict(load.main))
        for what in load.preload:
            import_module(what)
        what = "the task"
        task, state = pickle.loads(load.task)
    except (Exception, SystemExit) as error:
        raise CompactHydraException(
            "hydra.launcher.executor=fork loads the script, hydra.launcher.preload and the task "
            f"before the first trial, but {what} fails: {error!r}. Mend it (a script starts Hydra "
            'under `if __name__ == "__main__":` alone), or give hydra.launcher.executor=process'
        ) from None
    Singleton.set_state(state)
    gc.freeze()  # keeps the collector of a fork from copying every page
    gc.enable()
    return cast(TaskFunction, task)


@dataclass
class Child:
    """A trial that runs. At `deadline` (monotonic seconds) its group gets the next signal."""

    number: int
    deadline: float
    cause: str = "ran longer than hydra.launcher.timeout"
    signals: int = 0  # already sent

    def stop(self) -> None:
        """Let the deadline be now, unless it has passed."""
        if not self.signals:
            self.deadline, self.cause = time.monotonic(), "was stopped"


class Server:
    """The server process itself."""

    def __init__(self, connection: Connection, task: TaskFunction | None) -> None:
        self.connection, self.task = connection, task
        self.children: dict[int, Child] = {}  # by process, which leads its group
        self.listening = True

    def serve(self) -> None:
        """Start and end trials until the connection closes and all have ended."""
        while self.listening or self.children:
            self.listen()
            for pid, child in list(self.children.items()):
                self.look_after(pid, child)

    def listen(self) -> None:
        """Do what is asked within a moment; for ever, if no trial runs."""
        if not self.listening:
            time.sleep(POLL)
            return
        try:
            if self.connection.poll(POLL if self.children else None):
                self.obey(self.connection.recv())
        except (EOFError, OSError):
            self.listening = False
            for child in self.children.values():
                child.stop()

    def obey(self, order: Order | int) -> None:
        """Start a trial, or stop the one of that number."""
        if isinstance(order, int):
            for child in self.children.values():
                if child.number == order:
                    child.stop()
            return
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self.connection.close()
            run(order, self.task, server)
        seconds = math.inf if order.timeout is None else order.timeout
        self.children[pid] = Child(order.number, time.monotonic() + seconds)

    def look_after(self, pid: int, child: Child) -> None:
        """Report a trial that ended, after ending what it left behind; end one that is due."""
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            signal_group(pid, signal.SIGKILL)
            del self.children[pid]
            cause = child.cause if child.signals else ""
            with suppress(OSError):  # nobody listens any more
                self.connection.send(Ended(child.number, os.waitstatus_to_exitcode(status), cause))
        elif time.monotonic() >= child.deadline:
            signal_group(pid, signal.SIGKILL if child.signals else signal.SIGTERM)
            child.signals += 1
            child.deadline = time.monotonic() + GRACE


def run(order: Order, task: TaskFunction | None, server: int) -> NoReturn:
    """Be the trial. Its output, and that of whatever it starts, goes to its log."""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        die_with(server)
        log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if order.config is None or task is None:
            os.execve(sys.executable, [sys.executable, *order.arguments], order.environment)
        os.environ.clear()
        os.environ.update(order.environment)
        sys.argv = list(order.arguments)
        if "numpy" in sys.modules:  # python's own generator does it by itself
            sys.modules["numpy"].random.seed()
        _job.run_and_exit(task, order.config)
    except BaseException:  # a trial must never go on as a second server
        traceback.print_exc()
        os._exit(1)


def signal_group(leader: int, number: signal.Signals) -> None:
    """Send a signal to a process group, if there is one."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone; where it can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
