"""A sweep beside random search: the same command otherwise, and one measure for both."""

import csv

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from prismatic.evaluation.fresh_seeds import read_sweep
from prismatic.evaluation.random_search import command, compare, read_trials

from ..test_end_to_end import command as run
from .test_fresh_seeds import solution, write_sweep


def write_trials(folder, *rows):
    """Rows of state, d (to maximise), loss (to minimise) and what is beyond a constraint."""
    folder.mkdir(exist_ok=True)
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "state", "d", "loss", "constraint:cost"])
        writer.writerows([i, *row] for i, row in enumerate(rows))


def test_the_command_differs_in_how_it_searches_alone(tmp_path):
    sweep = read_sweep(
        write_sweep(tmp_path, {"solutions": [solution()]}, twin="${hydra:sweep.dir}/twin")
    )
    sweep.config.hydra.sweeper.sampler_options = {"multivariate": True}
    arguments = command(sweep, 30, tmp_path / "random-30")[3:]
    parsed = {o.key_or_group: o for o in OverridesParser.create().parse_overrides(arguments)}
    assert parsed["hydra.sweeper.sampler"].value() == "random"
    assert parsed["hydra.sweeper.n_trials"].value() == 30
    assert parsed["hydra.sweeper.enqueue"].value() == []
    assert parsed["hydra.sweeper.sampler_options.multivariate"].is_delete()
    assert parsed["twin"].value() == str(tmp_path / "twin")  # not trained again
    assert "seeds" not in parsed


def test_hypervolumes_are_from_one_point_and_of_feasible_trials(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path, {"solutions": [solution()]}))
    write_trials(
        tmp_path, ["COMPLETE", 1, 4, 0], ["COMPLETE", 3, 2, -1], ["COMPLETE", 9, 0, 1],
        ["COMPLETE", 0, 5, 0], ["FAIL", "", "", ""], ["LOST", "", "", ""],
    )  # fmt: skip
    write_trials(tmp_path / "random", ["COMPLETE", 2, 2, 0], ["PRUNED", "", "", ""])
    searched, random = (read_trials(sweep, f) for f in (tmp_path, tmp_path / "random"))
    assert searched.number_T == (0, 1, 2, 3, 4)
    # From d = 0 and loss = 5, the worst results of the search.
    assert compare(searched, random) == {"search": 9, "random": 6}


def test_of_one_objective_the_best_values_are_compared(tmp_path):
    found = {"best_evaluated_params": {}, "best_value": 1.0, "best_number": 0}
    sweep = read_sweep(write_sweep(tmp_path, found))
    sweep.config.hydra.sweeper.update({"objectives": ["d"], "direction": "maximize"})
    write_trials(tmp_path, ["COMPLETE", 1, 4, 0], ["COMPLETE", 3, 2, -1])
    write_trials(tmp_path / "random", ["COMPLETE", 2, 2, 0], ["COMPLETE", 7, 2, 2])
    searched, random = (read_trials(sweep, f) for f in (tmp_path, tmp_path / "random"))
    assert compare(searched, random) == {"search": 3, "random": 2}
    write_trials(tmp_path / "random", ["FAIL", "", "", ""])
    assert compare(searched, read_trials(sweep, tmp_path / "random"))["random"] == -np.inf


@pytest.mark.slow
def test_random_search_runs_beside_a_sweep(tmp_path):
    small = ["debug=tiny", "hydra.sweeper.n_trials=2", "seeds=null", "logger=none"]
    run("train", "-m", "optuna=diversity_stability", *small, folder=tmp_path)
    sweep = tmp_path / "outputs" / "sweeps" / "diversity_stability"
    out = run("eval", f"random={sweep}", folder=tmp_path).stdout
    assert "hypervolume after 2 trials" in out
    assert len(list((sweep / "random-2").glob("*/result.json"))) == 2
    assert not (sweep / "random-2" / "twin").exists()
