"""Runs in MLflow, read back through MLflow's own client; provenance, in repositories made here."""

import json
import logging
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from prismatic import tracking
from prismatic.run_folder import provenance as provenance_module
from prismatic.run_folder.provenance import provenance
from prismatic.tracking import connect
from prismatic.tracking.logger import MLflowLogger


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The address of a sqlite store in a folder with a space, which does not exist before."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking')}/out puts/mlflow.db"
    connect(uri)
    return uri


@pytest.fixture
def client_class(store):
    # mlflow is imported by connect, which switches its telemetry off before.
    return type(connect(store))


@pytest.fixture
def batches(client_class, monkeypatch):
    """The sizes of the metric batches that were sent."""
    sizes = []
    send = client_class.log_batch

    def count(self, run_id, metrics=(), **others):
        if metrics:
            sizes.append(len(metrics))
        return send(self, run_id, metrics=metrics, **others)

    monkeypatch.setattr(client_class, "log_batch", count)
    return sizes


def history(logger, key):
    """(step, value) of every stored value, by step."""
    found = logger.experiment.get_metric_history(logger.version, key)
    return sorted((metric.step, metric.value) for metric in found)


def info(logger):
    return logger.experiment.get_run(logger.version).info


def test_values_are_read_back_as_written(store):
    logger = MLflowLogger(store)
    for step in range(5):
        logger.log_metrics({"views/relative_norm": 0.1 * step, "train/loss": -1.0 / 3**step}, step)
    logger.flush()
    assert history(logger, "train/loss") == [(step, -1.0 / 3**step) for step in range(5)]
    assert history(logger, "views/relative_norm") == [(step, 0.1 * step) for step in range(5)]


def test_a_full_buffer_is_one_batch(store, batches):
    logger = MLflowLogger(store, buffer=10, flush_seconds=1e9)
    for step in range(7):
        logger.log_metrics({"a": step, "b": step, "c": step}, step)
        logger.save()  # as Lightning does after every call
    assert batches == [9, 9]
    logger.finalize("success")
    assert batches == [9, 9, 3]
    assert len(history(logger, "c")) == 7


def test_more_metrics_than_one_batch_may_hold(store):
    logger = MLflowLogger(store)
    logger.log_metrics({f"m/{number}": number for number in range(2300)})
    logger.flush()
    data = logger.experiment.get_run(logger.version).data
    assert data.metrics == {f"m/{number}": number for number in range(2300)}


def test_old_metrics_are_written_by_time(store, batches, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    logger = MLflowLogger(store, flush_seconds=10)
    logger.log_metrics({"a": 1.0}, 0)
    assert batches == []
    clock.now += 10
    logger.log_metrics({"a": 2.0}, 1)
    assert batches == [2]
    clock.now += 9
    logger.log_metrics({"a": 3.0}, 2)
    assert batches == [2]


def test_metrics_outlive_a_failed_write(store, client_class, monkeypatch):
    logger = MLflowLogger(store)
    logger.log_metrics({"a": 1.0}, 3)
    with monkeypatch.context() as patch:
        patch.setattr(client_class, "log_batch", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logger.finalize("success")
    assert info(logger).status == "FINISHED"
    logger.flush()
    assert history(logger, "a") == [(3, 1.0)]


def test_values_that_are_not_finite_survive(store):
    logger = MLflowLogger(store)
    logger.log_metrics({"nan": math.nan, "up": math.inf, "down": -math.inf}, 0)
    logger.flush()
    assert math.isnan(history(logger, "nan")[0][1])
    assert history(logger, "up") == [(0, sys.float_info.max)]
    assert history(logger, "down") == [(0, -sys.float_info.max)]


def test_a_waiting_value_is_the_value_when_it_was_logged(store):
    logger = MLflowLogger(store)
    value = torch.tensor(2.0)
    logger.log_metrics({"a": value})
    value.fill_(5.0)
    logger.flush()
    assert history(logger, "a") == [(0, 2.0)]


def test_hyperparameters_are_dotted_and_not_cut(store):
    logger = MLflowLogger(store)
    nested = {"perturbation": {"scale": 0.1, "none": {}}, "betas": [0.9, 0.95], "text": "x" * 5999}
    many = {f"key{number}": number for number in range(230)}
    logger.log_hyperparams(nested | many)
    params = logger.experiment.get_run(logger.version).data.params
    assert params.pop("perturbation.scale") == "0.1"
    assert params.pop("perturbation.none") == "{}"
    assert params.pop("betas") == "[0.9, 0.95]"
    assert params.pop("text") == "x" * 5999
    assert params == {key: str(value) for key, value in many.items()}


def test_a_parameter_beyond_mlflows_limit_is_kept_whole(store, tmp_path):
    logger = MLflowLogger(store)
    text = "".join(str(number) for number in range(3000))
    logger.log_hyperparams({"data": {"path": text}})
    stored = logger.experiment.get_run(logger.version).data.params["data.path"]
    assert len(stored) == 6000
    assert stored.endswith("... [whole value: params/data.path.txt]")
    whole = logger.experiment.download_artifacts(
        logger.version, "params/data.path.txt", str(tmp_path)
    )
    assert Path(whole).read_text() == text


@pytest.mark.parametrize(
    "said, stored", [("success", "FINISHED"), ("finished", "FINISHED"), ("failed", "FAILED")]
)
def test_finalize(store, said, stored):
    logger = MLflowLogger(store)
    logger.log_metrics({"a": 1.0})
    logger.finalize(said)
    first = info(logger)
    logger.finalize(said)
    assert first.status == stored
    assert info(logger).end_time == first.end_time
    assert history(logger, "a") == [(0, 1.0)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_finalize_in_an_interrupt_means_killed(store, error):
    logger = MLflowLogger(store)
    logger.log_metrics({"a": 1.0})
    try:
        raise error
    except error:
        logger.finalize("failed")
    assert info(logger).status == "KILLED"


def test_the_last_status_wins_and_a_wrong_one_is_refused(store):
    logger = MLflowLogger(store)
    logger.log_metrics({"a": 1.0})
    logger.finalize("success")
    logger.end("FAILED")
    assert info(logger).status == "FAILED"
    with pytest.raises(ValueError, match="'PRUNED' is not valid: choose one of"):
        logger.end("PRUNED")


def test_a_run_that_goes_on_after_its_end_ends_later(store):
    logger = MLflowLogger(store)
    logger.log_metrics({"a": 1.0})
    logger.finalize("success")  # Lightning after fit
    first = info(logger)
    time.sleep(0.002)
    logger.log_metrics({"test/loss": 1.0})
    logger.finalize("success")  # and after test
    assert info(logger).end_time > first.end_time


def test_an_unused_logger_leaves_no_run(store):
    MLflowLogger(store, experiment_name="unused").finalize("success")
    assert connect(store).get_experiment_by_name("unused") is None


def test_resume_appends(store):
    first = MLflowLogger(store, tags={"kept": "yes"})
    first.log_hyperparams({"steps": 20, "seed": 1})
    first.log_metrics({"a": 1.0}, 0)
    first.finalize("failed")
    again = MLflowLogger(store, run_id=first.version, tags={"more": "yes"})
    again.log_hyperparams({"steps": 40, "seed": 1, "new": 2})
    again.log_metrics({"a": 2.0}, 1)
    assert info(again).status == "RUNNING"
    again.finalize("success")
    run = first.experiment.get_run(first.version)
    assert again.version == first.version
    assert run.info.status == "FINISHED"
    assert history(first, "a") == [(0, 1.0), (1, 2.0)]
    assert run.data.params == {"steps": "20", "seed": "1", "new": "2"}
    assert run.data.tags["changed.steps"] == "40"
    assert "changed.seed" not in run.data.tags
    assert (run.data.tags["kept"], run.data.tags["more"]) == ("yes", "yes")


def test_resuming_a_run_that_is_not_there_fails(store):
    with pytest.raises(Exception, match=f"Run with id={'0123' * 8} not found"):
        _ = MLflowLogger(store, run_id="0123" * 8).version


def test_names_tags_and_parent(store):
    parent = MLflowLogger(store, "sweeps", run_name="the sweep")
    child = MLflowLogger(store, "sweeps", tags={"focal": "radial"}, parent_run_id=parent.version)
    child.set_tags({"number": 3})
    run = child.experiment.get_run(child.version)
    assert run.data.tags["mlflow.parentRunId"] == parent.version
    assert run.data.tags["focal"] == "radial"
    assert run.data.tags["number"] == "3"
    assert "mlflow.user" in run.data.tags
    assert info(parent).run_name == "the sweep"
    assert run.info.experiment_id == info(parent).experiment_id
    assert child.name == "sweeps"


def test_a_description_shows_pictures_among_the_artifacts(store):
    logger = MLflowLogger(store)
    logger.describe("**good**", ["report/a.png", "b.png"])
    logger.prefix = "seed_1/"
    logger.describe("one of several")
    source = f"get-artifact?run_uuid={logger.version}&path="
    note = connect(store).get_run(logger.version).data.tags["mlflow.note.content"]
    assert note.split("\n\n") == [
        "**good**", f"![report/a.png]({source}report/a.png)", f"![b.png]({source}b.png)",
    ]  # fmt: skip
    logger.prefix = ""
    logger.finalize("success")


def test_artifacts_lie_beside_the_database(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plot.html").write_text("<p>")
    logger = MLflowLogger(store)
    logger.log_artifact_text("config/resolved.yaml", "größe: 1\n")
    logger.log_artifact_json("manifest.json", {"bytes": 3, "path": Path("a")})
    logger.log_file(tmp_path / "plot.html", "plots")
    folder = Path(store.removeprefix("sqlite:///")).parent / "mlartifacts"
    found = {path.name: path for path in folder.glob(f"{logger.version}/**/*") if path.is_file()}
    assert found["resolved.yaml"].read_text(encoding="utf-8") == "größe: 1\n"
    assert found["resolved.yaml"].parent.name == "config"
    assert json.loads(found["manifest.json"].read_text()) == {"bytes": 3, "path": "a"}
    assert found["plot.html"].parent.name == "plots"
    logger.prefix = "seed_1/"
    logger.log_file(tmp_path / "plot.html", "plots")
    logger.log_file(tmp_path / "plot.html")
    found = {str(path.parent) for path in folder.glob("**/seed_1/**/plot.html")}
    assert {path.rpartition("/artifacts/")[2] for path in found} == {"seed_1", "seed_1/plots"}
    assert os.listdir(tmp_path) == ["plot.html"]


def test_a_relative_store_stays_where_the_logger_was_made(store, tmp_path, monkeypatch):
    folder = Path(store.removeprefix("sqlite:///")).parent
    monkeypatch.chdir(folder)
    logger = MLflowLogger("sqlite:///mlflow.db")
    monkeypatch.chdir(tmp_path)
    assert info(logger).artifact_uri.startswith(str(folder))
    assert os.listdir(tmp_path) == []


def test_nothing_is_written_above_rank_zero(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = MLflowLogger(f"sqlite:///{tmp_path}/deep/mlflow.db", buffer=1, flush_seconds=0)
    logger.log_metrics({"a": 1.0, "b": 2.0}, 0)
    logger.log_hyperparams({"long": "x" * 7000})
    logger.log_artifact_json("a.json", {})
    logger.log_file(__file__)
    logger.set_tags({"a": 1})
    logger.save()
    logger.flush()
    logger.finalize("success")
    assert logger.version == ""
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    logger.finalize("success")  # nothing waits either
    assert os.listdir(tmp_path) == []


def test_url_of_a_local_run_is_the_command_that_shows_it(store):
    logger = MLflowLogger(store)
    command, link = logger.url().splitlines()
    assert command == f"mlflow ui --backend-store-uri '{store}' --host 127.0.0.1"
    run = info(logger)
    assert (
        link
        == f"http://127.0.0.1:5000/#/experiments/{run.experiment_id}/runs/{run.run_id}?workflowType=machine_learning"
    )


class Server:
    """Answers like a server on which another process creates the experiment a moment earlier."""

    def __init__(self):
        self.created = []

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="7") if self.created else None

    def create_experiment(self, name, artifact_location=None, tags=None):
        from mlflow.exceptions import MlflowException

        self.created.append((name, artifact_location))
        raise MlflowException("RESOURCE_ALREADY_EXISTS")

    def search_runs(self, experiment_ids, filter_string):
        return []

    def create_run(self, experiment_id, start_time, tags, run_name):
        return SimpleNamespace(info=SimpleNamespace(run_id="abc", experiment_id=experiment_id))


def test_a_server_keeps_its_artifacts_and_its_password(monkeypatch):
    server = Server()
    monkeypatch.setattr(tracking.run, "connect", lambda uri: server)
    logger = MLflowLogger("https://me:secret@host:5000/")
    assert (
        logger.url()
        == "https://me:***@host:5000/#/experiments/7/runs/abc?workflowType=machine_learning"
    )
    assert server.created == [("prismatic", None)]


@pytest.mark.parametrize("wrong", [{"buffer": 0}, {"flush_seconds": -1.0}])
def test_nonsense_is_refused(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        MLflowLogger("sqlite:///never.db", **wrong)


def use_store(uri, gate):
    logger = MLflowLogger(uri)
    gate.wait()
    logger.log_metrics({"a": 1.0})
    logger.finalize("success")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_four_processes_create_one_store(tmp_path):
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    context = multiprocessing.get_context("fork")  # a fresh process would import for seconds
    gate = context.Barrier(4)
    crowd = [context.Process(target=use_store, args=(uri, gate)) for _ in range(4)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0, 0, 0, 0]
    client = connect(uri)
    experiment = client.get_experiment_by_name("prismatic")
    runs = client.search_runs([experiment.experiment_id])
    assert [(run.info.status, run.data.metrics) for run in runs] == [("FINISHED", {"a": 1.0})] * 4
    assert sorted(os.listdir(tmp_path / "new")) == ["mlflow.db", "mlflow.db.lock"]


@pytest.mark.parametrize("noisy", ["mlflow.store.db.utils", "alembic.runtime.migration"])
def test_connecting_is_quiet(store, noisy, monkeypatch):
    monkeypatch.delenv("MLFLOW_LOGGING_LEVEL", raising=False)
    logging.getLogger(noisy.split(".")[0]).setLevel(logging.INFO)
    connect(store)
    assert not logging.getLogger(noisy).isEnabledFor(logging.INFO)


class Interrupted(LightningModule):
    """Logs each step and raises `error` in the third."""

    def __init__(self, error):
        super().__init__()
        self.error = error
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(5))

    def training_step(self, batch, index):
        if index == 2 and self.error is not None:
            raise self.error
        self.log("train/loss", float(index))
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(
    "error, status, steps",
    [(None, "FINISHED", 5), (KeyboardInterrupt(), "KILLED", 2), (ValueError(), "FAILED", 2)],
)
def test_lightning_ends_the_run(store, tmp_path, batches, error, status, steps):
    logger = MLflowLogger(store, flush_seconds=1e9)
    trainer = Trainer(
        max_epochs=1,
        logger=logger,
        log_every_n_steps=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(Interrupted(error))
    except (SystemExit, ValueError) as raised:
        assert error is not None, raised
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores Ctrl-C after the first
    assert info(logger).status == status
    assert history(logger, "train/loss") == [(step, float(step)) for step in range(steps)]
    assert len(batches) == 1


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, env=clean, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("one\n")
    git(tmp_path, "add", ".")
    return tmp_path


def test_provenance_of_a_clean_tree(repository):
    git(repository, "commit", "--quiet", "-m", "first")
    found = provenance(repository)
    assert found.commit == git(repository, "rev-parse", "HEAD").strip()
    assert found.diff == ""


def test_provenance_of_a_dirty_tree(repository):
    git(repository, "commit", "--quiet", "-m", "first")
    (repository / "code.py").write_text("two\n")
    (repository / "staged.py").write_text("three\n")
    (repository / "größe.txt").write_text("new")
    git(repository, "add", "staged.py")
    lines = provenance(repository).diff.splitlines()
    assert {"-one", "+two", "+three", "# untracked: größe.txt"} <= set(lines)


def test_provenance_before_the_first_commit(repository):
    (repository / "new.txt").write_text("new")
    found = provenance(repository)
    assert found.commit is None
    assert {"+one", "# untracked: new.txt"} <= set(found.diff.splitlines())


def test_provenance_outside_a_repository(tmp_path):
    found = provenance(tmp_path)
    assert (found.commit, found.diff) == (None, "")


def test_provenance_ignores_the_repository_of_a_running_hook(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    git(repository, "commit", "--quiet", "-m", "first")
    assert provenance(repository).commit is not None


def test_provenance_without_git(repository, monkeypatch):
    git(repository, "commit", "--quiet", "-m", "first")
    monkeypatch.setenv("PATH", "")
    found = provenance(repository)
    assert (found.commit, found.diff, found.gpu) == (None, "", None)


@pytest.mark.parametrize("code, gpu", [(0, "NVIDIA H100"), (9, None)])
def test_provenance_names_the_gpu(tmp_path, monkeypatch, code, gpu):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho NVIDIA H100\nexit {code}\n")  # it reports errors there too
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert provenance(tmp_path).gpu == gpu


def test_provenance_names_versions_and_processor(tmp_path):
    found = provenance(tmp_path)
    assert found.cpu.endswith(f" x {os.cpu_count()}")
    assert found.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found.versions["torch"] == torch.__version__
    assert found.versions.keys() == {"python", *provenance_module.PACKAGES}
