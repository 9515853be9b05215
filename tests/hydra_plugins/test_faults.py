"""What goes wrong in sweeps of real processes: nothing is lost, left behind, or done twice."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from . import processes
from .processes import REAL, Command, finished


@pytest.fixture
def toy(tmp_path):
    return processes.toy(tmp_path)


def check_whole(command: Command, total: int) -> None:
    """Exactly `total` trials are finished, each with a result; no number is there twice."""
    trials = command.trials
    assert [t.state.name for t in finished(trials)] == ["COMPLETE"] * total
    assert [t.number for t in trials] == list(range(len(trials)))
    assert all(t.state.is_finished() for t in trials)
    for trial in finished(trials):
        assert (command.folder / "out" / str(trial.number) / "result.json").is_file()


def killed_and_resumed(command: Command, total: int, times: int, longest: float) -> None:
    """SIGKILL the sweep at random moments, and let it run to its end then."""
    told: dict[int, list[float]] = {}
    moments = random.Random(0)
    for _ in range(times):
        with command.start() as running:
            time.sleep(moments.uniform(0, longest))
            running.kill()
        assert command.left() == []
        if (command.folder / "out/study.journal").exists():
            now = {t.number: t.values for t in finished(command.trials)}
            assert told.items() <= now.items(), "a result was lost"
            told = now
    command.finish()
    check_whole(command, total)
    assert told.items() <= {t.number: t.values for t in command.trials}.items()
    assert command.left(0) == []


def test_each_fault_stays_with_its_trial(toy):
    faults = ("square", "fail_at_2", "not_a_number", "out_of_memory", "killed", "killed_once")
    space = [f"do=choice({','.join(faults)})", "x=2", f"folder={toy.folder}"]
    sweeper = ["hydra.sweeper.sampler=grid", "hydra.sweeper.max_failure_rate=1"]
    out = toy.finish(*space, *sweeper)
    trials = toy.trials
    ends = {t.params["do"]: t for t in finished(trials)}
    assert ends.keys() == set(faults) and len(finished(trials)) == len(faults)
    assert ends["square"].value == 4 and ends["killed_once"].value == 2
    for fault, reason in {
        "fail_at_2": "LookupError: two is no good",
        "not_a_number": "the value is nan",
        "out_of_memory": "MemoryError",
        "killed": "was killed (out of memory?)",
    }.items():
        assert reason in ends[fault].user_attrs["reason"]
    attempts = [t.params["do"] for t in trials]
    assert (attempts.count("killed"), attempts.count("killed_once")) == (3, 2)
    assert "6 of 6 trials (2 complete, 4 failed, 3 lost)" in out


def test_an_interrupt_ends_the_children_and_says_how_to_go_on(toy):
    space = ["x=choice(1,2,3)", "hydra.sweeper.sampler=grid"]
    with toy.start(*space, "do=family") as running:
        until = time.monotonic() + 30
        while len(list((toy.folder / "out").glob("*.pid"))) < 4 and time.monotonic() < until:
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=30)
    assert running.returncode == 130
    assert toy.left(0) == []
    assert out.splitlines()[-1].endswith("The same command goes on with the rest")
    toy.finish(*space, "do=square")
    check_whole(toy, 3)
    assert {t.value for t in finished(toy.trials)} == {1, 4, 9}


@pytest.mark.slow
def test_killed_at_any_moment(toy):
    toy.arguments += ["x=interval(0,1)", "seconds=0.3", "hydra.sweeper.n_trials=20"]
    killed_and_resumed(toy, total=20, times=10, longest=4)
    assert all(t.value == t.params["x"] ** 2 for t in finished(toy.trials))


@pytest.mark.slow
def test_the_real_command_killed_at_any_moment(tmp_path):
    sweep = ["hydra.launcher.n_jobs=2", "hydra.sweeper.n_trials=24", "hydra.sweeper.pruning=null"]
    killed_and_resumed(Command(tmp_path, *REAL, *sweep), total=24, times=10, longest=20)


@pytest.mark.slow
def test_the_real_command_and_its_faults(tmp_path):
    """Trials that diverge, that ask for 70 TB, and one whose process is killed."""
    command = Command(
        tmp_path, *REAL, "perturbation.scale=0.1", "perturbation.sparsity=0.1",
        "router.num_experts=2", "focal=none", "hydra.sweeper.sampler=grid",
        "hydra.sweeper.pruning=null", "hydra.sweeper.max_failure_rate=1",
        "optim.lr=choice(0.001,1e30)", "model.dim=choice(32,64,4194304)", "trainer.max_steps=200",
    )  # fmt: skip
    with command.start() as running:
        log = tmp_path / "out/0/trial.log"
        until = time.monotonic() + 120
        while not (log.exists() and "Epoch 0" in log.read_text()):
            assert time.monotonic() < until
            time.sleep(0.05)
        server = {pid for pid in command.processes()} - {running.pid}
        trial = next(p for p in server if parent(p) in server)
        os.kill(trial, signal.SIGKILL)
        out, _ = running.communicate(timeout=500)
    assert running.returncode == 0, out
    ends = {(t.params["optim.lr"], t.params["model.dim"]): t for t in finished(command.trials)}
    assert len(ends) == 6 and len(command.trials) == 7
    assert command.trials[0].user_attrs["again"]
    assert ends[0.001, 32].values and ends[0.001, 64].values
    for dim in (32, 64):
        assert "DivergedError" in ends[1e30, dim].user_attrs["reason"]
    for lr in (0.001, 1e30):
        assert "can't allocate memory" in ends[lr, 4194304].user_attrs["reason"]
    assert command.left() == []


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
