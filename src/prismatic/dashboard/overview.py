"""What a sweep leaves to be looked at: pictures in its folder, and its run in MLflow."""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from hydra_plugins.prismatic_optuna.callback import Callback
from hydra_plugins.prismatic_optuna.study import RESULTS

from . import rerun
from .account import CONFIGURATIONS, RUNS, Account
from .page import write_page

if TYPE_CHECKING:
    from .sweep_run import SweepRun

BEGIN, END = 120.0, 120.0  # seconds to wait for MLflow: before the first trial, and at last
PAUSE = 0.5  # seconds

log = logging.getLogger(__name__)


class Worker:
    """Does tasks in a thread, once for all who asked meanwhile. Their first error is logged.

    Between two rounds it pauses, so that the sweep first fills the slot of the trial that ended.
    """

    def __init__(self, *tasks: Callable[[], None]) -> None:
        self.tasks, self.complained, self.over = tasks, False, Event()
        self.asked: SimpleQueue[Event] = SimpleQueue()
        Thread(target=self._serve, daemon=True, name="overview of the sweep").start()

    def ask(self) -> Event:
        """Have the tasks done soon; the event says when they were."""
        done = Event()
        self.asked.put(done)
        return done

    def finish(self, seconds: float | None) -> bool:
        """Have the tasks done for the last time; whether that took no longer."""
        self.over.set()
        return self.ask().wait(seconds)

    def _serve(self) -> None:
        over, pause = False, 0.0
        while not over:
            waiting = [self.asked.get()]
            self.over.wait(pause)
            pause = PAUSE
            while not self.asked.empty():
                waiting.append(self.asked.get())
            over = self.over.is_set()
            for task in self.tasks:
                self._do(task)
            for done in waiting:
                done.set()

    def _do(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:
            level = logging.DEBUG if self.complained else logging.WARNING
            log.log(level, "the sweep goes on without its overview for now: %s", error)
            self.complained = True


class Overview(Callback):
    """Keeps pictures in the sweep's folder and, where the trials log to MLflow, a run of its own.

    It works beside the sweep, in a thread: a server that does not answer holds up no trial.
    Pictures, tables and description follow every `every` seconds, all else at once.
    """

    def __init__(self, every: float = 15.0) -> None:
        self.every = every

    def on_sweep_start(self, study: Study, config: DictConfig, sweep_dir: Path) -> None:
        """Wait for the run, in which those of the trials shall be nested."""
        self.study, self.config, self.folder = study, config, sweep_dir
        self.logs = bool(config.get("logger"))
        self.logs &= not OmegaConf.select(config, "trainer.fast_dev_run", default=False)
        self.parent: SweepRun | None = None
        self.stopped: set[int] = set()
        self.status = ""
        self.drawn, self.stale = -self.every, False
        self.account: Account | None = None  # that MLflow has not got yet
        self.pictures: list[Path] = []
        self.worker = Worker(self.draw, self.record)
        if not self.logs:
            return
        try:
            self.worker.ask().wait(BEGIN)
        except KeyboardInterrupt:
            self.on_sweep_end(study)
            raise
        if self.parent is None:
            log.warning("MLflow has no run for this sweep yet: its trials will not be nested")
        else:
            log.info("overview in MLflow: make ui, or %s", self.parent.logger.url())

    def on_trial_start(self, trial: Trial, overrides: list[str]) -> None:
        if self.parent is not None:
            overrides.append(f"++{rerun.NESTING}={self.parent.id}")

    def on_trial_end(
        self, study: Study, frozen_trial: FrozenTrial, job_return: JobReturn | None
    ) -> None:
        if job_return is None:
            self.stopped.add(frozen_trial.number)
        self.stale = True
        self.worker.ask()

    def on_poll(self, study: Study) -> None:
        if self.due():
            self.worker.ask()

    def on_sweep_end(self, study: Study) -> None:
        """Wait for what is still to be written."""
        self.status = outcome()
        # Pictures come to an end by themselves; a server may never answer.
        if not self.worker.finish(END if self.logs else None):
            log.warning("MLflow does not answer: the overview is in %s alone", self.folder)
        elif self.parent is not None:
            log.info("overview in MLflow: make ui, or %s", self.parent.logger.url())

    def due(self) -> bool:
        """Is it time to draw again?"""
        return self.stale and time.monotonic() - self.drawn >= self.every

    def draw(self) -> None:
        """Draw the pictures anew: the worker's first task."""
        if not (self.due() or self.status):
            return
        self.drawn, self.stale = time.monotonic(), False
        self.account = Account(self.study, self.config, self.folder)
        self.account.write_tables()
        over = bool(self.status)
        self.pictures = self.account.draw(whole=over)
        if over:
            self.pictures.insert(0, write_page(self.account, self.pictures))

    def record(self) -> None:
        """Bring MLflow up to date: its second one."""
        if not self.logs:
            return
        if self.parent is None:
            from .sweep_run import SweepRun

            self.parent = SweepRun(self.study, self.config, self.folder, self.stopped)
        status = self.status
        self.parent.update()
        if self.account is not None:
            tables = [self.folder / name for name in (RUNS, CONFIGURATIONS, RESULTS)]
            self.parent.show(description(self.account), [*self.pictures, *tables])
            self.account = None
        if status:
            self.parent.logger.end(status)


def outcome() -> str:
    """How a sweep ends, as a status of MLflow."""
    error = sys.exception()
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"


def description(account: Account) -> str:
    """What MLflow shows above a run, as Markdown."""
    head, rows = account.table
    lines = [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    parts = [f"**{account.summary}**", *(["\n".join(lines)] if rows else []), *account.remarks]
    parts += (
        ["\n".join([account.failures[0], "", *account.failures[1:]])] if account.failures else []
    )
    parts += [f"{what}:\n```bash\n{typed}\n```" for what, typed in account.commands.items()]
    return "\n\n".join(parts)
