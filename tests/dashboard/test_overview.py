"""MLflow and Optuna tell the same story of a sweep, whatever becomes of it and of its trials."""

import json
import logging
import re
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from prismatic.dashboard import overview, sweep_run
from prismatic.tracking import WORKFLOW, connect
from prismatic.tracking.logger import MLflowLogger

from ..hydra_plugins.toys import Stepwise, Sweep, parsed

NODE = {"_target_": "prismatic.dashboard.overview.Overview"}
ONE = {"objectives": ["loss"], "direction": "minimize", "callbacks": [NODE]}
TWO = {"objectives": ["gain", "cost"], "direction": ["maximize", "minimize"], "callbacks": [NODE]}
X = ["x=interval(0,1)", "model=small,large"]
WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    connect(uri)
    return uri


def logged(uri, name):
    """The overrides of a sweep that logs, to an experiment of its own."""
    node = {"_target_": MLflowLogger.__module__ + ".MLflowLogger", "tracking_uri": uri}
    return [*X, *(f"+logger.{k}={v}" for k, v in {**node, "experiment_name": name}.items())]


def child(params, folder):
    """A trial's logger, as the trial's own process would make it."""
    given = {key.removeprefix("logger."): v for key, v in params.items() if "logger." in key}
    del given["_target_"]
    logger = MLflowLogger(**given, run_name=folder.name, tags={"trial": folder.name})
    logger.log_hyperparams({"x": params["x"]})
    return logger


class Lost(RuntimeError):
    """What a launcher returns for a job whose process died."""

    lost = True


def job(params, folder, fates=()):
    """Ends as its fate says: before it has a logger, pruned, by an error, killed; or complete."""
    fate = dict(fates).get(int(folder.name))
    if fate == "unborn":
        raise ValueError("no such model")
    values = {"loss": params["x"], "gain": params["x"], "cost": params["x"] ** 2}
    logger = child(params, folder)
    logger.log_metrics({f"objective/{name}": value for name, value in values.items()})
    if fate == "pruned":
        with (folder / "progress.jsonl").open("a") as file:
            file.write(json.dumps({"step": 1, "values": {"loss": None}}) + "\n")
        yield
    if fate == "broken":
        raise RuntimeError("it broke")
    if fate == "killed":
        raise Lost("killed")
    logger.end("FINISHED")
    return values


def runs(uri, name):
    """The only parent, and its children by trial."""
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    [parent] = [run for run in found if "trial" not in run.data.tags]
    children = {int(r.data.tags["trial"]): r for r in found if "trial" in r.data.tags}
    assert len(children) == len(found) - 1, "one run for each trial"
    assert {r.data.tags["mlflow.parentRunId"] for r in children.values()} <= {parent.info.run_id}
    return parent, children


def agree(study, children):
    """Same trials, states, reasons, parameters and values."""
    assert sorted(children) == [trial.number for trial in study.trials]
    for trial in study.trials:
        run, tags = children[trial.number], children[trial.number].data.tags
        assert tags["state"] == ("lost" if trial.user_attrs.get("again") else WORDS[trial.state])
        assert (run.info.status == "FINISHED") == (trial.state is not TrialState.FAIL)
        assert trial.user_attrs.get("reason", "") in tags.get("reason", "")
        assert {k: str(v) for k, v in trial.params.items()}.items() <= run.data.params.items()
        if trial.state is TrialState.COMPLETE:
            names = study.user_attrs["question"]["objectives"]
            assert [run.data.metrics[f"objective/{name}"] for name in names] == trial.values


def test_mlflow_and_optuna_agree(sweep, store):
    fates = {1: "pruned", 2: "unborn", 3: "killed", 4: "broken"}
    study = sweep.run(
        partial(job, fates=fates), logged(store, "agree"), n_trials=6, max_failure_rate=1, **ONE
    )
    parent, children = runs(store, "agree")
    agree(study, children)
    states = {run.data.tags["state"] for run in children.values()}
    assert states == {"complete", "pruned", "failed", "lost"}
    assert children[2].info.run_name == "2: ValueError: no such model"
    assert parent.info.status == "FINISHED" and parent.info.run_name == "sweep"
    assert parent.data.metrics == {
        "sweep/finished": 6, "sweep/complete": 3, "sweep/pruned": 1, "sweep/failed": 2,
        "sweep/lost": 1, "sweep/retried": 0, "sweep/best/loss": study.best_value,
    }  # fmt: skip
    expected = {"space.x": "0 to 1", "space.model": "small, large", "n_trials": "6"}
    assert expected.items() <= parent.data.params.items()
    assert parent.data.params["objectives"] == "minimize loss"


@pytest.fixture(scope="module")
def two(store, tmp_path_factory):
    """A sweep of two objectives: itself, its study, parent and children."""
    sweep = Sweep(tmp_path_factory.mktemp("two"))
    keys = {"constraints": {"cost": 0.5}, "enqueue": [{"x": 0.5, "model": "small"}], "seed": 0}
    study = sweep.run(job, logged(store, "two"), n_trials=5, **keys, **TWO)
    return sweep, study, *runs(store, "two")


def test_the_parent_carries_the_overview(two, store, tmp_path):
    sweep, study, parent, _ = two
    client = MlflowClient(store)
    kept = {entry.path for entry in client.list_artifacts(parent.info.run_id)}
    pictures = {"history.png", "parameters.png", "parameters_2.png", "front.png"}
    tables = {"runs.csv", "configurations.csv", "optimization_results.yaml"}
    assert kept == {"multirun.yaml", "report.html", *tables, *pictures}
    for name in kept:
        path = client.download_artifacts(parent.info.run_id, name, str(tmp_path))
        assert Path(path).read_bytes() == (sweep.dir / name).read_bytes(), "the last state"
    history = client.get_metric_history(parent.info.run_id, "sweep/hypervolume")
    values = [point.value for point in history]
    assert [point.step for point in history] == [1, 2, 3, 4, 5]
    assert values == sorted(values) and values[-1] > 0
    assert parent.data.metrics["sweep/front"] == len(study.best_trials)
    assert parent.data.params["constraints.cost"] == "at most 0.5"
    assert "the worst of the first 10" in parent.data.params["reference.gain"]
    note = parent.data.tags["mlflow.note.content"]
    assert f"**{len(study.best_trials)} on the front, hypervolume {values[-1]:.5g}**" in note
    for trial in study.best_trials:
        assert re.search(rf"\| {trial.number} \| best \| {trial.values[0]:.5g} ", note)
    assert f"artifacts/report.html?{WORKFLOW}" in note


def test_the_view_of_a_sweep_names_what_its_runs_have(two, store):
    _, _, parent, children = two
    client, data = MlflowClient(store), children[0].data
    tags = client.get_experiment(parent.info.experiment_id).tags
    view = json.loads(tags[f"mlflow.sharedViewState.{parent.info.run_id}"])
    parallel, scatter = view["compareRunCharts"]
    assert parallel["selectedParams"] == ["x", "model"] and "model" in data.params
    assert set(parallel["selectedMetrics"]) <= data.metrics.keys()
    axes = [scatter["xaxis"]["key"], scatter["yaxis"]["key"]]
    assert axes == ["objective/gain", "objective/cost"]
    assert len(client.search_runs([parent.info.experiment_id], view["searchFilter"])) == 5
    assert f"viewStateShareKey={parent.info.run_id}" in parent.data.tags["mlflow.note.content"]


def test_a_resumed_sweep_goes_on_with_its_parent(sweep, store):
    overrides = logged(store, "resumed")
    study = sweep.run(job, overrides, n_trials=2, **ONE)
    first, _ = runs(store, "resumed")
    # A trial that the death of its sweep left running, in the study and in MLflow.
    study.enqueue_trial({"x": 0.5, "model": "small"})
    trial = study.ask(study.trials[0].distributions)
    nested = [*overrides, f"++logger.parent_run_id={first.info.run_id}", "x=0.5"]
    child(parsed(nested), sweep.dir / str(trial.number))
    study = sweep.run(job, overrides, n_trials=4, **ONE)
    parent, children = runs(store, "resumed")
    assert parent.info.run_id == first.info.run_id and parent.info.status == "FINISHED"
    assert parent.data.metrics["sweep/finished"] == 4
    assert parent.data.tags["changed.n_trials"] == "4"
    assert children[2].data.tags["state"] == "lost"
    agree(study, children)


def test_sweeps_that_begin_together_share_one_run(sweep, store, tmp_path, monkeypatch):
    opened, rival = sweep_run.SweepRun.opened, []

    def and_then_another(self, config, run_id):
        logger = opened(self, config, run_id)
        if not rival:
            [experiment] = self.client.search_experiments(filter_string="name = 'together'")
            rival.append(self.client.create_run(experiment.experiment_id).info.run_id)
            self.study.set_user_attr(sweep_run.RUN, rival[0])
        return logger

    monkeypatch.setattr(sweep_run, "SETTLE", 0)
    monkeypatch.setattr(sweep_run.SweepRun, "opened", and_then_another)
    shared = {"shared": True, "storage": f"sqlite:///{tmp_path}/study.db"}
    sweep.run(job, logged(store, "together"), n_trials=2, **shared, **ONE)
    common, children = runs(store, "together")
    assert common.info.run_id == rival[0] and len(children) == 2


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "KILLED"), (RuntimeError, "FAILED")]
)
def test_a_sweep_that_is_ended_ends_its_runs(sweep, store, error, status):
    class Ends(Stepwise):
        """Ends the sweep as soon as a trial has its run."""

        def finished(self, timeout=None):
            if timeout is None or timeout > 0:
                [number] = self.going
                child(parsed(self.overrides[number]), self.folder / str(number))
                raise error("now")
            return []

    with pytest.raises((SystemExit, RuntimeError)):
        sweep.run(job, logged(store, status), launcher=Ends, n_trials=2, **ONE)
    parent, children = runs(store, status)
    assert parent.info.status == status
    assert [run.info.status for run in children.values()] == ["KILLED"]
    assert [run.data.tags["state"] for run in children.values()] == ["lost"]


def plain(params, folder):
    return {"loss": params["x"]}


def test_without_a_logger_there_are_pictures_and_no_mlflow(sweep, caplog):
    sweep.run(plain, X, n_trials=2, **ONE)
    assert (sweep.dir / "history.png").stat().st_size > 1000
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "parent_run_id" not in " ".join(sweep.launcher.overrides[0])


def test_a_server_that_is_gone_costs_one_line(sweep, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    study = sweep.run(plain, logged("http://127.0.0.1:9", "gone"), n_trials=3, **ONE)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    [complaint] = [r for r in caplog.records if "without its overview" in r.message]
    assert complaint.levelno == logging.WARNING
    assert (sweep.dir / "history.png").exists()


def test_a_server_that_does_not_answer_holds_up_nothing(sweep, store, monkeypatch, caplog):
    answer = overview.Event()
    monkeypatch.setattr(overview, "BEGIN", 0.05)
    monkeypatch.setattr(overview, "END", 0.05)
    monkeypatch.setattr(overview.Overview, "record", lambda self: answer.wait(30))
    study = sweep.run(plain, logged(store, "silent"), n_trials=3, **ONE)
    answer.set()
    assert len(study.trials) == 3
    assert "MLflow does not answer" in caplog.text
