"""The runs of a study: every arm with every seed, by the local launcher; finished ones stay."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import open_dict

from hydra_plugins.prismatic_local.launcher import LOG, LocalLauncher, context_of
from prismatic.config.command_line import explain
from prismatic.dashboard.rerun import text

from . import job
from .spec import KEPT, Study, Tier, plain

RUNS = "runs"  # the folder of a study's runs
GIVE_UP = 5  # failures after which no further run is started: the table has holes anyway
EXECUTORS = ("fork", "inline")
ONCE = "trainer.val_check_interval=${trainer.max_steps}"  # studies look at the end alone


@dataclass(frozen=True)
class Job:
    """A run: where it lies below the study's folder, and what a user would type for it."""

    arm: str
    seeds: Sequence[int]
    folder: str
    overrides: Sequence[str]


def jobs(study: Study, tier: Tier, seeds: Sequence[int]) -> list[Job]:
    """All runs, seed by seed, so that a study that is stopped has whole pairs."""
    arms = [arm for arm in study.arms if arm in study.arms_of(tier)]
    groups = [tuple(seeds)] if study.together else [(seed,) for seed in seeds]
    return [job_of(study, tier, arm, group) for group in groups for arm in arms]


def job_of(study: Study, tier: Tier, arm: str, seeds: Sequence[int]) -> Job:
    folder = f"{RUNS}/{plain(arm)}/"
    folder += "seeds" if study.together else f"seed_{seeds[0]}"
    seeded = f"seeds=[{','.join(map(str, seeds))}]" if study.together else f"seed={seeds[0]}"
    named = f"++logger.run_name={text(f'{arm}, seed {seeds[0]}')}"
    own = [*study.arms[arm], *tier.of_arms.get(arm, ())]
    overrides = [*study.common, ONCE, *tier.overrides, *own, seeded, named]
    return Job(arm, seeds, folder, overrides)


def is_done(folder: Path, one: Job) -> bool:
    return (folder / one.folder / job.MEASURED).exists()


def run(
    waiting: Sequence[Job],
    folder: Path,
    together: bool,
    common: Sequence[str],
    n_jobs: int,
    executor: str,
    say: Callable[[int, int], None],
) -> dict[str, BaseException]:
    """Run jobs side by side; the errors of those that failed, by their folders.

    `common` are overrides for all; `say(ended, failed)` hears how it goes. An interrupt ends all.
    Raises `ValueError`, before anything runs, for an arm that Hydra cannot compose.
    """
    failed: dict[str, BaseException] = {}
    left = list(waiting)
    with launcher(folder, together, n_jobs, executor) as local:
        for one in {one.arm: one for one in waiting}.values():
            check(local, one, common)
        running: dict[int, Job] = {}
        ended = 0
        while left or running:
            while left and len(running) < local.n_jobs:
                one = left.pop(0)
                number = len(waiting) - len(left) - 1
                running[number] = one
                start(local, number, one, common, folder)
            for number, result in local.finished(1.0):
                one = running.pop(number)
                ended += 1
                if not is_done(folder, one):
                    failed[one.folder] = result._return_value
            if len(failed) >= GIVE_UP:
                left.clear()
            say(ended, len(failed))
    return failed


def check(local: LocalLauncher, one: Job, common: Sequence[str]) -> None:
    try:
        local.composed(0, whole(one, common))
    except Exception as error:
        raise ValueError(f"arm {one.arm!r}: {explain(error) or error}") from error


def whole(one: Job, common: Sequence[str]) -> list[str]:
    return [*one.overrides, *common, f"hydra.sweep.subdir={one.folder}"]


def start(local: LocalLauncher, number: int, one: Job, common: Sequence[str], folder: Path) -> None:
    """Start a run in a free slot; what it prints goes to a file, also where it runs in here."""
    (folder / one.folder).mkdir(parents=True, exist_ok=True)
    with (folder / one.folder / LOG).open("w") as file, redirect_stdout(file):
        local.start(number, whole(one, common))


@contextmanager
def launcher(folder: Path, together: bool, n_jobs: int, executor: str) -> Iterator[LocalLauncher]:
    """A local launcher of runs of `src/train.py`, while this is another script's process."""
    loader = GlobalHydra.instance().config_loader()
    holder = HydraConfig.instance()
    before = holder.cfg
    config = loader.load_configuration(
        "train",
        [
            f"hydra.sweep.dir={text(str(folder))}",
            f"hydra.launcher.n_jobs={n_jobs}",
            f"hydra.launcher.executor={executor}",
        ],
        run_mode=RunMode.MULTIRUN,
    )
    with open_dict(config):
        config.hydra.callbacks = {}  # what a sweep shows of itself
        config.hydra.runtime.output_dir = str(folder)
    local = instantiate(config.hydra.launcher)
    context = context_of(config, loader)
    task = job.together if together else job.alone
    local.setup(hydra_context=context, task_function=task, config=config)
    try:
        yield local
    finally:
        local.close()
        holder.cfg = before


def read_table(study: Study, folder: Path, planned: Sequence[Job]) -> pd.DataFrame:
    """The measures of all runs that have ended: a row each, with `arm`, `seed`, `diverged`."""
    rows = [
        {"arm": one.arm, **row}
        for one in planned
        if is_done(folder, one)
        for row in json.loads((folder / one.folder / job.MEASURED).read_text())
    ]
    table = pd.DataFrame(rows)
    return table[[*KEPT, *sorted(c for c in table if c not in KEPT and study.wants(str(c)))]]
