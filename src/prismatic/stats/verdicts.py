"""From paired differences to a verdict: the three-way rule, as a pure function.

Whoever calls decides what a diverged run counts as (the uniform predictor's loss, say): divergence
is data. A value that is missing or not finite is refused here: incomplete tables are never judged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .checks import finite, require
from .comparisons import holm, probability_of_improvement, sign_flip_p, smallest_p
from .intervals import Interval, Numbers, simultaneous_level, t_interval

ALPHA = 0.05
VERDICTS = SUPPORTED, REFUTED, INCONCLUSIVE, NO_VERDICT = (
    "supported", "refuted", "inconclusive", "no verdict",
)  # fmt: skip


def judge_greater(
    mean: Numbers, interval: Interval, p: Numbers, smallest_effect: float
) -> np.ndarray:
    """Supported: there is an effect, of interesting size. Refuted: none of interesting size."""
    supported = (p < ALPHA) & (interval.low > 0) & (mean >= smallest_effect)
    return three_way(supported, interval.high < smallest_effect)


def judge_no_difference(
    mean: Numbers, interval: Interval, p: Numbers, smallest_effect: float
) -> np.ndarray:
    """Supported: all plausible effects are of no interest. Refuted: none of them is."""
    inside = (interval.low > -smallest_effect) & (interval.high < smallest_effect)
    outside = (interval.low > smallest_effect) | (interval.high < -smallest_effect)
    return three_way(inside, outside)


def three_way(supported: Any, refuted: Any) -> np.ndarray:
    return np.select([supported, refuted], [SUPPORTED, REFUTED], INCONCLUSIVE)


def too_few(size: int, num_claims: int = 1) -> bool:
    """Whether so few seeds could not support a claim: then they must not refute it either.

    >>> too_few(5), too_few(6), too_few(10, num_claims=26)
    (True, False, True)
    """
    return num_claims * smallest_p(size) >= ALPHA


class Rule(NamedTuple):
    """The level of its interval when it stands alone, and what it makes of arrays or scalars."""

    level: float
    judge: Callable[..., np.ndarray]


RULES = {
    "greater": Rule(1 - ALPHA, judge_greater),
    "no difference": Rule(1 - 2 * ALPHA, judge_no_difference),
}


@dataclass(frozen=True)
class Verdict:
    """A verdict and what it rests on.

    `interval` is the one that was judged: of the mean difference, at `level`, simultaneous over
    `num_claims`. `p` is the claim's own two-sided sign-flip p, `holm_p` the adjusted one.
    `p_better` is P(A beats B) on a new seed. `verdict` is supported, refuted, inconclusive, or "no
    verdict" when so few seeds could not support any claim.
    """

    verdict: str
    claim: str
    smallest_effect: float
    estimate: float
    interval: Interval
    level: float
    p: float
    holm_p: float
    p_better: float
    n: int
    num_claims: int


def paired_verdict(
    a_N: ArrayLike,
    b_N: ArrayLike | None = None,
    *,
    smallest_effect: float,
    claim: str = "greater",
    other_p: Sequence[float] = (),
    rng: np.random.Generator | None = None,
) -> Verdict:
    """Judge the differences `a_N`, or `a_N - b_N` of the same seeds in the same order.

    Orient them so that the claim says > 0: to claim a lower loss, pass the baseline's losses first.
    `claim` is "greater" (by `smallest_effect` or more) or "no difference" (within +-
    `smallest_effect`). `other_p` are the sign-flip p of the other claims of a declared family.
    Above 12 seeds `rng` draws the sign flips. Raises ValueError for an incomplete table.

    >>> verdict = paired_verdict([2.31, 2.30, 2.33, 2.29, 2.32, 2.31, 2.30, 2.34],
    ...                          [2.26, 2.27, 2.28, 2.25, 2.27, 2.27, 2.26, 2.28],
    ...                          smallest_effect=0.01)
    >>> verdict.verdict, round(verdict.estimate, 4), verdict.p, verdict.p_better
    ('supported', 0.045, 0.0078125, 1.0)
    """
    differences_N = paired(a_N, b_N)
    p = float(sign_flip_p(differences_N, rng))
    holm_p = float(holm([p, *other_p])[0])
    return judged(differences_N, smallest_effect, claim, p, holm_p, 1 + len(other_p))


def family_verdicts(
    differences: Mapping[str, ArrayLike],
    *,
    smallest_effect: float,
    claim: str = "greater",
    rng: np.random.Generator | None = None,
    lost: int = 0,
) -> dict[str, Verdict]:
    """Judge a declared family of claims of one kind, by name: Holm's p, simultaneous intervals.

    `lost` claims of the family could not be measured: its size stays what was declared.
    """
    table = {name: paired(values) for name, values in differences.items()}
    p = {name: float(sign_flip_p(values, rng)) for name, values in table.items()}
    adjusted = dict(zip(p, holm([*p.values(), *[1.0] * lost]).tolist(), strict=False))
    return {
        name: judged(values, smallest_effect, claim, p[name], adjusted[name], len(table) + lost)
        for name, values in table.items()
    }


def paired(a_N: ArrayLike, b_N: ArrayLike | None = None) -> np.ndarray:
    """The differences of one sample, or of two of the same seeds."""
    a_N = finite("a", a_N, "seeds", least=2)
    if b_N is None:
        return a_N
    b_N = finite("b", b_N, "seeds")
    require(b_N.size == a_N.size, "length of b", b_N.size, f"give the {a_N.size} seeds of a")
    return a_N - b_N


def judged(
    differences_N: np.ndarray,
    smallest_effect: float,
    claim: str,
    p: float,
    holm_p: float,
    num_claims: int,
) -> Verdict:
    """Apply the claim's rule to what was estimated and tested."""
    require(claim in RULES, "claim", claim, f"choose one of {', '.join(RULES)}")
    require(smallest_effect > 0, "smallest_effect", smallest_effect, "give a number > 0")
    rule, size, mean = RULES[claim], differences_N.size, float(differences_N.mean())
    level = simultaneous_level(num_claims, rule.level)
    interval = Interval(*map(float, t_interval(differences_N, level)))
    verdict = str(rule.judge(mean, interval, holm_p, smallest_effect))
    if too_few(size, num_claims):
        verdict = NO_VERDICT
    return Verdict(
        verdict=verdict,
        claim=claim,
        smallest_effect=smallest_effect,
        estimate=mean,
        interval=interval,
        level=level,
        p=p,
        holm_p=holm_p,
        p_better=probability_of_improvement(differences_N)[0],
        n=size,
        num_claims=num_claims,
    )
