"""Intervals that cover as often as they say, and tests on independent seeds.

A difference is oriented so that the claim says > 0.

Shapes: N independent values, one per seed; ... any dimensions before them, done at once; M claims.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from prismatic.errors import require

from .checks import finite, share

DRAWS = 20_000
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


def sign_flip_p(differences: ArrayLike, rng: np.random.Generator | None = None) -> np.ndarray:
    """Two-sided p of the mean of (..., N) differences, when either sign was as likely: shape (...).

    Exact up to 14 differences; above, `rng` draws patterns of signs. Valid whenever differences are
    symmetric about 0 under the null hypothesis, as those of arms that can be swapped are.

    >>> float(sign_flip_p([1, 2, 3, 4, 5, 6]))
    0.03125
    """
    differences = finite("differences", differences, least=2)
    size = differences.shape[-1]
    wanted = f"{size} differences need drawn signs: pass a numpy.random.Generator"
    require(rng is not None or 2**size <= DRAWS, "rng", rng, wanted)
    test = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=DRAWS, axis=-1, rng=rng
    )
    return test.pvalue


def smallest_p(size: int) -> float:
    """The least p that `sign_flip_p` can give.

    >>> smallest_p(5), smallest_p(6)
    (0.0625, 0.03125)
    """
    return 2.0 ** (1 - size) if 2**size <= DRAWS else 2 / (DRAWS + 1)


def holm(p_M: ArrayLike) -> np.ndarray:
    """Adjusted p of every claim of a family: those < .05 hold together with error rate 5 %.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979.

    >>> holm([0.01, 0.04, 0.03, 0.005]).round(3).tolist()
    [0.03, 0.06, 0.06, 0.02]
    """
    p_M = finite("p", p_M, "claims")
    require(bool(((p_M >= 0) & (p_M <= 1)).all()), "p", p_M.tolist(), "give values from 0 to 1")
    order = p_M.argsort()
    adjusted = np.empty_like(p_M)
    adjusted[order] = np.maximum.accumulate(p_M[order] * np.arange(p_M.size, 0, -1)).clip(max=1)
    return adjusted


class RankCorrelation(NamedTuple):
    """Spearman's coefficient, an interval for it, and a two-sided p by permutations."""

    rho: float
    interval: Interval
    p: float


def rank_correlation(
    x_N: ArrayLike,
    y_N: ArrayLike,
    rng: np.random.Generator,
    *,
    block_N: ArrayLike | None = None,
    level: float = 0.95,
    draws: int = 9999,
) -> RankCorrelation:
    """Do x and y rise together, over N >= 5 independent units? Ties have mean ranks.

    With `block_N` only within blocks: ranks are those among the units of a block, whose labels
    alone are permuted, so what sets a block's x and y apart from another's is no correlation.
    Fisher's transformation with the variance of Bonett and Wright (Psychometrika 65, 2000), of
    which each further block takes a degree of freedom. Where x or y is constant there is nothing to
    see: rho is 0, the interval all of -1 to 1, and p is 1.
    """
    x_N, y_N = finite("x", x_N, "units", least=5), finite("y", y_N, "units")
    require(y_N.size == x_N.size, "length of y", y_N.size, f"give the {x_N.size} units of x")
    block_N = np.zeros(x_N.size) if block_N is None else np.asarray(block_N)
    require(block_N.shape == x_N.shape, "length of block", block_N.size, f"give {x_N.size} blocks")
    blocks = [np.flatnonzero(block_N == block) for block in np.unique(block_N)]
    rank_N, other_N = np.zeros((2, x_N.size))
    for at in blocks:
        for ranks_N, values_N in ((rank_N, x_N), (other_N, y_N)):
            ranks_N[at] = stats.rankdata(values_N[at]) - (at.size + 1) / 2
    size = np.sqrt((rank_N**2).sum() * (other_N**2).sum())
    freedom = x_N.size - 2 - len(blocks)
    if size == 0 or freedom < 1:
        return RankCorrelation(0.0, Interval(-1.0, 1.0), 1.0)
    rho = float(np.clip(rank_N @ other_N / size, -1, 1))
    interval = Interval(rho, rho)
    if abs(rho) < 1:
        half = stats.norm.isf((1 - level) / 2) * np.sqrt((1 + rho**2 / 2) / freedom)
        low, high = np.tanh(np.arctanh(rho) + np.array([-half, half]))
        interval = Interval(float(low), float(high))
    chance_B = sum(
        rng.permuted(np.tile(rank_N[at], (draws, 1)), axis=1) @ other_N[at] for at in blocks
    )
    p = (1 + (np.abs(chance_B) / size >= abs(rho) - 1e-12).sum()) / (1 + draws)
    return RankCorrelation(rho, interval, float(p))
