"""A grid is a study whose points are given."""

import json
import logging
import signal
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import optuna
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Transformer
from hydra.core.utils import JobReturn
from hydra.utils import instantiate
from omegaconf import DictConfig
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    distribution_to_json,
)
from optuna.study import Study
from optuna.trial import Trial, TrialState

from hydra_plugins.prismatic_optuna import _reading as reading
from hydra_plugins.prismatic_optuna.callback import Callback
from prismatic.tracking import SCORE

log = logging.getLogger(__name__)

Levels = dict[str, dict[str, Any]]  # by override: how a value is written, and the value


class GridStudy:
    """A grid's trials as those of a study in memory, of which `callbacks` hear.

    The results become `trials.csv` and `optimization_results.yaml` in the sweep's folder. After an
    interrupt, trials that ran have failed.
    """

    def __init__(
        self, config: DictConfig, callbacks: Mapping[str, Any], direction: str | None
    ) -> None:
        objective = config.get("objective", "value")
        self.names = [objective] if isinstance(objective, str) else list(objective)
        self.config, self.folder = config, Path(config.hydra.sweep.dir).absolute()
        self.levels, fixed = levels_of(config)
        self.space: dict[str, BaseDistribution] = {
            key: CategoricalDistribution(tuple(values.values()))
            for key, values in self.levels.items()
        }
        self.study = self.asked(direction)
        self.study.set_user_attr("fixed", fixed)
        self.study.set_user_attr("total", prod(map(len, self.levels.values())))
        self.callbacks: list[Callback] = [instantiate(n) for n in callbacks.values()]
        self.running: dict[int, tuple[Trial, reading.Progress]] = {}

    def asked(self, direction: str | None) -> Study:
        """The study, which says what it asks as those of the Optuna sweeper do."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        own = ["maximize" if name.startswith(SCORE) else "minimize" for name in self.names]
        directions: list[Any] = [direction] * len(own) if direction else own
        chosen = self.config.hydra.runtime.choices.get("grid")
        name = chosen or " x ".join(self.levels) or self.folder.name
        study = optuna.create_study(study_name=name, directions=directions)
        question = {
            "params": {k: json.loads(distribution_to_json(d)) for k, d in self.space.items()},
            "objectives": self.names,
            "directions": directions,
            "constraints": {},
        }
        reading.keep_question(study, question)
        return study

    def begin(self) -> None:
        """A batch of trials begins. A request to terminate is from now on as good as Ctrl-C."""
        if current_thread() is main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        for listener in self.callbacks:
            listener.on_sweep_start(self.study, self.config, self.folder)

    def on_trial_start(self, number: int, overrides: list[str]) -> None:
        """A trial will run with these overrides, to which may be added."""
        pairs = (override.partition("=") for override in overrides)
        self.study.enqueue_trial(
            {key: self.levels[key][text] for key, _, text in pairs if key in self.levels}
        )
        trial = self.study.ask(self.space)
        file = self.folder / str(number) / "progress.jsonl"
        self.running[number] = trial, reading.Progress(file)
        self.notify("on_trial_start", trial, overrides)

    def on_poll(self) -> None:
        """Keep what the trials report while they run."""
        for trial, progress in self.running.values():
            for step, values in progress.new():
                trial.set_user_attr(f"{reading.KEY}{step}", reading.storable(values))
        self.notify("on_poll", self.study)

    def on_trial_end(self, number: int, job: JobReturn) -> None:
        """A trial ended."""
        self.on_poll()
        trial, _ = self.running.pop(number)
        outcome = reading.evaluate(job, self.names, {}, len(self.names))
        if outcome.metrics:
            trial.set_user_attr("metrics", outcome.metrics)
        self.tell(trial, outcome.values, outcome.reason, job)

    def tell(
        self, trial: Trial, values: list[float] | None, reason: str | None, job: JobReturn | None
    ) -> None:
        """Keep and say how a trial ended."""
        if values is None:
            trial.set_user_attr("reason", reason)
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        told = self.study.tell(trial, values, state=state)
        log.info(reading.line(told, self.names))
        self.notify("on_trial_end", self.study, told, job)
        reading.write(self.study, self.names, self.folder)

    def on_launch_end(self) -> None:
        """The batch ended, by itself or by an error."""
        for trial, _ in self.running.values():
            self.tell(trial, None, "interrupted", None)
        self.running.clear()
        self.notify("on_sweep_end", self.study)
        ended, total = len(self.study.get_trials(deepcopy=False)), self.study.user_attrs["total"]
        if isinstance(sys.exception(), KeyboardInterrupt | SystemExit):
            log.info(
                f"{ended} of {total} trials had begun. A grid starts anew; one that goes on where "
                "it was stopped is the same command, each time, with hydra/sweeper=prismatic "
                f"hydra.sweeper.sampler=grid hydra.sweeper.n_trials={total} "
                f"hydra.sweep.dir={self.folder}-study"
            )

    def notify(self, event: str, *arguments: Any) -> None:
        for listener in self.callbacks:
            try:
                getattr(listener, event)(*arguments)
            except Exception:
                log.exception("%s of %s failed", event, type(listener).__name__)


def levels_of(config: DictConfig) -> tuple[Levels, list[str]]:
    """What varies in a grid, and the overrides that all its trials have."""
    params = config.hydra.sweeper.get("params") or {}
    lines = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    chosen = {o.get_key_element(): o for o in parser.parse_overrides(lines)}
    levels: Levels = {}
    for key, override in chosen.items():
        if override.is_sweep_override():
            written = {Transformer.str(value): value for value in override.sweep_iterator()}
            levels[key] = {text: plain(text, value) for text, value in written.items()}
    fixed = [str(o.input_line) for o in chosen.values() if not o.is_sweep_override()]
    return levels, fixed


def plain(text: str, value: Any) -> Any:
    """A number or null as it is, anything else as it is written."""
    return value if value is None or isinstance(value, bool | int | float) else text
