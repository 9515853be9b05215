"""A trial as a command: what a user would type to run it alone, in its folder."""

import inspect
import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from hydra.types import TaskFunction
from omegaconf import DictConfig

# The callback of every trial.
KEY, CALLBACK = "prismatic_local", f"{__package__}._job.TrialCallback"
# Options of the sweep's command that a trial needs to find the same configuration.
KEPT = (("-cn", "--config-name"), ("-cp", "--config-path"), ("-cd", "--config-dir"))
# What belongs to the sweep, or is said anew for each trial.
OF_THE_SWEEP = re.compile(r"[+~]*hydra[./](sweep|sweeper|launcher|mode|run)\b")


def source_of(task: TaskFunction) -> tuple[str | None, str]:
    """The task's module, if python runs it as `-m module`, and its file."""
    file = os.path.abspath(inspect.getfile(inspect.unwrap(task)))
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return (spec.name if spec is not None and spec.origin == file else None), file


def config_options(arguments: Sequence[str]) -> list[str]:
    """`-cn`, `-cp` and `-cd` of a command line, by their long names."""
    parser = ArgumentParser(add_help=False)
    for short, long in KEPT:
        parser.add_argument(short, long)
    typed = vars(parser.parse_known_args(arguments)[0])
    return [f"--{name.replace('_', '-')}={typed[name]}" for name in typed if typed[name]]


def quoted(text: str) -> str:
    """A value in Hydra's grammar that means exactly this text."""
    return "'" + text.replace("'", r"\'") + "'"


def arguments_of(
    typed: Sequence[str],
    hydra_overrides: Sequence[str],
    overrides: Sequence[str],
    hydra: DictConfig,
) -> list[str]:
    """The arguments after the script: a plain run, not a sweep, of one trial.

    `typed` are the sweep's own arguments, `hydra_overrides` those that begin with `hydra`,
    `overrides` the trial's; `hydra` is that node of the trial's configuration.
    """
    return [
        *config_options(typed),
        *(override for override in hydra_overrides if not OF_THE_SWEEP.match(override)),
        *overrides,
        "hydra.mode=RUN",
        f"hydra.run.dir={quoted(hydra.run.dir)}",
        f"hydra.sweep.dir={quoted(hydra.sweep.dir)}",
        f"hydra.job.num={hydra.job.num}",
        f"hydra.job.id={hydra.job.id}",
        f"+hydra.callbacks.{KEY}._target_={CALLBACK}",
    ]
