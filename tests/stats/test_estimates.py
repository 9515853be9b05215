"""Intervals and tests agree with enumeration, scipy and closed forms, and move with the data."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from prismatic.stats import (
    holm,
    rank_correlation,
    sign_flip_p,
    simultaneous_level,
    smallest_p,
    t_interval,
)

VALUES = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=20)
# Whole numbers, so that sums tie as they do in mathematics.
WHOLE = st.lists(st.integers(-9, 9), min_size=2, max_size=8)


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


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


def test_simultaneous_levels_are_bonferronis():
    assert simultaneous_level(1) == pytest.approx(0.95)
    assert simultaneous_level(5, 0.9) == pytest.approx(0.98)


def enumerated(differences) -> float:
    sums = [abs(np.dot(s, differences)) for s in product((1, -1), repeat=len(differences))]
    return float(np.mean(np.array(sums) >= abs(sum(differences))))


@given(WHOLE)
def test_sign_flip_p_counts_all_patterns(differences):
    assert sign_flip_p(differences) == enumerated(differences)


def test_sign_flip_p_of_six_by_hand():
    # Only flipping the 1 (sum 19 -> 17), or nothing, or everything, or all but the 1, gets so far.
    assert sign_flip_p([-1, 2, 3, 4, 5, 6]) == 4 / 64
    assert sign_flip_p([1, 2, 3, 4, 5, 6]) == 2 / 64
    assert sign_flip_p([0, 0, 0, 0, 0, 0]) == 1


@settings(max_examples=40)
@given(WHOLE, st.floats(1e-6, 1e6), st.randoms())
def test_sign_flip_p_ignores_sign_scale_and_order(differences, scale, random):
    shuffled = [-scale * value for value in random.sample(differences, len(differences))]
    assert sign_flip_p(shuffled) == sign_flip_p(differences)


def test_drawn_sign_flips_come_close_to_all_of_them():
    sample = rng().normal(0.35, 1, 16)
    exact = enumerated(sample)
    assert sign_flip_p(sample, rng()) == pytest.approx(exact, abs=5 * np.sqrt(exact / 20_000))
    assert sign_flip_p(np.ones(30), rng()) == smallest_p(30) == 2 / 20_001


def test_the_smallest_p_is_reached():
    assert [smallest_p(n) for n in (5, 6, 10)] == [0.0625, 0.03125, 2**-9]
    for size in (2, 5, 14):
        assert sign_flip_p(np.arange(1, size + 1)) == smallest_p(size)


def test_holm_on_the_textbooks_example():
    # Holm's procedure at .05 rejects .005 and .01 of these four (.005 * 4, .01 * 3, .03 * 2).
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.2))
def test_holm_rejects_what_its_steps_reject(p, alpha):
    order, rejected = np.argsort(p, kind="stable"), set()
    for step, claim in enumerate(order):
        if p[claim] * (len(p) - step) > alpha:
            break
        rejected.add(int(claim))
    assert set(np.flatnonzero(holm(p) <= alpha).tolist()) == rejected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_keeps_to_its_claims_and_lies_between_p_and_bonferroni(p, random):
    order = random.sample(range(len(p)), len(p))
    adjusted = holm(p)
    assert holm([p[i] for i in order]) == pytest.approx(adjusted[order])
    assert (adjusted >= p).all() and (adjusted <= np.minimum(1, len(p) * np.array(p))).all()


def test_rank_correlation_is_scipys():
    x = rng().normal(size=30).round(1)
    y = 0.6 * x + rng().normal(size=30)
    found = rank_correlation(x, y, np.random.default_rng(3))
    known = stats.spearmanr(x, y)
    assert found.rho == pytest.approx(known.statistic)
    assert found.p == pytest.approx(known.pvalue, abs=0.01)
    low, high = found.interval
    assert -1 < low < found.rho < high < 1
    mirrored = rank_correlation(x, -y, np.random.default_rng(3))
    assert mirrored.interval == pytest.approx((-high, -low)) and mirrored.p == found.p


def test_ranks_that_agree_or_do_not_vary():
    assert rank_correlation(range(8), np.exp(np.arange(8)), rng()).interval == (1, 1)
    assert rank_correlation(range(8), np.arange(8), rng()).p < 0.001
    assert rank_correlation(range(8), np.ones(8), rng()) == (0, (-1, 1), 1)


def test_correlation_within_blocks_is_that_of_ranks_there():
    draw = np.random.default_rng(5)
    block = np.repeat([0, 1, 2], [12, 9, 11])
    x, y = draw.normal(size=(2, 32)) + 100 * block
    found = rank_correlation(x, y, np.random.default_rng(0), block_N=block)
    ranks = [
        np.concatenate(
            [stats.rankdata(one[block == b]) - (sum(block == b) + 1) / 2 for b in range(3)]
        )
        for one in (x, y)
    ]
    assert found.rho == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert rank_correlation(x, y, np.random.default_rng(0)).rho > 0.8 > abs(found.rho)
    alone = rank_correlation(x, y, np.random.default_rng(0), block_N=np.zeros(32))
    assert alone.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    one_each = rank_correlation(x, y, np.random.default_rng(0), block_N=np.arange(32))
    assert one_each.p == 1 and one_each.interval == (-1, 1)


@pytest.mark.slow
def test_what_blocks_have_in_common_is_called_a_correlation_no_more_often_than_said():
    draw, hits = np.random.default_rng(6), 0
    block = np.repeat(np.arange(4), 8)
    for k in range(400):
        x, y = draw.normal(size=(2, 4))[:, block] * 3 + draw.normal(size=(2, 32))
        hits += rank_correlation(x, y, np.random.default_rng(k), draws=499, block_N=block).p < 0.05
    assert hits <= stats.binom.isf(1e-4, 400, 0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t_interval([1.0]), "length of sample=1"),
        (lambda: t_interval(3.0), r"shape of sample=\(\)"),
        (lambda: t_interval([1.0, np.nan, np.inf]), r"sample\[1\]=nan"),
        (lambda: t_interval([[1.0, 2.0], [3.0, -np.inf]]), r"sample\[1, 1\]=-inf"),
        (lambda: t_interval([1.0, 2.0], 95), "level=95"),
        (lambda: simultaneous_level(0), "num_claims=0"),
        (lambda: rank_correlation(range(5), range(6), rng()), "length of y=6"),
        (lambda: rank_correlation(range(4), range(4), rng()), "length of x=4"),
        (lambda: sign_flip_p([1]), "length of differences=1"),
        (lambda: sign_flip_p(np.ones(15)), "rng=None.*15 differences"),
        (lambda: holm([0.1, 1.2]), r"p=\[0.1, 1.2\]"),
        (lambda: holm(0.1), "give claims"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
