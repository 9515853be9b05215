"""The real command on two ranks: one run, one folder, the numbers of one rank."""

import os
import re
import subprocess
import sys
import time

import pytest
from mlflow import MlflowClient

import prismatic
from prismatic.evaluation.single_run import held_out_loss
from prismatic.experiment import build, run
from prismatic.run_folder.contents import read_checkpoint

from .test_end_to_end import command
from .tiny import IID, MODEL, ROOT, composed

SMALL = [
    *MODEL, *IID, "~callbacks.progress", "~callbacks.pictures", "trainer.accelerator=cpu",
    "optim.batch_size=4",
    "optim.warmup_steps=1", "trainer.max_steps=6", "trainer.val_check_interval=3",
    "trainer.log_every_n_steps=1",
]  # fmt: skip
STRATEGIES = ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)]
# Gradients are summed in another order, and the optimiser magnifies the last bits.
TOLERANCE = 1e-4


def on_two(strategy, name):
    return [*SMALL, f"trainer={strategy}", "trainer.devices=2", f"+tags.ranks={name}"]


def recorded(folder, name):
    """The one run of this name in MLflow."""
    client = MlflowClient(f"sqlite:///{folder}/outputs/mlflow.db")
    [found] = client.search_runs(["1"], f"tags.ranks = '{name}'")
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run on one rank."""
    folder = tmp_path_factory.mktemp("ranks")
    store = f"logger.tracking_uri=sqlite:///{folder}/outputs/mlflow.db"
    run(composed(*SMALL, store, "+tags.ranks=one"), folder / "one")
    return folder


@pytest.fixture(scope="module", params=STRATEGIES)
def both(request, alone):
    """The folder, the strategy and the process of a run on two ranks."""
    strategy = request.param
    return alone, strategy, command("train", *on_two(strategy, strategy), folder=alone)


def test_two_ranks_record_what_one_does(both):
    folder, strategy, _ = both
    one, two = (recorded(folder, name).data.metrics for name in ("one", strategy))
    assert one.keys() == two.keys()
    for name in one:
        if not name.startswith("time/"):
            assert two[name] == pytest.approx(one[name], rel=TOLERANCE, abs=TOLERANCE), name


def test_rank_0_alone_writes(both):
    folder, strategy, done = both
    found = recorded(folder, strategy)
    assert found.info.status == "FINISHED"
    histories = MlflowClient(f"sqlite:///{folder}/outputs/mlflow.db").get_metric_history
    assert len(histories(found.info.run_id, "loss/train")) == 6
    assert len(histories(found.info.run_id, "loss/val")) == 2
    assert done.stdout.count("result, in nats per token") == 1
    assert "perturbation: " in done.stdout and done.stdout.count("perturbation: ") == 1
    assert "sync_dist" not in done.stderr


def test_a_run_on_two_ranks_is_loaded_by_one(both):
    folder, strategy, _ = both
    found = recorded(folder, strategy)
    model, config = prismatic.load(found.data.tags["run_dir"], "last")
    loss, _ = held_out_loss(model, build(config, folder).task, "val")
    assert loss == pytest.approx(found.data.metrics["loss/val"], rel=1e-6)


BROKEN = """
import os
from itertools import count
from prismatic.training import cross_entropy

calls = count()

def criterion(logits, targets):
    broken = next(calls) == 2 and os.environ["LOCAL_RANK"] == "1"
    return cross_entropy(logits, targets) * (float("nan") if broken else 1)
"""


@pytest.mark.slow
def test_a_nan_on_one_rank_stops_both_with_one_error(alone, tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    arguments = [*on_two("fsdp", "broken"), "loss.path=broken.criterion"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "src" / "train.py"), *arguments],
        env=os.environ | {"PRISMATIC_OUTPUTS": f"{alone}/outputs", "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("training stopped at step 2: the loss is nan") == 1
    assert "Traceback" not in done.stderr
    assert recorded(alone, "broken").info.status == "FAILED"


def test_a_batch_that_cannot_be_shared_is_refused_before_there_are_two(script):
    done = script("train", *SMALL, "trainer=ddp", "trainer.devices=2", "optim.batch_size=5")
    assert done.status == 1
    assert "optim.batch_size=5 is not valid: it is shared by 2 processes" in done.err


TRIALS = ["debug=tiny", "trainer.accelerator=cpu", "trainer=ddp", "callbacks=none"]


def test_trials_that_share_the_command_of_the_sweep_are_refused(script):
    inline = ["hydra.launcher.executor=inline", "trainer.devices=2", "seed=1,2"]
    done = script("train", "-m", *TRIALS, "logger=none", *inline)
    assert done.status == 1
    assert "2 x ValueError: trainer.devices=2 is not valid" in done.err
    assert "hydra.launcher.executor=fork or process" in done.out + done.err


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["fork", "process"])
def test_a_study_finds_on_two_ranks_what_it_finds_on_one(executor, tmp_path):
    found = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        command(
            "train", "-m", "optuna=loss", "hydra.sweeper.n_trials=3", *TRIALS,
            f"trainer.devices={ranks}", f"hydra.launcher.executor={executor}", folder=folder,
        )  # fmt: skip
        sweep = folder / "outputs" / "sweeps" / "loss"
        found.append(prismatic.results(sweep).to_dict("records"))
        runs = MlflowClient(f"sqlite:///{folder}/outputs/mlflow.db").search_runs(["1"])
        trials = [run.data.tags["run_dir"] for run in runs if "trial" in run.data.tags]
        assert len(set(trials)) == len(trials) == 3
    for one, two in zip(*found, strict=True):
        assert two["state"] == one["state"] == "complete"
        assert two["perturbation.scale"] == one["perturbation.scale"]
        assert two["loss/val"] == pytest.approx(one["loss/val"], rel=TOLERANCE)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_ends_both_with_one_checkpoint(tmp_path):
    endless = [*on_two("ddp", "ended"), "trainer.max_steps=100000", "trainer.limit_val_batches=1"]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    running = subprocess.Popen(
        [sys.executable, ROOT / "src" / "train.py", *endless, f"hydra.run.dir={last.parents[1]}"],
        env=os.environ | {"PRISMATIC_OUTPUTS": str(tmp_path)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not last.exists() and running.poll() is None:
        time.sleep(0.1)
    running.terminate()
    try:
        printed, _ = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 143
    [step] = re.findall(r"ended by a signal at step (\d+); to go on: ckpt_path=", printed)
    assert read_checkpoint(last)["global_step"] == int(step)
