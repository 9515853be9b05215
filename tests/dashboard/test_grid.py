"""A grid's trials are those of a study: callbacks of an Optuna sweep hear of them alike."""

import csv
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import open_dict
from optuna.trial import TrialState

from hydra_plugins.prismatic_optuna.callback import Callback
from prismatic.dashboard import standing
from prismatic.dashboard.grid import Grid
from prismatic.dashboard.grid_study import levels_of

from ..hydra_plugins.toys import returned

EVENTS: list[tuple] = []
BASIC = ["hydra/sweeper=basic", "n=3"]
NODES = {
    "broken": {"_target_": f"{__name__}.Broken"},
    "recorder": {"_target_": f"{__name__}.Recorder"},
}


class Broken(Callback):
    def on_trial_end(self, study, frozen_trial, job_return):
        raise RuntimeError("the display is broken")


class Recorder(Callback):
    def on_sweep_start(self, study, config, sweep_dir):
        EVENTS.append(("sweep", study.study_name, study.user_attrs["total"], sweep_dir))

    def on_trial_start(self, trial, overrides):
        overrides.append("+added=1")
        EVENTS.append(("start", trial.number, trial.params))

    def on_trial_end(self, study, frozen_trial, job_return):
        EVENTS.append(("end", frozen_trial.number, frozen_trial.state, job_return is not None))

    def on_poll(self, study):
        running = [trial for trial in study.trials if trial.state is TrialState.RUNNING]
        EVENTS.append(("poll", {t.number: t.user_attrs.get("progress:5") for t in running}))

    def on_sweep_end(self, study):
        EVENTS.append(("done", study))


@pytest.fixture
def begun(sweep):
    """Begins a grid as the launcher does; gives what it would tell."""

    def begin(*arguments, **keys):
        EVENTS.clear()
        sweep.dir.mkdir(exist_ok=True)
        _, config = sweep.composed([*BASIC, *arguments])
        return Grid(NODES, **keys).on_launch(config)

    return begin


def test_a_grid_is_told_as_a_study(begun, sweep, caplog):
    grid = begun("x=0.5,1", "name=b,'c d'")
    assert EVENTS == [("sweep", "x x name", 4, sweep.dir)]
    overrides = ["x=0.5", "name=b", "n=3"]
    grid.on_trial_start(0, overrides)
    grid.on_trial_start(1, ["x=0.5", "name='c d'", "n=3"])
    assert overrides[-1] == "+added=1"
    assert EVENTS[1:] == [
        ("start", 0, {"x": 0.5, "name": "b"}),
        ("start", 1, {"x": 0.5, "name": "'c d'"}),
    ]
    (sweep.dir / "1").mkdir(parents=True)
    line = json.dumps({"step": 5, "values": {"value": 2.0}})
    (sweep.dir / "1" / "progress.jsonl").write_text(f"{line}\n")
    grid.on_poll()
    assert EVENTS[-1] == ("poll", {0: None, 1: {"value": 2.0}})
    grid.on_trial_end(1, returned(2.0))
    grid.on_trial_end(0, returned(ValueError("no luck")))
    assert ("end", 1, TrialState.COMPLETE, True) in EVENTS
    assert ("end", 0, TrialState.FAIL, True) in EVENTS
    assert "on_trial_end of Broken failed" in caplog.text
    with (sweep.dir / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["state"], row["x"]) for row in rows] == [("FAIL", "0.5"), ("COMPLETE", "0.5")]
    assert "no luck" in rows[0]["reason"] and float(rows[1]["value"]) == 2
    results = yaml.safe_load((sweep.dir / "optimization_results.yaml").read_text())
    assert results["best_value"] == 2 and results["best_number"] == 1


def test_what_an_interrupt_left_running_has_failed(begun):
    grid = begun("x=1,2")
    grid.on_trial_start(0, ["x=1", "n=3"])
    grid.on_launch_end()
    assert EVENTS[-2] == ("end", 0, TrialState.FAIL, False)
    [(kind, study)] = EVENTS[-1:]
    assert kind == "done" and study.trials[0].user_attrs["reason"] == "interrupted"


def test_an_interrupt_says_at_last_how_a_grid_can_go_on(begun, caplog):
    caplog.set_level(logging.INFO)
    begun("x=1,2").on_launch_end()
    assert not any("starts anew" in message for message in caplog.messages)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        begun("x=1,2").on_launch_end()
    assert "hydra.sweeper.sampler=grid hydra.sweeper.n_trials=2" in caplog.messages[-1]


def test_batches_are_one_sweep(sweep):
    sweep.dir.mkdir()
    _, config = sweep.composed([*BASIC, "x=1,2", "hydra.sweeper.max_batch_size=1"])
    grid = Grid(NODES)
    for number in range(2):
        batch = grid.on_launch(config)
        batch.on_trial_start(number, [f"x={number + 1}", "n=3"])
        batch.on_trial_end(number, returned(float(number)))
        batch.on_launch_end()
    assert [trial.number for trial in EVENTS[-1][1].trials] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "total", "name"),
    [
        (["x=range(0,3)"], 3, "x"),
        (["model=glob(*)", "x=1,2"], 4, "model x x"),
        (["x=choice(1,2)", "y=3"], 2, "x"),
        (["x=1"], 1, "sweep"),
    ],
)
def test_what_varies_is_what_hydra_makes_of_it(begun, sweep, arguments, total, name):
    begun(*arguments)
    assert EVENTS == [("sweep", name, total, sweep.dir)]


def test_a_files_params_vary_too(sweep):
    _, config = sweep.composed([*BASIC, "y=0,1"])
    with open_dict(config):
        config.hydra.sweeper.params = {"x": "1,2", "y": "7,8,9"}
    levels, fixed = levels_of(config)
    assert levels == {"x": {"1": 1, "2": 2}, "y": {"0": 0, "1": 1}}
    assert fixed == ["n=3"]


@pytest.mark.parametrize(
    ("objective", "keys", "directions"),
    [
        ("loss/val", {}, ["MINIMIZE"]),
        ("[objective/diversity,loss/val]", {}, ["MAXIMIZE", "MINIMIZE"]),
        ("accuracy", {"direction": "maximize"}, ["MAXIMIZE"]),
    ],
)
def test_directions_are_given_or_go_by_the_name(begun, objective, keys, directions):
    grid = begun("x=1,2", f"+objective={objective}", **keys)
    grid.on_trial_start(0, ["x=1", "n=3"])
    values = {name: 1.0 for name in grid.names}
    grid.on_trial_end(0, returned(values if len(values) > 1 else 1.0))
    study = grid.study
    assert [direction.name for direction in study.directions] == directions
    assert standing.objectives(study) == grid.names
    assert study.trials[0].values == [1.0] * len(values)


def test_a_wrong_direction_is_named():
    with pytest.raises(ValueError, match=r"direction='up' is not valid: give minimize or maximize"):
        Grid({}, direction="up")


def test_a_plain_run_does_not_notice(tmp_path):
    code = (
        "import sys; from prismatic.dashboard.grid import Grid; Grid({'a': 1}).on_run_start(None);"
        "print({'optuna', 'torch', 'rich', 'matplotlib', 'mlflow'} & set(sys.modules))"
    )
    path = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout == "set()\n", done.stderr


def test_a_job_that_was_lost_has_failed(begun):
    grid = begun("x=1,2")
    grid.on_trial_start(0, ["x=1", "n=3"])
    grid.on_trial_end(0, JobReturn(status=JobStatus.FAILED, _return_value=OSError("killed")))
    assert grid.study.trials[0].user_attrs["reason"] == "OSError: killed"
