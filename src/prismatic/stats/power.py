"""What a design can find out, to be printed before it is run."""

import numpy as np
from scipy import optimize, stats

from prismatic.errors import require

from .checks import share
from .verdicts import ALPHA


def paired_power(n: int, effect: float, sd: float, alpha: float = ALPHA) -> float:
    """Probability that a two-sided paired t test on `n` seeds finds a mean difference `effect`.

    `sd` is the standard deviation of the differences, from pilot seeds. For a family of C claims
    pass alpha / C: what Holm's procedure has at least.

    >>> round(paired_power(n=10, effect=1.0, sd=1.0), 3)
    0.803
    """
    check_design(n, sd)
    share("alpha", alpha)
    edge, centre = stats.t.isf(alpha / 2, n - 1), abs(effect) / sd * np.sqrt(n)
    return float(stats.nct.sf(edge, n - 1, centre) + stats.nct.sf(edge, n - 1, -centre))


def smallest_detectable_effect(
    n: int, sd: float, power: float = 0.8, alpha: float = ALPHA
) -> float:
    """The mean difference that a two-sided paired t test on `n` seeds finds with `power`.

    >>> round(smallest_detectable_effect(n=10, sd=0.01), 4)
    0.01
    """
    check_design(n, sd)
    share("alpha", alpha)
    require(alpha < power < 1, "power", power, f"give a number between {alpha} (alpha) and 1")
    most = stats.t.isf(alpha / 2, n - 1) + stats.t.ppf(power, n - 1) + 10
    units = optimize.brentq(lambda d: paired_power(n, d, 1.0, alpha) - power, 0.0, most)
    return float(units) * sd


def equivalence_power(n: int, margin: float, sd: float, alpha: float = ALPHA) -> float:
    """Probability that two one-sided tests on `n` seeds show a difference of 0 to be within margin.

    That is, that the interval at level 1 - 2 alpha lies within +-`margin`; it is averaged over the
    deviation that a sample happens to have. For a family of C claims pass alpha / C. Source:
    Phillips, Power of the two one-sided tests procedure, 1990.

    >>> round(equivalence_power(n=10, margin=1.0, sd=1.0), 3)
    0.795
    """
    check_design(n, sd)
    share("alpha", alpha)
    require(margin > 0, "margin", margin, "give a number > 0")
    edge, reach = stats.t.isf(alpha, n - 1), margin / sd * np.sqrt(n)
    # A sample with a larger deviation has too long an interval, or hardly exists.
    most = min((n - 1) * (reach / edge) ** 2, stats.chi2.isf(1e-12, n - 1))

    def within(spread: float) -> float:
        return 2 * stats.norm.cdf(reach - edge * np.sqrt(spread / (n - 1))) - 1

    return float(stats.chi2.expect(within, args=(n - 1,), lb=0, ub=most))


def smallest_equivalence_margin(
    n: int, sd: float, power: float = 0.8, alpha: float = ALPHA
) -> float:
    """The margin within which a difference of 0 is shown to be on `n` seeds with `power`.

    >>> round(smallest_equivalence_margin(n=10, sd=0.01), 4)
    0.01
    """
    check_design(n, sd)
    require(0 < power < 1, "power", power, "give a number between 0 and 1")
    most = (stats.t.isf(alpha, n - 1) + 10) * 10
    units = optimize.brentq(lambda m: equivalence_power(n, m, 1.0, alpha) - power, 1e-6, most)
    return float(units) * sd


def check_design(n: int, sd: float) -> None:
    require(n >= 2, "n", n, "give at least 2 seeds")
    require(sd > 0, "sd", sd, "give a number > 0")
