"""A trial as a command: what a user would type to run it alone, in its folder."""

import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from typing import cast

from omegaconf import DictConfig, ListConfig, OmegaConf

# The callback of every trial.
KEY, CALLBACK = "prismatic_local", f"{__package__}._job.TrialCallback"
# Options of the sweep's command that a trial needs to find the same configuration.
KEPT = (("-cn", "--config-name"), ("-cp", "--config-path"), ("-cd", "--config-dir"))
# What belongs to the sweep, or is said anew for each trial.
OF_THE_SWEEP = re.compile(r"[+~]*hydra[./](sweep|sweeper|launcher|mode|run)\b")
# What Hydra adds for -m, and a sweeper that decides the folder.
ADDED = re.compile(r"hydra\.(mode|sweep\.dir)=")


def texts(overrides: ListConfig) -> list[str]:
    """Overrides as they were typed: what they interpolate is the trial's, not the sweep's."""
    return cast(list[str], OmegaConf.to_container(overrides, resolve=False))


def program_of(sweep: DictConfig) -> list[str] | None:
    """The arguments of python that start this program, whose command line asked for the sweep.

    None if it did not: the sweep was started from within a notebook, a test or another program.
    """
    overrides = {*texts(sweep.hydra.overrides.task), *texts(sweep.hydra.overrides.hydra)}
    typed = {text for text in overrides if not ADDED.match(text)}
    file = os.path.abspath(sys.argv[0])
    if not typed <= set(sys.argv[1:]) or not os.path.isfile(file):
        return None
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["-m", spec.name] if spec is not None and spec.origin == file else [file]


def arguments_of(overrides: Sequence[str], trial: DictConfig) -> Iterator[str]:
    """The arguments after the program: a plain run, not a sweep, of one composed trial.

    `overrides` are those that the sweep gave it, besides the sweep's own that begin with `hydra`.
    """
    hydra = trial.hydra
    parser = ArgumentParser(add_help=False)
    for short, long in KEPT:
        parser.add_argument(short, long)
    for name, value in vars(parser.parse_known_args(sys.argv[1:])[0]).items():
        if value:
            yield f"--{name.replace('_', '-')}={value}"
    sweeps_own = texts(hydra.overrides.hydra)
    yield from (text for text in sweeps_own if not OF_THE_SWEEP.match(text))
    yield from overrides
    yield "hydra.mode=RUN"
    yield f"hydra.run.dir={quoted(hydra.run.dir)}"
    yield f"hydra.sweep.dir={quoted(hydra.sweep.dir)}"
    yield f"hydra.job.num={hydra.job.num}"
    yield f"hydra.job.id={hydra.job.id}"
    yield f"+hydra.callbacks.{KEY}._target_={CALLBACK}"


def quoted(text: str) -> str:
    """A value in Hydra's grammar that means exactly this text."""
    return "'" + text.replace("'", r"\'") + "'"
