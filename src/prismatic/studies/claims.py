"""What a study claims. A claim is a declared family of effects, each judged by the three-way rule.

A table has a row per run, with the columns `arm`, `seed`, `diverged` and a measure each.

Shapes: N seeds.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pandas as pd
from scipy import stats

from prismatic.errors import one_of, require
from prismatic.stats import (
    NO_VERDICT,
    RULES,
    Finding,
    Interval,
    equivalence_power,
    family_findings,
    holm,
    paired_power,
    simultaneous_level,
    smallest_detectable_effect,
    smallest_equivalence_margin,
)


class UnjudgeableError(ValueError):
    """An effect has no value for some run; `verdict` is what is then said of it."""

    def __init__(self, message: str, verdict: str = NO_VERDICT) -> None:
        super().__init__(message)
        self.verdict = verdict

    def finding(self) -> Finding:
        """What is found of an effect without a number."""
        nothing = Interval(math.nan, math.nan)
        return Finding(self.verdict, math.nan, nothing, 0.95, None, 0, None, str(self))


def values(
    table: pd.DataFrame, arm: str, measure: str, if_diverged: float | None = None
) -> pd.Series:
    """A measure of an arm by seed; diverged runs count as `if_diverged`, if that is given.

    Raises `UnjudgeableError` for a run without a finite value.
    """
    one_of("measure", measure, tuple(map(str, table.columns)))
    columns = ["seed", *dict.fromkeys(["diverged", measure])]
    rows = table.loc[table["arm"] == arm, columns].set_index("seed").sort_index()
    measured = rows[measure].astype(float)
    if if_diverged is not None:
        measured = measured.where(rows["diverged"] == 0, if_diverged)
    for seed, value in measured[~np.isfinite(measured)].items():
        how = "diverged" if rows["diverged"][seed] else f"is {value}"
        raise UnjudgeableError(f"{measure} of arm {arm!r}, seed {seed}, {how}: it has no value")
    return measured


def sound_runs(table: pd.DataFrame, arms: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The runs that did not diverge of those arms that have any, by arm."""
    sound = table[table["diverged"] == 0]
    by_arm = {arm: sound[sound["arm"] == arm] for arm in arms}
    return {arm: runs for arm, runs in by_arm.items() if len(runs)}


def arms_in(part: Any) -> set[str]:
    """The arms of a list, or of a mapping of effects to their arm, arms or weights of arms."""
    if isinstance(part, str):
        return {part}
    if isinstance(part, Mapping) and not all(isinstance(v, int | float) for v in part.values()):
        return {arm for one in part.values() for arm in arms_in(one)}
    return set(part)


def groups_within(groups: Mapping[str, Sequence[str]], arms: set[str]) -> dict[str, list[str]]:
    """Groups of arms without those that a tier leaves out; a group of none is left out, too."""
    kept = {name: [arm for arm in of if arm in arms] for name, of in groups.items()}
    return {name: of for name, of in kept.items() if of}


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


@dataclass(frozen=True, kw_only=True)
class Claim(ABC):
    """What a study's YAML lists under `claims` and `controls`.

    `says` is the claim in words, `source` where it is made, `unit` that of its effects, of which
    those below `smallest_effect` do not matter. `kind` is a rule of `prismatic.stats.RULES`. The
    field that `EFFECTS` names lists arms, or maps effects to their arm, arms or weights of arms.
    """

    EFFECTS: ClassVar[str]

    says: str
    source: str = ""
    unit: str = ""
    kind: str = "greater"
    smallest_effect: float | None = None

    def __post_init__(self) -> None:
        one_of("kind", self.kind, tuple(RULES))
        least = self.smallest_effect
        require(least is None or least > 0, "smallest_effect", least, "give a number > 0")
        effects = getattr(self, self.EFFECTS)
        require(bool(effects), self.EFFECTS, effects, "name at least one")

    def arms(self) -> set[str]:
        """The arms that the claim cannot do without."""
        return arms_in(getattr(self, self.EFFECTS))

    def measure_names(self) -> set[str]:
        """The measures it is about, as far as it names them."""
        return set()

    def within(self, arms: set[str]) -> Self | None:
        """The claim for a tier with these arms alone; None where no effect is left."""
        declared = getattr(self, self.EFFECTS)
        if isinstance(declared, Mapping):
            kept: Any = {name: one for name, one in declared.items() if arms_in(one) <= arms}
        else:
            kept = [arm for arm in declared if arm in arms]
        return replace(self, **{self.EFFECTS: kept}) if kept else None

    @abstractmethod
    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        """A finding per effect. Raises `UnjudgeableError` where no effect has a value."""

    def power(self, num_seeds: int) -> Power | None:
        """What so many seeds can find, where that is known before anything is run."""
        return None


@dataclass(frozen=True, kw_only=True)
class PairedClaim(Claim):
    """A claim whose effects are one number per seed each, oriented so that it says > 0.

    `pilot_sd` is the deviation of an effect over pilot seeds.
    """

    smallest_effect: float
    pilot_sd: float | None = None

    @abstractmethod
    def effect(self, table: pd.DataFrame, name: str) -> np.ndarray:
        """An effect by seed: (N,). Raises `UnjudgeableError` where a run has no value of it."""

    def effects(
        self, table: pd.DataFrame
    ) -> tuple[dict[str, np.ndarray], dict[str, UnjudgeableError]]:
        """Every effect by seed, and why others have no value."""
        measured, lost = {}, {}
        for name in getattr(self, self.EFFECTS):
            try:
                measured[name] = self.effect(table, name)
            except UnjudgeableError as reason:
                lost[name] = reason
        return measured, lost

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        measured, lost = self.effects(table)
        # What could not be measured stays in the family, whose size was declared.
        judged = family_findings(
            measured, self.smallest_effect, kind=self.kind, rng=rng, lost=len(lost)
        )
        return {
            name: lost[name].finding() if name in lost else self.checked(table, name, judged[name])
            for name in getattr(self, self.EFFECTS)
        }

    def checked(self, table: pd.DataFrame, name: str, found: Finding) -> Finding:
        """The finding after what the claim asks of it beside the rule."""
        return found

    def power(self, num_seeds: int) -> Power:
        """In units of the effect's standard deviation while that is not known from pilot seeds."""
        effects, sd = len(getattr(self, self.EFFECTS)), self.pilot_sd or 1.0
        alpha, matters = 0.05 / effects, self.smallest_effect
        if self.kind == "greater":
            smallest = smallest_detectable_effect(num_seeds, sd, alpha=alpha)
            power = paired_power(num_seeds, 2 * matters, sd, alpha)
        else:
            smallest = smallest_equivalence_margin(num_seeds, sd, alpha=alpha)
            power = equivalence_power(num_seeds, matters, sd, alpha)
        if self.pilot_sd is None:
            return Power(effects, self.kind, smallest, "standard deviations", None)
        return Power(effects, self.kind, smallest, self.unit, power)


@dataclass(frozen=True, kw_only=True)
class Contrast(PairedClaim):
    """Effects that are weighted sums of one measure over arms, paired by seed.

    `contrasts` maps the name of an effect to the weight of each arm; `offset` is added. `log` takes
    the logarithm of the measure first. A diverged run counts as `if_diverged`.
    """

    EFFECTS = "contrasts"

    measure: str
    contrasts: Mapping[str, Mapping[str, float]]
    offset: float = 0.0
    log: bool = False
    if_diverged: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, weights in self.contrasts.items():
            valid = bool(weights) and all(isinstance(w, int | float) for w in weights.values())
            require(valid, f"contrast {name}", weights, "give each arm a number: {a: 1, b: -1}")

    def measure_names(self) -> set[str]:
        return {self.measure}

    def effect(self, table: pd.DataFrame, name: str) -> np.ndarray:
        total = self.offset
        for arm, weight in self.contrasts[name].items():
            by_seed = values(table, arm, self.measure, self.if_diverged)
            total = total + weight * (np.log(by_seed) if self.log else by_seed)
        return np.asarray(total)


@dataclass(frozen=True, kw_only=True)
class Frequency(Claim):
    """Something happens in more than a share of runs: `measure` is 1 where it does, 0 elsewhere.

    `groups` maps effects to the arms whose runs are counted together. An effect is the share less
    `above`, its interval that of Clopper and Pearson, its p that of the exact binomial test, both
    over the runs as if they were independent.
    """

    EFFECTS = "groups"

    measure: str
    groups: Mapping[str, Sequence[str]]
    above: float
    smallest_effect: float
    unit: str = "share of runs"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.above < 1, "above", self.above, "give a share between 0 and 1")

    def measure_names(self) -> set[str]:
        return {self.measure}

    def within(self, arms: set[str]) -> Self | None:
        groups = groups_within(self.groups, arms)
        return replace(self, groups=groups) if groups else None

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        rule = RULES["greater"]
        level = simultaneous_level(len(self.groups), rule.level)
        happened = {
            name: {arm: values(table, arm, self.measure) for arm in arms}
            for name, arms in self.groups.items()
        }
        tests = {}
        for name, by_arm in happened.items():
            count, size = (
                sum(int(one.sum()) for one in by_arm.values()),
                sum(map(len, by_arm.values())),
            )
            tests[name] = stats.binomtest(count, size, self.above)
        adjusted = holm([test.pvalue for test in tests.values()])
        found = {}
        for (name, test), p in zip(tests.items(), adjusted.tolist(), strict=True):
            low, high = test.proportion_ci(level)
            interval = Interval(float(low) - self.above, float(high) - self.above)
            estimate = float(test.statistic) - self.above
            verdict = str(rule.judge(estimate, interval, p, self.smallest_effect))
            note = f"{test.k} of {test.n} runs"
            by_arm = happened[name]
            if test.k and len(by_arm) > 1:
                most = max(by_arm, key=lambda arm: by_arm[arm].mean())
                note += f"; most in {most}: {int(by_arm[most].sum())}"
            found[name] = Finding(
                verdict, estimate, interval, level, p, test.n, self.smallest_effect, note
            )
        return found
