"""A front is trained again as it was, on seeds it has not seen, and what is left is told."""

import csv
import json

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from prismatic.evaluation.fresh_seeds import command, read_fresh, read_sweep, refuse_seeded

from ..test_end_to_end import command as run

PARAMS = {"perturbation": "repulsive", "perturbation.scale": 0.1 + 0.2, "router.num_experts": 3}
CHOICES = {"note": "a b, [c]", "nothing": None, "flag": True}


def write_sweep(folder, found, **config):
    sweeper = {"objectives": ["d", "loss"], "direction": ["maximize", "minimize"]}
    overrides = {"task": ["optuna=x"], "hydra": ["hydra.launcher.n_jobs=2", "hydra.mode=MULTIRUN"]}
    hydra = {"sweeper": sweeper, "overrides": overrides}
    base = {"seed": 0, "seeds": [0, 4], "hydra": hydra}
    OmegaConf.save(OmegaConf.create(base | config), folder / "multirun.yaml")
    (folder / "optimization_results.yaml").write_text(yaml.safe_dump(found))
    return folder


def solution(number=7, values=(0.5, 2.0), **params):
    return {"number": number, "params": {**PARAMS, **params}, "values": list(values)}


def test_the_command_asks_for_the_very_points_of_the_front(tmp_path):
    points = [solution(**CHOICES), solution(9)]
    sweep = read_sweep(write_sweep(tmp_path, {"solutions": points}))
    arguments = command(sweep, [5, 6], tmp_path / "fresh")[2:]
    assert arguments[:3] == ["--multirun", "optuna=x", "hydra.launcher.n_jobs=2"]
    parsed = {
        o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(arguments[1:])
    }
    unquoted = [
        {key: getattr(value, "text", value) for key, value in point.items()}
        for point in parsed["hydra.sweeper.enqueue"]
    ]
    assert unquoted == [point["params"] for point in points]
    assert parsed["seeds"] == [5, 6] and parsed["hydra.sweeper.n_trials"] == 2


def test_a_single_best_trial_is_a_front_of_one(tmp_path):
    found = {"best_evaluated_params": PARAMS, "best_value": 1.5, "best_number": 3}
    sweep = read_sweep(write_sweep(tmp_path, found))
    assert sweep.front == [{"number": 3, "params": PARAMS, "values": [1.5]}]
    assert sweep.seeds == [0, 4]


def test_shrinkage_is_negative_where_a_value_got_worse(tmp_path):
    sweep = read_sweep(write_sweep(tmp_path, {"solutions": [solution(), solution(8, y=1)]}))
    fresh = tmp_path / "fresh"
    for seed, loss in ((5, 2.0), (6, 3.0), (7, 2.5)):
        folder = fresh / "0" / f"seed_{seed}"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"d": 0.4, "loss": loss}))
    with (fresh / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "state", "d", "loss", *PARAMS, "y"])
        writer.writerow([0, "COMPLETE", 0.4, 2.5, *PARAMS.values(), ""])
        writer.writerow([1, "FAIL", "", "", *PARAMS.values(), 1])
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
    with pytest.raises(ValueError, match=named):
        refuse_seeded(read_sweep(write_sweep(tmp_path, found)))


def test_a_folder_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"multirun\.yaml"):
        read_sweep(tmp_path)


@pytest.mark.slow
def test_a_front_is_trained_again(tmp_path):
    small = ["debug=tiny", "hydra.sweeper.n_trials=3", "seeds=[0,1]", "logger=none"]
    run("train", "-m", "optuna=diversity_stability", *small, folder=tmp_path)
    sweep = tmp_path / "outputs" / "sweeps" / "diversity_stability"
    for _ in range(2):  # the second only reads
        run("eval", f"sweep={sweep}", "fresh_seeds=2", folder=tmp_path)
    rows = json.loads((sweep / "fresh-2-2" / "shrinkage.json").read_text())
    front = yaml.safe_load((sweep / "optimization_results.yaml").read_text())["solutions"]
    assert len(rows) == 2 * len(front) and all("fresh" in row for row in rows)
