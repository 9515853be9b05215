"""What is measured of attention and gradients is what its definition says."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import entropy

from prismatic.measures.numerics import (
    FAINT,
    QUANTILES,
    attention_measures,
    gradient_norms,
    measure_attention,
    quantiles,
    spikes,
)
from prismatic.perturb import Perturbation, role

from .test_views import model


def attention(num_tokens: int = 7, scale: float = 8.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal logits (2, 3, T, T), some of them out of range, and their softmax."""
    torch.manual_seed(0)
    future = torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu(1)
    logits = torch.randn(2, 3, num_tokens, num_tokens) * scale
    logits = logits.masked_fill(future, -math.inf)
    return logits, logits.softmax(-1)


def test_attention_measures_against_a_loop_over_rows():
    logits, probs = attention()
    shifted, relative, gain, partition = [], [], [], []
    for matrix, weights in zip(logits.flatten(0, 1).double(), probs.flatten(0, 1), strict=True):
        for t in range(1, 7):
            row = matrix[t, : t + 1].numpy()
            shifted += list(row - row.max())
            spread = entropy(weights[t, : t + 1].numpy())
            relative.append(spread / math.log(t + 1))
            gain.append(math.log(t + 1) - spread)
            partition.append(logsumexp(row))
    found = {name: value.numpy() for name, value in attention_measures(logits, probs).items()}
    np.testing.assert_allclose(found["edge/logit_LQ"], np.quantile(shifted, QUANTILES), rtol=1e-4)
    assert found["edge/logit_absmax_L"] == pytest.approx(-min(shifted), rel=1e-6)
    assert 0 < found["edge/out_of_range_L"] == pytest.approx(np.mean(np.array(shifted) < -20))
    assert found["edge/attention_entropy_L"] == pytest.approx(np.mean(relative), rel=1e-5)
    assert found["edge/softmax_gain_L"] == pytest.approx(np.mean(gain), rel=1e-5)
    assert found["edge/log_partition_L"] == pytest.approx(np.mean(partition), rel=1e-5)
    np.testing.assert_allclose(
        found["edge/log_partition_LQ"], np.quantile(partition, QUANTILES), rtol=1e-4
    )


def test_uniform_attention_gains_nothing_and_one_hot_attention_all():
    logits, _ = attention(scale=0.0)
    uniform = attention_measures(logits, logits.softmax(-1))
    assert float(uniform["edge/attention_entropy_L"]) == pytest.approx(1)
    assert float(uniform["edge/softmax_gain_L"]) == pytest.approx(0, abs=1e-6)
    logits, _ = attention(scale=1e6)
    sharp = attention_measures(logits, logits.softmax(-1))
    assert float(sharp["edge/attention_entropy_L"]) == pytest.approx(0, abs=1e-6)


def test_quantiles_of_very_many_values_are_close():
    torch.manual_seed(0)
    values = torch.randn(3_000_000)
    exact = np.quantile(values.numpy(), QUANTILES)
    np.testing.assert_allclose(quantiles(values), exact, atol=0.1)


def test_every_pass_is_looked_at_and_one_token_attends_to_nothing():
    recurrent = model("model.depth=5")
    found = measure_attention(recurrent, torch.randint(16, (3, 8)))
    assert {name: value.shape[0] for name, value in found.items()} == dict.fromkeys(found, 5)
    assert measure_attention(recurrent, torch.randint(16, (3, 1))) == {}


@pytest.mark.parametrize("router", ["prismatic", "dense"])
def test_gradient_norms_by_tier_and_block(router):
    few = ["router.num_experts=1"] if router == "dense" else []
    routed = model(f"router={router}", *few)
    routed(torch.randint(16, (3, 8))).square().sum().backward()
    tier_K, block_B = gradient_norms(routed)
    energy_BK = np.zeros((2, 3))
    for k, block in enumerate(routed.routers):
        for parameter in block.expert.parameters():
            tier = role(parameter, Perturbation())
            for column, which in enumerate((1, 0, -1)):
                energy_BK[k, column] += float(parameter.grad[tier == which].square().sum())
    np.testing.assert_allclose(tier_K, np.sqrt(energy_BK.sum(0)), rtol=1e-5)
    np.testing.assert_allclose(block_B, np.sqrt(energy_BK.sum(1)), rtol=1e-5)
    assert (tier_K > 0).all()


def test_spikes_are_counted_against_what_was_usual():
    steady = [0.01 * math.sin(step) for step in range(60)]
    assert spikes(steady, 100, 4.0) == 0
    assert spikes([*steady, math.log(4.2), *steady[:5], math.log(40)], 100, 4.0) == 2
    assert spikes([*steady, math.log(3.8)], 100, 4.0) == 0
    assert spikes([math.log(100.0), *steady], 100, 4.0) == 0, "the first steps have no before"
    assert spikes([*steady, math.log(10), *steady, *steady], 100, 4.0) == 0, "it is long ago"
    assert spikes([*steady, math.nan], 100, 4.0) == 0
    assert spikes([], 100, 4.0) == 0


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_a_faint_logit_has_vanished_beside_the_largest_but_in_float64(name):
    one, faint = torch.tensor([0.0, -FAINT], dtype=getattr(torch, name)).exp()
    assert (one + faint == one) == (name != "float64")
