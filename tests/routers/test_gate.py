"""Routing weights, their temperature and their penalties, by hand."""

import math

import numpy as np
import pytest
import torch

from prismatic.routers import DenseRouter, Routing

from .toys import CASES, LEGAL, PAIRS, WIDTH, Case, inputs, name_of, toy

POOLED = {
    ("token", "causal_mean"): lambda x: np.stack(
        [x[:, : t + 1].mean(1) for t in range(x.shape[1])], 1
    ),
    ("token", "last"): lambda x: x,
    "mean": lambda x: x.mean(1, keepdims=True),
    "first": lambda x: x[:, :1],
    "last": lambda x: x[:, -1:],
}


def by_hand(router, case, x):
    """softmax(Linear(LayerNorm(pool(x))) / temperature), averaged over rows at level batch."""
    state = {name: value.numpy() for name, value in router.gate.state_dict().items()}
    x = POOLED.get((case.level, case.pool), POOLED.get(case.pool))(x.numpy())
    spread = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = (x - x.mean(-1, keepdims=True)) / spread * state["norm.weight"] + state["norm.bias"]
    logits = (x @ state["linear.weight"].T + state["linear.bias"]) / router.temperature
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return probs.mean(0, keepdims=True) if case.level == "batch" else probs


@pytest.mark.parametrize("kind", ["prismatic", "smear"])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 5.0])
@pytest.mark.parametrize(("level", "pool"), PAIRS)
def test_routing_weights_are_those_of_the_formula(level, pool, temperature, kind):
    case = Case(kind, level, pool)
    router, x = case.build(toy(), temperature=temperature), inputs()
    router(x)
    assert np.allclose(router.record.probs.detach(), by_hand(router, case, x), rtol=1e-10)


@pytest.mark.parametrize("case", [c for c in CASES if c.routed], ids=name_of)
def test_a_fresh_router_uses_all_views_nearly_alike(case):
    router = case.build(toy(), lively=False)
    router(inputs())
    assert (router.record.probs - 0.25).abs().max() < 0.06


def routing(probs_BTE, logits_BTE=None):
    return Routing(torch.log(probs_BTE) if logits_BTE is None else logits_BTE, probs_BTE)


@pytest.mark.parametrize("level", LEGAL)
def test_balance_loss_is_zero_when_all_views_are_used_alike(level):
    router = Case("prismatic", level, LEGAL[level][0]).build(toy(), balance_loss=0.5)
    even = torch.full((2, 3, 4), 0.25, dtype=torch.float64)
    assert router.penalty(routing(even)).item() == pytest.approx(0)
    mixed = torch.eye(4, dtype=torch.float64)[None]
    assert float(router.penalty(routing(mixed.clamp(min=1e-300)))) == pytest.approx(0)
    one = torch.tensor([[[0.7, 0.1, 0.1, 0.1]]], dtype=torch.float64)
    assert router.penalty(routing(one)).item() == pytest.approx(0.5 * (4 * 0.52 - 1))


def test_z_loss_is_the_mean_squared_log_partition():
    router = Case("prismatic", "token", "last").build(toy(), z_loss=0.1)
    logits = torch.tensor([[[0.0, 0, 0, 0], [1, 2, 3, 4]]], dtype=torch.float64)
    partition = [math.log(4), math.log(sum(map(math.exp, [1, 2, 3, 4])))]
    expected = 0.1 * (partition[0] ** 2 + partition[1] ** 2) / 2
    got = router.penalty(routing(logits.softmax(-1), logits))
    assert got.item() == pytest.approx(expected)


@pytest.mark.parametrize("case", [c for c in CASES if c.routed], ids=name_of)
def test_penalties_are_off_by_default_and_train_the_router_when_on(case):
    router = case.build(toy())
    router(inputs())
    assert router.penalty(router.record).item() == 0
    router = case.build(toy(), balance_loss=1.0, z_loss=1.0)
    router(inputs())
    router.penalty(router.record).backward()
    assert all(parameter.grad.any() for parameter in router.gate.parameters())


def test_dense_has_one_view_and_no_penalty():
    router = DenseRouter(toy(), WIDTH)
    router(inputs())
    assert router.record.probs.unique().tolist() == [1]
    assert router.penalty(router.record).item() == 0
    with pytest.raises(ValueError, match=r"num_experts=4 .*one view"):
        DenseRouter(toy(), WIDTH, 4)
