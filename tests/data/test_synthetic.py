import json
from itertools import product
from math import log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismatic.data import IGNORE, IIDTask, MixedTask, sum_mod

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))


@st.composite
def joints(draw):
    """Any table P(x, y, z), with impossible cells in it."""
    shape = draw(SIZES)
    size = int(np.prod(shape))
    weights = draw(st.lists(st.integers(0, 5), min_size=size, max_size=size).filter(any))
    return np.array(weights, float).reshape(shape) / sum(weights)


def expected_log_loss(joint, given_axes):
    """-E log P(z | given), summed cell by cell."""
    total = 0.0
    for cell in product(*map(range, joint.shape)):
        if joint[cell] > 0:
            key = tuple(cell[a] if a in given_axes else slice(None) for a in (0, 1))
            table = joint[key].reshape(-1, joint.shape[2]).sum(0)
            total -= joint[cell] * log(table[cell[2]] / table.sum())
    return total


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@settings(deadline=None)
@given(joints())
def test_bayes_loss_and_entropies_agree_with_enumeration(joint):
    task = MixedTask(joint, held_out_size=1)
    assert task.bayes_loss == pytest.approx(expected_log_loss(joint, (0, 1)), abs=1e-12)
    assert task.baselines == {
        "uniform": pytest.approx(log(max(joint.shape))),
        "entropy_z": pytest.approx(expected_log_loss(joint, ()), abs=1e-12),
        "entropy_z_given_x": pytest.approx(expected_log_loss(joint, (0,)), abs=1e-12),
        "entropy_z_given_y": pytest.approx(expected_log_loss(joint, (1,)), abs=1e-12),
    }


@settings(deadline=None, max_examples=20)
@given(joints(), st.sampled_from(["train", "val", "test"]))
def test_draws_follow_the_joint_table(joint, split):
    size = 20_000
    task = MixedTask(joint, held_out_size=size)
    batch = task.train_batch(3, size, 5) if split == "train" else task.held_out(split)
    cells = torch.cat([batch.tokens_BT, batch.targets_BT[:, 1:]], 1).numpy().T
    seen = np.zeros(joint.shape)
    np.add.at(seen, tuple(cells), 1 / size)
    assert not seen[joint == 0].any()
    assert np.abs(seen - joint).max() < 6 * 0.5 / size**0.5


def test_the_log_loss_of_the_true_table_is_the_bayes_loss():
    joint = sum_mod(6, 0.3)
    batch = MixedTask(joint, held_out_size=50_000).held_out("test")
    x, y, z = *batch.tokens_BT.numpy().T, batch.targets_BT[:, 1].numpy()
    losses = -np.log(joint[x, y, z] / joint[x, y].sum(-1))
    error = losses.std() / len(losses) ** 0.5
    assert abs(losses.mean() - MixedTask(joint).bayes_loss) < 4 * error


def test_mixed_scores_only_the_last_of_two_positions():
    task = MixedTask(np.full((2, 3, 5), 1 / 30), held_out_size=9)
    assert (task.vocab_size, task.seq_len, task.domains) == (5, 2, ("mixed",))
    assert (task.predicts, task.bytes_per_token) == ("last", {})
    for batch in (task.train_batch(0, 9, 0), task.held_out("val")):
        assert batch.tokens_BT.shape == batch.targets_BT.shape == (9, 2)
        assert (batch.targets_BT[:, 0] == IGNORE).all() and (batch.targets_BT[:, 1] >= 0).all()
        assert batch.domain_B.tolist() == [0] * 9
        assert {x.dtype for x in batch} == {torch.int64}


def test_iid_windows_predict_the_next_token_of_at_least_the_tokens_asked_for():
    task = IIDTask(vocab_size=7, seq_len=10, held_out_tokens=101)
    assert (task.vocab_size, task.seq_len, task.domains) == (7, 10, ("iid",))
    assert (task.predicts, task.bytes_per_token) == ("next", {})
    assert task.bayes_loss == task.baselines["uniform"] == log(7)
    for batch, rows in [(task.train_batch(0, 4, 0), 4), (task.held_out("test"), 11)]:
        assert batch.tokens_BT.shape == (rows, 10) and batch.domain_B.tolist() == [0] * rows
        assert torch.equal(batch.tokens_BT[:, 1:], batch.targets_BT[:, :-1])
        assert {x.dtype for x in batch} == {torch.int64}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_iid_tokens_are_uniform_and_say_nothing_of_the_next(split):
    task = IIDTask(vocab_size=8)
    batch = task.train_batch(11, 1_024, 2) if split == "train" else task.held_out(split)
    pairs = torch.bincount(8 * batch.tokens_BT.flatten() + batch.targets_BT.flatten(), minlength=64)
    assert batch.targets_BT.numel() >= 131_072
    expected = pairs.sum().item() / 64
    chi_square = ((pairs - expected) ** 2 / expected).sum().item()
    assert abs(chi_square - 63) < 5 * (2 * 63) ** 0.5


def test_no_sequence_is_in_two_splits_or_two_batches():
    task = IIDTask()
    batches = [task.held_out("val"), task.held_out("test")]
    batches += [task.train_batch(i, 1_024, seed) for i in range(3) for seed in (0, 1)]
    rows = torch.cat([batch.tokens_BT for batch in batches])
    assert len(rows.unique(dim=0)) == len(rows) == 8 * 1_024


@pytest.mark.parametrize("task", [MixedTask(sum_mod()), IIDTask()], ids=["mixed", "iid"])
def test_drawn_batches_are_pure_and_leave_the_global_generators_alone(task):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    forwards = [task.train_batch(i, 32, 1) for i in range(4)]
    backwards = [task.train_batch(i, 32, 1) for i in reversed(range(4))][::-1]
    held_out = task.held_out("val"), task.held_out("test")
    assert all(map(same, forwards, backwards)) and not same(forwards[0], forwards[1])
    assert same(held_out[0], task.held_out("val")) and not same(*held_out)
    assert not same(forwards[0], task.train_batch(0, 32, 2))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_manifest_changes_with_what_is_drawn():
    a, b, c = (MixedTask(sum_mod(n, noise)) for n, noise in [(5, 0.1), (5, 0.1), (5, 0.9)])
    assert a.manifest == b.manifest != c.manifest
    assert json.loads(json.dumps(a.manifest)) == a.manifest
    assert a.manifest[0]["source"] == "mixed" and a.manifest[0]["bytes"] == 2 * 2 * 4_096 * 2 * 8


@pytest.mark.parametrize(
    "joint",
    [
        np.full((2, 2), 0.25),
        np.full((2, 2, 2), 0.2),
        np.array([[[1.5, -0.5]]]),
        np.array([[[np.nan, 1.0]]]),
        np.zeros((0, 2, 2)),
    ],
    ids=["two axes", "sum 1.6", "negative", "nan", "empty"],
)
def test_a_table_that_is_no_distribution_is_refused(joint):
    with pytest.raises(ValueError, match="joint"):
        MixedTask(joint)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MixedTask(sum_mod(), held_out_size=0), "held_out_size=0"),
        (lambda: IIDTask(vocab_size=0), "vocab_size=0 .*at least 1"),
        (lambda: IIDTask(seq_len=0), "seq_len=0 .*at least 1"),
        (lambda: IIDTask(held_out_tokens=0), "held_out_tokens=0 .*at least 1"),
        (
            lambda: IIDTask().held_out("train"),
            "split='train' .*one of val, test",
        ),
        (lambda: IIDTask().train_batch(0, 0, 0), "size=0"),
    ],
)
def test_nonsense_is_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()
