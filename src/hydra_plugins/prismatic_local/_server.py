"""The fork server: a process of its own that starts trials, ends them and says when they ended.

It has the heavy libraries loaded, so a fork of it is ready to train at once. It never starts
threads, OpenMP or CUDA, which do not survive a fork. When its connection closes, whatever the
reason, it ends every trial and then itself: nothing outlives a sweep that is killed.
"""

import contextlib
import ctypes
import gc
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import Pipe, spawn
from multiprocessing.connection import Connection, wait

GRACE = 5.0  # seconds between SIGTERM and SIGKILL
PR_SET_PDEATHSIG = 1
Load = tuple[dict[str, str], list[str]]
LOST = "was lost with the fork server (out of memory?)"


@dataclass(frozen=True)
class Order:
    """A trial to start, or, without arguments, to stop."""

    number: int
    arguments: Sequence[str] = ()  # of python
    environment: Mapping[str, str] | None = None
    log: str = ""
    job: bytes | None = None  # for `_job.main` in a fork; None is a fresh python
    timeout: float | None = None


@dataclass(frozen=True)
class Ended:
    """How a trial ended. `cause` is empty if it did so by itself."""

    number: int
    status: int  # the exit status; -n is killed by signal n
    cause: str = ""


@dataclass
class Trial:
    """A trial that runs. At `deadline` (monotonic seconds) its group gets the next signal."""

    number: int
    deadline: float
    cause: str = "ran longer than hydra.launcher.timeout"
    signals: int = 0  # already sent

    def stop(self) -> None:
        """Let the deadline be now, unless it has passed."""
        if not self.signals:
            self.deadline, self.cause = time.monotonic(), "was stopped"


class ForkServer:
    """The sweep's end: starts the server process.

    `load` is its main module, as `multiprocessing.spawn` takes it, and the modules to import; None
    for a server of fresh pythons alone. `environment` should be that of the trials: OpenMP reads
    its number of threads as it is loaded.
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
        self.connection.send(load)

    def order(self, order: Order) -> None:
        """Send an order; if the server is gone, `ended` will say so."""
        with contextlib.suppress(OSError):
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
        self.process.terminate()
        self.process.wait()


class Server:
    """The server process itself."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.trials: dict[int, Trial] = {}  # by process, which leads its group
        self.closing = False
        self.pipe = self.awake, waker = os.pipe()
        for fd in self.pipe:
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self.close)

    def serve(self) -> Order | None:
        """Start and end trials until closed. Returns twice: an order, in the trial's process."""
        while self.trials or not self.closing:
            asked = [] if self.closing else [self.connection]
            ready = wait([self.awake, *asked], self.patience())
            if self.awake in ready:
                os.read(self.awake, 4096)
            if self.connection in ready:
                order = self.receive()
                if order is not None:
                    return order
            self.reap()
            self.end_overdue()
        return None

    def patience(self) -> float | None:
        """Seconds until the next deadline; None is for ever."""
        first = min((trial.deadline for trial in self.trials.values()), default=math.inf)
        return None if first == math.inf else max(0.0, first - time.monotonic())

    def receive(self) -> Order | None:
        """Do what is asked. In the process of a new trial: its order."""
        try:
            order = self.connection.recv()
        except (EOFError, OSError):
            self.close()
            return None
        if not order.arguments:
            for trial in self.trials.values():
                if trial.number == order.number:
                    trial.stop()
        elif (pid := os.fork()) == 0:
            self.leave()
            return order
        else:
            seconds = math.inf if order.timeout is None else order.timeout
            self.trials[pid] = Trial(order.number, time.monotonic() + seconds)
        return None

    def leave(self) -> None:
        """In a new trial's process: become an ordinary python."""
        signal.set_wakeup_fd(-1)  # a library may have done so already, when it saw the fork
        for fd in self.pipe:
            os.close(fd)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.connection.close()

    def close(self, *signal_and_frame: object) -> None:
        """Have all trials ended, and then the server."""
        self.closing = True

    def reap(self) -> None:
        """Report the trials that ended, and end what they left behind."""
        while self.trials:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            signal_group(pid, signal.SIGKILL)
            trial = self.trials.pop(pid, None)
            if trial is None:  # a child of something that was preloaded
                continue
            cause = trial.cause if trial.signals else ""
            ended = Ended(trial.number, os.waitstatus_to_exitcode(status), cause)
            with contextlib.suppress(OSError):  # nobody listens any more
                self.connection.send(ended)

    def end_overdue(self) -> None:
        """SIGTERM at a deadline, SIGKILL `GRACE` seconds later."""
        for pid, trial in self.trials.items():
            if self.closing:
                trial.stop()
            if time.monotonic() >= trial.deadline:
                signal_group(pid, signal.SIGKILL if trial.signals else signal.SIGTERM)
                trial.signals += 1
                trial.deadline = time.monotonic() + GRACE


def signal_group(leader: int, number: signal.Signals) -> None:
    """Send a signal to a process group, if there is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone; where it can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def outlive_parent() -> None:
    """Undo `die_with`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0)


def run(order: Order, parent: int) -> None:
    """Be the trial. Its output, and that of whatever it starts, goes to its log."""
    os.setsid()
    die_with(parent)
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if order.job is None:
        os.execve(sys.executable, [sys.executable, *order.arguments], order.environment or {})
    os.environ.clear()
    os.environ.update(order.environment or {})
    sys.argv = list(order.arguments)
    if "numpy" in sys.modules:  # python's own generator does it by itself
        sys.modules["numpy"].random.seed()
    from . import _job

    _job.main(order.job)


def prepare(load: Load | None) -> None:
    """Import the script and the libraries once, for all forks."""
    if load is None:
        return
    main, preload = load
    gc.disable()  # it would take a third of the time, and modules leave next to nothing to collect
    spawn.prepare(main)
    for name in (f"{__package__}._job", *preload):
        import_module(name)
    gc.freeze()  # keeps the collector of a fork from copying every page
    gc.enable()


def main(fd: int) -> None:
    """What the server process runs; and, after `serve`, what each trial's process runs."""
    connection = Connection(fd)
    die_with(os.getppid())
    try:
        prepare(connection.recv())
    except Exception as error:
        connection.send(ValueError(f"hydra.launcher.preload, or the script: {error!r}"))
        return
    outlive_parent()  # now there may be trials to end first
    server = os.getpid()
    order = Server(connection).serve()
    if order is not None:
        run(order, server)
