"""The sweep files compose, say what they cost, and run."""

import json
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

import prismatic
from prismatic.config import paths
from prismatic.replicas import run

from ..test_end_to_end import command
from ..tiny import CONF, ROOT, tiny

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
    runs = prismatic.results(folder)
    assert runs["trial"].tolist() == [0, 1, 2] and runs["seed"].tolist() == [0, 0, 0]
    assert results.trials.complete == 3
    assert results.best_value == runs["loss/val"].min()
    lines = (folder / "0" / "progress.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
    assert (folder / "0" / "checkpoints" / "best.ckpt").is_file()
    assert "validation loss" in (folder / "0" / "trial.log").read_text()


@pytest.fixture
def sweep_dir():
    """The folder of a sweep by what is typed, as Hydra composes it."""
    paths.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()

        def sweep_dir(*typed):
            return loader.load_configuration("train", list(typed), RunMode.MULTIRUN).hydra.sweep.dir

        yield sweep_dir


def test_a_grid_has_a_folder_that_the_same_command_finds_again(sweep_dir):
    """What is typed of the sweeper itself, such as a larger n_trials, asks for no other runs."""
    typed = ["seed=0,1", "optim.lr=.1,.2", "trainer.max_steps=3"]
    name = Path(sweep_dir(*typed)).name
    assert name.startswith("seed_x_optim.lr-")
    assert (
        Path(sweep_dir(*typed, "hydra.sweeper.n_trials=3", "hydra.launcher.n_jobs=2")).name == name
    )
    others = [[*typed, "seed=0,1,2"], [*typed, "logger=none"], typed[:2], ["grid=mode_x_focal"]]
    names = [name, *(Path(sweep_dir(*other)).name for other in others)]
    assert len(set(names)) == 5
    assert names[-1].startswith("mode_x_focal-")
    assert Path(sweep_dir("optuna=loss")).name == "loss"


def test_other_sweepers_get_a_new_folder_each_time(sweep_dir):
    for sweeper in ("basic", "prismatic_optuna"):
        names = {sweep_dir(f"hydra/sweeper={sweeper}", "seed=0,1") for _ in range(2)}
        assert len(names) == 2 and not any("None" in name for name in names)


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """Runs a trial in a folder, with a file `stop` if asked: (step, values) of its progress."""
    monkeypatch.setattr("prismatic.replicas.in_sweep", lambda: True)
    job = OmegaConf.create({"job": {"num": 7}})
    monkeypatch.setattr("prismatic.replicas.HydraConfig.get", lambda: job)

    def trial(name, *overrides, stop=False):
        folder = tmp_path / name
        folder.mkdir()
        if stop:
            (folder / "stop").write_text("dominated")
        run(tiny("trainer.max_steps=4", "trainer.val_check_interval=2", *overrides), folder)
        lines = map(json.loads, (folder / "progress.jsonl").read_text().splitlines())
        return [(line["step"], line["values"]) for line in lines]

    return trial


def test_a_trial_of_several_seeds_reports_them_one_after_another(trial):
    first, second = (trial(f"seed {seed}", f"seed={seed}") for seed in (3, 5))
    assert [step for step, _ in first] == [2, 4]
    after = [(step + 4, values) for step, values in second]
    assert trial("both", "seeds=[3,5]") == first + after


@pytest.mark.parametrize("seeds", ["null", "[3,5]"])
def test_a_trial_stops_where_the_sweep_says_so(trial, tmp_path, seeds):
    assert [step for step, _ in trial("stopped", f"seeds={seeds}", stop=True)] == [2]
    assert not (tmp_path / "stopped" / "seed_5").exists()


def test_a_trial_tells_of_an_alarm_when_it_sounds(trial):
    rising = ["optim.lr=10", "guard.divergence_steps=0", "guard.divergence_nats=0.01"]
    diagnostics = "{diagnostics:{_target_:prismatic.training.Diagnostics,guard:${guard}}}"
    watched = [f"+callbacks={diagnostics}"]
    told = trial("rising", *rising, *watched)
    assert {"alarm/divergence": 1.0} in [values for _, values in told]
    assert told == sorted(told, key=lambda line: line[0])
    assert all("alarm/divergence" not in values for _, values in trial("level", *watched))
