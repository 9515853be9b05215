"""What a finished sweep is worth: its front on fresh seeds, and its search beside a random one.

The best of many noisy trials look better than they are. Their configurations are trained again on
seeds that the sweep has not seen, as a small sweep of the same command, and what is left of each
objective is reported. As many trials of random search, by the same command too, say what the
sampler has added.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from hydra_plugins.prismatic_optuna.study import (
    CONFIG,
    best_trials,
    count_trials,
    load_study,
    objectives,
)
from prismatic.config.command_line import quote, texts
from prismatic.config.paths import ROOT, absolute
from prismatic.dashboard.rerun import config_options
from prismatic.dashboard.standing import compute_reference, compute_worth
from prismatic.errors import require
from prismatic.files import write_text
from prismatic.run_folder.contents import METRICS


@dataclass(frozen=True)
class FinishedSweep:
    """A finished Optuna sweep, as it lies in its folder."""

    folder: Path
    config: DictConfig
    study: Study

    @property
    def front(self) -> list[FrozenTrial]:
        return best_trials(self.study)

    @property
    def num_trials(self) -> int:
        return count_trials(self.study)["finished"]

    @property
    def seeds(self) -> list[int]:
        """Those that its trials were trained on."""
        return [self.config.seed] if self.config.seeds is None else list(self.config.seeds)

    def repeat(self, folder: Path, *overrides: str) -> None:
        """Run the sweep's own command as another study in a folder of its own.

        The same call goes on where it was stopped. A failure ends this process, with its status.
        """
        hydra = self.config.hydra
        given, options = hydra.overrides, hydra.sweeper.get("sampler_options") or {}
        command = [
            sys.executable, str(ROOT / "src" / "train.py"), "--multirun", *config_options(hydra),
            *texts(given.task),
            *(override for override in texts(given.hydra) if override != "hydra.mode=MULTIRUN"),
            f"hydra.sweep.dir={quote(str(folder))}",
            f"hydra.sweeper.study_name={quote(f'{self.folder.name}-{folder.name}')}",
            "hydra.sweeper.sampler=random",
            *(f"~hydra.sweeper.sampler_options.{key}" for key in options),
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
    study = load_study(folder)
    wanted = "none of its trials is complete and feasible"
    require(bool(best_trials(study)), "sweep", str(folder), wanted)
    config = OmegaConf.load(folder / CONFIG)
    assert isinstance(config, DictConfig)
    return FinishedSweep(folder, config, study)


def ask_front(sweep: FinishedSweep, seeds: Sequence[int]) -> list[str]:
    """Overrides by which the sweep's command trains its front alone, on other seeds."""
    return [
        f"seeds={list(seeds)}",
        "hydra.sweeper.pruning=null",
        f"hydra.sweeper.n_trials={len(sweep.front)}",
        f"hydra.sweeper.enqueue={quote([trial.params for trial in sweep.front])}",
    ]


def ask_random(sweep: FinishedSweep) -> list[str]:
    """Overrides by which the sweep's command searches at random, with nothing asked first."""
    return [
        "hydra.sweeper.enqueue=[]",
        f"hydra.sweeper.n_trials={sweep.num_trials}",
    ]


def read_fresh(sweep: FinishedSweep, seeds: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """A row per point of the front and objective: the sweep's value, the fresh one, what is left.

    `shrinkage` is fresh less sweep where more is better, and the reverse: negative is worse.
    `standard_error` is over the fresh seeds that ended.
    """
    complete = load_study(folder).get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    rows = []
    for best in sweep.front:
        same = [trial for trial in complete if trial.params == best.params]
        for i, name in enumerate(objectives(sweep.study)):
            row = {"trial": best.number, "objective": name, "sweep": best.values[i]}
            if same:
                gain = same[0].values[i] - best.values[i]
                own = folder / same[0].user_attrs["folder"]
                row |= {
                    "fresh": same[0].values[i],
                    "standard_error": standard_error(own, seeds, name),
                    "shrinkage": -gain if sweep.study.directions[i].name == "MINIMIZE" else gain,
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


def compare_searches(searched: Study, random: Study) -> dict[str, float]:
    """The best value of each, or the hypervolume of its front from the point of the search."""
    reference_M = compute_reference(searched)
    assert reference_M is not None, "a sweep with a front has results"
    studies = {"search": searched, "random": random}
    return {
        name: compute_worth(study, best_trials(study), reference_M)
        for name, study in studies.items()
    }


def evaluate_front(config: DictConfig) -> None:
    """What `src/eval.py sweep=` does."""
    count = config.fresh_seeds
    require(isinstance(count, int) and count >= 2, "fresh_seeds", count, "give a number >= 2")
    sweep = read_sweep(absolute(config.sweep))
    seeded = {"seed", "seeds"}.intersection(*(trial.params for trial in sweep.front))
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
    sweep = read_sweep(absolute(config.random))
    folder = sweep.folder / f"random-{sweep.num_trials}"
    sweep.repeat(folder, *ask_random(sweep))
    measured = compare_searches(sweep.study, load_study(folder))
    write_text(folder / "comparison.json", json.dumps(measured, indent=2) + "\n")
    names = objectives(sweep.study)
    what = f"best {names[0]}" if len(names) == 1 else "hypervolume"
    print(
        f"\n{what} after {sweep.num_trials} trials, one search each (chance plays a part in both):"
    )
    print("\n".join(f"  {name:<8}{value:.6g}" for name, value in measured.items()))
    print(f"kept in {folder / 'comparison.json'}")
