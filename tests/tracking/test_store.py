"""Stores of MLflow: made once, found under any name, and whole wherever they are moved."""

import logging
import multiprocessing
import os
import shlex
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from prismatic import tracking
from prismatic.config import paths
from prismatic.tracking import Recorder, connect
from prismatic.tracking.store import outage


def record(store, **options):
    """A finished run with a metric and an artifact."""
    recorder = Recorder(store, **options)
    recorder.log_metrics({"a": 1.0})
    recorder.log_artifact_text("notes/one.txt", "1")
    recorder.end("FINISHED")
    return recorder


def artifacts(folder):
    return sorted(path.read_text() for path in folder.rglob("*.txt"))


@pytest.fixture
def outputs(store, tmp_path):
    """A folder of outputs as it lies after a run: `store` and what lies beside it, moved here."""
    record(store)
    shutil.copytree(paths_of(store).parent, tmp_path / "outputs")
    return tmp_path / "outputs"


def paths_of(uri):
    return tracking.store.sqlite_path(uri)


SPECIAL = "50%41 a+b?c=d&e#f;ü'\"\\$[1]@h:1"


def test_every_character_of_a_path_is_itself(outputs, monkeypatch):
    folder = outputs.rename(outputs.parent / SPECIAL)
    monkeypatch.setenv("PRISMATIC_OUTPUTS", str(folder))
    recorder = record(paths.store(), tags={"run_dir": str(folder)})
    assert os.listdir(folder.parent) == [SPECIAL]
    kept = folder / "mlartifacts" / recorder.version / "artifacts"
    assert artifacts(kept) == ["1"]
    assert [e.path for e in connect(paths.store()).list_artifacts(recorder.version)] == ["notes"]
    command = shlex.split(recorder.url().splitlines()[0])
    assert paths_of(command[3]) == folder / "mlflow.db"


@pytest.mark.parametrize("older", [False, True], ids=["address", "path"])
def test_outputs_that_were_copied_are_written_to_alone(outputs, older):
    if older:  # when experiments had paths and not addresses
        with closing(sqlite3.connect(outputs / "mlflow.db")) as database, database:
            for column in ("experiments SET artifact_location", "runs SET artifact_uri"):
                name = column.split()[-1]
                database.execute(f"UPDATE {column} = replace({name}, 'file://', '')")
    store = paths.sqlite_uri(outputs / "mlflow.db")
    places = {"run_dir": "runs/1", "folder": "studies/leak"}
    first = record(store, tags={key: str(outputs / place) for key, place in places.items()})
    copy = Path(shutil.copytree(outputs, outputs.parent / "copy"))
    before = artifacts(outputs)
    _artifact_repos_cache.clear()  # another process moves outputs, in life
    there = paths.sqlite_uri(copy / "mlflow.db")
    record(there)
    record(there, run_id=first.version).log_artifact_text("two.txt", "2")
    assert artifacts(outputs) == before and len(artifacts(copy)) == len(before) + 2
    shutil.rmtree(outputs)
    tags = connect(there).get_run(first.version).data.tags
    assert {key: tags[key] for key in places} == {k: str(copy / p) for k, p in places.items()}
    assert {e.path for e in connect(there).list_artifacts(first.version)} == {"notes", "two.txt"}
    assert not outputs.exists()


def test_artifacts_that_a_user_put_elsewhere_stay_there(outputs):
    store = paths.sqlite_uri(outputs / "mlflow.db")
    client = connect(store)
    client.create_experiment("elsewhere", "s3://bucket/mlartifacts")
    moved = outputs.rename(outputs.parent / "moved")
    client = connect(paths.sqlite_uri(moved / "mlflow.db"))
    found = client.get_experiment_by_name("elsewhere")
    assert found.artifact_location == "s3://bucket/mlartifacts"


def test_a_relative_store_stays_where_the_recorder_was_made(outputs, tmp_path, monkeypatch):
    monkeypatch.chdir(outputs)
    recorder = Recorder("sqlite:///mlflow.db")
    monkeypatch.chdir(tmp_path)
    assert (outputs / "mlartifacts").as_uri() in recorder.experiment.get_run(
        recorder.version
    ).info.artifact_uri
    assert os.listdir(tmp_path) == ["outputs"]


def use_store(uri, gate):
    gate.wait()
    record(uri)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_four_processes_create_one_store(tmp_path, store):
    uri = paths.sqlite_uri(tmp_path / SPECIAL / "mlflow.db")
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
    assert os.listdir(tmp_path) == [SPECIAL]
    beside = ["mlartifacts", "mlflow.db", "mlflow.db.lock"]
    assert sorted(os.listdir(tmp_path / SPECIAL)) == beside
    assert artifacts(tmp_path / SPECIAL / "mlartifacts") == ["1"] * 4


def test_what_was_deleted_or_never_was_is_named_with_its_remedy(store):
    deleted = record(store, experiment_name="old").version
    client = connect(store)
    client.delete_run(deleted)
    for run_id, state in ((deleted, "deleted"), ("0123" * 8, "missing")):
        with pytest.raises(ValueError, match=f"the run {run_id} of sqlite.* is {state}: copy the"):
            record(store, run_id=run_id)
    found = client.get_experiment_by_name("old").experiment_id
    client.delete_experiment(found)
    with pytest.raises(ValueError, match=f"'old' .*is deleted.*restore --experiment-id {found}"):
        record(store, experiment_name="old")


@pytest.mark.parametrize("noisy", ["mlflow.store.db.utils", "alembic.runtime.migration"])
def test_connecting_is_quiet(store, noisy, monkeypatch):
    monkeypatch.delenv("MLFLOW_LOGGING_LEVEL", raising=False)
    logging.getLogger(noisy.split(".")[0]).setLevel(logging.INFO)
    connect(store)
    assert not logging.getLogger(noisy).isEnabledFor(logging.INFO)


SQL = {
    "SELECT 1 FROM missing": None,  # a fault of the program
    "PRAGMA query_only = 1; INSERT INTO t VALUES (1)": None,  # a database that may not be written
    "INSERT INTO t VALUES (zeroblob(9999999))": "database or disk is full",
    "BEGIN EXCLUSIVE": "database is locked",
}


@pytest.mark.parametrize(("statements", "reason"), SQL.items(), ids=SQL)
def test_a_locked_or_full_database_is_an_outage(statements, reason, tmp_path):
    path = tmp_path / "some.db"
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 0})
    with closing(sqlite3.connect(path)) as other, engine.connect() as connection:
        connection.execute(text("CREATE TABLE t (x)"))
        connection.commit()
        connection.execute(text("PRAGMA max_page_count = 10"))
        if reason == "database is locked":
            other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DBAPIError) as raised:
            for statement in statements.split("; "):
                connection.execute(text(statement))
        connection.rollback()
    engine.dispose()
    assert outage(raised.value) == reason


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

    def create_run(self, experiment_id, start_time, tags, run_name):
        return SimpleNamespace(info=SimpleNamespace(run_id="abc", experiment_id=experiment_id))


def test_a_server_keeps_its_artifacts_and_its_password(monkeypatch):
    server = Server()
    monkeypatch.setattr(tracking.run, "connect", lambda uri: server)
    page = "https://me:***@host:5000/#/experiments/7/runs/abc?workflowType=machine_learning"
    assert Recorder("https://me:secret@host:5000/").url() == page
    assert server.created == [("prismatic", None)]


def test_a_local_run_is_shown_by_a_command(store):
    recorder = record(store)
    command, link = recorder.url().splitlines()
    assert command == f"mlflow ui --backend-store-uri '{store}' --host 127.0.0.1"
    found = recorder.experiment.get_run(recorder.version).info
    assert f"/#/experiments/{found.experiment_id}/runs/{found.run_id}?" in link


def test_an_empty_variable_counts_as_unset(monkeypatch, tmp_path):
    for name in ("PRISMATIC_OUTPUTS", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
    assert paths_of(paths.store()) == paths.ROOT / "outputs" / "mlflow.db"
    monkeypatch.setenv("PRISMATIC_OUTPUTS", "~/there")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths_of(paths.store()) == tmp_path / "there" / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    assert paths.store() == "http://host"
