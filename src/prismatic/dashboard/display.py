"""A sweep in the terminal: a panel that lives while trials run, and what it came to at the end."""

import logging
import re
import sys
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import DictConfig
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hydra_plugins.prismatic_optuna.callback import Callback
from hydra_plugins.prismatic_optuna.study import AGAIN, FINISHED, count_trials, pairs

from . import standing
from .account import Account

ROWS = 8  # running trials that the panel has room for
OFTEN, SELDOM = 10.0, 60.0  # seconds between plain lines: after trials, without one
WIDE = 10_000  # columns of what is no terminal: a table's lines are not broken

log = logging.getLogger(__name__)


class Display(Callback):
    """Shows how a sweep goes, and at its end its configurations, the best first, and its failures.

    In a terminal whose lines the trials leave alone it is a live panel with the log's lines above
    it; elsewhere it is a line now and then, without control characters.
    """

    def __init__(self) -> None:
        self.live: Live | None = None

    def on_sweep_start(self, study: Study, config: DictConfig, sweep_dir: Path) -> None:
        self.folder, self.config = sweep_dir, config
        self.begun, self.said = 0.0, -SELDOM
        self.before = count_trials(study)["finished"]

    def on_trial_start(self, trial: Trial, overrides: list[str]) -> None:
        """The panel begins with the first trial: what fails before it meets a plain terminal."""
        self.begun = self.begun or time.monotonic()
        console = Console()
        able = console.is_terminal and not console.is_dumb_terminal and is_quiet(self.config)
        if self.live is None and able:
            self.live = begin(console)

    def on_trial_end(
        self, study: Study, frozen_trial: FrozenTrial, job_return: JobReturn | None
    ) -> None:
        self.show(study, OFTEN)

    def on_poll(self, study: Study) -> None:
        self.show(study, SELDOM)

    def on_sweep_end(self, study: Study) -> None:
        if self.live is not None:
            end(self.live)
            self.live = None
        account = Account(study, self.config, self.folder)
        print_account(account)

    def show(self, study: Study, pause: float) -> None:
        """Bring the panel up to date, or write a line unless one was written `pause` ago."""
        if self.live is not None:
            self.live.update(self.panel(study), refresh=True)
        elif time.monotonic() - self.said >= pause:
            self.said = time.monotonic()
            found = count_trials(study)
            parts = [how_many(found, study), standing.summary(study), self.clock(study)]
            log.info("; ".join(filter(None, parts)))

    def clock(self, study: Study) -> str:
        """Time spent and, going by the trials of this sweep so far, time left."""
        found, spent = count_trials(study)["finished"], time.monotonic() - self.begun
        here, left = found - self.before, study.user_attrs["total"] - found
        text = f"{duration(spent)} so far"
        return f"{text}, about {duration(spent / here * left)} left" if here and left > 0 else text

    def panel(self, study: Study) -> RenderableType:
        found = count_trials(study)
        bar = Table.grid(padding=(0, 2))
        total = study.user_attrs["total"]
        bar.add_row(ProgressBar(total, found["finished"], width=40), how_many(found, study))
        best = Text(standing.summary(study) or "no result yet", style="bold")
        running = [t for t in study.get_trials(deepcopy=False) if t.state is TrialState.RUNNING]
        rows = [Text(progress(trial), no_wrap=True, overflow="ellipsis") for trial in running]
        more = [Text(f"and {len(rows) - ROWS} more")] if len(rows) > ROWS else []
        return Panel(
            Group(bar, Text(self.clock(study)), best, *rows[:ROWS], *more),
            title=study.study_name, title_align="left", border_style="cyan",
        )  # fmt: skip


def is_quiet(config: DictConfig) -> bool:
    """Whether trials run in processes of their own, and print to files."""
    return config.hydra.launcher.get("executor", "inline") != "inline"


def begin(console: Console) -> Live:
    """A live panel; what is logged appears above it."""
    out, err = sys.stdout, sys.stderr
    live = Live(console=console, auto_refresh=False, redirect_stderr=err.isatty())
    live.start()
    reroute({out: sys.stdout, err: sys.stderr})
    return live


def end(live: Live) -> None:
    """Leave the panel's last state in the terminal, and let the log write there again."""
    out, err = sys.stdout, sys.stderr
    live.stop()
    reroute({out: sys.stdout, err: sys.stderr})


def reroute(streams: Mapping[Any, Any]) -> None:
    """Give the log's handlers another stream; they keep the one that was there at their making."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
            handler.setStream(streams[handler.stream])


def how_many(found: Mapping[str, int], study: Study) -> str:
    """The trials by what became of them."""
    parts = ", ".join(f"{found[name]} {name}" for name in FINISHED if found[name])
    others = [f"{found[name]} {name}" for name in ("running", *AGAIN) if found[name]]
    done = f"{found['finished']} of {study.user_attrs['total']} trials finished"
    return ", ".join([f"{done} ({parts})" if parts else done, *others])


def progress(trial: FrozenTrial) -> str:
    """A running trial: how long, how far, with which value, with which parameters."""
    steps = {
        int(key.partition(":")[2]): values
        for key, values in trial.user_attrs.items()
        if key.startswith("progress:")
    }
    begun = trial.datetime_start or datetime.now()
    text = f"trial {trial.number}  {duration((datetime.now() - begun).total_seconds())}"
    if steps:
        text += f"  step {max(steps)}  {pairs(steps[max(steps)])}"
    return f"{text}  |  {pairs(trial.params)}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


def print_account(account: Account) -> None:
    """Print what a sweep came to: its table and how to read it, its failures, what to type next."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    say = partial(console.print, soft_wrap=True, markup=False, highlight=False)
    head, rows = account.table
    if rows:
        say(f"\n{account.title}", style="bold")
        console.print(aligned(head, rows))
    else:
        say("\nno trial is complete and feasible")
    for line in [*account.remarks, *account.failures]:
        say(line)
    say(f"sweep folder:  {account.folder}")
    for what, command in account.commands.items():
        say(f"{what}:\n  {command}")


def aligned(head: list[str], rows: list[list[str]]) -> Table:
    """A table of the terminal; numbers stand to the right."""
    table = Table(box=SIMPLE_HEAD)
    for name, column in zip(head, zip(*rows, strict=True), strict=True):
        broken = re.sub(r"([/.])", r"\1\n", name)  # else narrow columns show their beginnings
        numeric = all(re.match(r"-?[\d.]+(e-?\d+)?$|$", cell) for cell in column)
        table.add_column(broken, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*row)
    return table
