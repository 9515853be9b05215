"""From paired differences to a verdict: the three-way rule, as a pure function.

Whoever calls decides what a diverged run counts as (the uniform predictor's loss, say): divergence
is data. A value that is missing or not finite is refused here: incomplete tables are never judged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from prismatic.errors import one_of, require

from .checks import finite
from .estimates import (
    Interval,
    Numbers,
    holm,
    sign_flip_p,
    simultaneous_level,
    smallest_p,
    t_interval,
)

ALPHA = 0.05
VERDICTS = SUPPORTED, REFUTED, INCONCLUSIVE, NO_VERDICT = (
    "supported", "refuted", "inconclusive", "no verdict",
)  # fmt: skip


def judge_greater(
    mean: Numbers, interval: Interval, p: Numbers, smallest_effect: float
) -> np.ndarray:
    """Supported: there is an effect, of interesting size. Refuted: none of interesting size."""
    supported = (p < ALPHA) & (interval.low > 0) & (mean >= smallest_effect)
    refuted = interval.high < smallest_effect
    return np.select([supported, refuted], [SUPPORTED, REFUTED], INCONCLUSIVE)


def judge_no_difference(
    mean: Numbers, interval: Interval, p: Numbers, smallest_effect: float
) -> np.ndarray:
    """Supported: all plausible effects are of no interest. Refuted: none of them is."""
    inside = (interval.low > -smallest_effect) & (interval.high < smallest_effect)
    outside = (interval.low > smallest_effect) | (interval.high < -smallest_effect)
    return np.select([inside, outside], [SUPPORTED, REFUTED], INCONCLUSIVE)


def judge_difference(
    mean: Numbers, interval: Interval, p: Numbers, smallest_effect: float
) -> np.ndarray:
    """Supported: an effect in either direction, of interesting size. Refuted: none of it."""
    excludes_0 = (interval.low > 0) | (interval.high < 0)
    supported = (p < ALPHA) & excludes_0 & (np.abs(mean) >= smallest_effect)
    refuted = (interval.low > -smallest_effect) & (interval.high < smallest_effect)
    return np.select([supported, refuted], [SUPPORTED, REFUTED], INCONCLUSIVE)


class Rule(NamedTuple):
    """The level of its interval when it stands alone, and what it makes of arrays or scalars."""

    level: float
    judge: Callable[..., np.ndarray]


RULES = {
    "greater": Rule(1 - ALPHA, judge_greater),
    "no difference": Rule(1 - 2 * ALPHA, judge_no_difference),
    "difference": Rule(1 - ALPHA, judge_difference),
}


def too_few(size: int, num_claims: int = 1) -> bool:
    """Whether so few seeds could not support a claim: then they must not refute it either.

    >>> too_few(5), too_few(6), too_few(10, num_claims=26)
    (True, False, True)
    """
    return num_claims * smallest_p(size) >= ALPHA


@dataclass(frozen=True)
class Finding:
    """A verdict on one effect and what it rests on.

    `interval` is at `level`, simultaneous over the claim's family; `p` is adjusted within it, None
    where the rule needs none. `n` counts seeds, or what else was independent. `verdict` is "no
    verdict" when so few of them could not support any claim.
    """

    verdict: str
    estimate: float
    interval: Interval
    level: float
    p: float | None
    n: int
    smallest_effect: float | None
    note: str = ""


def family_findings(
    differences: Mapping[str, ArrayLike],
    smallest_effect: float,
    *,
    kind: str = "greater",
    rng: np.random.Generator | None = None,
    lost: int = 0,
) -> dict[str, Finding]:
    """Judge a declared family of effects, by name: Holm's p, simultaneous intervals.

    Each is a difference per seed, oriented so that the claim says > 0. `kind` is one of `RULES`.
    `lost` effects of the family could not be measured: its size stays what was declared. Above 14
    seeds `rng` draws the sign flips. Raises `ValueError` for an incomplete table.

    >>> better_by = [0.05, 0.04, 0.05, 0.04, 0.05, 0.04, 0.04, 0.06]
    >>> found = family_findings({"a": better_by}, smallest_effect=0.01)["a"]
    >>> found.verdict, round(found.estimate, 4), found.p, found.note
    ('supported', 0.0462, 0.0078125, 'P(larger on a new seed) = 1.00')
    """
    one_of("kind", kind, tuple(RULES))
    require(smallest_effect > 0, "smallest_effect", smallest_effect, "give a number > 0")
    rule, num_claims = RULES[kind], len(differences) + lost
    if not differences:
        return {}
    table = {name: finite(name, one, "seeds", least=2) for name, one in differences.items()}
    p = [float(sign_flip_p(one_N, rng)) for one_N in table.values()]
    adjusted = holm([*p, *[1.0] * lost]).tolist()
    level = simultaneous_level(num_claims, rule.level)
    found = {}
    for (name, one_N), holm_p in zip(table.items(), adjusted, strict=False):
        mean, size = float(one_N.mean()), one_N.size
        interval = Interval(*map(float, t_interval(one_N, level)))
        verdict = str(rule.judge(mean, interval, holm_p, smallest_effect))
        better = float(((one_N > 0) + (one_N == 0) / 2).mean())
        note = f"P(larger on a new seed) = {better:.2f}"
        if too_few(size, num_claims):
            verdict = NO_VERDICT
            note = f"{size} seeds cannot support one of {num_claims} claims; {note}"
        found[name] = Finding(verdict, mean, interval, level, holm_p, size, smallest_effect, note)
    return found
