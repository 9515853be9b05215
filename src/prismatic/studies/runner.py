"""The runs of a study: every arm with every seed, by the local launcher; finished ones stay."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from hydra_plugins.prismatic_local.launcher import LOG, LocalLauncher, context_of
from hydra_plugins.prismatic_local.streaming import run_jobs
from prismatic.config.command_line import explain, quote
from prismatic.files import write_text
from prismatic.replicas import run
from prismatic.run_folder.contents import METRICS, read_run
from prismatic.training import DivergedError

from .study import KEPT, Study, Tier, path_name

RUNS = "runs"  # the folder of a study's runs
MEASURED = "measures.json"  # in a run's folder: a list of rows, once it has ended
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
    planned = []
    for group in groups:
        for arm in arms:
            name, seeded = f"seed_{group[0]}", f"seed={group[0]}"
            if study.together:
                name, seeded = "seeds", f"seeds=[{','.join(map(str, group))}]"
            folder = f"{RUNS}/{path_name(arm)}/{name}"
            named = f"++logger.run_name={quote(f'{arm}, seed {group[0]}')}"
            own = [*study.arms[arm], *tier.of_arms.get(arm, ())]
            overrides = [*study.common, ONCE, *tier.overrides, *own, seeded, named]
            planned.append(Job(arm, group, folder, overrides))
    return planned


def train_one(config: DictConfig) -> None:
    """The task of one run: train what a configuration describes, and keep its measures.

    Divergence is a result: the loss is then that of the uniform predictor.
    """
    begun, folder = time.perf_counter(), Path(HydraConfig.get().runtime.output_dir)
    try:
        run(config, folder)
        measured = json.loads((folder / METRICS).read_text()) | {"diverged": 0.0}
    except DivergedError:
        vocabulary = read_run(folder)[1]["vocab_size"]
        measured = {"diverged": 1.0, "loss/val": math.log(vocabulary)}
    keep(folder, [{"seed": config.seed, **measured}], begun)


def train_together(config: DictConfig) -> None:
    """The task of an arm whose seeds are trained at once."""
    from .full_batch import train

    begun, folder = time.perf_counter(), Path(HydraConfig.get().runtime.output_dir)
    measured = train(config, list(config.seeds))
    rows = [{"seed": seed, "diverged": 0.0, **metrics} for seed, metrics in measured.items()]
    keep(folder, rows, begun)


def keep(folder: Path, rows: list[dict[str, float]], begun: float) -> None:
    """Write the measures, with each row's share of the seconds since `begun`."""
    seconds = (time.perf_counter() - begun) / len(rows)
    timed = [{**row, "seconds": seconds} for row in rows]
    write_text(folder / MEASURED, json.dumps(timed, indent=2))


def is_done(folder: Path, job: Job) -> bool:
    return (folder / job.folder / MEASURED).exists()


def train_all(
    waiting: Sequence[Job],
    folder: Path,
    *,
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
    overrides = [[*job.overrides, *common, f"hydra.sweep.subdir={job.folder}"] for job in waiting]
    failed: dict[str, BaseException] = {}
    left = iter(enumerate(overrides))
    ended = 0
    with launcher(folder, together, n_jobs, executor) as local, (folder / LOG).open("a") as log:
        checked = set()
        for job, own in zip(waiting, overrides, strict=True):
            if job.arm not in checked:
                checked.add(job.arm)
                try:
                    local.composed(0, own)
                except Exception as error:
                    raise ValueError(f"arm {job.arm!r}: {explain(error) or error}") from error
        slots = run_jobs(local, lambda: next(left, None) if len(failed) < GIVE_UP else None)
        while True:
            with redirect_stdout(log):  # of a run in this process
                finished = next(slots, None)
            if finished is None:
                return failed
            ended += len(finished)
            for number, result in finished:
                if not is_done(folder, waiting[number]):
                    failed[waiting[number].folder] = result._return_value
            say(ended, len(failed))


@contextmanager
def launcher(folder: Path, together: bool, n_jobs: int, executor: str) -> Iterator[LocalLauncher]:
    """A local launcher of runs of `src/train.py`, while this is another script's process."""
    loader = GlobalHydra.instance().config_loader()
    holder = HydraConfig.instance()
    before = holder.cfg
    config = loader.load_configuration(
        "train",
        [
            f"hydra.sweep.dir={quote(str(folder))}",
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
    task = train_together if together else train_one
    local.setup(hydra_context=context, task_function=task, config=config)
    try:
        yield local
    finally:
        local.close()
        holder.cfg = before


def read_table(study: Study, folder: Path, planned: Sequence[Job]) -> pd.DataFrame:
    """The measures of all runs that have ended: a row each, with `arm`, `seed`, `diverged`."""
    rows = [
        {"arm": job.arm, **row}
        for job in planned
        if is_done(folder, job)
        for row in json.loads((folder / job.folder / MEASURED).read_text())
    ]
    table = pd.DataFrame(rows)
    measures = sorted(str(name) for name in table if name not in KEPT and study.keeps(str(name)))
    return table[[*KEPT, *measures]]
