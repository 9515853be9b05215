"""Several sweeps on one study at once: each trial is done once, and none is forgotten."""

import logging
import os
import random
import time

import optuna
import pytest
from hydra.utils import instantiate
from optuna.distributions import CategoricalDistribution as Choice
from optuna.distributions import FloatDistribution as Float
from optuna.trial import TrialState

from hydra_plugins.prismatic_optuna import _owner, _study

from .toys import Sweep

XY = {"x": Float(0, 1), "y": Float(0, 1)}


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)


def journal(path):
    """A storage as a node of the configuration: quicker than a database, and shared as well."""
    file = {"_target_": "optuna.storages.journal.JournalFileBackend", "file_path": str(path)}
    return {"_target_": "optuna.storages.JournalStorage", "log_storage": file}


@pytest.fixture
def shared(tmp_path):
    """The options of a sweep that shares a study."""
    return {"storage": journal(tmp_path / "s"), "study_name": "s", "shared": True}


@pytest.fixture
def load(shared):
    """Opens the study as another sweep would."""
    return lambda: optuna.load_study(study_name="s", storage=instantiate(shared["storage"]))


def states(study):
    return [trial.state.name for trial in study.trials]


def neighbour(pid=None):
    """A process of this host as an owner; it lives, unless another number is given."""
    start = _owner.started(os.getppid())
    return f"{_owner.host()}:{os.getppid()}:{start if pid is None else pid}"


def ask(study, owner):
    """Another sweep asks for a trial, and is working on it."""
    trial = study.ask(XY)
    trial.set_user_attr("owner", owner)
    return trial


def test_what_runs_elsewhere_is_not_asked_too(sweep, shared, load, caplog):
    caplog.set_level(logging.INFO)

    def job(params, folder):
        if folder.name == "0":
            ask(load(), neighbour())
        return 1.0

    sweep.run(job, n_trials=3, **shared)
    assert states(load()) == ["COMPLETE", "RUNNING", "COMPLETE"]
    assert "2 of 3" in caplog.messages[-1] and "in other sweeps" in caplog.messages[-1]


def test_what_another_sweep_died_with_is_asked_again(sweep, shared, load):
    def job(params, folder):
        if folder.name == "0":
            ask(load(), neighbour("0"))
        return 1.0

    sweep.run(job, n_trials=3, **shared)
    assert states(load()) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert load().trials[3].params == load().trials[1].params


def test_sweeps_of_one_seed_do_not_ask_for_the_same(tmp_path):
    asked = []
    for name in "ab":
        sweep = Sweep(tmp_path / name)
        options = {"storage": journal(tmp_path / name / "s"), "shared": True, "seed": 0}
        sweep.run(lambda params, folder: asked.append(params["x"]) or 1.0, n_trials=1, **options)
    assert asked[0] != asked[1]


@pytest.mark.parametrize("queued", [[], [{"x": 0.25, "y": 0.5}]])
def test_of_two_that_ask_for_the_last_trial_one_gives_it_back(
    sweep, shared, load, monkeypatch, queued
):
    ask_alone, numbers = optuna.Study.ask, []

    def at_once(study, *arguments):
        monkeypatch.setattr(optuna.Study, "ask", ask_alone)
        trial = study.ask(*arguments)
        numbers.append(ask(load(), neighbour()).number)
        return trial

    def meanwhile(low, high):
        load().tell(numbers[0], 1.0)
        return 0

    monkeypatch.setattr(optuna.Study, "ask", at_once)
    monkeypatch.setattr(random, "uniform", meanwhile)
    sweep.run(lambda params, folder: 1.0, n_trials=1, enqueue=queued, **shared)
    assert sweep.launcher.log == []
    waiting = ["WAITING"] if queued else []
    assert states(load()) == ["FAIL", "COMPLETE", *waiting]
    if queued:
        assert load().trials[2].system_attrs["fixed_params"] == queued[0]


def test_the_oldest_living_sweep_tidies_up(sweep, shared, load):
    sweep.run(lambda params, folder: 1.0, n_trials=1, **shared)
    study = load()
    lost = ask(study, neighbour("0"))
    with _owner.Ownership(study, shared=True) as claim:
        for since, leads in ((0, False), (time.time() + 9, True)):
            study.set_user_attr(f"owner:{neighbour()}", {"since": since, "beat": time.time()})
            assert claim.leads() == leads
            _study.recover(study, claim, max_retries=2)
            assert (study.trials[lost.number].state is TrialState.FAIL) == leads


def test_of_two_that_take_the_last_point_of_a_grid_one_takes_none(sweep, shared, load, monkeypatch):
    """Points wait in the study's queue, from which each is taken once."""
    ask_alone = optuna.Study.ask

    def after_another(study, *arguments):
        monkeypatch.setattr(optuna.Study, "ask", ask_alone)
        other = load()
        other.ask({"x": Choice((1, 2)), "y": Choice((3,))}).set_user_attr("owner", neighbour())
        other.tell(other.trials[0].number, 1.0)
        return study.ask(*arguments)

    monkeypatch.setattr(optuna.Study, "ask", after_another)
    options = {"sampler": "grid", "n_trials": None, **shared}
    sweep.run(lambda params, folder: 1.0, ["x=1,2", "y=choice(3)"], **options)
    done = [trial for trial in load().trials if trial.state is TrialState.COMPLETE]
    assert [trial.params["x"] for trial in done] == [1, 2]
    assert [number for what, number in sweep.launcher.log if what == "start"] == [1]
