"""Is there a best share of perturbed weights, and is it the claimed one? (source 000, prediction 2)

Claim and figure.

Shapes: S seeds, K shares.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from prismatic.errors import one_of, require
from prismatic.report.record import NothingToDrawError
from prismatic.report.style import MUTED, plain, title, view_style
from prismatic.stats import (
    INCONCLUSIVE,
    NO_VERDICT,
    REFUTED,
    SUPPORTED,
    Finding,
    family_findings,
    optimum,
    t_interval,
)

from ..claims import Claim, values
from ..figures import StudyFigure

NOTHING = 1e-9  # stands for a share of 0, which has no logarithm: far below all others
RAW, EQUAL = "raw", "equal strength"


def percent(share: float) -> str:
    return f"{0 if share == NOTHING else 100 * share:g} %"


def losses(table: pd.DataFrame, arms: Sequence[str], measure: str) -> np.ndarray:
    """A measure of several arms, (S, K): seeds in one order."""
    return np.stack([values(table, arm, measure).to_numpy() for arm in arms], 1)


def is_monotone(curve_SK: np.ndarray, smallest_effect: float, rng: np.random.Generator) -> bool:
    """Whether the mean only rises or only falls, and its ends certainly differ."""
    step_K = np.diff(curve_SK.mean(0))
    if not ((step_K > 0).all() or (step_K < 0).all()):
        return False
    climb_S = np.sign(step_K[0]) * (curve_SK[:, -1] - curve_SK[:, 0])
    return family_findings({"": climb_S}, smallest_effect, rng=rng)[""].verdict == SUPPORTED


def is_flat(
    worse: Mapping[str, np.ndarray], smallest_effect: float, rng: np.random.Generator
) -> bool:
    """Whether no share certainly differs from the claimed one by as much as matters."""
    found = family_findings(worse, smallest_effect, kind="no difference", rng=rng)
    return all(one.verdict == SUPPORTED for one in found.values())


@dataclass(frozen=True, kw_only=True)
class BestShare(Claim):
    """The loss over shares of perturbed weights is least near a claimed one.

    `raw` and `equal` are the arms of `shares`, which rise from 0 (no perturbation), at one scale
    and at one strength. Supported: `too_few` and `too_many` are worse than the claimed share by
    `smallest_effect`, the interval of the best share contains it and spans less than `span`.
    Refuted: that interval excludes it, or the curve is monotone, or flat. An optimum that only the
    raw arms have is an effect of strength. The estimate is by how much the nearer end is worse.
    """

    EFFECTS = "shares"

    measure: str
    shares: Sequence[float]
    raw: Sequence[str]
    equal: Sequence[str]
    smallest_effect: float
    claimed: float = 0.1
    too_few: float = 0.01
    too_many: float = 0.5
    span: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.shares[0] == 0, "shares", list(self.shares), "begin with 0")
        for share in (self.claimed, self.too_few, self.too_many):
            one_of("share", percent(share), tuple(map(percent, self.shares)))
        for name, arms in ((RAW, self.raw), (EQUAL, self.equal)):
            require(len(arms) == len(self.shares), f"{name} arms", list(arms), "name one per share")

    def arms(self) -> set[str]:
        return {*self.raw, *self.equal}

    def measure_names(self) -> set[str]:
        return {self.measure}

    def within(self, arms: set[str]) -> "BestShare | None":
        """All of the curve or nothing."""
        return self if self.arms() <= arms else None

    def judge(self, table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Finding]:
        found = {
            name: self.judge_curve(losses(table, arms, self.measure), rng)
            for name, arms in ((RAW, self.raw), (EQUAL, self.equal))
        }
        if found[RAW].verdict == SUPPORTED != found[EQUAL].verdict:
            note = f"{found[RAW].note}; not at equal strength, so an effect of strength"
            found[RAW] = replace(found[RAW], note=note)
        return found

    def judge_curve(self, curve_SK: np.ndarray, rng: np.random.Generator) -> Finding:
        """What one curve says; the numbers are those of the end that is less worse."""
        claimed_S = curve_SK[:, self.shares.index(self.claimed)]
        worse = {
            percent(share): curve_S - claimed_S
            for share, curve_S in zip(self.shares, curve_SK.T, strict=True)
            if share != self.claimed
        }
        sides = {side: worse[side] for side in map(percent, (self.too_few, self.too_many))}
        ends = family_findings(sides, self.smallest_effect, rng=rng).values()
        best = optimum(curve_SK, [NOTHING, *self.shares[1:]])
        shape = ""
        if is_flat(worse, self.smallest_effect, rng):
            shape = "flat"
        elif is_monotone(curve_SK, self.smallest_effect, rng):
            shape = "monotone"
        is_interior = all(end.verdict == SUPPORTED for end in ends)
        verdict = SUPPORTED if is_interior and best.span < self.span else INCONCLUSIVE
        if shape or not best.low <= self.claimed <= best.high:
            verdict = REFUTED
        if any(end.verdict == NO_VERDICT for end in ends):
            verdict = NO_VERDICT
        note = f"least at {percent(best.best)}, may be {percent(best.low)} to {percent(best.high)}"
        note += f"; the curve is {shape}" if shape else ""
        p = max(end.p for end in ends if end.p is not None)
        nearer = min(ends, key=lambda end: end.estimate)
        return replace(nearer, verdict=verdict, p=p, note=note)


@dataclass(frozen=True, kw_only=True)
class Curve(StudyFigure):
    """A measure over shares less its value without perturbation, a panel per scale.

    `panels` maps headings to {"raw": arms, "equal strength": arms}, in the order of `shares`.
    """

    measure: str
    heading: str
    label: str
    shares: Sequence[float]
    panels: Mapping[str, Mapping[str, Sequence[str]]]
    smallest_effect: float | None = None

    def fill(self, figure: Figure, table: pd.DataFrame) -> None:
        """Panels whose arms were not run are left out."""
        run = set(table["arm"])
        known = {
            name: lines
            for name, lines in self.panels.items()
            if {arm for arms in lines.values() for arm in arms} <= run
        }
        if not known:
            raise NothingToDrawError("no scale was run at all shares")
        figure.set_size_inches(3.2 + 3.8 * len(known), 4.0)
        title(figure, plain(self.heading))
        grid = figure.subplots(1, len(known), sharey=True, squeeze=False).ravel()
        for axes, (name, lines) in zip(grid, known.items(), strict=True):
            for look, (kind, arms) in enumerate(lines.items(), start=1):
                curve_SK = losses(table, arms, self.measure)
                excess_SK = curve_SK - curve_SK[:, :1]
                mean_K, ends_2K = excess_SK.mean(0), np.array(t_interval(excess_SK.T))
                place_K = np.arange(len(mean_K)) + 0.12 * (look - 1.5)  # lines stand apart
                reach_2K = np.nan_to_num(np.abs(ends_2K - mean_K))
                style = view_style(look) | {"capsize": 3, "markersize": 5, "label": kind}
                axes.errorbar(place_K, mean_K, reach_2K, **style)
            if self.smallest_effect is not None:
                axes.axhspan(-self.smallest_effect, self.smallest_effect, color="#EDEDED", zorder=0)
            axes.axhline(0, color=MUTED, linewidth=1)
            axes.set_xticks(range(len(self.shares)), [f"{100 * share:g}" for share in self.shares])
            axes.set_xlabel("share of weights perturbed, %")
            axes.set_title(plain(name))
        grid[0].set_ylabel(plain(self.label))
        grid[0].legend()
