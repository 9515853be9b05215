from types import SimpleNamespace

import pytest
import torch

from prismatic.experiment import build

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
