"""Does a series over trips oscillate? Tests against white noise, AR(1) noise and order alone.

Shapes: T trips, F frequencies in cycles per trip, R series, W Walsh functions, B draws.
"""

from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import signal

from prismatic.errors import require

from .checks import finite

# The non-constant Walsh functions of four trips: a step, a bump, an alternation.
WALSH_W4 = np.array([[1, 1, -1, -1], [1, -1, -1, 1], [1, -1, 1, -1]]) / 2
WALSH_NAMES = ("step", "bump", "alternation")
LARGEST_PHI = 0.99


class Periodicity(NamedTuple):
    """The strongest period of a series, and how often noise has one as strong.

    `power` is the share of the variance that a sinusoid of `frequency` (cycles per trip) explains.
    """

    frequency: float
    power: float
    p: float


def periodicity_test(
    series_T: ArrayLike, rng: np.random.Generator, burn_in: int = 8, surrogates: int = 999
) -> Periodicity:
    """Test the largest Lomb-Scargle power of a series against that of AR(1) surrogates.

    Noise that remembers its last value has strong slow waves; a test against white noise calls
    almost every such series periodic. The first `burn_in` trips are dropped; at least 16 must stay.
    Neither a relaxation to a fixed point nor a drift is called periodic, a limit cycle is.
    """
    require(burn_in >= 0, "burn_in", burn_in, "give a whole number >= 0")
    require(surrogates >= 19, "surrogates", surrogates, "give at least 19, for a p of .05")
    series_T = finite("series", series_T, "trips", least=burn_in + 16)[burn_in:]
    if np.ptp(series_T) == 0:
        return Periodicity(0.0, 0.0, 1.0)
    size = series_T.size
    frequency_F = np.arange(2, size + 1) / (2 * size)
    power_F = lomb_scargle(series_T, frequency_F)
    noise_RT = ar1_series(float(fit_ar1(series_T)), (surrogates, size), rng)
    largest_R = lomb_scargle(noise_RT, frequency_F).max(-1)
    p = (1 + np.sum(largest_R >= power_F.max())) / (1 + surrogates)
    return Periodicity(float(frequency_F[power_F.argmax()]), float(power_F.max()), float(p))


def lomb_scargle(series: np.ndarray, frequency_F: np.ndarray) -> np.ndarray:
    """The share of the variance of (..., T) series that a sinusoid of each frequency and any phase
    explains: (..., F). As scipy's `lombscargle`, normalised and with a floating mean, but for many
    series at once.
    """
    trips_T = np.arange(series.shape[-1])
    angle_FT = 2 * np.pi * frequency_F[:, None] * trips_T
    wave_FT2 = np.stack([np.cos(angle_FT), np.sin(angle_FT)], -1)
    wave_FT2 -= wave_FT2.mean(1, keepdims=True)
    # Of an alternation the sine is 0: only rounding errors are left of it.
    basis_FT2, size_F2, _ = np.linalg.svd(wave_FT2, full_matrices=False)
    basis_FT2 = basis_FT2 * (size_F2 > 1e-9 * size_F2[:, :1])[:, None]
    off = series - series.mean(-1, keepdims=True)
    explained = (np.tensordot(off, basis_FT2, (-1, 1)) ** 2).sum(-1)
    return explained / (off**2).sum(-1, keepdims=True)


def fit_ar1(series: ArrayLike) -> np.ndarray:
    """The AR(1) coefficient of (..., T) series about their means, corrected for its bias: (...).

    Least squares is too low by (1 + 3 phi) / T (Marriott and Pope, Biometrika 41, 1954). At most
    .99 in size, so that the noise it stands for has a variance.
    """
    series = finite("series", series, least=5)
    off = series - series.mean(-1, keepdims=True)
    moved, variance = (off[..., 1:] * off[..., :-1]).sum(-1), (off[..., :-1] ** 2).sum(-1)
    phi = np.divide(moved, variance, out=np.zeros_like(moved), where=variance > 0)
    size = series.shape[-1]
    return ((size * phi + 1) / (size - 3)).clip(-LARGEST_PHI, LARGEST_PHI)


def ar1_series(phi: float, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Stationary AR(1) noise with unit innovations: one series per row."""
    require(-1 < phi < 1, "phi", phi, "give a number between -1 and 1")
    noise_RT = rng.standard_normal(shape)
    noise_RT[:, 0] /= np.sqrt(1 - phi**2)
    return signal.lfilter([1.0], [1.0, -phi], noise_RT)


class WalshTest(NamedTuple):
    """By Walsh function: its mean share of the variance over trips, and the p of that share."""

    share: dict[str, float]
    p: dict[str, float]


def walsh_shares(series: ArrayLike) -> np.ndarray:
    """The shares of step, bump and alternation in the variance of (..., 4) series: (..., 3).

    A series that does not move has no say: its shares are equal, as chance would have them.
    """
    series = finite("series", series)
    size = series.shape[-1]
    require(size == 4, "number of trips", size, "give 4")
    power = (series @ WALSH_W4.T) ** 2
    total = power.sum(-1, keepdims=True)
    return np.divide(power, total, out=np.full_like(power, 1 / 3), where=total > 0)


def walsh_test(series_R4: ArrayLike, rng: np.random.Generator, draws: int = 20_000) -> WalshTest:
    """Does a step, a bump or an alternation over four trips recur in R independent runs?

    Step and bump are the frequency 1/4, the alternation is 1/2; there is no other. The test
    permutes the trips of every run, all 24 orders alike. One run alone proves nothing: its
    orders only exchange the three shares, so its p is 1/3 at best. Hence runs are drawn together,
    `draws` times, and a one-sided p asks for a larger mean share. Three tests: adjust by `holm`.
    """
    series_R4 = finite("series", series_R4, "runs", "4 trips")
    require(series_R4.shape[1] == 4, "number of trips", series_R4.shape[1], "give 4")
    orders = np.array(list(permutations(range(4))))
    share_R24W = walsh_shares(series_R4[:, orders])
    seen_W = share_R24W[:, 0].mean(0)  # the first order is the one that was seen
    runs = np.arange(len(series_R4))
    drawn_BW = share_R24W[runs, rng.integers(24, size=(draws, runs.size))].mean(1)
    p_W = (1 + (drawn_BW >= seen_W - 1e-12).sum(0)) / (1 + draws)
    return WalshTest(
        dict(zip(WALSH_NAMES, seen_W.tolist(), strict=True)),
        dict(zip(WALSH_NAMES, p_W.tolist(), strict=True)),
    )
