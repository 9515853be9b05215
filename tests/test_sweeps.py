"""The sweep files compose, say what they cost, and run."""

import csv
import json
import re

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from prismatic import paths

from .test_end_to_end import command
from .tiny import CONF, ROOT, fit

FILES = sorted((ROOT / "sweeps").glob("*/*.yaml"))
SHORT = ["debug=tiny", "trainer.max_steps=4", "trainer.val_check_interval=2", "logger=none"]


def label(path):
    return f"{path.parent.name}={path.stem}"


@pytest.mark.parametrize("path", FILES, ids=label)
def test_a_sweep_file_composes_and_opens_with_its_command(path):
    paths.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [label(path)], return_hydra_config=True)
    assert config.hydra.sweeper.params
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"# Command: python src/train.py -m {label(path)}" in head
    assert any(re.match(r"# Time: .*2 cores", line) for line in head)
    assert any(line.startswith("# Look at:") for line in head)


@pytest.mark.parametrize("group", ["grid=phase1_validation", "optuna=loss"])
def test_a_sweep_without_m_is_refused(group, script):
    done = script("train", group, "debug=tiny")
    assert done.status == 1
    assert f"{group} is a sweep: add -m" in done.err


def test_a_study_runs_to_its_total_and_goes_on(tmp_path):
    sweep = ["-m", "optuna=loss", *SHORT, "hydra.launcher.n_jobs=2", "hydra.sweeper.pruning=null"]
    for total in (2, 3):
        command("train", *sweep, f"hydra.sweeper.n_trials={total}", folder=tmp_path)
    folder = tmp_path / "outputs" / "sweeps" / "loss"
    results = OmegaConf.load(folder / "optimization_results.yaml")
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == ["0", "1", "2"]
    assert results.trials.complete == 3
    assert results.best_value == min(float(row["loss/val"]) for row in rows)
    lines = (folder / "0" / "progress.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]


def test_a_trial_stops_where_the_sweep_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("prismatic.experiment.in_sweep", lambda: True)
    (tmp_path / "stop").write_text("dominated")
    parts, _ = fit(tmp_path, "trainer.max_steps=20", "trainer.val_check_interval=5")
    assert parts.trainer.global_step == 5
