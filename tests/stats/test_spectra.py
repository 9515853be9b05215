"""Oscillations are found, relaxations and noise with a memory are not taken for them."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal
from scipy.linalg import hadamard

from prismatic.stats import (
    ar1_series,
    fit_ar1,
    lomb_scargle,
    periodicity_test,
    walsh_shares,
    walsh_test,
)
from prismatic.stats.spectra import WALSH_W4

TRIPS = np.arange(64)


def rng(seed: int = 4) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_lomb_scargle_is_the_share_a_least_squares_sinusoid_explains():
    series, frequency = rng().normal(size=40) + 3, np.array([0.03, 0.11, 0.25, 0.5])
    for f, power in zip(frequency, lomb_scargle(series, frequency), strict=True):
        angle = 2 * np.pi * f * np.arange(40)
        columns = np.stack([np.ones(40), np.cos(angle), np.sin(angle)], 1)
        left = series - columns @ np.linalg.lstsq(columns, series, rcond=1e-9)[0]
        assert power == pytest.approx(1 - left.var() / series.var())


@pytest.mark.parametrize("size", [16, 23, 56])
def test_lomb_scargle_of_many_series_is_that_of_scipy(size):
    series, frequency = ar1_series(0.6, (4, size), rng()) + 2, np.arange(2, size + 1) / (2 * size)
    for powers, one in zip(lomb_scargle(series, frequency), series, strict=True):
        expected = signal.lombscargle(
            np.arange(size), one, 2 * np.pi * frequency, normalize=True, floating_mean=True
        )
        np.testing.assert_allclose(powers, expected, atol=1e-9)


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, -0.5])
def test_ar1_noise_has_the_memory_asked_for_and_the_fit_is_not_biased(phi):
    long = ar1_series(phi, (1, 20_000), rng())
    assert fit_ar1(long) == pytest.approx([phi], abs=0.03)
    series = ar1_series(phi, (4000, 56), rng())
    assert series.var() == pytest.approx(1 / (1 - phi**2), rel=0.06)
    assert series[:, 0].var() == pytest.approx(series[:, -1].var(), rel=0.15)
    assert fit_ar1(series).mean() == pytest.approx(phi, abs=0.02)


@given(st.floats(0.01, 100), st.floats(-100, 100))
def test_the_fit_ignores_units_and_level(unit, level):
    series = ar1_series(0.6, (1, 30), rng())
    assert fit_ar1(unit * series + level) == pytest.approx(fit_ar1(series), abs=1e-6)
    assert -1 < fit_ar1(np.full(30, level)) < 1


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("alternation", (-1.0) ** TRIPS),
        ("three in turn", TRIPS % 3 == 0),
        ("a slow wave", np.cos(2 * np.pi * TRIPS / 20)),
        ("a decaying wave", 0.95**TRIPS * np.cos(TRIPS)),
        ("a wave in noise", np.cos(2 * np.pi * TRIPS / 4) + 0.5 * rng().normal(size=64)),
    ],
)
def test_an_oscillation_is_found(name, series):
    assert periodicity_test(series, rng(), surrogates=199).p <= 0.05


def test_the_period_is_reported():
    assert periodicity_test(TRIPS % 3 == 0, rng(), surrogates=19).frequency == pytest.approx(
        1 / 3, abs=0.01
    )
    assert periodicity_test((-1.0) ** TRIPS, rng(), surrogates=19).frequency == 0.5


@pytest.mark.parametrize(
    ("name", "series"),
    [
        ("a relaxation", 0.9**TRIPS),
        ("two relaxations", 0.9**TRIPS + 0.5 * 0.6**TRIPS + 0.1 * 0.98**TRIPS),
        ("a power law", 1 / (1 + TRIPS)),
        ("a drift", TRIPS),
        ("a bent drift", (TRIPS - 50.0) ** 2),
        ("a step", TRIPS > 30),
        ("a fixed point", np.full(64, 0.25)),
    ],
)
def test_what_does_not_come_back_is_no_oscillation(name, series):
    assert periodicity_test(series, rng(), surrogates=199).p > 0.1


def test_the_burn_in_is_dropped_and_the_generator_decides():
    series = ar1_series(0.5, (1, 64), rng(1))[0]
    spoilt = np.concatenate([np.full(8, 1e6), series[8:]])
    found = periodicity_test(series, rng(), surrogates=99)
    assert periodicity_test(spoilt, rng(), surrogates=99) == found
    assert periodicity_test(3 * series + 7, rng(), surrogates=99) == pytest.approx(found)


def test_walsh_functions_are_hadamards():
    rows = {tuple(row) for row in hadamard(4)[1:]}
    assert {tuple(2 * row * row[0] * 2) for row in WALSH_W4} == {
        tuple(float(v) for v in row) for row in rows
    }
    assert np.allclose(WALSH_W4 @ WALSH_W4.T, np.eye(3))


@given(st.permutations(range(4)))
def test_orders_only_exchange_the_three_shares(order):
    """Why one run of four trips proves nothing."""
    series = np.array([[0.1, 0.7, 0.3, 0.4]])
    here = walsh_test(series, rng(), draws=1).share
    there = walsh_test(series[:, list(order)], rng(), draws=1).share
    assert sorted(there.values()) == pytest.approx(sorted(here.values()))
    assert sum(here.values()) == pytest.approx(1)


def test_walsh_shares_are_a_run_s_own():
    rows = rng().normal(size=(5, 4))
    shares = walsh_shares(rows)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(
        shares.mean(0), list(walsh_test(rows, rng(), draws=1).share.values())
    )
    np.testing.assert_allclose(
        walsh_shares([[0, 0, 1, 1], [1, 0, 0, 1], [0, 1, 0, 1]]), np.eye(3), atol=1e-12
    )
    np.testing.assert_allclose(walsh_shares(np.ones(4)), 1 / 3)


def exact_walsh_p(series_R4: np.ndarray, which: int) -> float:
    """By all orders of all runs."""
    shares = [
        [(WALSH_W4[which] @ run[list(order)]) ** 2 / ((run - run.mean()) ** 2).sum()
         for order in permutations(range(4))]
        for run in series_R4
    ]  # fmt: skip
    grid = sum(np.meshgrid(*shares, indexing="ij"))
    return float((grid >= grid.flat[0] - 1e-12).mean())


def test_walsh_p_is_the_share_of_all_orders_of_all_runs():
    series = rng().normal(size=(3, 4))
    found = walsh_test(series, rng(), draws=20_000)
    for which, p in enumerate(found.p.values()):
        assert p == pytest.approx(exact_walsh_p(series, which), abs=0.02)


def test_alternation_step_and_bump_are_told_apart():
    draw = rng()
    for name, pattern in zip(("step", "bump", "alternation"), WALSH_W4, strict=True):
        series = 0.5 + draw.choice([-1, 1], (10, 1)) * pattern + 0.2 * draw.normal(size=(10, 4))
        found = walsh_test(series, draw, draws=2000)
        assert found.p[name] < 0.01 and found.share[name] > 0.6
        assert min(p for key, p in found.p.items() if key != name) > 0.5


def test_one_run_has_a_p_of_a_third_and_still_runs_have_no_say():
    alone = walsh_test([[0, 1, 0, 1]], rng())
    assert alone.p["alternation"] == pytest.approx(1 / 3, abs=0.02)
    still = walsh_test(np.full((5, 4), 0.25), rng(), draws=99)
    assert set(still.p.values()) == {1.0}
    assert list(still.share.values()) == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: periodicity_test(np.ones(20), rng()), "length of series=20.*at least 24"),
        (lambda: periodicity_test(np.ones((2, 64)), rng()), "give trips"),
        (lambda: periodicity_test(np.ones(64), rng(), burn_in=-1), "burn_in=-1"),
        (lambda: periodicity_test(np.ones(64), rng(), surrogates=5), "surrogates=5"),
        (lambda: ar1_series(1.0, (1, 5), rng()), "phi=1.0"),
        (lambda: walsh_test(np.ones((5, 8)), rng()), "number of trips=8"),
        (lambda: walsh_test([[1, 2, np.nan, 4]], rng()), r"series\[0, 2\]=nan"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
