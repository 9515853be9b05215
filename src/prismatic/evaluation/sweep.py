"""What a sweep is worth: its report, its front on fresh seeds, its search beside a random one.

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
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from optuna.study import Study
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table

from hydra_plugins.prismatic_optuna.configurations import (
    REPLICATE,
    best_configurations,
    is_replicate,
)
from hydra_plugins.prismatic_optuna.study import (
    count_trials,
    load_study,
    objectives,
    read_trials,
    search_space,
)
from prismatic.config.command_line import quote
from prismatic.config.paths import ROOT, absolute
from prismatic.dashboard.account import Account, read_account
from prismatic.dashboard.display import print_account
from prismatic.dashboard.page import SHRINKAGE, write_page
from prismatic.dashboard.rerun import config_options, own_overrides
from prismatic.dashboard.standing import compute_reference, compute_worth
from prismatic.errors import require
from prismatic.files import write_text
from prismatic.run_folder.contents import read_metrics, seed_folder


def read_sweep(folder: Path) -> Account:
    """Raises `FileNotFoundError` or `ValueError` for a folder without a best trial or front."""
    sweep = read_account(folder)
    wanted = "none of its trials is complete and feasible"
    require(bool(best_configurations(sweep.study)), "sweep", str(folder), wanted)
    return sweep


def repeat(sweep: Account, folder: Path, *overrides: str) -> None:
    """Run a sweep's own command as another study in a folder of its own.

    The same call goes on where it was stopped. A failure ends this process, with its status.
    """
    hydra = sweep.config.hydra
    options = hydra.sweeper.get("sampler_options") or {}
    command = [
        sys.executable, str(ROOT / "src" / "train.py"), "--multirun", *config_options(hydra),
        *own_overrides(hydra),
        f"hydra.sweep.dir={quote(str(folder))}",
        f"hydra.sweeper.study_name={quote(f'{sweep.folder.name}-{folder.name}')}",
        "hydra.sweeper.sampler=random",
        *(f"~hydra.sweeper.sampler_options.{key}" for key in options),
        "hydra.sweeper.storage=null",
        "hydra.sweeper.shared=false",
        "hydra.sweeper.max_failure_rate=1",
        "hydra.sweeper.compare_to=null",
        *overrides,
    ]  # fmt: skip
    done = subprocess.run(command)
    if done.returncode:
        sys.exit(done.returncode)


def seeds_of(sweep: Account) -> list[int]:
    """Those that its trials were trained on."""
    return sorted(sweep.runs[REPLICATE].dropna().astype(int).unique().tolist())


def num_trials(sweep: Account) -> int:
    return count_trials(sweep.study)["finished"]


def ask_front(sweep: Account, seeds: Sequence[int]) -> list[str]:
    """Overrides by which the sweep's command trains its front alone, on other seeds."""
    front = best_configurations(sweep.study)
    return [
        *unvaried_seed(sweep),
        f"seeds={list(seeds)}",
        "hydra.sweeper.pruning=null",
        f"hydra.sweeper.n_trials={len(front)}",
        f"hydra.sweeper.enqueue={quote([one.params for one in front])}",
    ]


def unvaried_seed(sweep: Account) -> list[str]:
    """Overrides after which a grid's seed is no parameter of a search."""
    searched = filter(is_replicate, search_space(sweep.study))
    return [f"{name}={min(seeds_of(sweep))}" for name in searched]


def ask_random(sweep: Account) -> list[str]:
    """Overrides by which the sweep's command searches at random, with nothing asked first."""
    return [
        *unvaried_seed(sweep),
        "hydra.sweeper.enqueue=[]",
        f"hydra.sweeper.n_trials={num_trials(sweep)}",
    ]


def read_fresh(sweep: Account, seeds: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """A row per point of the front and objective: the sweep's value, the fresh one, what is left.

    `shrinkage` is fresh less sweep where more is better, and the reverse: negative is worse.
    `standard_error` is over the fresh seeds that ended.
    """
    complete = load_study(folder).get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    rows = []
    for best in best_configurations(sweep.study):
        same = [trial for trial in complete if trial.params == best.params]
        for i, name in enumerate(objectives(sweep.study)):
            row = {"trial": best.complete[0].number, "objective": name, "sweep": best.values[i]}
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
    ended = [read_metrics(seed_folder(trial, seed)) for seed in seeds]
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
        name: compute_worth(study, read_trials(study), reference_M)
        for name, study in studies.items()
    }


def train_afresh(sweep: Account, count: int) -> None:
    """Train the front again on so many fresh seeds, and print and keep what is left of it."""
    first = max(seeds_of(sweep)) + 1
    seeds = range(first, first + count)
    folder = sweep.folder / f"fresh-{first}-{count}"
    repeat(sweep, folder, *ask_front(sweep, seeds))
    rows = read_fresh(sweep, seeds, folder)
    write_text(folder / SHRINKAGE, json.dumps(rows, indent=2) + "\n")
    Console().print(tabulate(rows, count))


def report_sweep(config: DictConfig) -> None:
    """What `src/eval.py sweep=` does."""
    count, folder = config.fresh_seeds, absolute(config.sweep)
    several = count is None or (isinstance(count, int) and count >= 2)
    require(several, "fresh_seeds", count, "give a number >= 2, or null")
    baseline: Any = config.compare_to and OmegaConf.to_container(config.compare_to)
    wanted = "give values of the search as a mapping, 'compare_to={router:dense}'"
    require(baseline is None or isinstance(baseline, dict), "compare_to", baseline, wanted)
    if count is not None:
        train_afresh(read_sweep(folder), count)
    sweep = read_account(folder, baseline)
    sweep.write_tables()
    page = write_page(sweep, sweep.draw(whole=True))
    print_account(sweep)
    print(f"report:        {page}")


def evaluate_search(config: DictConfig) -> None:
    """What `src/eval.py random=` does."""
    sweep = read_sweep(absolute(config.random))
    folder = sweep.folder / f"random-{num_trials(sweep)}"
    repeat(sweep, folder, *ask_random(sweep))
    measured = compare_searches(sweep.study, load_study(folder))
    write_text(folder / "comparison.json", json.dumps(measured, indent=2) + "\n")
    names = objectives(sweep.study)
    what = f"best {names[0]}" if len(names) == 1 else "hypervolume"
    print(
        f"\n{what} after {num_trials(sweep)} trials, one search each (chance plays a part in both):"
    )
    print("\n".join(f"  {name:<8}{value:.6g}" for name, value in measured.items()))
    print(f"kept in {folder / 'comparison.json'}")
