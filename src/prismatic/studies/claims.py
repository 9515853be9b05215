"""What a study claims. A claim is a declared family of effects, each judged by the three-way rule.

A table has a row per run, with the columns `arm`, `seed`, `diverged` and a measure each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from scipy import stats

from prismatic.errors import one_of, require
from prismatic.stats import (
    Verdict,
    clopper_pearson,
    equivalence_power,
    family_verdicts,
    holm,
    paired_power,
    simultaneous_level,
    smallest_detectable_effect,
    smallest_equivalence_margin,
)
from prismatic.stats.intervals import Interval
from prismatic.stats.verdicts import NO_VERDICT, RULES

ASSAY = "inconclusive (assay)"  # a control failed: whatever was measured shows nothing


class UnjudgeableError(ValueError):
    """A claim asks for a value that a run does not have."""


@dataclass(frozen=True)
class Finding:
    """A verdict on one effect and what it rests on.

    `interval` is at `level`, simultaneous over the claim's family; `p` is adjusted within it, None
    where the rule needs none. `n` counts seeds, or what else was independent.
    """

    verdict: str
    estimate: float
    interval: tuple[float, float]
    level: float
    p: float | None
    n: int
    smallest_effect: float | None
    note: str = ""


class Claim(Protocol):
    """What a study's YAML lists under `claims` and `controls`.

    One of several effects also has `within(arms)`: the claim for a tier with these arms alone, None
    where no effect is left. One without is left out where an arm is missing.
    """

    says: str
    source: str
    unit: str

    def arms(self) -> set[str]:
        """The arms that the claim cannot do without."""

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        """A finding per effect. Raises `UnjudgeableError` where a run lacks the measure and no
        effect can do without it.
        """


@runtime_checkable
class Divisible(Protocol):
    """A claim of which something is left where a tier leaves out arms."""

    def within(self, arms: set[str]) -> Claim | None:
        """The claim for a tier with these arms alone; None where nothing is left of it."""


class Power(NamedTuple):
    """What a design can find.

    `smallest`, in `unit`, is found with 80 % power: the least effect, or of a claim of no
    difference the least margin within which a difference of 0 is shown to be. `power` is that for
    twice the effect that matters, or for no difference at all; None while no deviation is known.
    """

    effects: int
    kind: str
    smallest: float
    unit: str
    power: float | None


@runtime_checkable
class Paired(Protocol):
    """A claim whose effects are one number per seed each."""

    def effects(self, table: pd.DataFrame) -> Mapping[str, np.ndarray]:
        """Every effect by seed."""

    def power(self, num_seeds: int) -> Power:
        """What so many seeds can find."""


def paired_design(
    num_seeds: int, effects: int, kind: str, matters: float, unit: str, pilot_sd: float | None
) -> Power:
    """The power of a family of paired effects, in units of their standard deviation while that is
    not known from pilot seeds.
    """
    alpha, sd = 0.05 / effects, pilot_sd or 1.0
    if kind == "greater":
        smallest = smallest_detectable_effect(num_seeds, sd, alpha=alpha)
        power = paired_power(num_seeds, 2 * matters, sd, alpha)
    else:
        smallest = smallest_equivalence_margin(num_seeds, sd, alpha=alpha)
        power = equivalence_power(num_seeds, matters, sd, alpha)
    if pilot_sd is None:
        return Power(effects, kind, smallest, "standard deviations", None)
    return Power(effects, kind, smallest, unit, power)


def values(
    table: pd.DataFrame, arm: str, measure: str, if_diverged: float | None = None
) -> pd.Series:
    """A measure of an arm by seed; diverged runs count as `if_diverged`, if that is given.

    Raises `UnjudgeableError` for a run without a finite value.
    """
    one_of("measure", measure, tuple(map(str, table.columns)))
    rows = table[table["arm"] == arm].set_index("seed").sort_index()
    found = rows[measure].astype(float)
    if if_diverged is not None:
        found = found.where(rows["diverged"] == 0, if_diverged)
    for seed, value in found[~np.isfinite(found)].items():
        how = "diverged" if rows["diverged"][seed] else f"is {value}"
        raise UnjudgeableError(f"{measure} of arm {arm!r}, seed {seed}, {how}: it has no value")
    return found


@dataclass(frozen=True)
class Contrast:
    """Effects that are weighted sums of one measure over arms, paired by seed.

    `contrasts` maps the name of an effect to the weight of each arm; `offset` is added. Weights are
    such that the claim says > 0. `kind` and `smallest_effect` are those of
    `prismatic.stats.paired_verdict`; `log` takes the logarithm of the measure first. A diverged run
    counts as `if_diverged`. `pilot_sd` is the deviation of the effect over pilot seeds.
    """

    says: str
    measure: str
    contrasts: Mapping[str, Mapping[str, float]]
    smallest_effect: float
    source: str = ""
    unit: str = ""
    kind: str = "greater"
    offset: float = 0.0
    log: bool = False
    if_diverged: float | None = None
    pilot_sd: float | None = None

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("greater", "no difference"))
        require(self.smallest_effect > 0, "smallest_effect", self.smallest_effect, "give > 0")
        require(bool(self.contrasts), "contrasts", self.contrasts, "name at least one effect")
        for name, weights in self.contrasts.items():
            valid = bool(weights) and all(isinstance(w, int | float) for w in weights.values())
            require(valid, f"contrast {name}", weights, "give each arm a number: {a: 1, b: -1}")

    def arms(self) -> set[str]:
        return {arm for weights in self.contrasts.values() for arm in weights}

    def within(self, arms: set[str]) -> "Contrast | None":
        """The claim for a tier with these arms alone; None where no effect is left."""
        kept = {name: w for name, w in self.contrasts.items() if set(w) <= arms}
        return replace(self, contrasts=kept) if kept else None

    def effects(self, table: pd.DataFrame) -> dict[str, np.ndarray]:
        """Every effect by seed."""
        return {name: self.effect(table, weights) for name, weights in self.contrasts.items()}

    def effect(self, table: pd.DataFrame, weights: Mapping[str, float]) -> np.ndarray:
        parts = [w * self.of(table, arm) for arm, w in weights.items()]
        return (sum(parts[1:], parts[0]) + self.offset).to_numpy()

    def of(self, table: pd.DataFrame, arm: str) -> pd.Series:
        found = values(table, arm, self.measure, self.if_diverged)
        return np.log(found) if self.log else found

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        measured, lost = {}, {}
        for name, weights in self.contrasts.items():
            try:
                measured[name] = self.effect(table, weights)
            except UnjudgeableError as error:
                lost[name] = unjudged(NO_VERDICT, str(error))
        verdicts = family_verdicts(
            measured, smallest_effect=self.smallest_effect, claim=self.kind, rng=rng, lost=len(lost)
        )
        return {
            name: lost[name] if name in lost else finding(verdicts[name]) for name in self.contrasts
        }

    def power(self, num_seeds: int) -> Power:
        return paired_design(
            num_seeds, len(self.contrasts), self.kind, self.smallest_effect, self.unit,
            self.pilot_sd,
        )  # fmt: skip


@dataclass(frozen=True)
class Frequency:
    """Something happens in more than a share of runs: `measure` is 1 where it does, 0 elsewhere.

    `groups` maps effects to the arms whose runs are counted together. An effect is the share less
    `above`, its interval that of Clopper and Pearson, its p that of the exact binomial test, both
    over the runs as if they were independent.
    """

    says: str
    measure: str
    groups: Mapping[str, Sequence[str]]
    above: float
    smallest_effect: float
    source: str = ""
    unit: str = "share of runs"

    def __post_init__(self) -> None:
        require(0 < self.above < 1, "above", self.above, "give a share between 0 and 1")
        require(self.smallest_effect > 0, "smallest_effect", self.smallest_effect, "give > 0")

    def arms(self) -> set[str]:
        return {arm for arms in self.groups.values() for arm in arms}

    def within(self, arms: set[str]) -> "Frequency | None":
        kept = {name: [arm for arm in of if arm in arms] for name, of in self.groups.items()}
        kept = {name: of for name, of in kept.items() if of}
        return replace(self, groups=kept) if kept else None

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        rule = RULES["greater"]
        level = simultaneous_level(len(self.groups), rule.level)
        counts = {
            name: {arm: values(table, arm, self.measure) for arm in arms}
            for name, arms in self.groups.items()
        }
        whole = {name: np.concatenate([*by_arm.values()]) for name, by_arm in counts.items()}
        p = [stats.binomtest(int(one.sum()), one.size, self.above).pvalue for one in whole.values()]
        found = {}
        for (name, one), holm_p in zip(whole.items(), holm(p), strict=True):
            low, high = clopper_pearson(int(one.sum()), one.size, level)
            estimate = float(one.mean()) - self.above
            interval = Interval(low - self.above, high - self.above)
            verdict = str(rule.judge(estimate, interval, holm_p, self.smallest_effect))
            bounds = (float(interval.low), float(interval.high))
            most = max(counts[name], key=lambda arm: counts[name][arm].mean())
            note = f"{int(one.sum())} of {one.size} runs"
            if one.any() and len(counts[name]) > 1:
                note += f"; most in {most}: {int(counts[name][most].sum())}"
            found[name] = Finding(
                verdict, estimate, bounds, level, float(holm_p), one.size, self.smallest_effect,
                note,
            )  # fmt: skip
        return found


def finding(verdict: Verdict) -> Finding:
    """A verdict on paired differences, as a study keeps it."""
    low, high = map(float, verdict.interval)
    note = f"P(larger on a new seed) = {verdict.p_better:.2f}"
    if verdict.verdict == NO_VERDICT:
        note = f"{verdict.n} seeds cannot support one of {verdict.num_claims} claims; {note}"
    return Finding(
        verdict.verdict, verdict.estimate, (low, high), verdict.level, verdict.holm_p, verdict.n,
        verdict.smallest_effect, note,
    )  # fmt: skip


def unjudged(verdict: str, note: str) -> Finding:
    """A finding without a number."""
    return Finding(verdict, math.nan, (math.nan, math.nan), 0.95, None, 0, None, note)
