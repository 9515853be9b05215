"""Two ranks with half of every batch each compute what one does with all of it."""

import pytest
import torch

from prismatic.data import IGNORE
from prismatic.experiment import build
from prismatic.run_folder.contents import read_checkpoint, shape

from .ranks import on_two, train
from .tiny import text_data, tiny

pytestmark = pytest.mark.slow  # tests/test_ddp.py has a quick one

LEAKY = ["router.pool=mean", "router.allow_leak=true"]
LEVELS = {
    "token": ["router.z_loss=0.1"],
    "sequence": ["router.level=sequence", "focal=none", *LEAKY],
    "batch": ["router.level=batch", *LEAKY],
}
SAME = ["token", "sequence"]
STRATEGIES = ["ddp", "fsdp"]
SMALL = [
    "data.held_out_tokens=112", "model.depth=3", "optim.total_steps=4", "trainer.max_steps=4",
    "trainer.val_check_interval=2",
]  # fmt: skip
KEPT = ["callbacks=default", "~callbacks.progress", "~callbacks.pictures", "~callbacks.clock"]
DROPPING = [*KEPT, "router.expert_dropout=0.5", "trainer.limit_train_batches=2"]
HALF = "trainer.max_steps=2"
# Gradients are summed in another order, and the optimiser magnifies the last bits.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


def goes_on(folder, name):
    return f"ckpt_path={folder / name / 'checkpoints' / 'last.ckpt'}"


@pytest.fixture(scope="module")
def alone(folder):
    """Trainings on one rank."""
    found = {level: train(tiny(*SMALL, *LEVELS[level]), folder / level) for level in SAME}
    found["one"] = train(tiny(*SMALL, *LEVELS["token"], *KEPT, HALF), folder / "one")
    return found


@pytest.fixture(scope="module")
def both(alone, folder):
    """Trainings on two ranks."""
    two = [*SMALL, "trainer.devices=2"]
    configs = {
        f"{strategy}_{level}": tiny(*two, f"trainer={strategy}", *LEVELS[level])
        for strategy in STRATEGIES
        for level in LEVELS
    }
    two += ["trainer=fsdp"]
    configs |= {
        "half": tiny(*two, *LEVELS["token"], *KEPT, HALF),
        "after_one": tiny(*two, *LEVELS["token"], *KEPT, goes_on(folder, "one")),
        "whole": tiny(*two, *DROPPING),
        "first": tiny(*two, *DROPPING, HALF),
        "second": tiny(*two, *DROPPING, goes_on(folder, "first")),
    }
    return on_two(configs, folder)


def gradient(level, rows, folder):
    """That of these rows of the first batch, on one rank."""
    config = tiny(*SMALL, *LEVELS[level])
    parts = build(config, folder)
    batch = parts.task.train_batch(0, config.optim.batch_size, config.seed)
    logits = parts.model(batch.tokens_BT[rows])
    loss = parts.learner.criterion(logits, batch.targets_BT[rows]) + parts.model.penalty()
    loss.backward()
    return {name: p.grad for name, p in parts.model.named_parameters()}


def furthest(found, expected):
    """The largest difference of an entry, as a share of its tensor's largest."""
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - grad).abs().max() / grad.abs().max().clamp(min=1e-6))
        for name, grad in expected.items()
    )


@pytest.mark.parametrize("level", SAME)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_halves_have_the_gradient_of_the_whole(both, strategy, level, tmp_path):
    expected = gradient(level, slice(None), tmp_path)
    assert furthest(both[f"{strategy}_{level}"]["gradient"], expected) < 2e-5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_at_level_batch_every_rank_merges_for_its_own_half(both, strategy, tmp_path):
    found = both[f"{strategy}_batch"]["gradient"]
    halves = [gradient("batch", slice(rank, None, 2), tmp_path) for rank in range(2)]
    mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in found}
    assert furthest(found, mean) < 2e-5
    assert furthest(found, gradient("batch", slice(None), tmp_path)) > 1e-3


@pytest.mark.parametrize("level", SAME)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_train_and_measure_as_one_does(both, alone, strategy, level):
    one, two = alone[level], both[f"{strategy}_{level}"]
    assert len(two["losses"]) == 4
    for name in ("losses", "metrics"):
        torch.testing.assert_close(two[name], one[name], **TOLERANCE)


def test_under_fsdp_each_of_two_ranks_keeps_half(both, alone):
    assert both["ddp_token"]["held"] == alone["token"]["held"]
    assert both["fsdp_token"]["held"] == alone["token"]["held"] / 2


def test_under_fsdp_a_resumed_run_goes_on_exactly(both):
    assert both["first"]["losses"] + both["second"]["losses"] == both["whole"]["losses"]
    assert both["second"]["metrics"] == both["whole"]["metrics"]


def shapes(state):
    return {name: shape(state, name) for name in state}


def test_checkpoints_of_fsdp_are_those_of_one_process(both, alone, folder, tmp_path):
    one, two = (read_checkpoint(folder / n / "checkpoints" / "last.ckpt") for n in ("one", "half"))
    assert shapes(one["state_dict"]) == shapes(two["state_dict"])
    moments = [c["optimizer_states"][0]["state"] for c in (one, two)]
    assert [*map(shapes, moments[0].values())] == [*map(shapes, moments[1].values())]
    whole, after_one = alone["token"]["losses"], both["after_one"]["losses"]
    after_two = train(tiny(*SMALL, *LEVELS["token"], *KEPT, goes_on(folder, "half")), tmp_path)
    torch.testing.assert_close(both["half"]["losses"] + after_two["losses"], whole, **TOLERANCE)
    torch.testing.assert_close(alone["one"]["losses"] + after_one, whole, **TOLERANCE)


@pytest.mark.parametrize("data", ["iid", "mixed", "text"])
def test_all_rows_score_as_many_tokens(data, tmp_path):
    """Otherwise the mean over ranks would not be the mean over tokens."""
    chosen = {"text": text_data(tmp_path), "mixed": ["data=mixed", "data.held_out_size=64"]}
    batch = build(tiny(*chosen.get(data, [])), tmp_path).task.train_batch(0, 8, 0)
    scored_B = (batch.targets_BT != IGNORE).sum(1)
    assert (scored_B == scored_B[0]).all() and scored_B[0] > 0
