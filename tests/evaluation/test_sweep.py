"""A sweep is repeated as it was, on fresh seeds or at random, and what is left of it is told."""

import csv
import json
import subprocess

import numpy as np
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from prismatic.evaluation.sweep import (
    ask_front,
    ask_random,
    compare_searches,
    evaluate_front,
    read_fresh,
    read_sweep,
    read_trials,
)

from ..test_end_to_end import command as run

PARAMS = {"perturbation": "repulsive", "perturbation.scale": 0.1 + 0.2, "router.num_experts": 3}
ODD = {"note": "a b, [c]", "quoted": 'it\'s "so"', "nothing": None, "flag": True, "tiny": 1e-07}


def write_sweep(folder, found, **config):
    sweeper = {"objectives": ["d", "loss"], "direction": ["maximize", "minimize"]}
    overrides = {"task": ["optuna=x"], "hydra": ["hydra.launcher.n_jobs=2", "hydra.mode=MULTIRUN"]}
    hydra = {"sweeper": sweeper, "overrides": overrides}
    base = {"seed": 0, "seeds": [0, 4], "twin": None, "hydra": hydra}
    OmegaConf.save(OmegaConf.create(base | config), folder / "multirun.yaml")
    (folder / "optimization_results.yaml").write_text(yaml.safe_dump(found))
    return folder


def solution(number=7, values=(0.5, 2.0), **params):
    return {"number": number, "params": {**PARAMS, **params}, "values": list(values)}


def plain(value):
    """What Hydra hands on: texts without their quotes."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return (
        [plain(one) for one in value] if isinstance(value, list) else getattr(value, "text", value)
    )


def parse(overrides):
    found = OverridesParser.create().parse_overrides(overrides)
    return {o.key_or_group: o if o.is_delete() else plain(o.value()) for o in found}


def write_trials(folder, columns, *rows):
    folder.mkdir(exist_ok=True)
    with (folder / "trials.csv").open("w", newline="") as file:
        csv.writer(file).writerow(["number", *columns])
        csv.writer(file).writerows([number, *row] for number, row in enumerate(rows))


def test_the_very_points_of_the_front_are_asked_for(tmp_path):
    points = [solution(**ODD), solution(9)]
    parsed = parse(ask_front(read_sweep(write_sweep(tmp_path, {"solutions": points})), [5, 6]))
    assert parsed["hydra.sweeper.enqueue"] == [point["params"] for point in points]
    assert parsed["seeds"] == [5, 6] and parsed["hydra.sweeper.n_trials"] == 2


def test_random_search_differs_in_how_it_searches_alone(tmp_path):
    found = {"solutions": [solution()], "trials": {"complete": 20, "pruned": 7, "failed": 3}}
    sweep = read_sweep(write_sweep(tmp_path, found, twin="${hydra:sweep.dir}/twin"))
    sweep.config.hydra.sweeper.sampler_options = {"multivariate": True}
    parsed = parse(ask_random(sweep))
    assert parsed["hydra.sweeper.sampler"] == "random" and parsed["hydra.sweeper.enqueue"] == []
    assert parsed["hydra.sweeper.n_trials"] == 30
    assert parsed["hydra.sweeper.sampler_options.multivariate"].is_delete()
    assert parsed["twin"] == str(tmp_path / "twin")  # not trained again
    assert "seeds" not in parsed


def test_the_sweeps_own_command_runs_in_another_folder_and_its_failure_is_ours(
    tmp_path, monkeypatch
):
    commands = []
    monkeypatch.setattr(
        subprocess, "run", lambda c: commands.append(c) or subprocess.CompletedProcess(c, 3)
    )
    folder = tmp_path / "a b"
    folder.mkdir()
    sweep = read_sweep(write_sweep(folder, {"solutions": [solution()]}))
    with pytest.raises(SystemExit) as ended:
        sweep.repeat(folder / "fresh", "seeds=[5]")
    assert ended.value.code == 3
    [command] = commands
    assert command[2:5] == ["--multirun", "optuna=x", "hydra.launcher.n_jobs=2"]
    parsed = parse(command[4:])
    assert parsed["hydra.sweep.dir"] == str(folder / "fresh") and parsed["seeds"] == [5]
    assert "hydra.mode" not in parsed


def test_a_single_best_trial_is_a_front_of_one(tmp_path):
    found = {"best_evaluated_params": PARAMS, "best_value": 1.5, "best_number": 3}
    sweep = read_sweep(write_sweep(tmp_path, found))
    assert sweep.front == [{"number": 3, "params": PARAMS, "values": [1.5]}]
    assert sweep.seeds == [0, 4]


def test_shrinkage_is_negative_where_a_value_got_worse(tmp_path):
    front = [solution(**ODD), solution(8, **(ODD | {"flag": False}))]
    sweep = read_sweep(write_sweep(tmp_path, {"solutions": front}))
    fresh = tmp_path / "fresh"
    for seed, loss in ((5, 2.0), (6, 3.0), (7, 2.5)):
        folder = fresh / "0" / f"seed_{seed}"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"d": 0.4, "loss": loss}))
    write_trials(
        fresh, ["state", "d", "loss", *PARAMS, *ODD],
        ["COMPLETE", 0.4, 2.5, *PARAMS.values(), *ODD.values()],
        ["FAIL", "", "", *PARAMS.values(), *(ODD | {"flag": False}).values()],
    )  # fmt: skip
    first, second, *failed = read_fresh(sweep, [5, 6, 7], fresh)
    assert first["shrinkage"] == pytest.approx(-0.1) and second["shrinkage"] == pytest.approx(-0.5)
    assert first["standard_error"] == 0
    assert second["standard_error"] == pytest.approx(0.5 / 3**0.5)
    assert [(row["trial"], "fresh" in row) for row in failed] == [(8, False)] * 2


@pytest.mark.parametrize(
    ("found", "named"),
    [
        ({"solutions": []}, "none of its trials"),
        ({"name": "optuna"}, "none of its trials"),
        ({"solutions": [solution(seed=1)]}, "over seeds"),
    ],
)
def test_a_sweep_without_a_front_or_with_searched_seeds_is_refused(found, named, tmp_path):
    write_sweep(tmp_path, found)
    with pytest.raises(ValueError, match=named):
        evaluate_front(OmegaConf.create({"sweep": str(tmp_path), "fresh_seeds": 2}))


def test_a_folder_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"multirun\.yaml"):
        read_sweep(tmp_path)


COLUMNS = ["state", "d", "loss", "constraint:cost"]  # d to maximise, loss to minimise


def test_hypervolumes_are_from_one_point_and_of_feasible_trials(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path, {"solutions": [solution()]}))
    write_trials(
        tmp_path, COLUMNS, ["COMPLETE", 1, 4, 0], ["COMPLETE", 3, 2, -1], ["COMPLETE", 9, 0, 1],
        ["COMPLETE", 0, 5, 0], ["FAIL", "", "", ""], ["LOST", "", "", ""],
    )  # fmt: skip
    write_trials(tmp_path / "random", COLUMNS, ["COMPLETE", 2, 2, 0], ["PRUNED", "", "", ""])
    searched, random = (read_trials(sweep, f) for f in (tmp_path, tmp_path / "random"))
    assert searched.number_T == (0, 1, 2, 3, 4)
    # From d = 0 and loss = 5, the worst results of the search.
    assert compare_searches(searched, random) == {"search": 9, "random": 6}


def test_of_one_objective_the_best_values_are_compared(tmp_path):
    found = {"best_evaluated_params": {}, "best_value": 1.0, "best_number": 0}
    sweep = read_sweep(write_sweep(tmp_path, found))
    sweep.config.hydra.sweeper.update({"objectives": ["d"], "direction": "maximize"})
    write_trials(tmp_path, COLUMNS, ["COMPLETE", 1, 4, 0], ["COMPLETE", 3, 2, -1])
    write_trials(tmp_path / "random", COLUMNS, ["COMPLETE", 2, 2, 0], ["COMPLETE", 7, 2, 2])
    searched, random = (read_trials(sweep, f) for f in (tmp_path, tmp_path / "random"))
    assert compare_searches(searched, random) == {"search": 3, "random": 2}
    write_trials(tmp_path / "random", COLUMNS, ["FAIL", "", "", ""])
    assert compare_searches(searched, read_trials(sweep, tmp_path / "random"))["random"] == -np.inf


@pytest.mark.slow
def test_a_sweep_is_trained_again_and_beside_random_search(tmp_path):
    small = ["debug=tiny", "hydra.sweeper.n_trials=3", "seeds=[0,1]", "logger=none"]
    run("train", "-m", "optuna=diversity_stability", *small, folder=tmp_path)
    sweep = tmp_path / "outputs" / "sweeps" / "diversity_stability"
    for _ in range(2):  # the second only reads
        run("eval", f"sweep={sweep}", "fresh_seeds=2", folder=tmp_path)
    rows = json.loads((sweep / "fresh-2-2" / "shrinkage.json").read_text())
    front = yaml.safe_load((sweep / "optimization_results.yaml").read_text())["solutions"]
    assert len(rows) == 2 * len(front) and all("fresh" in row for row in rows)
    out = run("eval", f"random={sweep}", folder=tmp_path).stdout
    assert "hypervolume after 3 trials" in out
    assert len(list((sweep / "random-3").glob("*/result.json"))) == 3
    assert not (sweep / "random-3" / "twin").exists()
