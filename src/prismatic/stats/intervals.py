"""Intervals that cover what they estimate as often as they say.

Shapes: N independent values, one per seed; ... any dimensions before them, done at once.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from .checks import finite, require, share

Numbers = float | np.ndarray


class Interval(NamedTuple):
    """Both ends: numbers for one sample, arrays of shape (...) for many."""

    low: Numbers
    high: Numbers


def t_interval(sample: ArrayLike, level: float = 0.95) -> Interval:
    """Student's interval for the mean of (..., N) values, N >= 2.

    >>> [round(float(end), 3) for end in t_interval([1, 2, 3, 4, 5])]
    [1.037, 4.963]
    """
    share("level", level)
    sample = finite("sample", sample, least=2)
    half = stats.t.ppf((1 + level) / 2, sample.shape[-1] - 1) * stats.sem(sample, axis=-1)
    mean = sample.mean(-1)
    return Interval(mean - half, mean + half)


def simultaneous_level(num_claims: int, level: float = 0.95) -> float:
    """The level each of several intervals needs so that all cover at once with `level`.

    Bonferroni's: it holds under any dependence, and it is known from the declared number alone, so
    power can be computed before the run. Quantiles of the largest |t| over sign flips are at most a
    few per cent narrower for arms that share a baseline, and need all arms' seeds at once.
    """
    require(num_claims >= 1, "num_claims", num_claims, "give a whole number >= 1")
    return 1 - (1 - level) / num_claims


def simultaneous_intervals(sample_CN: ArrayLike, level: float = 0.95) -> Interval:
    """Student's intervals of C means, all of which cover at once with `level`: (C,) each end."""
    sample_CN = finite("sample", sample_CN, "claims", "seeds", least=2)
    return t_interval(sample_CN, simultaneous_level(len(sample_CN), level))


def bootstrap_t_interval(
    sample_N: ArrayLike, rng: np.random.Generator, level: float = 0.95, draws: int = 2000
) -> Interval:
    """Studentised bootstrap interval for the mean of a skewed continuous measure, N >= 3.

    Of ten exponential values it covers 95 %, Student's interval 90 and a percentile bootstrap 87;
    with heavy tails on both sides Student's covers more. It can be very wide below ten. Source:
    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 12.5.
    """
    share("level", level)
    require(draws >= 1, "draws", draws, "give a whole number >= 1")
    sample_N = finite("sample", sample_N, "seeds", least=3)
    mean, error = sample_N.mean(), stats.sem(sample_N)
    again_BN = rng.choice(sample_N, (draws, sample_N.size))
    spread_B = again_BN.std(-1, ddof=1) / np.sqrt(sample_N.size)
    # A draw of one value N times over has no spread: it is infinitely far, or where the mean is.
    with np.errstate(divide="ignore", invalid="ignore"):
        t_B = np.nan_to_num((again_BN.mean(-1) - mean) / spread_B, posinf=np.inf, neginf=-np.inf)
    tails = [(1 + level) / 2, (1 - level) / 2]
    most, least = np.quantile(t_B, tails, method="inverted_cdf")
    return Interval(mean - most * error, mean - least * error) if error else Interval(mean, mean)


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """The exact interval of a probability: never covers less than `level`.

    >>> low, high = clopper_pearson(0, 10)
    >>> low, round(high, 4)
    (0.0, 0.3085)
    """
    share("level", level)
    require(trials >= 1, "trials", trials, "give a whole number >= 1")
    require(0 <= successes <= trials, "successes", successes, f"give 0 to {trials} (trials)")
    found = stats.binomtest(successes, trials).proportion_ci(level)
    return Interval(float(found.low), float(found.high))
