"""A sweep: the study is opened and claimed; then trials are asked, started, watched and told."""

import logging
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from secrets import randbits
from types import FrameType
from typing import Any

import optuna
import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import Trial, TrialState

from hydra_plugins.prismatic_local.streaming import (
    BatchLauncher,
    NumberedJob,
    StreamingLauncher,
    run_jobs,
    stream,
)

from . import _outcome, _pruning, _study
from ._owner import Ownership
from ._samplers import build_sampler
from ._space import Space
from ._storage import open_storage
from .callback import Callback
from .configurations import is_replicate
from .options import SweeperOptions
from .results import closing, replace, write_results
from .study import (
    CONFIG,
    LOST,
    PROGRESS,
    RESULTS,
    count_trials,
    describe,
    is_finished,
    objectives,
    read_trials,
    short_reason,
)

log = logging.getLogger(__name__)

RECOVER_SECONDS = 60.0
STOP = "stop"  # the file that asks a trial to end; holds the reason
FEW = 10  # trials before a rate of failures means something
INTERRUPTED = 130  # a shell's exit status after Ctrl-C


def search(
    options: SweeperOptions,
    space: Space,
    config: DictConfig,
    *,
    loader: ConfigLoader,
    launcher: Any,
) -> None:
    """Bring the study to its total of finished trials; see `SweeperOptions` for the rest."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder_of = partial(job_folder, loader, config)
    jobs = stream(launcher, options.n_jobs, folder_of)
    try:
        example = space.examples()[0]
        if folder_of(0, example) == folder_of(1, example):
            raise ValueError(
                f"hydra.sweep.subdir={config.hydra.sweep.subdir} is the same for all trials: "
                "it must contain ${hydra.job.num}"
            )
        nodes = options.callbacks or []
        listed = nodes.values() if isinstance(nodes, Mapping) else nodes
        callbacks: list[Callback] = [instantiate(node) for node in listed]
        sweep_dir = Path(config.hydra.sweep.dir)
        study = open_study(options, space, sweep_dir)
        OmegaConf.save(config, sweep_dir / CONFIG)
        with Ownership(study, options.shared) as owner:
            Search(
                options, space, study, owner, launcher=jobs, callbacks=callbacks,
                folder_of=folder_of,
            ).run(config)  # fmt: skip
    except StorageInternalError as error:
        reason, *_ = str(error.__cause__).splitlines()
        raise HydraException(
            f"the study's storage failed: {reason}\nOnce it works, the same command goes on"
        ) from error
    finally:
        jobs.close()


def job_folder(
    loader: ConfigLoader, config: DictConfig, number: int, overrides: Sequence[str]
) -> Path:
    """Where a job will live, by its own configuration: `hydra.sweep.dir`/`hydra.sweep.subdir`."""
    job = loader.load_sweep_config(config, list(overrides)).hydra
    with read_write(job), open_dict(job):
        job.job.num, job.job.id = number, str(number)
    return Path(config.hydra.sweep.dir) / str(job.sweep.subdir)


def open_study(options: SweeperOptions, space: Space, sweep_dir: Path) -> Study:
    """Open the study, after a look at what needs no storage to be found wrong."""
    pruner = _pruning.pruner_of(options.pruning, options.objectives, len(options.direction))
    if options.sampler == "cmaes" and len(options.direction) > 1:
        raise ValueError("sampler=cmaes knows one objective: give tpe, gp, nsgaii or nsgaiii")
    build_sampler(options.sampler, options.sampler_options, options.seed)
    for params in options.enqueue:
        space.check("enqueue", params)
    space.check("compare_to", options.compare_to or {})
    seeds = [name for name in space.params if is_replicate(name)]
    if seeds and options.sampler != "grid":
        raise ValueError(
            f"{seeds[0]} varies: a search would find the luckiest seed. Let every trial train "
            "several seeds and return their mean ('seeds=[0,1,2]'), or give "
            "hydra.sweeper.sampler=grid"
        )
    question = {
        "params": space.described(),
        "objectives": options.objectives,
        "directions": options.direction,
        "constraints": options.constraints,
    }
    storage = open_storage(options.storage, sweep_dir)
    name = name_study(options, storage, sweep_dir)
    sweep_dir.mkdir(parents=True, exist_ok=True)
    return _study.open_study(storage, name, question, pruner)


def name_study(options: SweeperOptions, storage: BaseStorage, sweep_dir: Path) -> str:
    """The name that is given, or that of the study in the folder, which may have been moved.

    Raises ValueError for a folder that holds the trials of another study.
    """
    path = sweep_dir / RESULTS
    kept = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    known = optuna.get_all_study_names(storage)
    alone = options.storage is None  # then the storage lies in the folder, and has one study
    own = kept.get("study_name") or (known[0] if alone and known else None)
    name = options.study_name or own or sweep_dir.name
    has_trials = any(kept.get("trials", {}).values()) or (alone and bool(known))
    if has_trials and (name != own or name not in known):
        raise ValueError(
            f"{sweep_dir} holds the trials of the study {own!r}"
            + ("" if name != own else ", which is not in this storage")
            + f": give the study {name!r} a folder of its own by hydra.sweep.dir=..., or move or "
            "delete that one"
        )
    return name


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


@dataclass
class RunningTrial:
    """A trial whose job was handed to the launcher; `pruned`: why it was asked to stop."""

    trial: Trial
    progress: _pruning.Progress | None = None  # once it has a folder
    pruned: str | None = None
    deadline: float = float("inf")


class Search:
    """One sweep on an open study, which this process has claimed."""

    def __init__(
        self,
        options: SweeperOptions,
        space: Space,
        study: Study,
        owner: Ownership,
        *,
        launcher: StreamingLauncher,
        callbacks: list[Callback],
        folder_of: Callable[[int, Sequence[str]], Path],
    ) -> None:
        self.options, self.space, self.study, self.owner = options, space, study, owner
        self.launcher, self.callbacks, self.folder_of = launcher, callbacks, folder_of
        self.rule = _pruning.rule_of(options.pruning, study, options.objectives)
        self.is_grid = options.sampler == "grid"
        size = space.size if self.is_grid else None
        self.total = min(options.n_trials or size or 0, size or options.n_trials or 0)
        self.running: dict[int, RunningTrial] = {}
        self.reasons: list[str] = []
        self.ended, self.recovered = 0, time.monotonic()
        self.seen, self.finished = 0, 0
        self.open: list[int] = []  # of the trials seen, those that have not ended
        self.writing, self.written = 0.0, float("-inf")

    def run(self, config: DictConfig) -> None:
        """Run to the total. However it ends, trials are told and results are written."""
        self.folder = Path(config.hydra.sweep.dir)
        self.prepare()
        self.write()
        for callback in self.callbacks:
            callback.on_sweep_start(self.study, config, self.folder)
        done = count_trials(self.study)["finished"]
        if done:
            log.info("%s: %d of %d trials are finished", self.study.study_name, done, self.total)
        if done >= self.total:
            log.info("nothing is left to do; to run it anew, move or delete %s", self.folder)
        if self.options.pruning and isinstance(self.launcher, BatchLauncher):
            log.warning("pruning=%s needs a launcher that streams", self.options.pruning)
        came: list[int] = []
        try:
            with terminable() as came:
                for ended in run_jobs(
                    self.launcher, self.next_job, slots=self.slots, started=self.watch
                ):
                    for number, job in ended:
                        if number in self.running:
                            self.end(number, job)
                    self.check_failures()
                    self.poll()
        except BaseException as error:
            if came or isinstance(error, KeyboardInterrupt):
                self.abort("interrupted")
                raise SystemExit(INTERRUPTED) from None
            self.abort(f"the sweep ended: {type(error).__name__}")
            raise
        finally:
            self.write()
            self.notify("on_sweep_end", self.study)
            log.info(closing(self.study))

    def prepare(self) -> None:
        """What an earlier sweep left is put in order, the sampler chosen, given points queued."""
        options, study = self.options, self.study
        study.set_user_attr("total", self.total)
        study.set_user_attr("compare_to", options.compare_to)
        self.recover()
        if options.retry == "failed" and self.owner.leads():
            _study.retry_failed(study)
        # Sweeps that share a study must not all ask for the same trials.
        stream = randbits(31) if options.shared else len(study.get_trials(deepcopy=False))
        study.sampler = build_sampler(
            options.sampler, options.sampler_options, options.seed, stream=stream
        )
        _study.warn_of_other_overrides(study, self.space.fixed)
        points = list(islice(self.space.points(), self.total)) if self.is_grid else options.enqueue
        while not self.owner.leads() and study.user_attrs.get("queued", 0) < len(points):
            time.sleep(random.uniform(0, 1))  # until the oldest sweep has done it
        if self.owner.leads():
            _study.enqueue(study, points)
            study.set_user_attr("queued", len(points))

    @property
    def slots(self) -> int:
        """How many trials run at once."""
        own, wanted = self.launcher.n_jobs, self.options.n_jobs
        return own if wanted is None or wanted < 1 else min(wanted, own)

    def missing(self) -> int:
        """How many trials are neither finished nor running; below 0 there are too many.

        What has ended is looked at once: a long study is as quick as a short one.
        """
        trials = read_trials(self.study)
        due = [*self.open, *range(self.seen, len(trials))]
        self.seen = len(trials)
        self.open = [number for number in due if not trials[number].state.is_finished()]
        self.finished += sum(is_finished(trials[number]) for number in due)
        running = sum(trials[number].state is TrialState.RUNNING for number in self.open)
        busy = running if self.options.shared else len(self.running)
        return self.total - self.finished - busy

    def next_job(self) -> NumberedJob | None:
        """Ask for a trial as long as some are missing."""
        if not self.running and self.missing() <= 0:
            self.recover()  # what other sweeps left running in the meantime
        while self.missing() > 0 and not self.is_exhausted():
            trial = self.study.ask(self.space.params)
            trial.set_user_attr("owner", self.owner.name)
            queued = "fixed_params" in _study.stored(self.study, trial.number).system_attrs
            if (self.is_grid and not queued) or self.missing() < 0:
                _study.give_back(self.study, trial.number, self.options.max_retries)
                time.sleep(random.uniform(0, 1))
                continue
            if not self.options.repeat and self.reuse(trial):
                continue
            self.running[trial.number] = RunningTrial(trial)
            overrides = self.space.overrides(trial.params)
            self.hand_over(trial, overrides)
            self.notify("on_trial_start", trial, overrides)
            return trial.number, overrides
        return None

    def hand_over(self, trial: Trial, overrides: Sequence[str]) -> None:
        """Give a trial that was lost what its folder holds: its job may go on from there."""
        number = trial.user_attrs.get("retry_of")
        lost = None if number is None else _study.stored(self.study, number)
        if lost is None or lost.user_attrs.get("again") != LOST or "folder" not in lost.user_attrs:
            return
        before = self.folder / lost.user_attrs["folder"]
        now = self.folder_of(trial.number, overrides)
        if not before.is_dir() or now.exists():
            return
        try:
            shutil.copytree(before, now, ignore=shutil.ignore_patterns(STOP))
        except OSError as error:
            shutil.rmtree(now, ignore_errors=True)
            log.warning("trial %d begins anew: %s", trial.number, error)

    def is_exhausted(self) -> bool:
        """Whether every point of a finite space has a result or runs: the study is complete."""
        if self.options.repeat or self.is_grid or self.space.size is None:
            return False
        known = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = self.study.get_trials(deepcopy=False, states=known)
        points = {tuple(map(trial.params.get, self.space.params)) for trial in trials}
        if len(points) < self.space.size:
            return False
        if not self.running:
            found = count_trials(self.study)
            self.total = found["finished"] + found["running"]  # in other sweeps
            self.study.set_user_attr("total", self.total)
            log.info("all %d points of the space have a result", self.space.size)
        return True

    def reuse(self, trial: Trial) -> bool:
        """Give a trial the result that its point has already, if it has one.

        In a space without an end none is asked twice but what was lost, which has none.
        """
        if self.space.size is None:
            return False
        known = (TrialState.COMPLETE, TrialState.PRUNED)
        earlier = self.study.get_trials(deepcopy=False, states=known)
        same = next((t for t in earlier if t.params == trial.params), None)
        if same is None:
            return False
        log.info("trial %d asks for the point of trial %d again", trial.number, same.number)
        trial.set_user_attr("reused", same.number)
        for key in ("folder", "metrics", "reason"):
            if key in same.user_attrs:
                trial.set_user_attr(key, same.user_attrs[key])
        for name, distance in same.constraints.items():
            trial.set_constraint(name, distance)
        complete = same.state is TrialState.COMPLETE
        self.study.tell(trial, same.values if complete else None, state=same.state)
        result = JobReturn(status=JobStatus.COMPLETED, _return_value=same.values)
        self.after(trial.number, result)
        return True

    def watch(self, number: int, folder: Path) -> None:
        """A trial's job has started in this folder."""
        running = self.running[number]
        running.progress = _pruning.Progress(folder / "progress.jsonl")
        running.trial.set_user_attr("folder", str(folder.relative_to(self.folder)))

    def end(self, number: int, job: JobReturn) -> None:
        """Tell what a job returned; of a trial that was asked to stop, only that."""
        running = self.running.pop(number)
        for step, values in running.progress.new() if running.progress else ():
            self.keep(running.trial, step, values)
        options, trial = self.options, running.trial
        outcome = _outcome.evaluate(
            job, options.objectives, options.constraints, count=len(options.direction)
        )
        if running.pruned:
            trial.set_user_attr("reason", running.pruned)
            self.study.tell(number, state=TrialState.PRUNED)
        elif outcome.lost:
            _study.lose(self.study, number, str(outcome.reason), options.max_retries)
        else:
            self.tell(trial, outcome)
        self.after(number, job)

    def tell(self, trial: Trial, outcome: _outcome.Outcome) -> None:
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
        if is_finished(trial):
            self.ended += 1
            if trial.state is TrialState.FAIL:
                self.reasons.append(short_reason(trial))
        log.info(describe(trial, objectives(self.study)))
        self.notify("on_trial_end", self.study, trial, job)
        # In a long study writing takes its time, and the next trial waits.
        if time.monotonic() - self.written > 20 * self.writing:
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
            + f"\nlogs: {self.folder}/<trial>; the same command goes on with the study"
        )

    def poll(self) -> None:
        """Read what running jobs report, prune, and kill those that do not stop when asked."""
        for number, running in list(self.running.items()):
            for step, values in running.progress.new() if running.progress else ():
                self.judge(running, step, values)
            if time.monotonic() > running.deadline:
                running.deadline = float("inf")
                log.warning("trial %d did not stop in time: it is killed", number)
                self.launcher.stop(number)
        if self.options.shared and time.monotonic() - self.recovered > RECOVER_SECONDS:
            self.recover()
        self.notify("on_poll", self.study)

    def recover(self) -> None:
        """Queue again what sweeps that died have left running."""
        self.recovered = time.monotonic()
        _study.recover(self.study, self.owner, self.options.max_retries)

    def judge(self, running: RunningTrial, step: int, values: Mapping[str, float]) -> None:
        """Keep what a trial reports, and ask it to stop where a rule says so."""
        self.keep(running.trial, step, values)
        if running.pruned or running.progress is None:
            return
        reason = _pruning.guard(values) or self.rule(running.trial, step, values)
        if reason:
            running.pruned = reason
            running.deadline = time.monotonic() + self.options.grace_seconds
            replace(running.progress.path.with_name(STOP), reason)

    def keep(self, trial: Trial, step: int, values: Mapping[str, float]) -> None:
        trial.set_user_attr(f"{PROGRESS}{step}", _pruning.storable(values))

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
        """Bring the result files up to date."""
        begun = time.monotonic()
        try:
            write_results(self.study, self.folder)
        except OSError as error:
            log.warning("the results could not be written: %s", error)
        self.written = time.monotonic()
        self.writing = self.written - begun

    def notify(self, event: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            try:
                getattr(callback, event)(*arguments)
            except Exception:
                log.exception("%s of %s failed", event, type(callback).__name__)
