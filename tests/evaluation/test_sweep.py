"""A sweep is repeated as it was, on fresh seeds or at random, and what is left of it is told."""

import json
import math
import subprocess

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

import prismatic
from hydra_plugins.prismatic_optuna.results import write_results
from prismatic.evaluation.sweep import (
    ask_front,
    ask_random,
    best_configurations,
    compare_searches,
    read_fresh,
    read_sweep,
    repeat,
    report_sweep,
    seeds_of,
)

from ..test_end_to_end import command as run

PARAMS = {"perturbation": "repulsive", "perturbation.scale": 0.1 + 0.2, "router.num_experts": 3}
ODD = {"note": "a b, [c]", "quoted": 'it\'s "so"', "nothing": None, "flag": True, "tiny": 1e-07}
DIRECTIONS = {"d": "maximize", "loss": "minimize"}


def write_sweep(folder, *trials, names=("d", "loss"), options=None, **config):
    """What a sweep leaves: its study, of which each trial is (params, values, distance beyond its
    bound), with None for the values of one that failed."""
    folder.mkdir(exist_ok=True)
    hydra = {
        "sweeper": {"storage": None, **(options or {})},
        "overrides": {
            "task": ["optuna=x"],
            "hydra": [
                "hydra.launcher.n_jobs=2", "hydra.sweep.subdir=${hydra.job.num}",
                "hydra.mode=MULTIRUN",
            ],
        },
        "runtime": {"config_sources": [{"provider": "command-line", "path": "/my/conf"}]},
    }  # fmt: skip
    base = {"seed": 0, "seeds": [0, 4], "hydra": hydra}
    OmegaConf.save(OmegaConf.create(base | config), folder / "multirun.yaml")
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    study = optuna.create_study(
        study_name=folder.name, directions=[DIRECTIONS[name] for name in names],
        storage=optuna.storages.JournalStorage(backend),
    )  # fmt: skip
    study.set_user_attr("question", {"objectives": list(names), "params": {}})
    for number, (params, values, beyond) in enumerate(trials):
        study.add_trial(
            create_trial(
                params=params, values=values, constraints={"cost": beyond},
                distributions={k: CategoricalDistribution((v,)) for k, v in params.items()},
                user_attrs={"folder": str(number)},
                state=TrialState.FAIL if values is None else TrialState.COMPLETE,
            )
        )  # fmt: skip
    write_results(study, folder)
    return folder


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


def test_the_very_points_of_the_front_are_asked_for(tmp_path):
    points = [PARAMS | ODD, PARAMS]
    sweep = read_sweep(write_sweep(tmp_path, (points[0], (1, 2), 0), (points[1], (2, 3), 0)))
    parsed = parse(ask_front(sweep, [5, 6]))
    assert parsed["hydra.sweeper.enqueue"] == points[::-1]  # that with the larger d first
    assert parsed["seeds"] == [5, 6] and parsed["hydra.sweeper.n_trials"] == 2


def test_random_search_has_as_many_trials(tmp_path):
    trials = [({}, (1, 2), 0)] * 3 + [({}, None, 0)]
    sweep = read_sweep(write_sweep(tmp_path, *trials))
    parsed = parse(ask_random(sweep))
    assert parsed["hydra.sweeper.enqueue"] == [] and parsed["hydra.sweeper.n_trials"] == 4
    assert "seeds" not in parsed


def test_the_sweeps_own_command_runs_in_another_folder_and_its_failure_is_ours(
    tmp_path, monkeypatch
):
    commands = []
    monkeypatch.setattr(
        subprocess, "run", lambda c: commands.append(c) or subprocess.CompletedProcess(c, 3)
    )
    options = {"sampler_options": {"multivariate": True}}
    sweep = read_sweep(write_sweep(tmp_path / "a b", ({}, (1, 2), 0), options=options))
    with pytest.raises(SystemExit) as ended:
        repeat(sweep, sweep.folder / "fresh", "seeds=[5]")
    assert ended.value.code == 3
    [command] = commands
    assert command[2:6] == [
        "--multirun", "--config-dir=/my/conf", "optuna=x", "hydra.launcher.n_jobs=2"
    ]  # fmt: skip
    assert command[6] == "hydra.sweep.subdir=${hydra.job.num}"  # known in a trial only
    parsed = parse(command[5:])
    assert parsed["hydra.sweep.dir"] == str(sweep.folder / "fresh") and parsed["seeds"] == [5]
    assert parsed["hydra.sweeper.sampler"] == "random"
    assert parsed["hydra.sweeper.sampler_options.multivariate"].is_delete()
    assert "hydra.mode" not in parsed


def test_a_single_best_trial_is_a_front_of_one_and_needs_no_name(tmp_path):
    folder = write_sweep(tmp_path, (PARAMS, [1.5], 0), (ODD, [2.5], 0), names=["loss"])
    sweep = read_sweep(folder)
    [best] = best_configurations(sweep.study)
    assert (best.params, best.values) == (PARAMS, [1.5])
    assert seeds_of(sweep) == [0, 4]


def test_shrinkage_is_negative_where_a_value_got_worse(tmp_path):
    other = PARAMS | ODD | {"flag": False}
    front = [(PARAMS | ODD, (0.5, 2.0), 0), (other, (0.6, 2.1), 0)]
    sweep = read_sweep(write_sweep(tmp_path / "sweep", *front))
    fresh = write_sweep(tmp_path / "fresh", (PARAMS | ODD, (0.4, 2.5), 0), (other, None, 0))
    for seed, loss in ((5, 2.0), (6, 3.0), (7, 2.5)):
        folder = fresh / "0" / f"seed_{seed}"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"d": 0.4, "loss": loss}))
    *failed, first, second = read_fresh(sweep, [5, 6, 7], fresh)
    assert first["shrinkage"] == pytest.approx(-0.1) and second["shrinkage"] == pytest.approx(-0.5)
    assert first["standard_error"] == 0
    assert second["standard_error"] == pytest.approx(0.5 / 3**0.5)
    assert [(row["trial"], "fresh" in row) for row in failed] == [(1, False)] * 2


@pytest.mark.parametrize("trial", [({}, None, 0), ({}, (1, 2), 0.1)])
def test_a_sweep_without_a_front_has_nothing_to_train_afresh(trial, tmp_path):
    write_sweep(tmp_path, trial)
    asked = {"sweep": str(tmp_path), "fresh_seeds": 2, "compare_to": None}
    with pytest.raises(ValueError, match="none of its trials"):
        report_sweep(OmegaConf.create(asked))


def test_a_folder_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"multirun\.yaml"):
        read_sweep(tmp_path)


def test_hypervolumes_are_from_one_point_and_of_feasible_trials(tmp_path):
    values = [((1, 4), 0), ((3, 2), -1), ((9, 0), 1), ((0, 5), 0), (None, 0)]
    searched = write_sweep(tmp_path / "sweep", *(({"x": i}, *v) for i, v in enumerate(values)))
    random = write_sweep(tmp_path / "random", ({"x": 0}, (2, 2), 0), ({"x": 1}, None, 0))
    found = compare_searches(read_sweep(searched).study, read_sweep(random).study)
    # From d = 0 and loss = 5, the worst results of the search.
    assert found == {"search": 9, "random": 6}


def test_of_one_objective_the_best_values_are_compared(tmp_path):
    found = [({"x": 0}, [1], 0), ({"x": 1}, [3], -1)]
    folder = write_sweep(tmp_path / "sweep", *found, names=["d"])
    searched = read_sweep(folder).study
    found = [({"x": 0}, [2], 0), ({"x": 1}, [7], 2)]
    random = write_sweep(tmp_path / "random", *found, names=["d"])
    assert compare_searches(searched, read_sweep(random).study) == {"search": 3, "random": 2}
    searched.set_user_attr("question", {"objectives": ["d"], "params": {}})
    nothing = optuna.create_study(direction="maximize")
    assert math.isnan(compare_searches(searched, nothing)["random"])


@pytest.mark.slow
def test_a_sweep_is_trained_again_and_beside_random_search(tmp_path):
    small = ["debug=tiny", "hydra.sweeper.n_trials=3", "seeds=[0,1]", "logger=none"]
    run("train", "-m", "optuna=diversity_stability", *small, folder=tmp_path)
    sweep = tmp_path / "outputs" / "sweeps" / "diversity_stability"
    for _ in range(2):  # the second only reads
        run("eval", f"sweep={sweep}", "fresh_seeds=2", folder=tmp_path)
    rows = json.loads((sweep / "fresh-2-2" / "shrinkage.json").read_text())
    front = best_configurations(read_sweep(sweep).study)
    assert (prismatic.results(sweep)["objective/stability"] > 0).any(), "it learns something"
    assert "What is left on fresh seeds?" in (sweep / "report.html").read_text()
    assert len(rows) == 2 * len(front) and all("fresh" in row for row in rows)
    out = run("eval", f"random={sweep}", folder=tmp_path).stdout
    assert "hypervolume after 3 trials" in out
    assert len(list((sweep / "random-3").glob("*/result.json"))) == 3
