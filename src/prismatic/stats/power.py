"""What a design can find out, to be printed before it is run."""

import numpy as np
from scipy import optimize, stats

from .verdicts import ALPHA

MOST = 1e5  # standard deviations: no family needs a larger effect, even with two seeds


def paired_power(n: int, effect: float, sd: float, alpha: float = ALPHA) -> float:
    """Probability that a two-sided paired t test on `n` seeds finds a mean difference `effect`.

    `sd` is the standard deviation of the differences, from pilot seeds. For a family of C claims
    pass alpha / C: what Holm's procedure has at least.

    >>> round(paired_power(n=10, effect=1.0, sd=1.0), 3)
    0.803
    """
    edge, centre = stats.t.isf(alpha / 2, n - 1), abs(effect) / sd * np.sqrt(n)
    return float(stats.nct.sf(edge, n - 1, centre) + stats.nct.sf(edge, n - 1, -centre))


def equivalence_power(n: int, margin: float, sd: float, alpha: float = ALPHA) -> float:
    """Probability that two one-sided tests on `n` seeds show a difference of 0 to be within margin.

    That is, that the interval at level 1 - 2 alpha lies within +-`margin`; it is averaged over the
    deviation that a sample happens to have. For a family of C claims pass alpha / C. Source:
    Phillips, Power of the two one-sided tests procedure, 1990.

    >>> round(equivalence_power(n=10, margin=1.0, sd=1.0), 3)
    0.795
    """
    edge, reach = stats.t.isf(alpha, n - 1), margin / sd * np.sqrt(n)
    # A sample with a larger deviation has too long an interval, or hardly exists.
    most = min((n - 1) * (reach / edge) ** 2, stats.chi2.isf(1e-12, n - 1))

    def within(spread: float) -> float:
        return 2 * stats.norm.cdf(reach - edge * np.sqrt(spread / (n - 1))) - 1

    return float(stats.chi2.expect(within, args=(n - 1,), lb=0, ub=most))


def smallest_detectable_effect(
    n: int, sd: float, power: float = 0.8, alpha: float = ALPHA
) -> float:
    """The mean difference that a two-sided paired t test on `n` seeds finds with `power`.

    >>> round(smallest_detectable_effect(n=10, sd=0.01), 4)
    0.01
    """
    return sd * optimize.brentq(lambda d: paired_power(n, d, 1.0, alpha) - power, 0.0, MOST)


def smallest_equivalence_margin(
    n: int, sd: float, power: float = 0.8, alpha: float = ALPHA
) -> float:
    """The margin within which a difference of 0 is shown to be on `n` seeds with `power`.

    >>> round(smallest_equivalence_margin(n=10, sd=0.01), 4)
    0.01
    """
    return sd * optimize.brentq(lambda m: equivalence_power(n, m, 1.0, alpha) - power, 1e-6, MOST)
