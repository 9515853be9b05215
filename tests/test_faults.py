"""Whole commands while something breaks: MLflow's server, the disk, a trial, the user's patience.

Servers and disks are real ones; so these tests are slow.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

import prismatic
from prismatic.tracking import UNSENT, connect

from .tiny import FEW, IID, MODEL, ROOT

TRAIN = [*MODEL, *IID, *FEW, "trainer.accelerator=cpu", "logger.flush_seconds=0.2"]
UNDRAWN = [*TRAIN, "~callbacks.pictures", "~callbacks.diagnostics"]  # which take more than weights


def environment(folder, **more):
    known = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "PRISMATIC"))}
    return known | {"PRISMATIC_OUTPUTS": str(folder), "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"} | more


class Server:
    """MLflow's own server, which can be killed, frozen and started again on the same port."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def start(self):
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self.port}",
                "--workers=1", f"--backend-store-uri=sqlite:///{self.folder}/mlflow.db",
                f"--artifacts-destination={self.folder}/artifacts",
            ],
            env=environment(self.folder, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait_for(self.answers)

    def answers(self):
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

    def signal(self, number):
        os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    server.start()
    yield server
    server.signal(signal.SIGCONT)
    server.signal(signal.SIGKILL)


def begin(folder, *arguments):
    """Start a training as a user would; its process."""
    folder.mkdir(exist_ok=True)
    options = [word for word in arguments if word.startswith("-")]  # argparse wants them first
    overrides = [word for word in arguments if word not in options]
    command = [sys.executable, str(ROOT / "src" / "train.py"), *options, *TRAIN, *overrides]
    with (folder / "out.txt").open("wb") as out:
        process = subprocess.Popen(
            command, env=environment(folder), stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    STARTED.append(process)
    return process


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nothing_outlives_a_test():
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def finish(process, folder):
    """Wait for a training; what it printed."""
    status = process.wait(timeout=300)
    printed = (folder / "out.txt").read_text()
    assert status == 0, printed
    return printed


def record(address):
    """Status, parameters, artifacts and the history of every metric of the only run there."""
    client = connect(address)
    [run] = client.search_runs([client.get_experiment_by_name("prismatic").experiment_id])
    names = [name for name in run.data.metrics if not name.startswith("time/")]
    found = {name: client.get_metric_history(run.info.run_id, name) for name in names}
    history = {name: sorted((m.step, m.value) for m in values) for name, values in found.items()}
    artifacts = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    params = {k: v for k, v in run.data.params.items() if not k.startswith("logger.")}
    return run.info.status, params, artifacts, history


STEPS = ["trainer.max_steps=400", "trainer.val_check_interval=100"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    store = f"sqlite:///{folder}/mlflow.db"
    finish(begin(folder, *STEPS, f"logger.tracking_uri={store}"), folder)
    found = record(store)
    assert [step for step, _ in found[-1]["loss/train"]] == list(range(400))
    return found


def start_beside(server, process):
    """Start the server before the training, which takes no longer, has ended."""
    os.killpg(process.pid, signal.SIGSTOP)
    server.start()
    os.killpg(process.pid, signal.SIGCONT)


def unsent(folder):
    return list(folder.rglob(UNSENT))


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_misses_nothing(server, undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = begin(folder, *STEPS, f"logger.tracking_uri={server.address}")
    wait_for(lambda: (server.folder / "artifacts").exists())  # the run has begun
    for _ in range(2):
        server.signal(signal.SIGKILL)
        wait_for(lambda: unsent(folder))
        time.sleep(1)
        start_beside(server, process)
        wait_for(lambda: not unsent(folder))
        assert process.poll() is None, "the outage came too late to be one"
    printed = finish(process, folder)
    assert printed.count("cannot be written to") == 2 and "Traceback" not in printed
    assert record(server.address) == undisturbed


@pytest.mark.slow
def test_a_server_that_comes_late_gets_all(server, undisturbed, tmp_path):
    server.signal(signal.SIGKILL)
    folder = tmp_path / "run"
    process = begin(folder, *STEPS, f"logger.tracking_uri={server.address}")
    wait_for(lambda: unsent(folder))
    start_beside(server, process)
    printed = finish(process, folder)
    assert not unsent(folder) and printed.count("cannot be written to") == 1
    assert record(server.address) == undisturbed


@pytest.mark.slow
def test_a_server_that_hangs_gets_all_by_command(server, undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = begin(folder, *STEPS, f"logger.tracking_uri={server.address}")
    wait_for(lambda: (server.folder / "artifacts").exists())
    server.signal(signal.SIGSTOP)
    printed = finish(process, folder)
    assert printed.count("cannot be written to") == 1
    [path] = unsent(folder)
    assert printed.splitlines()[-1] == f"send it:      python src/eval.py send={path.parent}"
    send = [sys.executable, str(ROOT / "src" / "eval.py"), f"send={path.parent}"]
    run = {"env": environment(folder), "capture_output": True, "text": True, "timeout": 120}
    failed = subprocess.run(send, **run)
    assert failed.returncode == 1 and f"{path} is kept; try again later" in failed.stderr
    server.signal(signal.SIGCONT)
    done = subprocess.run(send, **run)
    assert done.returncode == 0 and f"{server.address}/#/experiments/" in done.stdout, done.stderr
    assert not unsent(folder)
    assert record(server.address) == undisturbed


UNSHARE = ["unshare", "--map-root-user", "--mount"]  # of util-linux: mounts of one's own


def on_small_disk(script, disk, kilobytes, outputs):
    """Run a shell script while a real disk of that size is at `disk`; it is gone afterwards."""
    if not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"]).returncode:
        pytest.skip("unshare may not mount here")
    for folder in (disk, outputs):
        folder.mkdir(parents=True, exist_ok=True)
    setup = f"""
        mount -t tmpfs -o size={kilobytes}k tmpfs {disk}
        train() {{ {sys.executable} src/train.py {shlex.join(UNDRAWN)} "$@"; }}
        sweep() {{ {sys.executable} src/train.py -m {shlex.join(UNDRAWN)} "$@"; }}
    """
    return subprocess.run(
        [*UNSHARE, "bash", "-c", f"{setup}\n{script}"], env=environment(outputs), cwd=ROOT,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def runs(store):
    client = connect(store)
    found = client.search_runs([client.get_experiment_by_name("prismatic").experiment_id])
    return sorted(found, key=lambda run: run.info.start_time)


def trained(store):
    """Without the run of a sweep itself."""
    return [run for run in runs(store) if "run_dir" in run.data.tags]


def errors(printed):
    return [line for line in printed.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_a_disk_that_fills_leaves_whole_checkpoints_and_one_error(tmp_path):
    disk, store = tmp_path / "disk", f"sqlite:///{tmp_path}/mlflow.db"
    # Room for two and a half checkpoints: the third, which shall replace the first, has none.
    ended = on_small_disk(
        f"""
        train model.dim=64 callbacks=default ~callbacks.progress trainer.max_steps=40 \
            trainer.val_check_interval=10 optim.lr=0.01 logger.tracking_uri={store}
        status=$?; cp -r {disk}/. {tmp_path}/saved; exit $status
        """,
        disk, 3200, disk,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stdout + ended.stderr
    [error] = errors(ended.stderr)
    assert re.search(rf"{disk}/runs/.*\.ckpt cannot be written: the disk is full", error)
    assert re.search(r"\d\.\d MiB are free.*Make room there, or name a folder on another", error)
    assert "Traceback" not in ended.stdout + ended.stderr
    saved = sorted((tmp_path / "saved").rglob("checkpoints/*"))
    assert [path.name for path in saved] == ["best.ckpt", "last.ckpt"]
    for path in saved:
        assert torch.load(path, weights_only=True)["global_step"] >= 10
    [run] = runs(store)
    assert run.info.status == "FAILED"
    assert run.data.tags["reason"].startswith(f"DiskFullError: {disk}/runs/")


@pytest.mark.slow
def test_a_run_outlives_the_full_disk_of_its_store(tmp_path):
    disk, outputs = tmp_path / "disk", tmp_path / "outputs"
    store = f"logger.tracking_uri=sqlite:///{disk}/mlflow.db"
    ended = on_small_disk(
        f"""
        train {store} && cat /dev/zero > {disk}/fill
        train {store} || exit
        rm {disk}/fill
        {sys.executable} src/eval.py send={outputs} || exit
        cp {disk}/mlflow.db {tmp_path}
        """,
        disk, 3000, outputs,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("cannot be written to (database or disk is full)") == 1
    assert "Traceback" not in ended.stdout + ended.stderr
    before, after = runs(f"sqlite:///{tmp_path}/mlflow.db")
    assert before.info.status == after.info.status == "FINISHED"
    assert before.data.metrics.keys() == after.data.metrics.keys()
    assert before.data.params == after.data.params
    assert not unsent(outputs)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 16, 24, 60])
def test_a_full_disk_is_one_error_whatever_is_written_first(tmp_path, left):
    disk = tmp_path / "disk"
    ended = on_small_disk(
        f"""
        train && rm -r {disk}/runs
        free=$(df -k --output=avail {disk} | tail -1)
        head -c $(((free - {left}) * 1024)) /dev/zero > {disk}/fill
        train
        """,
        disk, 4000, disk,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stdout + ended.stderr
    [error] = errors(ended.stderr)
    assert "is full" in error or "No space left on device" in error
    assert "with PRISMATIC_OUTPUTS" in error or "let PRISMATIC_OUTPUTS" in error
    assert "Traceback" not in ended.stdout + ended.stderr


@pytest.mark.slow
def test_a_trial_on_a_full_disk_fails_alone(tmp_path):
    sweep, store = tmp_path / "sweep", f"sqlite:///{tmp_path}/mlflow.db"
    ended = on_small_disk(
        f"""
        sweep optuna=loss hydra.sweep.dir={sweep} hydra.sweeper.n_trials=3 \
            hydra.sweeper.max_failure_rate=1 hydra.sweeper.pruning=null hydra.launcher.n_jobs=2 \
            callbacks=default ~callbacks.progress logger.tracking_uri={store}
        """,
        sweep / "1", 100, tmp_path / "outputs",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = trials(sweep)
    assert [row["state"] for row in rows] == ["complete", "failed", "complete"]
    assert f"{sweep}/1/checkpoints" in rows[1]["reason"] and "is full" in rows[1]["reason"]
    by_folder = {Path(run.data.tags["run_dir"]).name: run for run in runs(store)}
    status = {name: run.info.status for name, run in by_folder.items()}
    assert status == {"0": "FINISHED", "1": "FAILED", "2": "FINISHED"}
    assert "the disk is full" in by_folder["1"].data.tags["reason"]


FAULTS = {  # what happened, by model.dim and optim.lr
    ("16", "0.001"): "",
    ("16", "1e+30"): "DivergedError: training stopped at step 1: the loss is nan",
    ("15", "0.001"): "ValueError: model.dim=15 is not valid: it must be divisible",
    ("4000000", "0.001"): "RuntimeError: [enforce fail at alloc_cpu",  # out of memory
}


@pytest.mark.slow
def test_trials_fail_alone_with_their_reason(tmp_path):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    process = begin(
        tmp_path, "-m", "hydra/sweeper=prismatic_optuna", "hydra.sweeper.objectives=[loss/val]",
        f"hydra.sweep.dir={tmp_path}", "hydra.sweeper.sampler=grid", "hydra.sweeper.n_trials=6",
        "model.dim=choice(16,15,4000000)", "optim.lr=choice(0.001,1e30)", "optim.warmup_steps=0",
        "hydra.sweeper.max_failure_rate=1", "hydra.launcher.n_jobs=2", "callbacks=none",
        f"logger.tracking_uri={store}",
    )  # fmt: skip
    finish(process, tmp_path)
    rows = {(str(row["model.dim"]), str(row["optim.lr"])): row for row in trials(tmp_path)}
    found = {(r.data.params["model.dim"], r.data.params["optim.lr"]): r for r in runs(store)}
    assert len(rows) == len(found) == 6
    for key, reason in FAULTS.items():
        run, said = found[key], rows[key]["reason"]
        assert rows[key]["state"] == ("failed" if reason else "complete")
        assert run.info.status == ("FAILED" if reason else "FINISHED")
        assert run.data.tags.get("reason", "").startswith(reason)
        assert reason.partition(": ")[2] in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1", "hydra.launcher.n_jobs=2"]])
def test_an_interrupted_run_is_killed_for_mlflow_too(tmp_path, sweep, number):
    store = f"sqlite:///{tmp_path}/mlflow.db"
    connect(store)
    endless = ["trainer.max_steps=1000000", "trainer.val_check_interval=10", "callbacks=none"]
    process = begin(tmp_path, *sweep, *endless, f"logger.tracking_uri={store}")
    count = 2 if sweep else 1
    wait_for(lambda: logging(store) == count)
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    wait_for(lambda: all(run.info.status == "KILLED" for run in runs(store)), 20)
    for run in trained(store):
        told = "interrupted" if sweep else "KeyboardInterrupt|SystemExit|SIGTERMException"
        assert re.match(told, run.data.tags["reason"]), "of a trial its sweep says why it ended"


def logging(store):
    """How many runs have logged a loss."""
    client = connect(store)
    experiment = client.get_experiment_by_name("prismatic")
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    return sum("loss/val" in run.data.metrics for run in found)


def trials(sweep):
    return prismatic.results(sweep).to_dict("records")
