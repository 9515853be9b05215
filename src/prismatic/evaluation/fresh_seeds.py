"""What a sweep's front is worth on seeds it has never seen.

The best of many noisy trials look better than they are. Their configurations are trained again on
fresh seeds, as a small sweep of the same command, and what is left of each objective is reported.
"""

import csv
import json
import logging
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from prismatic.config.paths import ROOT
from prismatic.errors import require
from prismatic.files import write_text
from prismatic.run_folder.contents import METRICS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """A finished Optuna sweep, as it lies in its folder."""

    folder: Path
    config: DictConfig
    front: Sequence[Mapping[str, Any]]  # number, params and values of each of its best trials

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


def read_sweep(folder: Path) -> Sweep:
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
    found = yaml.safe_load(paths[1].read_text(encoding="utf-8"))
    best = {"number": found.get("best_number"), "params": found.get("best_evaluated_params")}
    alone = [{**best, "values": [found["best_value"]]}] if "best_value" in found else []
    front = found.get("solutions", alone)
    require(bool(front), "sweep", str(folder), "none of its trials is complete and feasible")
    return Sweep(folder, config, front)


def refuse_seeded(sweep: Sweep) -> None:
    """Raise `ValueError` for a sweep whose seeds were parameters."""
    seeded = {"seed", "seeds"}.intersection(*(point["params"] for point in sweep.front))
    wanted = "it searched over seeds: there is nothing to seed afresh"
    require(not seeded, "sweep", str(sweep.folder), wanted)


def again(sweep: Sweep, folder: Path) -> list[str]:
    """The sweep's own command, as another study in a folder of its own."""
    given = sweep.config.hydra.overrides
    return [
        sys.executable, str(ROOT / "src" / "train.py"), "--multirun", *given.task,
        *(override for override in given.hydra if not override.startswith("hydra.mode=")),
        f"hydra.sweep.dir={folder}",
        f"hydra.sweeper.study_name={sweep.folder.name}-{folder.name}",
        "hydra.sweeper.storage=null",
        "hydra.sweeper.shared=false",
        "hydra.sweeper.max_failure_rate=1",
    ]  # fmt: skip


def command(sweep: Sweep, seeds: Sequence[int], folder: Path) -> list[str]:
    """The sweep's own command, for its front alone, on other seeds."""
    points = [_mapping(point["params"]) for point in sweep.front]
    return [
        *again(sweep, folder),
        f"seeds={list(seeds)}",
        "hydra.sweeper.pruning=null",
        f"hydra.sweeper.n_trials={len(points)}",
        f"hydra.sweeper.enqueue=[{','.join(points)}]",
    ]


def _mapping(params: Mapping[str, Any]) -> str:
    """Parameters in the grammar of overrides, where a text is quoted."""

    def text(value: Any) -> str:
        return f"'{value}'" if isinstance(value, str) else json.dumps(value)

    return "{" + ",".join(f"{key}:{text(value)}" for key, value in params.items()) + "}"


def read_fresh(sweep: Sweep, seeds: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """A row per point of the front and objective: the sweep's value, the fresh one, what is left.

    `shrinkage` is fresh less sweep where more is better, and the reverse: negative is worse.
    `standard_error` is over the fresh seeds that ended.
    """
    with (folder / "trials.csv").open(newline="") as file:
        trials = [row for row in csv.DictReader(file) if row["state"] == "COMPLETE"]
    rows = []
    for point in sweep.front:
        same = [t for t in trials if all(t[k] == str(v) for k, v in point["params"].items())]
        for name, sign, value in zip(sweep.objectives, sweep.signs, point["values"], strict=True):
            row = {"trial": point["number"], "objective": name, "sweep": value}
            if same:
                fresh = float(same[0][name])
                spread = _spread(folder / same[0]["number"], seeds, name)
                row |= {
                    "fresh": fresh,
                    "standard_error": spread,
                    "shrinkage": sign * (fresh - value),
                }
            rows.append(row)
    return rows


def _spread(trial: Path, seeds: Sequence[int], name: str) -> float | None:
    """The standard error of a metric's mean over the seeds of a trial."""
    paths = [trial / f"seed_{seed}" / METRICS for seed in seeds]
    ended = [json.loads(path.read_text()) for path in paths if path.exists()]
    values = [one[name] for one in ended if name in one]
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def report(rows: Sequence[Mapping[str, Any]], num_seeds: int) -> Table:
    """The rows as a table."""
    table = Table(
        title=f"The front on {num_seeds} fresh seeds (shrinkage < 0: worse than it seemed)"
    )
    for name in ("trial", "objective", "sweep", "fresh", "standard error", "shrinkage"):
        table.add_column(name, justify="left" if name == "objective" else "right")
    for row in rows:
        keys = ("sweep", "fresh", "standard_error", "shrinkage")
        numbers = [row.get(key) for key in keys]
        cells = ["failed" if number is None else f"{number:.4g}" for number in numbers]
        table.add_row(str(row["trial"]), row["objective"], *cells)
    table.add_section()
    for name in dict.fromkeys(row["objective"] for row in rows):
        left = [r["shrinkage"] for r in rows if r["objective"] == name and "shrinkage" in r]
        if left:
            table.add_row("mean", name, "", "", "", f"{statistics.mean(left):.4g}")
    return table


def main(config: DictConfig) -> None:
    """What `src/eval.py sweep=` does. The same command goes on where it was stopped."""
    count = config.fresh_seeds
    require(isinstance(count, int) and count >= 2, "fresh_seeds", count, "give a number >= 2")
    sweep = read_sweep(Path(config.sweep).expanduser().absolute())
    refuse_seeded(sweep)
    first = max(sweep.seeds) + 1
    seeds = range(first, first + count)
    folder = sweep.folder / f"fresh-{first}-{count}"
    done = subprocess.run(command(sweep, seeds, folder))
    if done.returncode:
        sys.exit(done.returncode)
    rows = read_fresh(sweep, seeds, folder)
    write_text(folder / "shrinkage.json", json.dumps(rows, indent=2) + "\n")
    Console().print(report(rows, count))
    print(f"kept in {folder / 'shrinkage.json'}")
