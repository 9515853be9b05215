"""Are draws seeded by pi other than draws seeded by a hash? (source 000, prediction 3)

Claim and figure.

Shapes: A and B units (positions of pi, hash seeds) of the two groups, U of one of them, M measures.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import Self

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from prismatic.errors import one_of, require
from prismatic.report.record import NothingToDrawError
from prismatic.report.style import COLOURS, MARKERS, plain, title
from prismatic.stats import ALPHA, NO_VERDICT, RULES, Finding, Interval, holm, simultaneous_level

from ..claims import Claim, values
from ..figures import StudyFigure, side_by_side

MOST_SPLITS = 20_000  # into two groups, that are all looked at; of more, as many are drawn


def unit_means(table: pd.DataFrame, arms: Sequence[str], measure: str) -> np.ndarray:
    """Each unit's mean over initialisations."""
    return np.array([values(table, arm, measure).mean() for arm in arms])


def permutation_p(unit_MA: np.ndarray, unit_MB: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two-sided p of each measure's difference of means, (M,), by permuting which group a unit
    belongs to.
    """
    test = stats.permutation_test(
        (unit_MA, unit_MB),
        lambda a, b, axis: np.abs(a.mean(axis) - b.mean(axis)),
        alternative="greater",
        n_resamples=MOST_SPLITS,
        axis=-1,
        rng=rng,
    )
    return test.pvalue


def student_interval(unit_A: np.ndarray, unit_B: np.ndarray, level: float) -> Interval:
    """Of the difference of means, with one variance for both groups."""
    with warnings.catch_warnings():
        # Units that agree to rounding have no spread to lose precision of: the interval is a point.
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        return Interval(*stats.ttest_ind(unit_A, unit_B).confidence_interval(level))


@dataclass(frozen=True, kw_only=True)
class Groups(Claim):
    """Two groups of arms differ, or do not, in several measures: the declared family.

    An arm is a unit (a position of pi, a hash seed) and is run in every initialisation, which are
    the seeds; its value is the mean over them. So initialisations cancel, and what varies is what a
    unit does in all of them. `measures` maps each measure to the least difference that matters, in
    its own unit; `kind` is "difference" or "no difference". The interval is Student's with one
    variance for both groups, which units that can be permuted share.
    """

    EFFECTS = "measures"

    measures: Mapping[str, float]
    group: Sequence[str]
    other: Sequence[str]
    kind: str = "no difference"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("kind", self.kind, ("no difference", "difference"))
        for name, arms in (("group", self.group), ("other", self.other)):
            require(len(arms) >= 2, name, list(arms), "name at least 2 arms")
        for name, least in self.measures.items():
            require(least > 0, f"smallest effect of {name}", least, "give > 0")

    def arms(self) -> set[str]:
        return {*self.group, *self.other}

    def measure_names(self) -> set[str]:
        return set(self.measures)

    def within(self, arms: set[str]) -> Self | None:
        """The groups of the units that a tier runs; None where one of them has no spread left."""
        group, other = ([arm for arm in one if arm in arms] for one in (self.group, self.other))
        whole = len(group) >= 2 and len(other) >= 2
        return replace(self, group=group, other=other) if whole else None

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        num_a, num_b, rule = len(self.group), len(self.other), RULES[self.kind]
        level = simultaneous_level(len(self.measures), rule.level)
        unit_MA, unit_MB = (
            np.stack([unit_means(table, arms, name) for name in self.measures])
            for arms in (self.group, self.other)
        )
        adjusted = holm(permutation_p(unit_MA, unit_MB, rng)).tolist()
        num_splits = min(comb(num_a + num_b, num_a), MOST_SPLITS + 1)
        least_p = (2 if num_a == num_b else 1) / num_splits
        found = {}
        for (name, least), unit_A, unit_B, p in zip(
            self.measures.items(), unit_MA, unit_MB, adjusted, strict=True
        ):
            interval = student_interval(unit_A, unit_B, level)
            estimate = float(unit_A.mean() - unit_B.mean())
            verdict = str(rule.judge(estimate, interval, p, least))
            if self.kind == "difference" and len(self.measures) * least_p >= ALPHA:
                verdict = NO_VERDICT
            note = f"{num_a} units against {num_b}"
            found[name] = Finding(verdict, estimate, interval, level, p, num_a + num_b, least, note)
        return found


@dataclass(frozen=True, kw_only=True)
class Units(StudyFigure):
    """A column per group: a mark per unit, the mean over initialisations less that of all units."""

    groups: Mapping[str, Sequence[str]]
    measures: Mapping[str, str]

    def fill(self, figure: Figure, table: pd.DataFrame) -> None:
        """Of the units that were run."""
        run = set(table["arm"])
        known = {name: [arm for arm in arms if arm in run] for name, arms in self.groups.items()}
        known = {name: arms for name, arms in known.items() if arms}
        if not known:
            raise NothingToDrawError("no group of arms was run in whole")
        figure.set_size_inches(1.0 + 3.0 * len(self.measures), 3.8)
        title(figure, "Each seeding's mean over initialisations")
        grid = figure.subplots(1, len(self.measures), squeeze=False).ravel()
        for axes, (measure, label) in zip(grid, self.measures.items(), strict=True):
            for place, (arms, marker) in enumerate(zip(known.values(), MARKERS, strict=False)):
                unit_U = unit_means(table, arms, measure)
                look = {"color": COLOURS[1 + place], "markerfacecolor": "none"}
                axes.plot(side_by_side(len(unit_U), place), unit_U, marker, **look)
                axes.plot([place - 0.25, place + 0.25], [unit_U.mean()] * 2, color="#000000")
            axes.set_xticks(range(len(known)), [plain(name) for name in known])
            axes.set_xlim(-0.6, len(known) - 0.4)
            axes.set_title(plain(label), size=10)
            axes.grid(visible=False, axis="x")
