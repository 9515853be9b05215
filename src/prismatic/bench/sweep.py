"""What a sweep costs beyond its training: the same short trials as a grid, a study, and one by one.

Each case runs twice, with few and with all trials: the difference is what trials cost, the rest is
what starting a sweep does. And a long study goes on for a few trials more, whose overhead
shows what its length costs.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hydra_plugins.prismatic_optuna.study import load_study
from prismatic.config.paths import ROOT
from prismatic.run_folder.contents import METRICS

STUDY = ["hydra.sweeper.sampler=random", "hydra.sweeper.seed=0", "hydra.sweeper.repeat=true"]


def commands(case: str, trials: int, n_jobs: int, overrides: Sequence[str]) -> list[list[str]]:
    """What is typed, without the script: one sweep, or a command for each trial."""
    if case == "separate":
        return [[*overrides, f"seed={seed}"] for seed in range(trials)]
    sweep = ["-m", f"hydra.launcher.n_jobs={n_jobs}", *overrides, f"seed=range(0,{trials})"]
    return [sweep if case == "grid" else [*sweep, *STUDY, f"hydra.sweeper.n_trials={trials}"]]


def run(commands: Sequence[Sequence[str]], n_jobs: int, folder: Path) -> dict[str, float]:
    """Wall time in seconds, and the seconds that the trials spent in training alone."""
    script = [sys.executable, str(ROOT / "src" / "train.py")]
    environment = os.environ | {"PRISMATIC_OUTPUTS": str(folder)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    if len(commands) > 1:  # as a sweep shares out the cores
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // n_jobs))

    def call(arguments: Sequence[str]) -> None:
        subprocess.run([*script, *arguments], env=environment, check=True, capture_output=True)

    begun = time.perf_counter()
    with ThreadPoolExecutor(n_jobs) as pool:
        list(pool.map(call, commands))
    wall = time.perf_counter() - begun
    fits = [json.loads(path.read_text())["time/fit"] for path in folder.rglob(METRICS)]
    return {"trials": len(fits), "wall": wall, "training": sum(fits)}


def measure(case: str, trials: int, n_jobs: int, overrides: Sequence[str]) -> dict[str, Any]:
    """A case, with the seconds that one more trial costs its slot beyond training."""
    with tempfile.TemporaryDirectory() as folder:
        few, many = (
            run(commands(case, count, n_jobs, overrides), n_jobs, Path(folder, str(count)))
            for count in (n_jobs, trials)
        )
    more = many["trials"] - few["trials"]
    trial = (many["wall"] - few["wall"]) * n_jobs / more
    bound = 1.25 * many["training"] / n_jobs + 6
    overhead = trial - (many["training"] - few["training"]) / more
    return {"case": case, **many, "bound": bound, "overhead": overhead}


def measure_length(
    length: int, trials: int, n_jobs: int, overrides: Sequence[str]
) -> dict[str, Any]:
    """The last `trials` of a study of `length` trials, whose others are copies of its first."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = ["-m", f"hydra.launcher.n_jobs={n_jobs}", f"hydra.sweep.dir={folder}/sweep"]
        sweep += ["optim.lr=interval(0.001,0.01)", *STUDY, *overrides]
        run([[*sweep, "hydra.sweeper.n_trials=1"]], n_jobs, Path(folder))
        study = load_study(Path(folder, "sweep"))
        study.add_trials([study.trials[0]] * (length - trials - 1))
        run([[*sweep, f"hydra.sweeper.n_trials={length}"]], n_jobs, Path(folder))
        last = load_study(Path(folder, "sweep")).trials[-trials:]
        kept = [Path(folder, "sweep", t.user_attrs["folder"], METRICS) for t in last]
        training = sum(json.loads(path.read_text())["time/fit"] for path in kept)
    begun = min(trial.datetime_start for trial in last if trial.datetime_start)
    ended = max(trial.datetime_complete for trial in last if trial.datetime_complete)
    wall = (ended - begun).total_seconds()
    overhead = (wall * n_jobs - training) / trials
    row = {"case": f"at {length}", "trials": trials, "wall": wall, "training": training}
    return {**row, "bound": 1.25 * training / n_jobs, "overhead": overhead}


def bench(
    cases: Sequence[str],
    trials: int,
    n_jobs: int,
    *,
    overrides: Sequence[str],
    lengths: Sequence[int],
) -> tuple[dict[str, Any], str]:
    """Time the cases one after another; the machine should be idle."""
    rows = [measure(case, trials, n_jobs, overrides) for case in cases]
    rows += [measure_length(length, min(8, length - 1), n_jobs, overrides) for length in lengths]
    return {"n_jobs": n_jobs, "overrides": list(overrides), "cases": rows}, table(rows, n_jobs)


def table(rows: Sequence[dict[str, Any]], n_jobs: int) -> str:
    """The rows for reading."""
    lines = [
        f"{n_jobs} trials at a time; seconds. training: in the trials, summed; bound: 1.25 "
        f"training / {n_jobs} + 6; overhead: of one more trial, beyond its training; at N: of the "
        "last trials of a study that has N",
        f"{'case':10} {'trials':>6} {'wall':>7} {'training':>9} {'bound':>7} {'overhead':>9}",
    ]
    for row in rows:
        lines.append(
            f"{row['case']:10} {row['trials']:6} {row['wall']:7.1f} {row['training']:9.1f} "
            f"{row['bound']:7.1f} {row['overhead']:9.2f}"
        )
    return "\n".join(lines)
