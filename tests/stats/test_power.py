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
    t_interval,
)


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


@pytest.mark.parametrize(("n", "margin", "claims"), [(6, 1.2, 1), (10, 1.0, 1), (12, 1.5, 8)])
def test_simulated_equivalence_has_the_power_that_is_computed(n, margin, claims):
    sample = np.random.default_rng(7).normal(size=(20_000, n))
    low, high = t_interval(sample, 1 - 0.1 / claims)
    shown = ((low > -margin) & (high < margin)).mean()
    assert shown == pytest.approx(equivalence_power(n, margin, 1.0, 0.05 / claims), abs=0.02)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.floats(0.2, 0.95), st.floats(0.1, 10))
def test_the_margin_is_the_inverse_of_the_power_of_equivalence(n, power, sd):
    margin = smallest_equivalence_margin(n, sd, power)
    assert equivalence_power(n, margin, sd) == pytest.approx(power, abs=1e-5)
    assert equivalence_power(n, 1.5 * margin, sd) > power


def test_power_far_out_is_one():
    assert paired_power(10, 1000.0, 1.0) == pytest.approx(1)
    assert stats.t.isf(0.025, 1) > 12 and paired_power(2, 1e4, 1.0) > 0.99
