"""Is A better than B? Tests on paired differences, one per seed.

A difference is oriented so that the claim says > 0.
Shapes: N differences; ... any dimensions before them; F patterns of signs; M claims.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from .checks import finite, require
from .intervals import Interval, clopper_pearson

MOST_EXACT = 12
DRAWS = 20_000


def sign_flip_p(
    differences: ArrayLike, rng: np.random.Generator | None = None, draws: int = DRAWS
) -> np.ndarray:
    """Two-sided p of the mean of (..., N) differences, when either sign was as likely: shape (...).

    Exact up to 12 differences; above, `rng` draws patterns of signs, the seen one counted with
    them, so that p is never 0 and never too small. Valid whenever differences are symmetric about 0
    under the null hypothesis, as those of arms that can be swapped are.

    >>> float(sign_flip_p([1, 2, 3, 4, 5, 6]))
    0.03125
    """
    differences = finite("differences", differences)
    signs_FN = sign_patterns(differences.shape[-1], rng, draws)
    # Patterns with the same sum must count as equal, in whatever order floats were added.
    seen = np.abs(differences.sum(-1)) - 1e-12 * np.abs(differences).sum(-1)
    return (np.abs(differences @ signs_FN.T) >= seen[..., None]).mean(-1)


def sign_patterns(size: int, rng: np.random.Generator | None, draws: int) -> np.ndarray:
    """All patterns of signs up to their mirror images, or the seen one (all +) and drawn ones."""
    if size <= MOST_EXACT:
        return np.array([(1.0, *rest) for rest in product((1.0, -1.0), repeat=size - 1)])
    wanted = f"{size} differences need drawn signs: pass a numpy.random.Generator"
    require(rng is not None, "rng", rng, wanted)
    assert rng is not None
    return np.vstack([np.ones(size), rng.choice([1.0, -1.0], (draws, size))])


def smallest_p(size: int, draws: int = DRAWS) -> float:
    """The least p that `sign_flip_p` can give.

    >>> smallest_p(5), smallest_p(6)
    (0.0625, 0.03125)
    """
    return 2.0 ** (1 - size) if size <= MOST_EXACT else 1 / (draws + 1)


def holm(p_M: ArrayLike) -> np.ndarray:
    """Adjusted p of every claim of a family: those < .05 hold together with error rate 5 %.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979.

    >>> holm([0.01, 0.04, 0.03, 0.005]).round(3).tolist()
    [0.03, 0.06, 0.06, 0.02]
    """
    p_M = finite("p", p_M, "claims")
    require(bool(((p_M >= 0) & (p_M <= 1)).all()), "p", p_M.tolist(), "give values from 0 to 1")
    order = p_M.argsort()
    steps = np.maximum.accumulate(p_M[order] * np.arange(p_M.size, 0, -1))
    adjusted = np.empty_like(p_M)
    adjusted[order] = steps.clip(max=1)
    return adjusted


def equivalence_p(differences: ArrayLike, margin: float) -> np.ndarray:
    """p, by two one-sided t tests, of "the mean of (..., N) is at least `margin` from 0".

    Below .05 exactly when the 90 % t interval lies within (-margin, margin). Source: Schuirmann,
    Journal of Pharmacokinetics and Biopharmaceutics 15, 1987.
    """
    require(margin > 0, "margin", margin, "give a number > 0")
    differences = finite("differences", differences, least=2)
    inside = margin - np.abs(differences.mean(-1))
    # Without any spread the mean is known: it is within the margin or it is not.
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.nan_to_num(inside / stats.sem(differences, axis=-1), posinf=np.inf, neginf=-np.inf)
    return stats.t.sf(t, differences.shape[-1] - 1)


def probability_of_improvement(
    differences_N: ArrayLike, level: float = 0.95
) -> tuple[float, Interval]:
    """P(A beats B) on a new seed, ties counted half, with an interval of at least `level`.

    Paired by seed, as in Bouthillier et al. (arXiv 2103.03098).

    >>> probability_of_improvement([0.2, 0.1, 0.3, -0.1])[0]
    0.75
    """
    differences_N = finite("differences", differences_N, "seeds")
    size, wins = differences_N.size, int((differences_N > 0).sum())
    ties = int((differences_N == 0).sum())
    low = clopper_pearson(wins, size, level).low
    high = clopper_pearson(wins + ties, size, level).high
    return (wins + ties / 2) / size, Interval(low, high)


class RankCorrelation(NamedTuple):
    """Spearman's coefficient, an interval for it, and a two-sided p by permutations."""

    rho: float
    interval: Interval
    p: float


def rank_correlation(
    x_N: ArrayLike,
    y_N: ArrayLike,
    rng: np.random.Generator,
    level: float = 0.95,
    draws: int = 9999,
    block_N: ArrayLike | None = None,
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
    if abs(rho) == 1:
        spread = Interval(rho, rho)
    else:
        half = stats.norm.isf((1 - level) / 2) * np.sqrt((1 + rho**2 / 2) / freedom)
        centre = np.arctanh(rho)
        spread = Interval(float(np.tanh(centre - half)), float(np.tanh(centre + half)))
    chance_B = sum(
        rng.permuted(np.tile(rank_N[at], (draws, 1)), axis=1) @ other_N[at] for at in blocks
    )
    p = (1 + (np.abs(chance_B) / size >= abs(rho) - 1e-12).sum()) / (1 + draws)
    return RankCorrelation(rho, spread, float(p))
