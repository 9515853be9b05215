"""Diversity and stability are what their definitions say."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy, median_abs_deviation

from prismatic.data import IGNORE
from prismatic.measures import objectives, steadiness, views_apart
from prismatic.measures.objectives import forced_views

from .test_views import model


def probe() -> tuple[torch.Tensor, torch.Tensor]:
    tokens_BT, targets_BT = torch.randint(16, (2, 2, 8))
    targets_BT[0, :3] = IGNORE
    return tokens_BT, targets_BT


def predictions(prismatic, tokens_BT, targets_BT) -> np.ndarray:
    """Each view's probabilities at the scored tokens: (views, tokens, vocabulary)."""
    found = []
    for view in range(3):
        with prismatic.forced(view), torch.no_grad():
            p_BTV = prismatic(tokens_BT).double().softmax(-1)
        found.append(p_BTV[targets_BT != IGNORE].numpy())
    return np.stack(found)


def test_views_apart_is_what_scipy_computes():
    prismatic, (tokens_BT, targets_BT) = model("router.num_experts=3", "focal=none"), probe()
    p = predictions(prismatic, tokens_BT, targets_BT)
    target = targets_BT[targets_BT != IGNORE].numpy()
    found = views_apart(prismatic, tokens_BT, targets_BT)
    jensen = entropy(p.mean(0), axis=-1).mean() - entropy(p, axis=-1).mean()
    assert found["objective/diversity"] == pytest.approx(jensen / math.log(3), rel=1e-9)
    pairs = [(p[i] + p[j]) / 2 for i, j in [(0, 1), (0, 2), (1, 2)]]
    apart = entropy(pairs, base=2, axis=-1).mean() - entropy(p, base=2, axis=-1).mean()
    assert found["views/disagreement"] == pytest.approx(apart, rel=1e-9)
    logp = np.log(p)
    gaps = [np.sqrt(((logp[i] - logp[j]) ** 2).mean()) for i, j in [(0, 1), (0, 2), (1, 2)]]
    assert found["views/closest"] == pytest.approx(min(gaps), rel=1e-6, abs=1e-12)
    loss = [-np.log(q[np.arange(len(q)), target]).mean() for q in p]
    assert [found[f"views/{i}/loss"] for i in range(3)] == pytest.approx(loss, rel=1e-9)
    assert found["views/excess"] == pytest.approx(max(loss) - loss[0], abs=1e-9)
    product = np.exp(np.log(p).mean(0))
    product /= product.sum(-1, keepdims=True)
    together = -np.log(product[np.arange(len(product)), target]).mean()
    assert found["views/useful_diversity"] == pytest.approx(min(loss) - together, abs=1e-9)
    assert found["objective/diversity"] > 0


def test_what_is_held_at_once_changes_no_measure(monkeypatch):
    prismatic, (tokens_BT, targets_BT) = model("router.num_experts=3", "focal=none"), probe()
    whole = views_apart(prismatic, tokens_BT, targets_BT)
    kept_EKV = forced_views(prismatic, tokens_BT, targets_BT)
    monkeypatch.setattr(objectives, "TOKENS_AT_ONCE", 1)
    monkeypatch.setattr(objectives, "LOGITS_AT_ONCE", 100)
    assert views_apart(prismatic, tokens_BT, targets_BT) == pytest.approx(whole, rel=1e-6, abs=1e-9)
    # Of 13 scored tokens with 16 numbers each, every third: what is kept is bounded, too.
    monkeypatch.setattr(objectives, "LOGITS_KEPT", 5 * 16)
    few_EKV = forced_views(prismatic, tokens_BT, targets_BT)
    torch.testing.assert_close(few_EKV, kept_EKV[:, ::3], rtol=1e-5, atol=1e-6)


def test_views_that_are_equal_are_not_apart():
    found = views_apart(model("perturbation.scale=0"), *probe())
    assert found["objective/diversity"] == pytest.approx(0, abs=1e-12)
    assert found["views/excess"] == pytest.approx(0, abs=1e-12)
    assert views_apart(model("router=dense"), *probe()) == {}


def test_stability_is_the_robust_deviation_from_a_line():
    noise = np.random.default_rng(0).standard_normal(401) / 10
    line = 3 - 0.02 * np.arange(401)
    found = steadiness(list(line + noise), sound=True)
    fit = np.polynomial.Polynomial.fit(range(401), line + noise, 1)(np.arange(401))
    expected = median_abs_deviation(line + noise - fit, scale="normal")
    assert found["stability/spread"] == pytest.approx(expected, rel=1e-3)
    assert found["objective/stability"] == pytest.approx(math.exp(-expected), rel=1e-3)


def test_a_trend_costs_nothing_and_an_unsound_run_is_worth_nothing():
    line = list(np.linspace(2, -5, 50))
    assert steadiness(line, sound=True)["objective/stability"] == pytest.approx(1)
    assert steadiness(line, sound=False)["objective/stability"] == 0
    assert steadiness(line[:2], sound=True) == {}
