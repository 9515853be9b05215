"""Intervals are what scipy and closed forms say, and move with the data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prismatic.stats import (
    bootstrap_t_interval,
    clopper_pearson,
    simultaneous_intervals,
    simultaneous_level,
    t_interval,
)

VALUES = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=20)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@settings(max_examples=30)
@given(VALUES.filter(lambda values: np.std(values) > 1e-3), st.floats(0.5, 0.999))
def test_t_interval_is_scipys(values, level):
    known = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert t_interval(values, level) == pytest.approx((known.low, known.high), rel=1e-9, abs=1e-9)


def test_t_interval_of_many_samples_is_that_of_each():
    table = rng().normal(size=(3, 4, 7))
    low, high = t_interval(table, 0.9)
    assert low.shape == high.shape == (3, 4)
    assert (low[1, 2], high[1, 2]) == pytest.approx(t_interval(table[1, 2], 0.9))


def test_equal_values_have_an_interval_without_width():
    assert t_interval([0.5] * 6) == pytest.approx((0.5, 0.5))
    assert bootstrap_t_interval([0.5] * 6, rng()) == pytest.approx((0.5, 0.5))


@settings(max_examples=20)
@given(st.floats(0.1, 100), st.floats(-100, 100))
def test_bootstrap_interval_moves_and_scales_with_the_sample(scale, shift):
    sample = stats.expon.rvs(size=12, random_state=5)
    low, high = bootstrap_t_interval(sample, rng(), draws=200)
    moved = bootstrap_t_interval(scale * sample + shift, rng(), draws=200)
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), rel=1e-6, abs=1e-6)


def test_bootstrap_interval_reaches_further_to_the_long_tail():
    sample = stats.expon.ppf((np.arange(20) + 0.5) / 20)
    low, high = bootstrap_t_interval(sample, rng())
    known_low, known_high = t_interval(sample)
    assert low > known_low and high > known_high
    assert low < sample.mean() < high


def test_bootstrap_interval_of_a_large_normal_sample_is_students():
    sample = stats.norm.ppf((np.arange(200) + 0.5) / 200)
    found = bootstrap_t_interval(sample, rng(), 0.9, draws=5000)
    assert found == pytest.approx(t_interval(sample, 0.9), abs=0.015)


@settings(max_examples=30)
@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_clopper_pearson_ends_where_tails_hold_half_the_rest(counts):
    k, n = counts
    low, high = clopper_pearson(k, n, 0.9)
    assert low == 0 if k == 0 else stats.binom.sf(k - 1, n, low) == pytest.approx(0.05)
    assert high == 1 if k == n else stats.binom.cdf(k, n, high) == pytest.approx(0.05)


def test_clopper_pearson_never_covers_too_little():
    n, k = 12, np.arange(13)
    ends = [clopper_pearson(int(i), n) for i in k]
    for p in np.linspace(0.001, 0.999, 301):
        covers = np.array([low <= p <= high for low, high in ends])
        assert stats.binom.pmf(k, n, p)[covers].sum() >= 0.95


def test_simultaneous_intervals_are_students_at_bonferronis_level():
    table = rng().normal(size=(5, 10))
    assert simultaneous_level(1) == pytest.approx(0.95)
    assert simultaneous_level(5, 0.9) == pytest.approx(0.98)
    low, high = simultaneous_intervals(table)
    assert (low[3], high[3]) == pytest.approx(t_interval(table[3], 0.99))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t_interval([1.0]), "length of sample=1"),
        (lambda: t_interval(3.0), "shape of sample=()"),
        (lambda: t_interval([1.0, np.nan, np.inf]), r"sample\[1\]=nan"),
        (lambda: t_interval([[1.0, 2.0], [3.0, -np.inf]]), r"sample\[1, 1\]=-inf"),
        (lambda: t_interval([1.0, 2.0], 95), "level=95"),
        (lambda: simultaneous_intervals([1.0, 2.0]), "give claims x seeds"),
        (lambda: simultaneous_level(0), "num_claims=0"),
        (lambda: bootstrap_t_interval([1.0, 2.0], rng()), "length of sample=2"),
        (lambda: bootstrap_t_interval([1.0, 2.0, 3.0], rng(), draws=0), "draws=0"),
        (lambda: clopper_pearson(3, 2), "successes=3"),
        (lambda: clopper_pearson(0, 0), "trials=0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message.replace("()", r"\(\)")):
        call()
