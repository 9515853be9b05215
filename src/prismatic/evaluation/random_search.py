"""What a sweep's search is worth: as many trials of random search beside it.

Shapes: T trials, M objectives, K points.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import DictConfig, OmegaConf

from prismatic.dashboard.front import Trials, compute_front, compute_hypervolume, compute_reference
from prismatic.files import write_text

from .fresh_seeds import Sweep, again, read_sweep

OWN = "${hydra:sweep.dir}"
BOUND = "constraint:"  # how the columns of distances beyond bounds begin


def command(sweep: Sweep, total: int, folder: Path) -> list[str]:
    """The sweep's own command with another sampler and nothing asked first."""
    options = sweep.config.hydra.sweeper.get("sampler_options") or {}
    # The twins' folder may follow the sweep's.
    as_written: Any = OmegaConf.to_container(sweep.config)
    twin = as_written["twin"]
    kept = [f"twin={twin.replace(OWN, str(sweep.folder))}"] if twin else []
    return [
        *again(sweep, folder),
        *kept,
        "hydra.sweeper.sampler=random",
        *(f"~hydra.sweeper.sampler_options.{key}" for key in options),
        "hydra.sweeper.enqueue=[]",
        f"hydra.sweeper.n_trials={total}",
    ]


def read_trials(sweep: Sweep, folder: Path) -> Trials:
    """The finished trials of a folder, in the order of their numbers."""
    with (folder / "trials.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["state"] != "LOST"]
    values = [[float(row[name] or "nan") for name in sweep.objectives] for row in rows]
    bounds = [[float(v or 0) for k, v in row.items() if k.startswith(BOUND)] for row in rows]
    return Trials(
        objectives=tuple(sweep.objectives),
        maximise_M=np.array(sweep.signs) > 0,
        number_T=tuple(int(row["number"]) for row in rows),
        values_TM=np.array(values).reshape(-1, len(sweep.objectives)),
        feasible_T=np.array([all(distance <= 0 for distance in own) for own in bounds], np.bool_),
        params_T=tuple({} for _ in rows),
    )


def compare(searched: Trials, random: Trials) -> dict[str, float]:
    """The best value of each, or the hypervolume of its front from the point of the search."""
    reference_M = compute_reference(searched)
    assert reference_M is not None, "a sweep with a front has results"
    found = {}
    for name, trials in {"search": searched, "random": random}.items():
        losses_KM = trials.losses_TM[compute_front(trials)]
        if len(reference_M) > 1:
            found[name] = compute_hypervolume(losses_KM, trials.sign_M * reference_M)
        else:
            found[name] = float(trials.sign_M[0] * losses_KM.min(initial=np.inf))
    return found


def main(config: DictConfig) -> None:
    """What `src/eval.py random=` does. The same command goes on where it was stopped."""
    sweep = read_sweep(Path(config.random).expanduser().absolute())
    counts = yaml.safe_load((sweep.folder / "optimization_results.yaml").read_text())["trials"]
    total = counts["complete"] + counts["pruned"] + counts["failed"]
    folder = sweep.folder / f"random-{total}"
    done = subprocess.run(command(sweep, total, folder))
    if done.returncode:
        sys.exit(done.returncode)
    found = compare(read_trials(sweep, sweep.folder), read_trials(sweep, folder))
    write_text(folder / "comparison.json", json.dumps(found, indent=2) + "\n")
    alone = len(sweep.objectives) == 1
    what = f"best {sweep.objectives[0]}" if alone else "hypervolume"
    print(f"\n{what} after {total} trials, one search each (chance plays a part in both):")
    print("\n".join(f"  {name:<8}{value:.6g}" for name, value in found.items()))
    print(f"kept in {folder / 'comparison.json'}")
