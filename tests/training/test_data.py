from types import SimpleNamespace

import pytest
import torch

from prismatic.data import Batch
from prismatic.experiment import build, run

from ..tiny import fit, text_data, tiny


def test_batches_are_those_of_the_task_by_index(tmp_path):
    parts = build(tiny("seed=3", "trainer.max_steps=2"), tmp_path)
    parts.data.trainer = parts.trainer
    batches = list(parts.data.train_dataloader())
    assert len(batches) == 2
    for index, batch in enumerate(batches):
        assert torch.equal(batch.tokens_BT, parts.task.train_batch(index, 4, 3).tokens_BT)


def test_overfitting_repeats_the_first_batches(tmp_path):
    losses = fit(tmp_path, "trainer.overfit_batches=2", "optim.lr=1e-9", "trainer.max_steps=6")[1]
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)
    assert losses[1] == pytest.approx(losses[3], rel=1e-4)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_every_held_out_row_is_given_once(tmp_path):
    parts = build(tiny(*text_data(tmp_path)), tmp_path)
    rows = [row for batch in parts.data.val_dataloader() for row in batch[0].tolist()]
    assert sorted(rows) == sorted(parts.task.held_out("val").tokens_BT.tolist())


@pytest.mark.parametrize("rows", [4, 5, 9])
def test_ranks_share_every_held_out_batch_of_one(rows, tmp_path):
    """So no rank waits for another, and the first few batches are the same rows."""
    parts = build(tiny(f"data.held_out_tokens={rows * 16}"), tmp_path)

    def batches(rank, world):
        parts.data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        return [batch.tokens_BT.tolist() for batch in parts.data.val_dataloader()]

    alone = batches(0, 1)
    for world in (2, 4):
        shares = [batches(rank, world) for rank in range(world)]
        for whole, *parts_of_it in zip(alone, *shares, strict=True):
            assert all(parts_of_it), "every rank has a row"
            assert sorted(row for part in parts_of_it for row in part) == sorted(whole)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["limit_train_batches=2", "accumulate_grad_batches=4"], "limit_train_batches=2 .*=4"),
        (["overfit_batches=3", "accumulate_grad_batches=2"], "overfit_batches=3 .*=2"),
        (["limit_train_batches=0"], "limit_train_batches=0 is not valid"),
        (["limit_train_batches=0.5"], "limit_train_batches=0.5 is not valid"),
        (["overfit_batches=0.5"], "overfit_batches=0.5 is not valid"),
        (["accumulate_grad_batches=0"], "accumulate_grad_batches=0 is not valid"),
        (["precision=16-true"], "precision='16-true' .*epsilon"),
    ],
)
def test_what_would_train_otherwise_than_asked_is_refused(options, said, tmp_path):
    with pytest.raises(ValueError, match=rf"trainer.{said}"):
        run(tiny(*(f"trainer.{option}" for option in options)), tmp_path)


def test_a_limit_counts_batches_of_an_epoch_and_leaves_the_batches_alone(tmp_path):
    plain = fit(tmp_path / "plain", "trainer.max_steps=6")[1]
    limited = fit(tmp_path / "limited", "trainer.max_steps=6", "trainer.limit_train_batches=2")[1]
    assert limited == plain


def test_an_accumulated_step_is_the_step_of_one_large_batch(tmp_path):
    """The gradient is the mean over all batches of a step, not their sum or a part of it."""
    accumulated = ["trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=4"]
    common = ["trainer.max_steps=1", "trainer.gradient_clip_val=null", "router=dense"]
    parts = fit(tmp_path / "two", *common, *accumulated)[0]
    whole = build(tiny(*common), tmp_path / "one")
    tokens = [whole.task.train_batch(index, 4, 0) for index in (0, 1)]
    both = Batch(*map(torch.cat, zip(*tokens, strict=True)))
    whole.task.train_batch = lambda *args: both
    whole.trainer.fit(whole.learner, whole.data)
    norms = [float(p.trainer.callback_metrics["edge/grad_norm"]) for p in (parts, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_a_relative_path_is_of_the_folder_where_the_command_was_given(
    script, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    options = ["model=tiny", *text_data(tmp_path)[::2], "data.path=squares.txt", "logger=none"]
    options += ["trainer.max_steps=1", "optim.batch_size=2", "callbacks=none"]
    ended = script("train", *options, "hydra.job.chdir=true")
    assert ended.status == 0, ended.err
