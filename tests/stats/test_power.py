"""Power agrees with published values, with its own inverse and with simulated studies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prismatic.stats import (
    equivalence_power,
    paired_power,
    smallest_detectable_effect,
    smallest_equivalence_margin,
    verdict_rates,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize(
    ("n", "effect", "power"), [(34, 0.5, 0.808), (15, 0.8, 0.821), (199, 0.2, 0.802)]
)
def test_power_is_what_tables_say(n, effect, power):
    # G*Power's and Cohen's sizes for a paired t test at 80 %.
    assert paired_power(n, effect, 1.0) == pytest.approx(power, abs=2e-3)


@settings(max_examples=30)
@given(st.integers(2, 60), st.floats(0.001, 0.2), st.floats(0.1, 10))
def test_power_without_an_effect_is_alpha_and_grows_with_it(n, alpha, sd):
    assert paired_power(n, 0.0, sd, alpha) == pytest.approx(alpha, rel=1e-6)
    powers = [paired_power(n, effect * sd, sd, alpha) for effect in (0.1, 0.5, 1, 2)]
    assert powers == sorted(powers)
    assert paired_power(n, -sd, sd, alpha) == pytest.approx(powers[2])


@settings(max_examples=20)
@given(st.integers(2, 60), st.floats(0.3, 0.99), st.floats(0.1, 10))
def test_the_detectable_effect_is_the_inverse_of_power(n, power, sd):
    effect = smallest_detectable_effect(n, sd, power)
    assert paired_power(n, effect, sd) == pytest.approx(power, abs=1e-6)


@pytest.mark.parametrize("n", [10, 20])
def test_simulated_support_is_at_most_the_power_and_near_it_for_a_tiny_threshold(n):
    rates = verdict_rates(n, 0.8, 1.0, 1e-6, rng(), studies=1000)
    assert sum(rates.values()) == pytest.approx(1)
    assert rates["supported"] == pytest.approx(paired_power(n, 0.8, 1.0), abs=0.06)


def test_large_effects_are_supported_none_refuted_and_a_family_costs_power():
    assert verdict_rates(10, 5.0, 1.0, 1.0, rng(), studies=200)["supported"] == 1
    assert verdict_rates(10, -2.0, 1.0, 1.0, rng(), studies=200)["refuted"] == 1
    tight = verdict_rates(10, 0.0, 0.1, 1.0, rng(), claim="no difference", studies=200)
    assert tight["supported"] == 1
    alone, family = (
        verdict_rates(10, 1.0, 1.0, 0.1, rng(), num_claims=m, studies=500)["supported"]
        for m in (1, 6)
    )
    assert family < alone - 0.1


def test_in_a_large_family_only_seeds_of_one_sign_support_a_claim():
    """Twenty times p is below .05 for the smallest p of ten seeds alone."""
    rates = verdict_rates(10, 1.5, 1.0, 0.1, rng(), num_claims=20, studies=2000)
    assert rates["supported"] <= stats.norm.cdf(1.5) ** 10


def test_five_seeds_promise_no_verdict():
    rates = verdict_rates(5, 5.0, 1.0, 1.0, rng(), studies=10)
    assert rates == {"supported": 0, "refuted": 0, "inconclusive": 0, "no verdict": 1}


@pytest.mark.parametrize(("n", "margin", "claims"), [(6, 1.2, 1), (10, 1.0, 1), (12, 1.5, 8)])
def test_simulated_equivalence_has_the_power_that_is_computed(n, margin, claims):
    rates = verdict_rates(n, 0.0, 1.0, margin, rng(), "no difference", claims)
    assert rates["supported"] == pytest.approx(
        equivalence_power(n, margin, 1.0, 0.05 / claims), abs=0.05
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.floats(0.2, 0.95), st.floats(0.1, 10))
def test_the_margin_is_the_inverse_of_the_power_of_equivalence(n, power, sd):
    margin = smallest_equivalence_margin(n, sd, power)
    assert equivalence_power(n, margin, sd) == pytest.approx(power, abs=1e-5)
    assert equivalence_power(n, 1.5 * margin, sd) > power


def test_power_far_out_is_one():
    assert paired_power(10, 1000.0, 1.0) == pytest.approx(1)
    assert stats.t.isf(0.025, 1) > 12 and paired_power(2, 1e4, 1.0) > 0.99


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_power(1, 1.0, 1.0), "n=1"),
        (lambda: paired_power(5, 1.0, 0.0), "sd=0.0"),
        (lambda: paired_power(5, 1.0, 1.0, 5), "alpha=5"),
        (lambda: smallest_detectable_effect(5, 1.0, 0.01), "power=0.01"),
        (lambda: verdict_rates(10, 1.0, 1.0, 1.0, rng(), claim="?"), "claim='\\?'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
