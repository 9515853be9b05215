"""What a finished sweep is worth: its front on fresh seeds, and its search beside a random one.

The best of many noisy trials look better than they are. Their configurations are trained again on
seeds that the sweep has not seen, as a small sweep of the same command, and what is left of each
objective is reported. As many trials of random search, by the same command too, say what the
sampler has added.

Shapes: T trials, M objectives, K points.
"""

import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from prismatic.config.paths import ROOT
from prismatic.dashboard.front import Trials, compute_front, compute_hypervolume, compute_reference
from prismatic.errors import require
from prismatic.files import write_text
from prismatic.run_folder.contents import METRICS

SWEEP_DIR = "${hydra:sweep.dir}"
CONSTRAINT = "constraint:"  # how the columns of distances beyond bounds begin


@dataclass(frozen=True)
class FinishedSweep:
    """A finished Optuna sweep, as it lies in its folder."""

    folder: Path
    config: DictConfig
    front: Sequence[Mapping[str, Any]]  # number, params and values of each of its best trials
    num_trials: int

    @property
    def objectives(self) -> list[str]:
        return list(self.config.hydra.sweeper.objectives)

    @property
    def signs(self) -> list[int]:
        """+1 for an objective to maximise, -1 for one to minimise."""
        given = self.config.hydra.sweeper.direction
        names = [given] if isinstance(given, str) else given
        return [1 if name == "maximize" else -1 for name in names]

    @property
    def seeds(self) -> list[int]:
        """Those that its trials were trained on."""
        return [self.config.seed] if self.config.seeds is None else list(self.config.seeds)

    def read_table(self, folder: Path) -> list[dict[str, str]]:
        """The trials of this sweep, or of one like it in another folder, as texts."""
        with (folder / "trials.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def repeat(self, folder: Path, *overrides: str) -> None:
        """Run the sweep's own command as another study in a folder of its own.

        The same call goes on where it was stopped. A failure ends this process, with its status.
        """
        given = self.config.hydra.overrides
        command = [
            sys.executable, str(ROOT / "src" / "train.py"), "--multirun", *given.task,
            *(override for override in given.hydra if not override.startswith("hydra.mode=")),
            f"hydra.sweep.dir={quote(str(folder))}",
            f"hydra.sweeper.study_name={quote(f'{self.folder.name}-{folder.name}')}",
            "hydra.sweeper.storage=null",
            "hydra.sweeper.shared=false",
            "hydra.sweeper.max_failure_rate=1",
            *overrides,
        ]  # fmt: skip
        done = subprocess.run(command)
        if done.returncode:
            sys.exit(done.returncode)


def read_sweep(folder: Path) -> FinishedSweep:
    """Raises `FileNotFoundError` or `ValueError` for a folder without a best trial or front."""
    paths = [folder / name for name in ("multirun.yaml", "optimization_results.yaml")]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"sweep={folder} has no {path.name}: give the folder of an Optuna sweep, such as "
                "outputs/sweeps/<study>"
            )
    config = OmegaConf.load(paths[0])
    assert isinstance(config, DictConfig)
    results = yaml.safe_load(paths[1].read_text(encoding="utf-8"))
    best = {"number": results.get("best_number"), "params": results.get("best_evaluated_params")}
    alone = [{**best, "values": [results["best_value"]]}] if "best_value" in results else []
    front = results.get("solutions", alone)
    require(bool(front), "sweep", str(folder), "none of its trials is complete and feasible")
    counts = results.get("trials", {})
    total = sum(counts.get(state, 0) for state in ("complete", "pruned", "failed"))
    return FinishedSweep(folder, config, front, total)


def quote(value: Any) -> str:
    """A value in the grammar of Hydra's overrides, which reads it as just this value."""
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{quote(v)}" for key, v in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(quote, value)) + "]"
    return json.dumps(value)


def ask_front(sweep: FinishedSweep, seeds: Sequence[int]) -> list[str]:
    """Overrides by which the sweep's command trains its front alone, on other seeds."""
    return [
        f"seeds={list(seeds)}",
        "hydra.sweeper.pruning=null",
        f"hydra.sweeper.n_trials={len(sweep.front)}",
        f"hydra.sweeper.enqueue={quote([point['params'] for point in sweep.front])}",
    ]


def ask_random(sweep: FinishedSweep) -> list[str]:
    """Overrides by which the sweep's command searches at random, with nothing asked first."""
    options = sweep.config.hydra.sweeper.get("sampler_options") or {}
    # The dense twins' folder may follow the sweep's, and they need not be trained again.
    as_written: Any = OmegaConf.to_container(sweep.config)
    twin = as_written["twin"]
    return [
        *([f"twin={quote(twin.replace(SWEEP_DIR, str(sweep.folder)))}"] if twin else []),
        "hydra.sweeper.sampler=random",
        *(f"~hydra.sweeper.sampler_options.{key}" for key in options),
        "hydra.sweeper.enqueue=[]",
        f"hydra.sweeper.n_trials={sweep.num_trials}",
    ]


def read_fresh(sweep: FinishedSweep, seeds: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """A row per point of the front and objective: the sweep's value, the fresh one, what is left.

    `shrinkage` is fresh less sweep where more is better, and the reverse: negative is worse.
    `standard_error` is over the fresh seeds that ended.
    """
    complete = [row for row in sweep.read_table(folder) if row["state"] == "COMPLETE"]
    rows = []
    for point in sweep.front:
        written = {k: "" if v is None else str(v) for k, v in point["params"].items()}
        same = [row for row in complete if all(row[k] == v for k, v in written.items())]
        for name, sign, value in zip(sweep.objectives, sweep.signs, point["values"], strict=True):
            row = {"trial": point["number"], "objective": name, "sweep": value}
            if same:
                fresh = float(same[0][name])
                row |= {
                    "fresh": fresh,
                    "standard_error": standard_error(folder / same[0]["number"], seeds, name),
                    "shrinkage": sign * (fresh - value),
                }
            rows.append(row)
    return rows


def standard_error(trial: Path, seeds: Sequence[int], name: str) -> float | None:
    """That of a metric's mean over the seeds of a trial; None for fewer than two."""
    paths = [trial / f"seed_{seed}" / METRICS for seed in seeds]
    ended = [json.loads(path.read_text()) for path in paths if path.exists()]
    values = [metrics[name] for metrics in ended if name in metrics]
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def tabulate(rows: Sequence[Mapping[str, Any]], num_seeds: int) -> Table:
    """The rows of `read_fresh` for reading, and the mean shrinkage of each objective."""
    title = f"The front on {num_seeds} fresh seeds (shrinkage < 0: worse than it seemed)"
    table = Table(title=title)
    for name in ("trial", "objective", "sweep", "fresh", "standard error", "shrinkage"):
        table.add_column(name, justify="left" if name == "objective" else "right")
    for row in rows:
        numbers = [row.get(key) for key in ("sweep", "fresh", "standard_error", "shrinkage")]
        cells = ["failed" if number is None else f"{number:.4g}" for number in numbers]
        table.add_row(str(row["trial"]), row["objective"], *cells)
    table.add_section()
    for name in dict.fromkeys(row["objective"] for row in rows):
        left = [r["shrinkage"] for r in rows if r["objective"] == name and "shrinkage" in r]
        if left:
            table.add_row("mean", name, "", "", "", f"{statistics.mean(left):.4g}")
    return table


def read_trials(sweep: FinishedSweep, folder: Path) -> Trials:
    """The finished trials of a folder, in the order of their numbers."""
    rows = [row for row in sweep.read_table(folder) if row["state"] != "LOST"]
    values = [[float(row[name] or "nan") for name in sweep.objectives] for row in rows]
    beyond = [[float(v or 0) for k, v in row.items() if k.startswith(CONSTRAINT)] for row in rows]
    return Trials(
        objectives=tuple(sweep.objectives),
        maximise_M=np.array(sweep.signs) > 0,
        number_T=tuple(int(row["number"]) for row in rows),
        values_TM=np.array(values).reshape(-1, len(sweep.objectives)),
        feasible_T=np.array([all(d <= 0 for d in distances) for distances in beyond], np.bool_),
        params_T=tuple({} for _ in rows),
    )


def compare_searches(searched: Trials, random: Trials) -> dict[str, float]:
    """The best value of each, or the hypervolume of its front from the point of the search."""
    reference_M = compute_reference(searched)
    assert reference_M is not None, "a sweep with a front has results"
    measured = {}
    for name, trials in {"search": searched, "random": random}.items():
        losses_KM = trials.losses_TM[compute_front(trials)]
        if len(reference_M) > 1:
            measured[name] = compute_hypervolume(losses_KM, trials.sign_M * reference_M)
        else:
            measured[name] = float(trials.sign_M[0] * losses_KM.min(initial=np.inf))
    return measured


def evaluate_front(config: DictConfig) -> None:
    """What `src/eval.py sweep=` does."""
    count = config.fresh_seeds
    require(isinstance(count, int) and count >= 2, "fresh_seeds", count, "give a number >= 2")
    sweep = read_sweep(Path(config.sweep).expanduser().absolute())
    seeded = {"seed", "seeds"}.intersection(*(point["params"] for point in sweep.front))
    wanted = "it searched over seeds: there is nothing to seed afresh"
    require(not seeded, "sweep", str(sweep.folder), wanted)
    first = max(sweep.seeds) + 1
    seeds = range(first, first + count)
    folder = sweep.folder / f"fresh-{first}-{count}"
    sweep.repeat(folder, *ask_front(sweep, seeds))
    rows = read_fresh(sweep, seeds, folder)
    write_text(folder / "shrinkage.json", json.dumps(rows, indent=2) + "\n")
    Console().print(tabulate(rows, count))
    print(f"kept in {folder / 'shrinkage.json'}")


def evaluate_search(config: DictConfig) -> None:
    """What `src/eval.py random=` does."""
    sweep = read_sweep(Path(config.random).expanduser().absolute())
    folder = sweep.folder / f"random-{sweep.num_trials}"
    sweep.repeat(folder, *ask_random(sweep))
    measured = compare_searches(read_trials(sweep, sweep.folder), read_trials(sweep, folder))
    write_text(folder / "comparison.json", json.dumps(measured, indent=2) + "\n")
    what = f"best {sweep.objectives[0]}" if len(sweep.objectives) == 1 else "hypervolume"
    print(
        f"\n{what} after {sweep.num_trials} trials, one search each (chance plays a part in both):"
    )
    print("\n".join(f"  {name:<8}{value:.6g}" for name, value in measured.items()))
    print(f"kept in {folder / 'comparison.json'}")
