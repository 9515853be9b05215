"""The loop of a sweep: ask, start, listen, tell; a slot that falls free is filled at once."""

import logging
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from omegaconf import DictConfig
from optuna.study import Study
from optuna.trial import Trial, TrialState

from . import _pruning, _report, _results, _study
from ._launchers import Batches, Folders, Streaming, slots
from ._owner import Claim
from ._samplers import Grid
from ._space import Space
from .callback import Callback
from .sweeper import Options

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
RECOVER_SECONDS = 60.0
FEW = 10  # trials before a rate of failures means something
INTERRUPTED = 130  # a shell's exit status after Ctrl-C


@dataclass
class Running:
    """A trial whose job has started; `pruned` holds the reason once it was asked to stop."""

    trial: Trial
    folder: Path
    progress: _pruning.Progress
    pruned: str | None = None
    deadline: float = float("inf")


@contextmanager
def terminable() -> Iterator[list[int]]:
    """A request to terminate, as from a batch system, interrupts as Ctrl-C does.

    Gives the signals that came: a library that one met in the middle may raise something else.
    """
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, interrupt) for number in signals]
    try:
        yield came
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


class Search:
    """One sweep on an open study, which this process has claimed."""

    def __init__(
        self,
        options: Options,
        space: Space,
        study: Study,
        claim: Claim,
        launcher: Streaming,
        folders: Folders,
        callbacks: list[Callback],
    ) -> None:
        self.options, self.space, self.study, self.claim = options, space, study, claim
        self.launcher, self.slots = launcher, slots(launcher, options.n_jobs)
        self.folders, self.callbacks = folders, callbacks
        self.rule = _pruning.rule_of(options.pruning, study, options.objectives)
        self.names = _report.names_of(study, options.objectives)
        size = len(study.sampler) if isinstance(study.sampler, Grid) else None
        self.total = min(options.n_trials, size or options.n_trials)
        self.running: dict[int, Running] = {}
        self.reasons: list[str] = []
        self.ended, self.recovered = 0, time.monotonic()

    def run(self, config: DictConfig) -> None:
        """Run to the total. However it ends, trials are told and results are written."""
        self.study.set_user_attr("total", self.total)
        for callback in self.callbacks:
            callback.on_sweep_start(self.study, config, self.folders.root)
        self.say_hello()
        came: list[int] = []
        try:
            with terminable() as came:
                self.loop()
        except BaseException as error:
            if came or isinstance(error, KeyboardInterrupt):
                self.abort("interrupted")
                raise SystemExit(INTERRUPTED) from None
            self.abort(f"the sweep ended: {type(error).__name__}")
            raise
        finally:
            self.write()
            self.notify("on_sweep_end", self.study)
            log.info(_report.closing(self.study, self.total, self.names))

    def say_hello(self) -> None:
        done = _study.finished(_study.counts(self.study))
        if done:
            log.info("%s: %d of %d trials are finished", self.study.study_name, done, self.total)
        if self.options.pruning and isinstance(self.launcher, Batches):
            log.warning("pruning=%s needs a launcher that streams", self.options.pruning)

    def loop(self) -> None:
        while True:
            self.fill()
            if not self.running:
                self.recover()  # what other sweeps left running in the meantime
                if self.missing() <= 0:
                    return
            for number, job in self.launcher.finished(POLL_SECONDS):
                if number in self.running:
                    self.end(number, job)
            self.check_failures()
            self.poll()

    def fill(self) -> None:
        """Start trials until the slots are full, or the total will be reached."""
        while len(self.running) < self.slots and self.missing() > 0:
            trial = self.study.ask(self.space.params)
            trial.set_user_attr("owner", self.claim.owner)
            if self.missing() < 0:
                _study.give_back(self.study, trial.number, self.options.max_retries)
                time.sleep(random.uniform(0, 1))
                continue
            self.start(trial)
            self.check_failures()

    def missing(self) -> int:
        """How many trials are neither finished nor running; below 0 there are too many."""
        found = _study.counts(self.study)
        busy = found["running"] if self.options.shared else len(self.running)
        return self.total - _study.finished(found) - busy

    def start(self, trial: Trial) -> None:
        """Start a trial's job; one that cannot be composed fails alone."""
        folder = self.folders.fresh(trial.number)
        progress = _pruning.Progress(folder / "progress.jsonl")
        self.running[trial.number] = Running(trial, folder, progress)
        overrides = self.space.overrides(trial.params)
        self.notify("on_trial_start", trial, overrides)
        try:
            self.launcher.start(trial.number, overrides)
        except Exception as error:
            self.end(trial.number, JobReturn(status=JobStatus.FAILED, _return_value=error))

    def end(self, number: int, job: JobReturn) -> None:
        """Tell what a job returned; of a trial that was asked to stop, only that."""
        running = self.running.pop(number)
        self.keep_progress(running)
        outcome = self.evaluate(job)
        if running.pruned:
            running.trial.set_user_attr("reason", running.pruned)
            self.study.tell(number, state=TrialState.PRUNED)
        elif outcome.lost:
            _study.lose(self.study, number, str(outcome.reason), self.options.max_retries)
        else:
            self.tell(running.trial, outcome)
        self.after(number, job)

    def evaluate(self, job: JobReturn) -> _results.Outcome:
        options = self.options
        return _results.evaluate(
            job, options.objectives, options.constraints, len(options.direction)
        )

    def tell(self, trial: Trial, outcome: _results.Outcome) -> None:
        if outcome.metrics:
            trial.set_user_attr("metrics", outcome.metrics)
        for name, distance in outcome.constraints.items():
            trial.set_constraint(name, distance)
        if outcome.values is not None:
            self.study.tell(trial, outcome.values)
            return
        trial.set_user_attr("reason", outcome.reason)
        self.study.tell(trial, state=TrialState.FAIL)

    def after(self, number: int, job: JobReturn | None) -> None:
        """Say, show and write what has just been told."""
        trial = _study.stored(self.study, number)
        if _study.is_finished(trial):
            self.ended += 1
            if trial.state is TrialState.FAIL:
                self.reasons.append(_report.gist(trial))
        log.info(_report.line(trial, self.names))
        self.notify("on_trial_end", self.study, trial, job)
        self.write()

    def check_failures(self) -> None:
        """End a sweep whose trials fail: all that has finished is told by now."""
        rate = self.options.max_failure_rate
        enough = max(self.ended, min(FEW, self.total))
        if len(self.reasons) <= rate * enough:
            return
        common = Counter(self.reasons).most_common(3)
        raise HydraException(
            f"{len(self.reasons)} of {self.ended} trials failed, more than "
            f"hydra.sweeper.max_failure_rate={rate} allows:\n"
            + "\n".join(f"  {count} x {reason}" for reason, count in common)
            + f"\nlogs: {self.folders.root}/<trial>; the same command goes on with the study"
        )

    def poll(self) -> None:
        """Read what running jobs report, prune, and kill those that do not stop when asked."""
        for number, running in list(self.running.items()):
            for step, values in running.progress.new():
                self.judge(running, step, values)
            if time.monotonic() > running.deadline:
                running.deadline = float("inf")
                log.warning("trial %d did not stop in time: it is killed", number)
                self.launcher.stop(number)
        if self.options.shared and time.monotonic() - self.recovered > RECOVER_SECONDS:
            self.recover()
        self.notify("on_poll", self.study)

    def recover(self) -> None:
        self.recovered = time.monotonic()
        _study.recover(self.study, self.claim, self.options.max_retries)

    def judge(self, running: Running, step: int, values: dict[str, float]) -> None:
        self.keep(running.trial, step, values)
        if running.pruned:
            return
        reason = _pruning.guard(values) or self.rule(running.trial, step, values)
        if reason:
            running.pruned = reason
            running.deadline = time.monotonic() + self.options.grace_seconds
            _report.replace(running.folder / "stop", reason)

    def keep(self, trial: Trial, step: int, values: dict[str, float]) -> None:
        trial.set_user_attr(f"{_pruning.KEY}{step}", _pruning.storable(values))

    def keep_progress(self, running: Running) -> None:
        for step, values in running.progress.new():
            self.keep(running.trial, step, values)

    def abort(self, reason: str) -> None:
        """Take in what has finished, stop the rest; what is lost here is asked again."""
        with suppress(Exception):  # it may be the launcher that failed
            for number, job in self.launcher.finished(0):
                if number in self.running:
                    self.end(number, job)
        for number in self.running:
            self.launcher.stop(number)
        self.launcher.close()
        for number in list(self.running):
            del self.running[number]
            _study.lose(self.study, number, reason, self.options.max_retries, blame=False)
            self.after(number, None)

    def write(self) -> None:
        try:
            _report.write(self.study, self.options.objectives, self.folders.root)
        except OSError as error:
            log.warning("the results could not be written: %s", error)

    def notify(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            try:
                getattr(callback, event)(*arguments)
            except Exception:
                log.exception("%s of %s failed", event, type(callback).__name__)
