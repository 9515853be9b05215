"""Are draws seeded by pi other than draws seeded by a hash?

Shapes: S initialisations, A and B units (positions of pi, hash seeds) of the two groups, U of both,
R splits of all units into two such groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from prismatic.errors import one_of, require
from prismatic.report.missing import NothingToDrawError
from prismatic.report.style import COLOURS, MARKERS, plain, styled, title
from prismatic.stats import holm, simultaneous_level
from prismatic.stats.intervals import Interval
from prismatic.stats.verdicts import NO_VERDICT, RULES, Rule, judge_greater, three_way

from .claims import Finding, values

MOST_EXACT = 20_000  # splits that are all looked at; of more, as many are drawn


def judge_difference(mean: float, interval: Interval, p: float, smallest: float) -> np.ndarray:
    """Supported: an effect in either direction, of interesting size. Refuted: none of it."""
    supported = [
        judge_greater(sign * mean, one, p, smallest) == "supported"
        for sign, one in ((1, interval), (-1, Interval(-interval.high, -interval.low)))
    ]
    inside = (interval.low > -smallest) & (interval.high < smallest)
    return three_way(any(supported), inside)


KINDS = {"no difference": RULES["no difference"], "difference": Rule(0.95, judge_difference)}


class Comparison(NamedTuple):
    """Mean of one group less that of the other, its standard error and the permutation p."""

    estimate: float
    error: float
    p: float
    smallest_p: float


def splits(size: int, first: int, rng: np.random.Generator) -> np.ndarray:
    """Which units are of the first group, (R, units): all ways, or many drawn and the seen one."""
    if comb(size, first) <= MOST_EXACT:
        chosen = np.array(list(combinations(range(size), first)))
    else:
        drawn = [rng.permutation(size)[:first] for _ in range(MOST_EXACT)]
        chosen = np.array([np.arange(first), *drawn])
    split_RU = np.zeros((len(chosen), size), bool)
    np.put_along_axis(split_RU, chosen, True, axis=1)
    return split_RU


def compare(unit_A: np.ndarray, unit_B: np.ndarray, rng: np.random.Generator) -> Comparison:
    """Two groups of independent units; two-sided p by permuting which group each belongs to.

    The error is Student's with one variance for both, which labels that can be permuted share.
    """
    num_a, num_b = len(unit_A), len(unit_B)
    unit_U = np.concatenate([unit_A, unit_B])
    split_RU = splits(num_a + num_b, num_a, rng)
    difference_R = split_RU @ unit_U / num_a - ~split_RU @ unit_U / num_b
    seen = unit_A.mean() - unit_B.mean()
    # Splits with the same sum must count as equal, in whatever order floats were added.
    p = (np.abs(difference_R) >= abs(seen) - 1e-12 * np.abs(unit_U).max()).mean()
    within = ((unit_A - unit_A.mean()) ** 2).sum() + ((unit_B - unit_B.mean()) ** 2).sum()
    error = np.sqrt(within / (num_a + num_b - 2) * (1 / num_a + 1 / num_b))
    smallest = (1 if num_a != num_b else 2) / len(split_RU)
    return Comparison(float(seen), float(error), float(p), smallest)


@dataclass(frozen=True)
class Groups:
    """Two groups of arms differ, or do not, in several measures: the declared family.

    An arm is a unit (a position of pi, a hash seed) and is run in every initialisation, which are
    the seeds; its value is the mean over them. So initialisations cancel, and what varies is what a
    unit does in all of them. `measures` maps each measure to the least difference that matters, in
    its own unit; `kind` is "difference" or "no difference".
    """

    says: str
    measures: Mapping[str, float]
    group: Sequence[str]
    other: Sequence[str]
    source: str = ""
    unit: str = ""
    kind: str = "no difference"

    def __post_init__(self) -> None:
        one_of("kind", self.kind, tuple(KINDS))
        for name, arms in (("group", self.group), ("other", self.other)):
            require(len(arms) >= 2, name, list(arms), "name at least 2 arms")
        for name, least in self.measures.items():
            require(least > 0, f"smallest effect of {name}", least, "give > 0")

    def arms(self) -> set[str]:
        return {*self.group, *self.other}

    def within(self, arms: set[str]) -> "Groups | None":
        """The groups of the units that a tier runs; None where one of them has no spread left."""
        group, other = ([arm for arm in one if arm in arms] for one in (self.group, self.other))
        whole = len(group) >= 2 and len(other) >= 2
        return replace(self, group=group, other=other) if whole else None

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        found = {name: self.compare(table, name, rng) for name in self.measures}
        adjusted = holm([one.p for one in found.values()])
        return {
            name: self.finding(one, float(p), self.measures[name])
            for (name, one), p in zip(found.items(), adjusted, strict=True)
        }

    def compare(self, table: pd.DataFrame, measure: str, rng: np.random.Generator) -> Comparison:
        unit_A, unit_B = (
            np.array([values(table, arm, measure).mean() for arm in arms])
            for arms in (self.group, self.other)
        )
        return compare(unit_A, unit_B, rng)

    def finding(self, one: Comparison, p: float, smallest: float) -> Finding:
        """The verdict by intervals that hold together for all measures."""
        rule, num_units = KINDS[self.kind], len(self.group) + len(self.other)
        level = simultaneous_level(len(self.measures), rule.level)
        reach = float(stats.t.ppf((1 + level) / 2, num_units - 2)) * one.error
        interval = Interval(one.estimate - reach, one.estimate + reach)
        verdict = str(rule.judge(one.estimate, interval, p, smallest))
        if self.kind == "difference" and len(self.measures) * one.smallest_p >= 0.05:
            verdict = NO_VERDICT
        note = f"{len(self.group)} units against {len(self.other)}"
        bounds = (float(interval.low), float(interval.high))
        return Finding(verdict, one.estimate, bounds, level, p, num_units, smallest, note)


@dataclass(frozen=True)
class Units:
    """A column per group: a mark per unit, the mean over initialisations less that of all units."""

    caption: str
    groups: Mapping[str, Sequence[str]]
    measures: Mapping[str, str]

    def draw(self, table: pd.DataFrame, findings: Any) -> Figure:
        """The figure, of the units that were run."""
        run = set(table["arm"])
        known = {name: [arm for arm in arms if arm in run] for name, arms in self.groups.items()}
        return draw_units({k: arms for k, arms in known.items() if arms}, self.measures, table)


@styled
def draw_units(
    figure: Figure, groups: Mapping[str, Sequence[str]], measures: Mapping[str, str],
    table: pd.DataFrame,
) -> None:  # fmt: skip
    if not groups:
        raise NothingToDrawError("no group of arms was run in whole")
    figure.set_size_inches(1.0 + 3.0 * len(measures), 3.8)
    title(figure, "Each seeding's mean over initialisations")
    for axes, (measure, label) in zip(
        figure.subplots(1, len(measures), squeeze=False).ravel(), measures.items(), strict=True
    ):
        for place, (arms, marker) in enumerate(zip(groups.values(), MARKERS, strict=False)):
            unit_U = np.array([values(table, arm, measure).mean() for arm in arms])
            spread_U = place + np.linspace(-0.15, 0.15, len(unit_U))
            colour = COLOURS[1 + place]
            axes.plot(spread_U, unit_U, marker, color=colour, markerfacecolor="none")
            axes.plot([place - 0.25, place + 0.25], [unit_U.mean()] * 2, color="#000000")
        axes.set_xticks(range(len(groups)), [plain(name) for name in groups])
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.set_title(plain(label), size=10)
        axes.grid(visible=False, axis="x")
