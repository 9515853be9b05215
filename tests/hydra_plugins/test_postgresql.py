"""Several machines on one study: a real PostgreSQL server, and MLflow's on the same one."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import optuna
import pytest
from hydra.errors import HydraException
from mlflow import MlflowClient
from sqlalchemy.pool import NullPool

from hydra_plugins.prismatic_optuna import _owner, _storage

from .processes import REAL, Command, finished, toy

psycopg = pytest.importorskip("psycopg", reason="needs psycopg: pip install 'psycopg[binary]'")
pytestmark = pytest.mark.slow


def program(name: str) -> str:
    """A program of PostgreSQL's server; Debian keeps them off the PATH."""
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(beside[-1]) if beside else None)
    return found or pytest.skip(f"needs PostgreSQL's {name}: apt-get install postgresql")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what, seconds=60):
    """Call until it gives something true; errors mean not yet."""
    until = time.monotonic() + seconds
    while True:
        try:
            if found := what():
                return found
        except (psycopg.OperationalError, URLError, OSError, KeyError):
            pass
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server():
    """The address of an empty server, without its database's name."""
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    root = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        root = {"user": "postgres", "group": "postgres", "extra_groups": []}
    data, port = folder / "data", free_port()
    initdb = [program("initdb"), "-D", data, "-U", "prismatic", "--auth=trust"]
    subprocess.run(initdb, cwd=folder, check=True, capture_output=True, **root)
    settings = [f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}"]
    options = [word for setting in settings for word in ("-c", setting)]
    log = (folder / "log").open("w")
    running = subprocess.Popen(
        [program("postgres"), "-D", data, *options], cwd=folder, stdout=log, stderr=log, **root
    )
    address = f"postgresql://prismatic@127.0.0.1:{port}"
    wait_for(lambda: psycopg.connect(f"{address}/postgres").close() or True)
    yield address
    running.send_signal(signal.SIGINT)  # ends its connections
    running.wait(30)
    log.close()
    shutil.rmtree(folder)


@pytest.fixture
def database(server):
    """Makes an empty database."""

    def create(name):
        with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name}")
            connection.execute(f"CREATE DATABASE {name}")
        return f"{server}/{name}".replace("postgresql:", "postgresql+psycopg:")

    return create


@pytest.fixture
def mlflow(database, tmp_path):
    """The address of an MLflow server on a database of its own."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database("runs")]
    command += ["--artifacts-destination", str(tmp_path / "artifacts"), "--workers", "1"]
    with (tmp_path / "mlflow.log").open("w") as log:
        running = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    wait_for(lambda: urlopen(f"{address}/health").read() == b"OK")
    yield address
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def load(address, name):
    """The study, without a connection that stays open."""
    storage = optuna.storages.RDBStorage(address, engine_kwargs={"poolclass": NullPool})
    return optuna.load_study(study_name=name, storage=storage)


def shared(address, total):
    """The options of a sweep that shares its study."""
    sharing = [f"hydra.sweeper.storage={address}", "hydra.sweeper.shared=true"]
    return [*sharing, f"hydra.sweeper.n_trials={total}", "hydra.sweeper.study_name=together"]


def test_many_sweeps_at_once_share_the_trials_out(database, tmp_path):
    """All create the tables, and all ask for the last trial; one seed for all."""
    address = database("toy")
    command = toy(tmp_path)
    command.arguments += ["x=interval(0,1)", *shared(address, 13), "hydra.sweeper.seed=0"]
    running = [command.start() for _ in range(4)]
    outs = [one.communicate(timeout=200)[0] for one in running]
    assert [one.returncode for one in running] == [0] * 4, outs
    assert any("13 of 13 trials" in out.splitlines()[-1] for out in outs)
    trials = load(address, "together").trials
    assert [t.number for t in trials] == list(range(len(trials)))
    assert len(finished(trials)) == 13 == len({t.params["x"] for t in finished(trials)})
    assert all(t.value == t.params["x"] ** 2 for t in finished(trials))
    assert len({t.user_attrs["owner"] for t in finished(trials)}) > 1


def test_a_grid_is_done_once(database, tmp_path):
    address = database("grid")
    command = toy(tmp_path)
    command.arguments += ["x=range(0,3)", "seconds=choice(0,0.1,0.2)", *shared(address, 99)]
    running = [command.start("hydra.sweeper.sampler=grid") for _ in range(4)]
    for one in running:
        one.communicate(timeout=200)
    points = [(t.params["x"], t.params["seconds"]) for t in load(address, "together").trials]
    assert len(set(points)) == 12
    assert len(finished(load(address, "together").trials)) == 12


def test_of_two_machines_one_dies(database, mlflow, tmp_path):
    """The other one takes over its trial; what MLflow holds is what Optuna was told."""
    address = database("study")
    first, second = (Command(tmp_path, *REAL, *shared(address, 12)) for _ in range(2))
    second.arguments.append(f"hydra.sweep.dir={tmp_path}/second")
    for command in (first, second):
        command.environment["MLFLOW_TRACKING_URI"] = mlflow

    def at_work():
        """The first has finished a trial, and has another."""
        owned = [
            t.state.is_finished()
            for t in load(address, "together").trials
            if f":{dying.pid}:" in t.user_attrs.get("owner", "")
        ]
        return any(owned) and not all(owned)

    with first.start() as dying, second.start() as living:
        wait_for(at_work, 200)
        dying.kill()
        out, _ = living.communicate(timeout=400)
    assert living.returncode == 0, out
    assert "12 of 12 trials" in out.splitlines()[-1]
    assert first.left() == []
    trials = load(address, "together").trials
    assert [t.number for t in trials] == list(range(len(trials)))
    assert len(finished(trials)) == 12
    [lost] = [t for t in trials if t.user_attrs.get("again")]
    [again] = [t for t in trials if t.user_attrs.get("retry_of") == lost.number]
    assert again.params == lost.params
    assert len({t.user_attrs["owner"] for t in finished(trials)}) == 2
    check_recorded(mlflow, trials, lost.number)


def check_recorded(mlflow, trials, lost):
    """Each trial is one run in MLflow, with its value, nested in the run that both sweeps share."""
    client = MlflowClient(mlflow)
    experiment = client.get_experiment_by_name("prismatic")
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if "trial" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {r.data.tags["mlflow.parentRunId"] for r in children} == {parent.info.run_id}
    numbered = {int(run.data.tags["trial"]): run for run in children}
    assert len(children) == len(numbered)
    assert numbered.keys() == {t.number for t in trials}
    for trial in finished(trials):
        run = numbered[trial.number]
        assert run.info.status == "FINISHED"
        assert run.data.params["perturbation.scale"] == str(trial.params["perturbation.scale"])
        if trial.values:
            assert run.data.metrics["loss/val"] == trial.value
    assert numbered[lost].info.status in ("KILLED", "FAILED")  # by itself, then by the survivor
    assert numbered[lost].data.tags["state"] == "lost"


def test_a_study_belongs_to_one_sweep_on_whatever_host(database, monkeypatch):
    address = database("claims")
    storage = _storage.open_storage(address, Path())
    study = optuna.create_study(study_name="s", storage=storage)
    with _owner.Claim(study, shared=False) as first:
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        second = _owner.Claim(load(address, "s"), shared=False)
        assert second.owner.startswith("elsewhere")
        with pytest.raises(HydraException, match=f"being run by {first.owner}.*shared=true"):
            second.__enter__()
    with second:
        assert list(load(address, "s").user_attrs.values()).count(None) == 1
    storage.engine.dispose()


def test_a_database_that_cannot_be_reached_is_named_without_its_password(monkeypatch):
    monkeypatch.setattr(_storage, "PAUSES", ())
    address = f"postgresql+psycopg://me:secret@127.0.0.1:{free_port()}/none"
    with pytest.raises(ValueError, match=r"me:\*\*\*@127.*refused") as error:
        _storage.open_storage(address, Path())
    assert "secret" not in str(error.value)
