"""The real command on two ranks: one run, one folder, the numbers of one rank."""

import pytest
from mlflow import MlflowClient

from .test_end_to_end import command
from .tiny import IID, MODEL

SMALL = [
    *MODEL, *IID, "callbacks=none", "trainer.accelerator=cpu", "optim.batch_size=4",
    "optim.warmup_steps=1", "trainer.max_steps=6", "trainer.val_check_interval=3",
    "trainer.log_every_n_steps=1",
]  # fmt: skip
# Gradients are summed in another order, and the optimiser magnifies the last bits.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder, standard error and final metrics of a run on one rank, and of one on two."""
    found = []
    for ranks in (1, 2):
        folder = tmp_path_factory.mktemp(f"ranks_{ranks}")
        done = command("train", *SMALL, "trainer=ddp", f"trainer.devices={ranks}", folder=folder)
        client = MlflowClient(f"sqlite:///{folder}/outputs/mlflow.db")
        [run] = client.search_runs(["1"])
        found.append((folder, done, run))
    return found


def test_two_ranks_record_what_one_does(both):
    one, two = (run.data.metrics for _, _, run in both)
    timed = {name for name in one if name.startswith("time/")}
    assert one.keys() == two.keys()
    for name in one.keys() - timed:
        assert two[name] == pytest.approx(one[name], rel=TOLERANCE, abs=TOLERANCE), name


def test_rank_0_alone_writes(both):
    folder, done, run = both[1]
    assert run.info.status == "FINISHED"
    assert len(list(folder.glob("outputs/runs/*/*/config.yaml"))) == 1
    assert done.stdout.count("result, in nats per token") == 1
    assert "sync_dist" not in done.stderr
